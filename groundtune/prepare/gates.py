"""Quality gates: which generated questions are good enough, and which file each goes to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.evidence import support
from groundtune.data.files import write_jsonl
from groundtune.data.words import stem, telling_words, words
from groundtune.prepare.journal import Journal
from groundtune.prepare.questions import Settings, chance, questions_of
from groundtune.prepare.support import answers_of, cut_answers_of, verdicts_of
from groundtune.retrieval.retrievers import Retriever
from groundtune.schema import Document, Example, Hit

if TYPE_CHECKING:
    from rich.table import Table

_MENTIONS = re.compile(r"\b(?:the|this|above) (?:passage|text|excerpt|paragraph|context)\b", re.IGNORECASE)
# Reasons to leave a question out, in the order of the gates.
MENTIONS = "mentions the passage"
REPEATS = "repeats another question"
NO_ANSWER = "not answered by its passage"
CUT = "answer cut at the token limit"
UNSUPPORTED = "answer not supported by its passage"
UNSUPPORTED_BY_LLM = "answer not supported according to the LLM"
NOT_UNDERSTOOD = "LLM verdict not understood"
NO_VERDICT = "no LLM verdict"
NOT_RETRIEVED = "passage not retrieved for it"
GATES = (
    MENTIONS, REPEATS, NO_ANSWER, CUT, UNSUPPORTED, UNSUPPORTED_BY_LLM, NOT_UNDERSTOOD, NO_VERDICT, NOT_RETRIEVED,
)  # fmt: skip
_NOT_IN_USE = {"lexical": {UNSUPPORTED_BY_LLM, NOT_UNDERSTOOD, NO_VERDICT}, "llm": {UNSUPPORTED}, "both": set()}


def gates_of(settings: Settings) -> tuple[str, ...]:
    """The gates that are in use."""
    return tuple(gate for gate in GATES if gate not in _NOT_IN_USE[settings.support])


@dataclass
class GateResult:
    """The examples of each split, the rejected pairs with the reason, and counts."""

    splits: dict[str, list[Example]] = field(default_factory=lambda: {"train": [], "eval": [], "test": []})
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Pair:
    """A generated question with its answer. `verdict` has `supported` (None if it was not understood) and `said`; it is
    None if the LLM gave no verdict."""

    passage: Document
    question: str
    answer: str
    finished: bool
    verdict: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        said = {"said": self.verdict["said"]} if self.verdict else {}
        return {"question": self.question, "answer": self.answer, **said, "passage": self.passage.to_dict()}


def judge(passages: Sequence[Document], settings: Settings, journal: Journal, retriever: Retriever) -> GateResult:
    """Pass every question and answer in the journal through the gates, and split those that pass by passage."""
    result = GateResult()
    by_id = {passage.id: passage for passage in passages}
    answers, cut, verdicts = answers_of(journal), cut_answers_of(journal), verdicts_of(journal, settings)
    questions = list(questions_of(journal, by_id))
    result.counts.update(dict.fromkeys(gates_of(settings), 0))
    result.counts["passages"] = len({row["passage"] for row in journal.rows if "questions" in row} & by_id.keys())
    result.counts["questions"] = len(questions)
    pairs = [
        _Pair(by_id[at[0]], at[1], answers[at], at not in cut, verdicts.get(at)) for at in questions if at in answers
    ]
    result.counts["answers"] = len(pairs)
    depth = max(settings.retrieved_within, 2 * settings.hard_negatives + 1)
    hits = retriever.search([pair.question for pair in pairs], depth)
    seen: set[frozenset[str]] = set()
    for pair, found in zip(pairs, hits, strict=True):
        if gate := _stopped_by(pair, found, seen, settings):
            result.counts[gate] += 1
            result.rejected.append({"why": gate, **pair.to_dict()})
            continue
        seen.add(_key(pair.question))
        example = Example(
            pair.question, pair.answer, (pair.passage,), hard_negatives=_hard_negatives(pair, found, settings)
        )
        result.splits[_split(pair.passage, settings)].append(example)
        result.counts["kept"] += 1
    return result


def write(result: GateResult, folder: Path) -> list[str]:
    """Write train, eval and test.jsonl, and rejected.jsonl; empty splits are not written, and their names returned."""
    for name, examples in result.splits.items():
        if examples:
            write_jsonl(folder / f"{name}.jsonl", (example.to_dict() for example in examples))
        else:
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
    write_jsonl(folder / "rejected.jsonl", result.rejected)
    return [name for name, examples in result.splits.items() if not examples]


def _stopped_by(pair: _Pair, found: Sequence[Hit], seen: set[frozenset[str]], settings: Settings) -> str:
    """The first gate that the pair fails, or ""."""
    ranked = [hit.document.id for hit in found[: settings.retrieved_within]]
    verdict = pair.verdict
    stops = {
        MENTIONS: lambda: _MENTIONS.search(pair.question),
        REPEATS: lambda: _key(pair.question) in seen,
        NO_ANSWER: lambda: not pair.answer,
        CUT: lambda: not pair.finished,
        UNSUPPORTED: lambda: support(pair.answer, pair.question, pair.passage.text) < settings.min_support,
        UNSUPPORTED_BY_LLM: lambda: verdict and verdict["supported"] is False,
        NOT_UNDERSTOOD: lambda: verdict and verdict["supported"] is None,
        NO_VERDICT: lambda: not verdict,
        NOT_RETRIEVED: lambda: pair.passage.id not in ranked,
    }
    return next((gate for gate in gates_of(settings) if stops[gate]()), "")


def _key(question: str) -> frozenset[str]:
    """Key of a question: questions with the same word stems, in any order, count as repeated."""
    return frozenset(map(stem, telling_words(question))) or frozenset(words(question))


def _hard_negatives(pair: _Pair, found: Sequence[Hit], settings: Settings) -> tuple[Document, ...]:
    """The best hits other than the passage that do not support the answer."""
    others = (hit.document for hit in found if hit.document.id != pair.passage.id)
    wrong = (d for d in others if support(pair.answer, pair.question, d.text) < settings.min_support)
    return tuple(islice(wrong, settings.hard_negatives))


def _split(passage: Document, settings: Settings) -> str:
    """The split, chosen by the passage alone, so that its questions stay together and later runs do not move them."""
    drawn = chance(settings.seed + 1, passage)
    if drawn < settings.test_share:
        return "test"
    return "eval" if drawn < settings.test_share + settings.eval_share else "train"


def why_none(result: GateResult, failures: Sequence[str]) -> list[str]:
    """Why there is no example at all, and what to do."""
    counts = result.counts
    if failures and not counts["answers"]:
        return [f"no reply arrived: {failures[0]}; nothing was written"]
    reasons = ", ".join(f"{counts[gate]} {gate}" for gate in GATES if counts[gate]) or "no question was written"
    return [
        f"none of {counts['questions']} questions passed the gates: {reasons}; see generated.jsonl for what the model "
        "wrote, and use a stronger --generator or a --question_prompt that it follows"
    ]


def summary_table(result: GateResult) -> Table:
    """Counts of what was asked, what each gate rejected and what was kept, as a rich table."""
    from groundtune.system.tables import TextTable

    table = TextTable("", "number")
    table.columns[1].justify = "right"
    for name in ("passages", "questions", "answers"):
        table.add_row(name, f"{result.counts[name]:,}")
    for gate in (gate for gate in GATES if gate in result.counts):
        table.add_row(f"left out: {gate}", f"{result.counts[gate]:,}")
    table.add_row("kept", f"{result.counts['kept']:,}", end_section=True)
    for name, examples in result.splits.items():
        passages = len({document.id for example in examples for document in example.gold_documents[:1]})
        table.add_row(f"{name}.jsonl, on {passages:,} passages", f"{len(examples):,}")
    return table


def notes(result: GateResult, failures: Sequence[str], empty: Sequence[str]) -> list[str]:
    """Notes beside the table: failed requests and empty splits."""
    lines = []
    if failures:
        lines.append(f"{len(failures):,} requests failed ({failures[0]}); the same command asks for them again")
    if empty:
        lines.append(f"no passage was assigned to {' and '.join(empty)}; raise --passages, or its share")
    return lines
