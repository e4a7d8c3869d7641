"""Filters on metadata: a parser of their own that knows positions, and one meaning everywhere."""

from __future__ import annotations

import pytest

from groundtune.errors import DataError
from groundtune.filters import filter_problems, in_milvus, kept, parsed
from groundtune.retrieval.opening import narrowed
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document

PAGES = [
    {"lang": "en", "date": "2025-03-01", "pages": 3, "tags": ["fees", "2025"], "source": {"name": "a.md"}},
    {"lang": "de", "date": "2024-12-31", "pages": 10, "draft": True, "any name": 1},
    {"lang": "en", "date": "2023", "pages": 2.5, "draft": False, "author's": "x"},
    {"lang": None, "pages": "3"},
    {},
]
CASES = {
    'lang == "en"': [0, 2],
    "lang == 'en' and date >= \"2025\"": [0],
    'date < "2025"': [1, 2],
    'lang != "en"': [1],  # a passage without a language is not known to be in another
    'not lang == "en"': [1, 3, 4],
    'lang in ["de", "fr"]': [1],
    'lang not in ["de", "fr"]': [0, 2, 3, 4],
    "pages > 2.5": [0, 1],
    "3 <= pages": [0, 1],
    "pages == 3": [0],  # not the text "3"
    'pages == "3"': [3],
    "pages == true": [],
    "draft": [1],
    "not draft": [0, 2, 3, 4],
    "draft == false": [2],
    '"fees" in tags': [0],
    '"fees" not in tags': [1, 2, 3, 4],
    'source.name == "a.md"': [0],
    "`any name` == 1": [1],
    '`author\'s` == "x"': [2],
    'lang == "en" and pages > 2.6 or draft': [0, 1],
    'lang == "en" and (pages > 2.6 or draft)': [0],
    'NOT (lang == "en" OR draft)': [3, 4],
    "pages < -1e3 or pages >= +10": [1],
}


@pytest.mark.parametrize("text", CASES)
def test_a_filter_keeps_the_passages_that_it_describes(text):
    condition = parsed(text)
    assert [i for i, metadata in enumerate(PAGES) if condition(metadata)] == CASES[text]


@pytest.mark.parametrize(
    "text, at, found",
    [
        ("lang = 'en'", 6, "= 'en'"),
        ("lang ==", 8, "the end"),
        ("lang == en", 9, "'en'"),
        ("(lang == 'en'", 14, "the end"),
        ("lang == 'en' date > 3", 14, "'date'"),
        ("lang in 'en'", 9, "'en'"),
        ("lang in []", 10, "']'"),
        ("lang in ['en' 'de']", 15, "'de'"),
        ("lang not 'en'", 10, "'en'"),
        ("3", 2, "the end"),
        ("3 not 4", 7, "'4'"),
        ("3 in 4", 6, "'4'"),
        ("lang == 'en", 9, "'en"),
        ("pages > 1e999", 9, "1e999"),
        ("__import__('os')", 11, "'('"),
        ("lang == 'en' or", 16, "the end"),
        ("", 1, "the end"),
        ("pages > 12abc", 9, "12abc"),
        ("(" * 60, 51, "'('"),
        ("not " * 60 + "draft", 201, "'not'"),
    ],
)
def test_what_is_no_filter_is_one_line_with_its_position(text, at, found):
    with pytest.raises(DataError) as error:
        parsed(text)
    (line,) = error.value.problems
    assert f"at character {at}: expected " in line and found in line and "\n" not in line


def test_a_filter_of_any_length_is_read_or_refused_in_one_line():
    assert parsed(" or ".join(["draft"] * 1000))({"draft": True})
    (line,) = filter_problems("draft or " * 2000 + "draft")
    assert "18,005 characters" in line
    assert filter_problems("") == filter_problems("draft") == []


def test_a_filter_that_leaves_nothing_says_what_there_is():
    documents = [Document(str(i), metadata=metadata) for i, metadata in enumerate(PAGES)]
    assert kept("", documents) is None and kept("draft", documents) == [1]
    with pytest.raises(DataError, match="leaves none of the 5 passages; no passage has a field 'langg'; .*lang, pages"):
        kept('langg == "en"', documents)
    with pytest.raises(DataError, match="leaves none of the 5 passages; the fields"):
        kept('lang == "fr"', documents)


def test_a_filter_is_quoted_for_milvus_whatever_it_holds():
    assert in_milvus(parsed("""lang == 'e"n' and not a.b in [1, true]"""), "m") == (
        """((exists m["lang"] and m["lang"] == "e\\"n") and """
        """(not (exists m["a"]["b"] and (m["a"]["b"] == 1 or m["a"]["b"] == true))))"""
    )
    assert in_milvus(parsed('`x"] or 1` != 2 or "t" in tags'), "m") == (
        """((exists m["x\\"] or 1"] and m["x\\"] or 1"] != 2) or """
        """(exists m["tags"] and json_contains(m["tags"], "t")))"""
    )


def test_a_second_filter_that_leaves_nothing_of_the_first_is_said_with_how_many_that_were():
    documents = [Document(f"dogs number {i}", metadata={"n": i}) for i in range(6)]
    first = narrowed(BM25Retriever(documents), "n < 3")
    with pytest.raises(DataError, match=r"--filter: n > 4 leaves none of the 3 passages"):
        narrowed(first, "n > 4")
