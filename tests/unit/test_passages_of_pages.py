"""Pages are cut into passages that can be understood alone, in linear time, and none is part of another."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")


from groundtune.cli import main
from groundtune.data.files import read_documents, write_documents
from groundtune.prepare.chunking import Chunker
from groundtune.prepare.readers.page import Page
from groundtune.prepare.twins import merge_contained
from groundtune.schema import Document

SENTENCES = [f"Sentence number {n} says that book {n} lies on shelf {n}." for n in range(1, 61)]


def texts(counter, text: str, size: int, overlap: int = 0, markdown: bool = True) -> list[str]:
    page = Page(text, "T", "a", markdown=markdown)
    return [passage.page_content for passage in Chunker(counter, size, overlap).passages(page)]


def test_each_piece_of_a_table_has_its_column_names_and_each_row_is_in_one(counter):
    names = "| Number | Price |\n|---|---|\n"
    rows = [f"| part-{n} | {n} EUR |\n" for n in range(60)]
    text = f"# Parts\n\nAll prices.\n\n{names}{''.join(rows)}\nAfter the table.\n"
    found = texts(counter, text, 200, 60)
    assert len(found) > 3 and all(names in passage for passage in found if "part-" in passage)
    assert found[0].startswith(f"# Parts\n\nAll prices.\n\n{names}{rows[0]}")
    assert [sum(row.strip() in passage for passage in found) for row in rows] == [1] * 60
    assert all(len(counter.encode(passage).ids) <= 200 for passage in found)


def test_no_passage_ends_in_a_heading(counter):
    text = "\n\n".join(f"{'#' * (1 + n % 3)} Part {n}\n\n{' '.join(SENTENCES[: 1 + n % 5])}" for n in range(30))
    found = texts(counter, text, 140, 30)
    assert len(found) > 20 and not any(passage.splitlines()[-1].startswith("#") for passage in found)
    assert all(any(f"# Part {n}" in passage for passage in found) for n in range(30))


def test_sections_are_cut_before_paragraphs_and_those_before_sentences(counter):
    first, second = " ".join(SENTENCES[:3]), " ".join(SENTENCES[3:6])
    assert texts(counter, f"## A\n\n{first}\n\n## B\n\n{second}", 150) == [f"## A\n\n{first}", f"## B\n\n{second}"]
    assert texts(counter, f"{first}\n\n{second}", 150) == [first, second]
    assert all(passage.endswith(".") for passage in texts(counter, " ".join(SENTENCES), 150))


def test_lines_that_end_at_the_edge_of_a_page_are_no_boundaries(counter):
    words = " ".join(SENTENCES).split()
    wrapped = "\n".join(" ".join(words[n : n + 4]) for n in range(0, len(words), 4))
    assert all(passage.endswith(".") for passage in texts(counter, wrapped, 150, markdown=False))


@pytest.mark.parametrize("unit", ["a", "a-", "几", "\n", " ", "# a####\n", "- a\n", "| a | b |\n", "<!--", "A b. "])
@pytest.mark.parametrize("markdown", [False, True])
def test_four_times_the_text_takes_at_most_six_times_as_long_to_cut(counter, unit, markdown):
    def seconds(length: int) -> float:
        begin = time.process_time()
        found = texts(counter, unit * (length // len(unit)), 200, 50, markdown)
        assert all(len(passage) < 10_000 for passage in found)
        return max(time.process_time() - begin, 0.01)

    many, few = zip(*((seconds(40_000), seconds(10_000)) for _ in range(4)))  # in turn, as a busy machine slows both
    assert min(many) <= 6 * min(few) + 0.1


# Passages within each other


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_passages_that_are_part_of_others_are_merged(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    kept = [
        Document("Refunds arrive within five days. Ask the desk.", "", {"title": "Refunds", "number": 1}),
        Document("Refunds arrive within five days", "", {"title": "Another title"}),
        Document("Arrive within five days or not", "", {"title": "Refunds"}),
        Document("Keep it at -5 degrees at night.", "", {"title": "Long"}),
        Document("Keep it at 5 degrees", "", {"title": "Long"}),
        Document("Ask the desk", "", {"title": "Refunds"}),  # too short to be looked for
        Document("开放时间：周一至周五，九点到十七点。", "", {"title": "Long"}),
        Document("A long text that goes on and on and ends.", "", {"title": "Long"}),
    ]
    parts = [
        Document("refunds arrive -- within FIVE days", "", {"title": "Refunds"}),
        Document("Refunds arrive within five days! Ask the desk", "", {"title": "Refunds"}),
        Document("goes on and on and ends", "", {"title": "Long"}),
        Document("周一至周五，九点到", "", {"title": "Long"}),
    ]
    path = tmp_path / f"documents{suffix}"
    write_documents(path, [parts[0], *kept[:2], parts[1], *kept[2:], *parts[2:]])
    assert merge_contained(path) == 4
    assert [(one.page_content, one.metadata) for one in read_documents(path)] == [
        (one.page_content, one.metadata) for one in kept
    ]
    assert merge_contained(path) == 0


@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        ("Store it at -5 degrees in winter here", "Store it at 5 degrees in winter here", 0),
        ("温度是 -5 度，在冬天的北京市", "温度是 5 度，在冬天的北京市", 0),
        ("Хранить зимой при -5кг на полке тут", "Хранить зимой при 5кг на полке тут", 0),
        ("Цена 3.5 рубля за каждую штуку", "Цена 3-5 рубля за каждую штуку", 0),
        ("язык C++ нужен для этого курса", "язык C нужен для этого курса", 0),
        ("温度是5度，在冬天的北京市。", "温度是 5 度 在冬天的北京市", 1),
        ("سعر ٣٥ درهما لكل قطعة هنا، اليوم", "سعر 35 درهما لكل قطعة هنا", 1),
    ],
)
def test_passages_whose_numbers_or_names_differ_are_kept_in_every_script(tmp_path, one, other, merged):
    path = tmp_path / "documents.jsonl"
    write_documents(path, [Document(one), Document(other)])
    assert merge_contained(path) == merged


def test_the_time_to_merge_grows_with_the_number_of_words(tmp_path):
    def seconds(number: int) -> float:
        path = tmp_path / f"{number}.jsonl"
        write_documents(path, (Document(f"{'same words again ' * 60} {n}", "", {"title": "T"}) for n in range(number)))
        begin = time.process_time()
        assert merge_contained(path) == 0
        return time.process_time() - begin

    assert seconds(400) <= 6 * min(seconds(100), seconds(100)) + 0.1


def test_the_command_merges_and_says_so(tmp_path, tokenizer_folder, capsys):
    rows = [{"title": "T", "text": " ".join(SENTENCES[:4])}, {"title": "T", "text": SENTENCES[1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "d.jsonl"
    assert main(["documents", str(tmp_path / "a.jsonl"), "-o", str(output), "--tokenizer", str(tokenizer_folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "merged: 1 passages that are part of another one" in said and "Wrote 1 passages" in said, said
    assert len(read_documents(output)) == 1


# Defaults


@pytest.mark.parametrize("reads, expected", [(100, 84), (4000, 400), (None, 400), (20, 16)])
def test_passages_are_by_default_as_long_as_the_embedding_model_reads(tmp_path, monkeypatch, reads, expected):
    asked = []
    monkeypatch.setattr("groundtune.retrieval.reading_limit.longest_read", lambda name: reads)
    monkeypatch.setattr("groundtune.prepare.corpus.check", lambda *given: asked.append(given[-2:]) or ["stop here"])
    assert main(["documents", str(tmp_path), "-o", str(tmp_path / "d.jsonl"), "--tokenizer", "t"]) == 2
    assert asked == [(expected, min(50, expected // 4))]


def test_a_column_of_vectors_is_no_metadata(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    import pyarrow.parquet as pq

    columns = {"page_content": ["Dogs wait."], "embedding": [[0.1] * 384], "price": [3]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (document,) = read_documents(tmp_path / "a.parquet")
    assert document.metadata == {"price": 3}
