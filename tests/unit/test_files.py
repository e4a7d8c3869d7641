"""Every format returns what was written, and all problems of a file are reported together."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import logging
import os
import pickle
import sys
import types
from pathlib import Path

import pytest

from groundtune.data import files
from groundtune.data.files import (
    read_documents,
    read_examples,
    scan_documents,
    scan_examples,
    sha256_of,
    write_documents,
    write_jsonl,
)
from groundtune.errors import DataError
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn

FAIRE = Path(__file__).parents[3] / "shared/data/faire"
needs_faire = pytest.mark.skipif(not FAIRE.is_dir(), reason=f"needs the Faire data in {FAIRE}")
needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")

DOCUMENTS = [
    Document("Plain text", "Title: Plain\nContent: Plain text", {"title": "Plain", "seq_num": 1}),
    Document("Line\u2028separator, é€😀, \ttab\r\nand newline", "", {"nested": {"tags": ["a", None, 0.5]}}),
    Document("", "Only formatted"),
]


def in_parquet(name: str):
    return pytest.param(name, marks=needs_pyarrow)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder, so that messages contain short file names, as users give them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row(**changes) -> dict:
    """A valid example with changes; a key set to `...` is left out."""
    valid = {"question": "What?", "gold_docs": [{"page_content": "This."}], "gold_answer": "This."}
    return {key: value for key, value in {**valid, **changes}.items() if value is not ...}


def write_lines(*lines: str | bytes | dict) -> None:
    data = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    encoded = [line.encode("utf-8") if isinstance(line, str) else line for line in data]
    Path("train.jsonl").write_bytes(b"\n".join(encoded) + b"\n")


def problems_of(read, *arguments) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return caught.value.problems


# Examples


def test_an_example_holds_everything_that_its_line_says(folder):
    turns = [{"speaker": "user", "message": "Hello"}, {"speaker": "system", "message": "Hi"}]
    document = {"page_content": "This.", "fmt_content": "Title: This.", "metadata": {"n": 1}}
    negatives = [{"page_content": "That."}]
    write_lines(row(gold_docs=[document], chat_history=turns, hard_neg_docs=negatives, other=7))
    assert read_examples("train.jsonl") == [
        Example(
            question="What?",
            answer="This.",
            gold_documents=(Document("This.", "Title: This."),),
            chat_history=(Turn(USER, "Hello"), Turn(ASSISTANT, "Hi")),
            hard_negatives=(Document("That."),),
            source="train.jsonl:1",
        )
    ]
    assert read_examples("train.jsonl")[0].gold_documents[0].metadata == {"n": 1}


@pytest.mark.parametrize("sources", [[{"page_content": "Greetings"}], [], None, [{"page_content": None}], 7])
def test_the_sources_that_turns_of_the_historical_format_name_are_ignored(folder, sources):
    write_lines(row(chat_history=[{"speaker": "system", "message": "Hi", "source_documents": sources}]))
    found = scan_examples("train.jsonl")
    assert (found.problems, found.suspicions) == ([], [])
    assert [example.chat_history for _, example in found.entries] == [(Turn(ASSISTANT, "Hi"),)]


def test_an_instruction_at_the_start_of_a_dialogue_is_no_answer_of_the_assistant(folder):
    def turns(*speakers):
        return [{"speaker": speaker, "message": f"Said by {speaker}."} for speaker in speakers]

    write_lines(row(chat_history=turns("System", "user", "system")), row(chat_history=turns("system", "assistant")))
    found = scan_examples("train.jsonl")
    assert [[turn.speaker for turn in example.chat_history] for _, example in found.entries] == [
        [USER, ASSISTANT], [ASSISTANT, ASSISTANT]
    ]  # fmt: skip
    (suspicion,) = found.suspicions
    assert suspicion.startswith("train.jsonl:1: chat_history[0].speaker: is 'system' before the first user turn")


def test_several_answers_and_the_lack_of_any_are_read_and_written_back(folder):
    write_lines(row(gold_answers=["This.", "that", " "]), row(answerable=False), row())
    several, none, plain = read_examples("train.jsonl")
    assert several.gold_answers == ("This.", "that") and several.acceptable_answers == ("This.", "that")
    assert (several.answerable, none.answerable, plain.answerable) == (True, False, True)
    assert plain.acceptable_answers == ("This.",)
    write_jsonl("train.jsonl", [example.to_dict() for example in (several, none, plain)])
    assert read_examples("train.jsonl") == [several, none, plain]
    write_lines(row(gold_answers="This."), row(gold_answers=[1]), row(answerable="no"))
    assert [problem.split(";")[0] for problem in problems_of(read_examples, "train.jsonl")] == [
        "train.jsonl:1: gold_answers: is 'This.', not a list of texts",
        "train.jsonl:2: gold_answers: is [1], not a list of texts",
        "train.jsonl:3: answerable: is 'no'",
    ]


@pytest.mark.parametrize("none", ["", None, [], ...])
def test_an_unanswerable_question_needs_no_gold_passages(folder, none):
    write_lines(row(gold_docs=none, answerable=False))
    (example,) = read_examples("train.jsonl")
    assert example.gold_documents == () and not example.answerable and not example.has_evidence


@pytest.mark.parametrize("none", ["", None, ...])
def test_only_an_empty_list_says_that_an_answerable_question_has_no_gold_passages(folder, none):
    write_lines(row(gold_docs=none))
    (problem,) = problems_of(read_examples, "train.jsonl")
    assert problem.startswith("train.jsonl:1: gold_docs: ") and '"answerable": false' in problem
    write_lines(row(gold_docs=[]))
    (example,) = read_examples("train.jsonl")
    assert example.gold_documents == () and example.answerable and not example.has_evidence


@pytest.mark.parametrize("none", ["", None, [], ...])
def test_no_history_and_no_negatives_can_be_said_in_four_ways(folder, none):
    write_lines(row(chat_history=none, hard_neg_docs=none))
    example = read_examples("train.jsonl")[0]
    assert example.chat_history == example.hard_negatives == ()


@pytest.mark.parametrize(
    "speaker, expected",
    [
        *[(name, USER) for name in ("user", "Human", " CUSTOMER ", "question")],
        *[(name, ASSISTANT) for name in ("assistant", "System", "bot", "gpt", "AI", "agent")],
    ],
)
def test_speakers_are_known_by_many_names(folder, speaker, expected):
    write_lines(row(chat_history=[{"speaker": speaker, "message": "Hello"}]))
    assert read_examples("train.jsonl")[0].chat_history[0].speaker == expected


def test_blank_lines_are_skipped_and_counted(folder):
    write_lines("", row(), "  \r", row())
    assert [example.source for example in read_examples("train.jsonl")] == ["train.jsonl:2", "train.jsonl:4"]


def test_the_source_names_the_file_as_it_was_given(folder):
    write_lines(row())
    assert read_examples("./train.jsonl")[0].source == "./train.jsonl:1"
    assert read_examples(folder / "train.jsonl")[0].source == f"{folder / 'train.jsonl'}:1"


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_one_do_no_harm(folder):
    line = json.dumps(row(question="Où ?"), ensure_ascii=False).encode("utf-8")
    Path("train.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert [example.question for example in read_examples("train.jsonl")] == ["Où ?", "Où ?"]


def test_unicode_line_separators_do_not_end_a_line(folder):
    write_lines(json.dumps(row(question="a\u2028b\x85c"), ensure_ascii=False))
    assert read_examples("train.jsonl")[0].question == "a\u2028b\x85c"


LINES = {  # a line, and what its one problem starts with after "train.jsonl:2: "
    "half a line": ('{"question": "What?"', "line: not valid JSON at column 21: Expecting ',' delimiter; "),
    "two objects": ("{} {}", "line: not valid JSON at column 4: Extra data; "),
    "single quotes": ("{'question': 1}", "line: not valid JSON at column 2: Expecting property name"),
    "list": ("[1, 2]", "line: is [1, 2], not an object; "),
    "string": ('"text"', "line: is 'text', not an object; "),
    "latin-1": ('{"question": "Où"}'.encode("latin-1"), "line: not UTF-8 (byte 16 is 0xf9); save the file as UTF-8"),
    "deep nesting": ("[" * 100_000, "line: is nested too deeply to be read; "),
    "deep objects": ('{"a":' * 100_000, "line: is nested too deeply to be read; "),
    "long integer": ('{"n": ' + "9" * 5000 + "}", "line: contains a number that cannot be read (Exceeds the limit"),
    "a name given twice": (
        '{"question": "a", "gold_docs": [], "question": "b"}',
        "line: question appears twice in one object; keep one",
    ),
    "a strange name given twice": ('{"x\\n": 1, "x\\n": 2}', r"line: 'x\n' appears twice in one object; "),
    "a name with a capital": (
        {**row(question=...), "Question": "What?"},
        "question: missing (there is 'Question'); every line needs",
    ),
    "a name in the plural": (
        {**row(gold_docs=...), "gold_doc": []},
        "gold_docs: missing (there is 'gold_doc'); give the passages",
    ),
    "no question": (row(question=...), 'question: missing; every line needs a "question" with the text of'),
    "null question": (row(question=None), "question: missing; "),
    "number as question": (row(question=7), "question: is 7, not text; every line needs a"),
    "half a character": (row(question="a\ud800"), r"question: 'a\ud800' contains half of a surrogate pair, "),
    "no answer": (row(gold_answer=...), 'gold_answer: missing; every line needs a "gold_answer"'),
    "list as answer": (row(gold_answer=["This."]), "gold_answer: is ['This.'], not text; "),
    "no gold": (row(gold_docs=...), "gold_docs: missing; give the passages"),
    "empty gold": (row(gold_docs=""), "gold_docs: empty; give the passages"),
    "object as gold": (row(gold_docs={"page_content": "a"}), "gold_docs: is {'page_content': 'a'}, not a list; "),
    "text as a document": (row(gold_docs=["This."]), "gold_docs[0]: is 'This.', not an object; a document is"),
    "no text": (row(gold_docs=[{"text": "a"}]), "gold_docs[0].page_content: missing; a document is"),
    "blank text": (
        row(gold_docs=[{"page_content": "a"}, {"page_content": " ", "fmt_content": ""}]),
        "gold_docs[1].page_content: is blank (' '); ",
    ),
    "only blank formatted text": (row(gold_docs=[{"fmt_content": " "}]), "gold_docs[0].page_content: missing; "),
    "number as formatted text": (
        row(gold_docs=[{"page_content": "a", "fmt_content": 1}]),
        "gold_docs[0].fmt_content: is 1, not text; ",
    ),
    "list as metadata": (
        row(gold_docs=[{"page_content": "a", "metadata": [1]}]),
        "gold_docs[0].metadata: is [1], not an object; ",
    ),
    "half a character in metadata": (
        row(gold_docs=[{"page_content": "a", "metadata": {"k": ["\udc00"]}}]),
        "gold_docs[0].metadata: contains half of a surrogate pair, ",
    ),
    "text as negatives": (row(hard_neg_docs="none"), "hard_neg_docs: is 'none', not a list; "),
    "wrong negative": (row(hard_neg_docs=[{}]), "hard_neg_docs[0].page_content: missing; "),
    "text as history": (row(chat_history="Hello"), "chat_history: is 'Hello', not a list; a turn is"),
    "text as a turn": (row(chat_history=["Hello"]), "chat_history[0]: is 'Hello', not an object; a turn is"),
    "no speaker": (row(chat_history=[{"message": "Hello"}]), "chat_history[0].speaker: missing; a turn is"),
    "unknown speaker": (
        row(chat_history=[{"speaker": "narrator", "message": "Hello"}]),
        "chat_history[0].speaker: 'narrator' is unknown; use one of user, human, ",
    ),
    "no message": (row(chat_history=[{"speaker": "user"}]), "chat_history[0].message: missing; a turn is"),
}


def test_a_scan_returns_what_is_valid_beside_what_is_wrong_and_what_is_suspicious(folder):
    write_lines(row(), row(question=3), row(question=" ", chat_histroy=[]), "{", row(hard_neg_docs=[]))
    found = scan_examples("train.jsonl")
    assert [where for where, _ in found.entries] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:5"]
    assert [": ".join(problem.split(": ")[:2]) for problem in found.problems] == [
        "train.jsonl:2: question", "train.jsonl:4: line",
    ]  # fmt: skip
    assert found.suspicions == ["train.jsonl:3: chat_histroy: is ignored; did you mean chat_history?"]


def test_a_scan_raises_nothing(folder):
    assert scan_documents("none.jsonl").problems == ["no such file: none.jsonl; check the path"]
    assert "unsupported file type for documents" in scan_documents("none.csv").problems[0]
    Path("d.pkl").write_bytes(b"x")
    assert "refused" in scan_documents("d.pkl").problems[0]
    write_lines("", "")
    assert scan_examples("train.jsonl").problems == ["train.jsonl: is empty; it needs at least one entry"]


@pytest.mark.parametrize(
    "content, kind",
    [
        ("{}\n{}\n".encode("utf-16"), "UTF-16 text"),
        (b"\x1f\x8b\x08\n\n\n", "a gzip archive"),
        (b"PAR1\n\n", "a Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_one_problem_and_not_one_for_every_line(folder, content, kind):
    Path("train.jsonl").write_bytes(content)
    (problem,) = problems_of(read_examples, "train.jsonl")
    assert problem == f"train.jsonl:1: line: the file is {kind}; it must be JSON lines in UTF-8"


def test_examples_with_a_blank_question_or_answer_are_left_out_with_one_warning(folder, caplog):
    blank = [row(question=" \n"), row(gold_answer=""), row(question="", gold_answer="\t")]
    write_lines(row(), *blank, row(question="Last?"), *blank)
    with caplog.at_level(logging.WARNING, "groundtune"):
        examples = read_examples("train.jsonl")
    assert [example.source for example in examples] == ["train.jsonl:1", "train.jsonl:5"]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("train.jsonl: left out 6 examples with a blank question or answer: train.jsonl:2, ")
    assert message.endswith("train.jsonl:7 and 1 more")


def test_no_warning_is_given_where_nothing_is_blank(folder, caplog):
    write_lines(row())
    assert len(read_examples("train.jsonl")) == 1 and not caplog.records


def test_a_file_of_blank_examples_is_a_problem(folder):
    write_lines(row(question=""), row(gold_answer=" "))
    (problem,) = problems_of(read_examples, "train.jsonl")
    assert problem == "train.jsonl: every question or answer is blank; write at least one example"


@pytest.mark.parametrize("line, start", LINES.values(), ids=LINES)
def test_a_wrong_line_is_one_problem_that_names_file_line_and_field(folder, line, start):
    write_lines(row(), line, row())
    (problem,) = problems_of(read_examples, "train.jsonl")
    assert problem.startswith(f"train.jsonl:2: {start}")
    assert "\n" not in problem
    assert "; " in problem  # and the way out


def test_all_problems_of_a_file_are_named_at_once(folder):
    write_lines(*[line for line, _ in LINES.values()])
    problems = problems_of(read_examples, "train.jsonl")
    assert len(problems) == len(LINES)
    for number, (problem, (_, start)) in enumerate(zip(problems, LINES.values(), strict=True), 1):
        assert problem.startswith(f"train.jsonl:{number}: {start}")


def test_all_problems_of_one_line_are_named_at_once(folder):
    write_lines({"chat_history": [{}]})
    fields = [problem.split(": ")[1] for problem in problems_of(read_examples, "train.jsonl")]
    assert sorted(fields) == [
        "chat_history[0].message", "chat_history[0].speaker", "gold_answer", "gold_docs", "question",
    ]  # fmt: skip


def test_many_problems_of_one_kind_are_shown_as_one_and_all_are_kept(folder):
    write_lines(*[row(question=3)] * 23, row(gold_answer=3))
    with pytest.raises(DataError) as caught:
        read_examples("train.jsonl")
    first, *_, other = caught.value.problems
    shown = f"{first} (23 such problems, the last in train.jsonl:23)"
    assert len(caught.value.problems) == 24 and str(caught.value) == f"{shown}\n{other}"


def test_twenty_kinds_of_problems_are_shown_and_the_rest_counted():
    problems = [f"train.jsonl:1: {letter}: missing" for letter in "abcdefghijklmnopqrstuvw"]
    assert str(DataError(problems)).splitlines() == [*problems[:20], "... and 3 more"]


@pytest.mark.parametrize("value", [["x" * 10_000], {"k" * 1000: "v" * 1000}, list(range(10_000)), 10**4000])
def test_a_value_is_shown_shortened(folder, value):
    write_lines(row(question=value))
    (problem,) = problems_of(read_examples, "train.jsonl")
    assert len(problem) < 200


def test_no_depth_of_nesting_escapes_as_a_recursion_error(folder):
    """Nor may there be a depth that can be read but not written."""
    limit = sys.getrecursionlimit()
    outcomes = set()
    for depth in [*range(limit - 200, limit + 20), 5_000, 100_000]:
        metadata = '{"a":' * depth + "1" + "}" * depth
        write_lines('{"page_content": "a", "metadata": ' + metadata + "}")
        try:
            outcomes.add(len(read_documents("train.jsonl")))
        except DataError as error:
            outcomes.add(str(error).partition(": ")[2])
    assert outcomes == {1, "line: is nested too deeply to be read; flatten it"}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_examples_is_a_problem(folder, content):
    Path("train.jsonl").write_bytes(content)
    assert problems_of(read_examples, "train.jsonl") == ["train.jsonl: is empty; it needs at least one entry"]


# Files that cannot be opened


@pytest.mark.parametrize("read", [read_examples, read_documents, sha256_of])
def test_a_missing_file_is_named_with_those_that_have_a_name_like_it(folder, read):
    for name in ("train.jsonl", "unlike.txt"):
        Path(name).touch()
    assert problems_of(read, "tran.jsonl") == ["no such file: tran.jsonl; did you mean train.jsonl?"]
    assert problems_of(read, "zzzzzzzz.jsonl") == ["no such file: zzzzzzzz.jsonl; check the path"]
    assert problems_of(read, Path("no/a.jsonl")) == [
        f"no such file: {Path('no/a.jsonl')}; there is no folder no either"
    ]


def test_a_folder_is_not_a_file(folder):
    Path("data.jsonl").mkdir()
    assert problems_of(read_examples, "data.jsonl") == ["no such file: data.jsonl is a folder; name a file in it"]


@pytest.mark.parametrize("name", ["a\0.jsonl", "a" * 5000 + ".jsonl"])
def test_a_name_that_no_file_can_have_is_a_problem(folder, name):
    assert "cannot be opened" in problems_of(read_examples, name)[0] or os.name == "nt"


# Documents


def as_pickle(path: str, documents: list[Document], monkeypatch) -> None:
    """Write the historical package's pickle without that package."""
    module = types.ModuleType("local_rqa.schema.document")
    module.Document = type("Document", (), {"__module__": module.__name__})
    for name in ("local_rqa", "local_rqa.schema"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    objects = [module.Document() for _ in documents]
    for made, document in zip(objects, documents, strict=True):
        vars(made).update(document.to_dict())
    Path(path).write_bytes(pickle.dumps(objects))


@pytest.mark.parametrize("name", ["d.jsonl", in_parquet("D.PARQUET"), "d.pkl", "d.pickle"])
def test_documents_come_back_from_every_format_as_they_were(folder, name, monkeypatch):
    if name.startswith("d.p"):
        as_pickle(name, DOCUMENTS, monkeypatch)
    else:
        write_documents(name, iter(DOCUMENTS))
    found = read_documents(name)
    assert found == DOCUMENTS
    assert [document.metadata for document in found] == [document.metadata for document in DOCUMENTS]


@pytest.mark.parametrize("name", ["documents.csv", "documents", "documents.jsonl.gz"])
def test_other_kinds_of_file_are_refused_with_those_that_are_accepted(folder, name):
    Path(name).touch()
    (problem,) = problems_of(read_documents, name)
    assert problem.startswith(f"{name}: ")
    assert problem.endswith(".jsonl, .parquet, .pkl, .pickle")
    assert ".jsonl or .parquet" in problems_of(write_documents, name, DOCUMENTS)[0]


def test_pickles_are_not_written(folder):
    assert problems_of(write_documents, "documents.pkl", DOCUMENTS)
    assert list(folder.iterdir()) == []


def test_documents_of_the_same_text_are_dropped_keeping_the_first(folder, caplog):
    same = [Document("Title: A", "", {"n": 1}), Document("A", "Title: A\n", {"n": 2}), Document("B")]
    write_documents("documents.jsonl", [*same, *same])
    with caplog.at_level(logging.INFO, logger="groundtune.data.files"):
        found = read_documents("documents.jsonl")
    assert [document.metadata for document in found] == [{"n": 1}, {}]
    assert "dropped 4 of 6 documents" in caplog.text


@pytest.mark.parametrize("name", ["d.jsonl", in_parquet("d.parquet"), "d.pkl"])
def test_an_empty_database_is_a_problem(folder, name, monkeypatch):
    if name == "d.pkl":
        as_pickle(name, [], monkeypatch)
    else:
        write_documents(name, [])
    assert problems_of(read_documents, name) == [f"{name}: is empty; it needs at least one entry"]


def test_all_wrong_documents_of_a_file_are_named_at_once(folder):
    write_lines({"page_content": "a"}, {"page_content": ""}, {"fmt_content": "b"}, {"text": "c"})
    assert [problem[:28] for problem in problems_of(read_documents, "train.jsonl")] == [
        "train.jsonl:2: page_content:",
        "train.jsonl:4: page_content:",
    ]


# Parquet


def write_table(columns: dict, **types) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    made = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(made), "d.parquet")


