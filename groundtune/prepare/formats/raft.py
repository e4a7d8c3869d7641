"""RAFT (Zhang et al. 2024): rows written by raft.py, with oracle document, distractors and an answer with reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, child, converted, records
from groundtune.schema import Document

_NEED = 'a row is {"question", "context": {"title": [[...]], "sentences": [[...]]}, "oracle_context", "cot_answer"}'
_FINAL = "<ANSWER>:"


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """The oracle is the gold passage, the distractors are hard negatives.

    The answer is the text after `<ANSWER>:` or, with `raft_answer` "reasoning", all of it, quotations included.
    """
    for record in records(path, problems):
        answer = record.text("cot_answer", _NEED)
        if options.raft_answer == "final":
            answer = answer.rpartition(_FINAL)[2]
        context = child(record, "context", _NEED)
        yield converted(
            record.text("question", _NEED, may_be_blank=True),
            [answer],
            [format_passage(record.text("oracle_context", _NEED))],
            negatives=list(_documents(context.fields.get("title"), context.fields.get("sentences"))),
            source=record.where,
        )


def _documents(titles: Any, texts: Any) -> Iterator[Document]:
    """The documents in nested lists of titles and texts; raft.py's constant title `placeholder_title` is ignored."""
    if isinstance(texts, list):
        titles = titles if isinstance(titles, list) and len(titles) == len(texts) else [""] * len(texts)
        for title, text in zip(titles, texts):
            yield from _documents(title, text)
    elif isinstance(texts, str) and texts.strip():
        named = isinstance(titles, str) and titles != "placeholder_title"
        yield format_passage(texts, title=titles if named else "")


RAFT = Format("RAFT: the rows of raft.py (its output format hf)", read)
