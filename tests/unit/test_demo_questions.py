"""The hand-made demo questions keep to their rules on the running interpreter."""

import json
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest

PATH = Path(__file__).resolve().parents[2] / "groundtune" / "demo_questions.jsonl"
KEYS = ["split", "topic", "phrase", "question", "answer"]


def collapse(text):
    return re.sub(r"\s+", " ", text).strip()


def paragraphs(text):
    return [collapse(part) for part in re.split(r"\n[ \t]*\n", text)]


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def test_counts(rows):
    splits = Counter(row["split"] for row in rows)
    assert set(splits) == {"train", "eval", "test"}
    assert len(rows) >= 120
    assert splits["train"] > splits["test"] > splits["eval"] >= 10


def test_schema(rows):
    for row in rows:
        history = row.get("chat_history")
        assert list(row) == KEYS + (["chat_history"] if history else [])
        assert all(row[key] == collapse(row[key]) != "" for key in KEYS)
        assert row["question"].endswith("?") and row["answer"].endswith(".")
        assert len(row["answer"].split()) <= 40
        speakers = [turn["speaker"] for turn in history or []]
        assert speakers == ["user", "assistant"] * (len(speakers) // 2)
        assert all(list(turn) == ["speaker", "message"] and turn["message"] for turn in history or [])


def test_phrase_occurs_exactly_once(rows):
    for row in rows:
        phrase, text = row["phrase"], topics[row["topic"]]
        assert 5 <= len(phrase.split()) <= 12, row
        assert not re.search(r"[.!?] ", phrase), row
        assert collapse(text).count(phrase) == 1, row
        assert sum(phrase in part for part in paragraphs(text)) == 1, row


def test_each_topic_is_in_one_split(rows):
    assert len({(row["topic"], row["split"]) for row in rows}) == len({row["topic"] for row in rows})


def test_splits_share_no_paragraph(rows):
    for row in rows:
        (paragraph,) = (part for part in paragraphs(topics[row["topic"]]) if row["phrase"] in part)
        assert {other["split"] for other in rows if other["phrase"] in paragraph} == {row["split"]}, row


def test_no_duplicate_question(rows):
    asked = Counter(re.sub(r"\W+", " ", row["question"].lower()).strip() for row in rows)
    assert max(asked.values()) == 1