@needs_pyarrow
def test_parquet_metadata_may_be_json_text_a_struct_or_a_map(folder):
    import pyarrow as pa

    expected = [{"a": "1", "b": "2"}, {}]
    write_table({"page_content": ["x", "y"], "metadata": ['{"a": "1", "b": "2"}', None]})
    assert [document.metadata for document in read_documents("d.parquet")] == expected
    write_table({"page_content": ["x", "y"], "metadata": [{"a": "1", "b": "2"}, None]})
    assert [document.metadata for document in read_documents("d.parquet")] == expected
    pairs = [[("a", "1"), ("b", "2")], []]
    write_table({"page_content": ["x", "y"], "metadata": pairs}, metadata=pa.map_(pa.string(), pa.string()))
    assert [document.metadata for document in read_documents("d.parquet")] == expected


@needs_pyarrow
def test_other_parquet_columns_go_into_the_metadata_as_something_that_json_can_hold(folder):
    day = datetime.date(2024, 2, 29)
    columns = {"page_content": ["x"], "metadata": ['{"a": 1}']}
    write_table({**columns, "title": ["T"], "day": [day], "image": [b"\xff"]})
    (document,) = read_documents("d.parquet")
    assert document.metadata == {"a": 1, "title": "T", "day": "2024-02-29"}


