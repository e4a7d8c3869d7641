"""Checks that a passage supports an answer: by shared words, by an LLM, or both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from groundtune.data.evidence import support
from groundtune.prepare.journal import Journal
from groundtune.prepare.questions import Asked, Asker, Settings, fill
from groundtune.prepare.written import own_part
from groundtune.prompts.fences import introduced
from groundtune.schema import Document

# Only at the end: a model may mention either verdict before.
_VERDICT = re.compile(r"\[\[\s*(yes|no)\s*\]\][.\s]*\Z", re.IGNORECASE)


def check_support(asked: Sequence[Asked], settings: Settings, ask: Asker) -> None:
    """Ask the LLM whether the passage supports each answer that has no verdict in the journal yet.

    Answers that were cut off, or that the lexical gate rejects anyway, are skipped.
    """
    check, answers = made_by(settings), answers_of(ask.journal)
    known = verdicts_of(ask.journal, settings).keys() | cut_answers_of(ask.journal)
    new = [
        (passage, question, answer)
        for passage, question in dict.fromkeys(asked)
        if (answer := answers.get((passage.id, question))) and (passage.id, question) not in known
    ]
    if settings.support == "both":
        new = [(p, question, answer) for p, question, answer in new if lexical(settings, p, question, answer)]
    ask(
        "checks",
        [{"passage": passage.id, "question": question, "check": check} for passage, question, _ in new],
        [support_prompt(settings, passage, question, answer) for passage, question, answer in new],
        lambda reply: {"supported": parse_verdict(own_part(reply)), "said": reply.text},
    )


def lexical(settings: Settings, passage: Document, question: str, answer: str) -> bool:
    """Whether the passage has enough of the answer's words."""
    return support(answer, question, passage.text) >= settings.min_support


def support_prompt(settings: Settings, passage: Document, question: str, answer: str) -> str:
    return fill(_fenced(settings), passage=passage.text, question=question, answer=answer)


def _fenced(settings: Settings) -> str:
    """The prompt with a fence around every text, whoever wrote it: an answer may claim to be supported."""
    texts = re.sub(r"\{(passage|question|answer)\}", r"{<\1>}", settings.support_prompt)
    return introduced(texts, "passage")


def parse_verdict(text: str) -> bool | None:
    """True if a reply ends in [[yes]], False if in [[no]], None if in neither."""
    found = _VERDICT.search(text)
    return found[1].lower() == "yes" if found else None


def answers_of(journal: Journal) -> dict[tuple[str, str], str]:
    """(passage id, question) -> answer; empty if the model found none in the passage."""
    return {(row["passage"], row["question"]): row["answer"] for row in journal.rows if "answer" in row}


def cut_answers_of(journal: Journal) -> set[tuple[str, str]]:
    """Passage id and question of the answers that were cut off at the token limit."""
    return {(row["passage"], row["question"]) for row in journal.rows if not row.get("finished", True)}


def verdicts_of(journal: Journal, settings: Settings) -> Mapping[tuple[str, str], dict[str, Any]]:
    """(passage id, question) -> row with `supported` and `said`, for verdicts of the current prompt and model."""
    check = made_by(settings)
    return {(row["passage"], row["question"]): row for row in journal.rows if row.get("check") == check}


def made_by(settings: Settings) -> str:
    """Hash of the checker and its prompt; verdicts of others stay in the journal but do not count."""
    return hashlib.sha256(f"{settings.checker}\n{_fenced(settings)}".encode()).hexdigest()[:12]
