"""Every check finds what was planted, names its place, and is silent on clean data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.arguments import DataArguments
from groundtune.data.checks import TITLES, Finding, check_texts, condensed, counts, in_order, place, read_dataset
from groundtune.data.words import telling_words, words

FAIRE = Path(__file__).parents[3] / "shared/data/faire"


def as_row(example) -> dict:
    return {
        "question": example.question,
        "gold_docs": [d.to_dict() for d in example.gold_documents],
        "gold_answer": example.answer,
        "chat_history": [{"speaker": t.speaker, "message": t.message} for t in example.chat_history],
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Clean files: rows by name, which tests change before `examine` writes them. Lines follow tiny_documents."""
    monkeypatch.chdir(tmp_path)
    rows = [as_row(example) for example in tiny_examples()]
    return {
        "documents": [document.to_dict() for document in tiny_documents()],
        "train": rows[:3], "eval": rows[3:5], "test": rows[5:],
    }  # fmt: skip


def write(data: dict) -> DataArguments:
    for name, rows in data.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = {f"{split}_file": f"{split}.jsonl" for split in ("train", "eval", "test") if split in data}
    return DataArguments(full_dataset_file_path="documents.jsonl" if "documents" in data else "", **flags)


def examine(data: dict) -> list[Finding]:
    dataset = read_dataset(write(data))
    return in_order(check_texts(dataset), dataset)


def test_clean_data_has_no_findings(data):
    assert examine(data) == []


def turns(*speakers: str) -> list[dict]:
    return [{"speaker": speaker, "message": f"Message {i}."} for i, speaker in enumerate(speakers)]


LONG = "The desk opens at nine in the morning and closes at six in the evening, except on holidays."