@needs_pyarrow
def test_parquet_is_read_over_several_batches(folder, monkeypatch):
    monkeypatch.setattr(files, "_BATCH", 7)
    documents = [Document(f"text {number}") for number in range(50)]
    write_documents("d.parquet", documents)
    assert read_documents("d.parquet") == documents


@needs_pyarrow
@pytest.mark.parametrize(
    "columns, start",
    [
        ({"text": ["x"], "n": [1]}, "d.parquet: page_content: missing; add a column of this name (columns: text, n)"),
        ({"page_content": ["x", None]}, "d.parquet:2: page_content: missing; "),
        ({"page_content": [1]}, "d.parquet:1: page_content: is 1, not text; "),
        ({"page_content": ["x"], "metadata": ["{"]}, "d.parquet:1: metadata: is '{', not an object; "),
        ({"page_content": ["x"], "metadata": ["[" * 10**5]}, "d.parquet:1: metadata: is '[[[["),
        ({"page_content": ["x"], "metadata": [["ab"]]}, "d.parquet:1: metadata: is ['ab'], not an object; "),
    ],
)
def test_a_wrong_table_is_a_problem_that_names_row_and_column(folder, columns, start):
    write_table(columns)
    (problem,) = problems_of(read_documents, "d.parquet")
    assert problem.startswith(start)


@needs_pyarrow
@pytest.mark.parametrize("keep", [0, 4, 100, -9, -1])
def test_a_damaged_parquet_file_is_a_problem(folder, keep):
    write_documents("d.parquet", DOCUMENTS)
    whole = Path("d.parquet").read_bytes()
    Path("d.parquet").write_bytes(whole[:keep])
    (problem,) = problems_of(read_documents, "d.parquet")
    assert problem.startswith("d.parquet: not a readable Parquet file (")


def test_without_pyarrow_the_error_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("d.parquet").touch()
    assert '; pip install "pyarrow>=' in problems_of(read_documents, "d.parquet")[0]
    assert '; pip install "pyarrow>=' in problems_of(write_documents, "d.parquet", DOCUMENTS)[0]


# Writing


def test_jsonl_is_utf8_as_it_is_with_plain_newlines(folder):
    write_jsonl("rows.jsonl", [{"a": "é😀"}, {"b": [1, None]}])
    assert Path("rows.jsonl").read_bytes() == '{"a": "é😀"}\n{"b": [1, null]}\n'.encode()


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": "\ud800"}], ids=["not JSON", "not UTF-8"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(folder, bad):
    write_jsonl("rows.jsonl", [{"a": 1}])
    with pytest.raises((TypeError, ValueError)):
        write_jsonl("rows.jsonl", [{"a": 2}, bad])
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
    assert Path("rows.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n'


def test_a_file_is_complete_when_it_takes_its_place(folder, monkeypatch):
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((Path(source).parent, Path(source).read_text(encoding="utf-8"), Path(target).exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_jsonl(folder / "rows.jsonl", [{"a": 1}])
    assert seen == [(folder.resolve(), '{"a": 1}\n', False)]


def test_the_folder_of_a_new_file_is_made(folder):
    write_jsonl("a/b/rows.jsonl", [{"a": 1}])
    assert Path("a/b/rows.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_new_file_has_the_usual_mode(folder):
    Path("usual").touch()
    write_jsonl("rows.jsonl", [{"a": 1}])
    assert Path("rows.jsonl").stat().st_mode == Path("usual").stat().st_mode


def test_the_hash_of_a_file_is_that_of_its_bytes(folder):
    data = os.urandom(2**20 + 17)
    Path("data").write_bytes(data)
    assert sha256_of("data") == hashlib.sha256(data).hexdigest()


# Real data


@needs_faire
def test_the_faire_eval_examples_are_read(folder):
    examples = read_examples(FAIRE / "eval_w_qa.jsonl")
    assert len(examples) == 73
    assert all(len(example.gold_documents) == 1 and len(example.hard_negatives) == 2 for example in examples)


@needs_faire
def test_the_one_faire_train_example_with_a_blank_question_is_left_out_and_named(folder, caplog):
    path = FAIRE / "train_w_qa.jsonl"
    with caplog.at_level(logging.WARNING, "groundtune"):
        examples = read_examples(path)
    assert len(examples) == 574 and f"{path}:495" not in {example.source for example in examples}
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: left out 1 examples with a blank question or answer: {path}:495"


@needs_faire
@needs_pyarrow
def test_the_faire_documents_are_the_same_in_every_format(folder):
    documents = read_documents(FAIRE / "documents.pkl")
    assert len(documents) == 1757  # one of the 1,758 repeats another
    for name in ("documents.jsonl", "documents.parquet"):
        write_documents(name, documents)
        found = read_documents(name)
        assert [document.to_dict() for document in found] == [document.to_dict() for document in documents]