# Planted problems and expected findings: the check, the place and the field, in order.
PLANTED = {
    "blank question": (
        lambda d: d["train"][1].update(question=" \n"),
        [("blank", "train.jsonl:2", "question")],
    ),
    "blank question and answer": (
        lambda d: d["train"][1].update(question="", gold_answer="\t"),
        [("blank", "train.jsonl:2", "question"), ("blank", "train.jsonl:2", "gold_answer")],
    ),
    "misspelt history": (
        lambda d: d["train"][2].update(chat_histroy=d["train"][2].pop("chat_history")),
        [("misspelt", "train.jsonl:3", "chat_histroy")],
    ),
    "misspelt negatives": (
        lambda d: d["eval"][0].update(hard_neg_doc=[]),
        [("misspelt", "eval.jsonl:1", "hard_neg_doc")],
    ),
    "misspelt formatted text": (
        lambda d: d["documents"].append({"page_content": "More.", "fmt_contents": "Title: More"}),
        [("misspelt", "documents.jsonl:7", "fmt_contents")],
    ),
    "an instruction as the first turn": (
        lambda d: d["train"][2].update(chat_history=turns("system", "user", "assistant")),
        [("misspelt", "train.jsonl:3", "chat_history[0].speaker")],
    ),
    "a thought in a gold answer": (
        lambda d: d["train"][0].update(gold_answer="<think>\nHm.</think>\n" + d["train"][0]["gold_answer"]),
        [("thought", "train.jsonl:1", "gold_answer")],
    ),
    "a thought in a message": (
        lambda d: d["train"][2]["chat_history"][1].update(message="hm</think>Yes."),
        [("thought", "train.jsonl:3", "chat_history[1].message")],
    ),
    "mojibake in a question": (
        lambda d: d["train"][0].update(question="Wann \u00c3\u00b6ffnet sie?"),
        [("encoding", "train.jsonl:1", "question")],
    ),
    "a lost character in an answer": (
        lambda d: d["test"][0].update(gold_answer="On floor tw\ufffd."),
        [("encoding", "test.jsonl:1", "gold_answer")],
    ),
    "a quote from Windows in a message": (
        lambda d: d["train"][2]["chat_history"][1].update(message="It\u00e2\u20ac\u2122s open."),
        [("encoding", "train.jsonl:3", "chat_history[1].message")],
    ),
    "a control character in a document": (
        lambda d: d["documents"].append({"page_content": "More\x00 text."}),
        [("encoding", "documents.jsonl:7", "page_content")],
    ),
    "a document twice": (
        lambda d: d["documents"].append(d["documents"][1]),
        [("repeated-document", "documents.jsonl:7", "fmt_content")],
    ),
    "a question asked twice": (
        lambda d: d["train"].append({**d["train"][0], "question": "WHEN is it  that the library opens"}),
        [("repeated-question", "train.jsonl:4", "question")],
    ),
    "a question of train in test": (
        lambda d: d["test"].append(d["train"][1]),
        [("leaked-question", "test.jsonl:2", "question")],
    ),
    "a question of train in eval": (
        lambda d: d["eval"].append(d["train"][1]),
        [("leaked-question", "eval.jsonl:3", "question")],
    ),
    "a question of eval in test": (
        lambda d: d["test"].append(d["eval"][1]),
        [("leaked-question", "test.jsonl:2", "question")],
    ),
    "gold of train in test": (
        lambda d: d["test"].append({**d["train"][1], "question": "Is there a desk?"}),
        [("leaked-gold", "test.jsonl:2", "gold_docs[0]")],
    ),
    "gold of train in test, under another title": (
        lambda d: d["test"].append(
            {
                **d["train"][1],
                "question": "Is there a desk?",
                "gold_docs": [{**d["train"][1]["gold_docs"][0], "fmt_content": "Title: Other\nTo the desk."}],
            }
        ),
        [("leaked-gold", "test.jsonl:2", "gold_docs[0]"), ("gold-not-in-database", "test.jsonl:2", "gold_docs[0]")],
    ),
    "gold that is no document": (
        lambda d: d["documents"].pop(4),
        [("gold-not-in-database", "eval.jsonl:2", "gold_docs[0]")],
    ),
    "an answer off its passage": (
        lambda d: d["eval"][0].update(gold_answer="Ask Maria."),
        [("answer-off-passage", "eval.jsonl:1", "gold_answer")],
    ),
    "an answerable question without gold": (
        lambda d: d["eval"][0].update(gold_docs=[]),
        [("without-gold", "eval.jsonl:1", "gold_docs")],
    ),
    "a negative that is gold": (
        lambda d: d["train"][0].update(hard_neg_docs=[d["documents"][1], *d["train"][0]["gold_docs"]]),
        [("gold-as-negative", "train.jsonl:1", "hard_neg_docs[1]")],
    ),
    "a negative with the text of gold": (
        lambda d: (
            d["train"][0].update(hard_neg_docs=[{"page_content": f"{LONG} Ask."}], gold_docs=[{"page_content": LONG}]),
            d["train"][0].update(gold_answer="At nine."),
            d["documents"].append({"page_content": LONG}),
        ),
        [("negative-with-gold-text", "train.jsonl:1", "hard_neg_docs[0]")],
    ),
    "a document within another": (
        lambda d: d["documents"].extend([{"page_content": LONG}, {"page_content": LONG + " Dogs wait outside."}]),
        [("contained-passage", "documents.jsonl:7", "page_content")],
    ),
    "another passage of an article that is trained on": (
        lambda d: [d[split][0]["gold_docs"][0].update(metadata={"url": "a"}) for split in ("train", "test")],
        [("shared-article", "test.jsonl", "")],
    ),
    "two turns of one speaker": (
        lambda d: d["train"][0].update(chat_history=turns("user", "assistant", "bot", "user")),
        [("history", "train.jsonl:1", "chat_history[2].speaker")],
    ),
    "a history that ends with the user": (
        lambda d: d["train"][0].update(chat_history=turns("assistant", "user")),
        [("history", "train.jsonl:1", "chat_history[1].speaker")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("plant, expected", PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_found_at_its_place_and_nothing_else(data, plant, expected):
    plant(data)
    found = examine(data)
    assert [(f.check, f.where, f.field) for f in found] == expected
    for finding in found:
        assert finding.severity == "warning" and finding.check in TITLES
        assert "; " in finding.message and "\n" not in str(finding)  # one line, with a way out
        assert str(finding).startswith(": ".join(filter(None, (finding.where, finding.field, finding.message[:9]))))


HARMLESS = {
    "answers that cannot be judged by their words": lambda d: d["train"][0].update(gold_answer="Yes, it is."),
    "another form of a word": lambda d: d["train"][0].update(gold_answer="Opening: 9"),
    "one question after two dialogues": lambda d: (
        d["train"][1].update(question="And then?", chat_history=turns("user", "assistant")),
        d["train"][2].update(question="And then?"),
    ),
    "a history that begins with the assistant": lambda d: d["train"][0].update(
        chat_history=turns("assistant", "user", "assistant")
    ),
    "names in capitals and accents": lambda d: d["train"][0].update(question="ÂGE, NÃO, là-bas – “où”?"),
    "fields of one's own": lambda d: d["train"][0].update(id=7, url="http://x", history_of_the_house="old"),
    "an answer in a script without spaces": lambda d: (
        d["train"][0].update(gold_answer="九時に開きます", gold_docs=[{"page_content": "図書館は九時に開く。"}]),
        d["documents"].append({"page_content": "図書館は九時に開く。"}),
    ),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_is_as_it_should_be_is_no_finding(data, change):
    change(data)
    assert examine(data) == []


def test_all_of_it_is_found_at_once_in_the_order_of_files_and_lines(data):
    data["documents"].insert(2, "{")
    data["train"].insert(1, {"question": 1})
    data["test"].append({**data["test"][0], "gold_answer": "Ask Maria."})
    data["eval"][0]["question"] = ""
    found = examine(data)
    assert [(f.severity, f.check, f.where) for f in found] == [
        ("error", "format", "documents.jsonl:3"),
        *[("error", "format", "train.jsonl:2")] * 3,
        ("warning", "blank", "eval.jsonl:1"),
        ("warning", "repeated-question", "test.jsonl:2"),
        ("warning", "answer-off-passage", "test.jsonl:2"),
    ]


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_still_examined(data):
    arguments = write(data)
    Path("train.jsonl").write_bytes(b"\xff\xfe{\x00")
    Path("eval.jsonl").unlink()
    data["test"].append(data["test"][0])
    write({"test": data["test"]})
    found = check_texts(read_dataset(arguments))
    assert [(f.check, f.where, f.field) for f in found] == [
        ("format", "train.jsonl:1", "line"), ("format", "", ""), ("repeated-question", "test.jsonl:2", "question"),
    ]  # fmt: skip
    assert "UTF-16" in str(found[0]) and str(found[1]).startswith("no such file: eval.jsonl; did you mean")


def test_any_file_may_be_left_out(data):
    assert examine({"train": data["train"]}) == []
    assert read_dataset(DataArguments()).examples == {}


def test_a_file_of_blank_examples_is_an_error(data):
    for row in data["eval"]:
        row["question"] = " "
    (error,) = [f for f in examine(data) if f.severity == "error"]
    assert str(error) == "eval.jsonl: every question or answer is blank; write at least one example"


@pytest.mark.parametrize(
    "flag, other", [("eval_file", "train_file"), ("test_file", "train_file"), ("test_file", "eval_file")]
)
def test_a_file_given_twice_is_one_finding_and_not_one_for_every_line(data, flag, other):
    arguments = write(data)
    setattr(arguments, flag, f"./{getattr(arguments, other)}")
    (found,) = check_texts(read_dataset(arguments))
    assert (found.check, found.where) == ("same-file", getattr(arguments, flag)) and f"--{other}" in found.message


def test_gold_of_other_formatting_is_told_where_its_text_is(data):
    data["train"][0]["gold_docs"] = [{"page_content": data["documents"][0]["page_content"]}]
    (found,) = examine(data)
    assert found.check == "gold-not-in-database" and "documents.jsonl:1" in found.message


def test_counts_are_one_line_for_each_file_and_check(data):
    for row in data["train"]:
        row["chat_history"] = turns("user")
    data["eval"][1]["gold_answer"] = ""
    assert counts(examine(data)) == [
        "train.jsonl: 3 x chat history whose speakers do not alternate (first in line 1)",
        "eval.jsonl: 1 x blank question or answer, skipped (line 2)",
    ]


@pytest.mark.parametrize("n", [5, 6])
def test_a_kind_that_a_file_is_full_of_is_one_line_with_number_share_places_and_way_out(data, n):
    data["train"] = [{**data["train"][0], "question": f"When does room {i} open?"} for i in range(8)]
    for row in data["train"][1 : n + 1]:
        row["chat_history"] = turns("user")
    data["eval"][0]["chat_history"] = turns("user")
    data["eval"] += ["{"] * 7
    dataset = read_dataset(write(data))
    found = in_order(check_texts(dataset), dataset)
    lines = condensed(found, dataset)
    first = next(f for f in found if f.check == "format")
    assert [line for line in lines if "error: " in line] == [
        f"error: {first} (7 such problems, the last in eval.jsonl:9)"
    ]
    assert [line for line in lines if "eval.jsonl:1:" in line] == [
        f"warning: {f}" for f in found if f.where == "eval.jsonl:1"
    ]
    told = [line for line in lines if "train.jsonl" in line]
    if n == 5:
        assert told == [f"warning: {f}" for f in found if "train" in f.where] and len(told) == 5
    else:
        assert told == [
            "warning: train.jsonl: 6 x chat history whose speakers do not alternate (75 % of 8 examples); the first: "
            "train.jsonl:2: chat_history[0].speaker: is 'user', but the question follows without an answer to it; "
            "add the answer, or move the turn into the question; then lines 3 and 4"
        ]


def test_a_share_counts_lines_and_those_that_are_left_out_too(data):
    """Two findings on one line count as one line, and blank examples count as read."""
    data["train"] = [{**data["train"][0], "question": "", "gold_answer": " "} for _ in range(3)] + data["train"] * 2
    dataset = read_dataset(write(data))
    (line,) = [line for line in condensed(check_texts(dataset), dataset) if "blank" in line]
    assert line.startswith(
        "warning: train.jsonl: 6 x blank question or answer, skipped (33 % of 9 examples); the first: "
    )


def test_a_finding_names_file_and_line_for_machines():
    finding = Finding("error", "format", "C:\\a:b\\train.jsonl:17", "question", "is 1, not text; write text")
    assert finding.to_dict() == {
        "file": "C:\\a:b\\train.jsonl", "line": 17, "severity": "error", "check": "format",
        "where": "C:\\a:b\\train.jsonl:17", "field": "question", "message": "is 1, not text; write text",
        "tokens": None,
    }  # fmt: skip
    assert place("train.jsonl") == ("train.jsonl", 0)


def test_the_time_grows_with_the_data_and_not_with_its_square(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def seconds(n: int) -> float:
        documents = [{"page_content": f"Room {i} opens at nine, says note {i}."} for i in range(n)]
        rows = [
            {"question": f"When does room {i} open?", "gold_docs": [documents[i]], "gold_answer": "At nine."}
            for i in range(n)
        ]
        arguments = write({"documents": documents, "train": rows[: n // 2], "eval": rows[n // 2 :], "test": rows})
        begin = time.process_time()
        assert len(check_texts(read_dataset(arguments))) == n  # every test question leaks
        return time.process_time() - begin

    seconds(100)
    assert seconds(4000) < 20 * seconds(400) + 0.5


@pytest.mark.skipif(not FAIRE.is_dir(), reason=f"needs the Faire data in {FAIRE}")
def test_the_faire_data_are_examined_in_seconds():
    begin = time.process_time()
    dataset = read_dataset(
        DataArguments(
            train_file=str(FAIRE / "train_w_qa.jsonl"),
            eval_file=str(FAIRE / "eval_w_qa.jsonl"),
            full_dataset_file_path=str(FAIRE / "documents.pkl"),
        )
    )
    found = check_texts(dataset)
    assert time.process_time() - begin < 8  # two on an idle machine, four on a busy one
    assert {f.severity for f in found} == {"warning"}
    assert [f.where.rpartition(":")[2] for f in found if f.check in ("blank", "leaked-question")] == ["495", "30"]


def test_words_are_those_of_any_script_and_fillers_are_not_told():
    assert words("The Library, open9 日本語ok 도서 snake_case") == [
        "the", "library", "open9", "日", "本", "語", "ok", "도", "서", "snake", "case",
    ]  # fmt: skip
    assert telling_words("It is not the Library.") == ["library"]
