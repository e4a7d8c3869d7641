"""Quality gates: which generated questions are good enough, and which file each goes to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.files import write_jsonl
from groundtune.data.words import stem, telling_words, words
from groundtune.evaluation.abstention import abstains
from groundtune.prepare.journal import Journal
from groundtune.prepare.questions import Settings, chance
from groundtune.prepare.support import answers_of, cut_answers_of, lexical, verdicts_of
from groundtune.retrieval.retrievers import Retriever
from groundtune.schema import Document, Example, Hit

if TYPE_CHECKING:
    from rich.table import Table

_MENTIONS = re.compile(
    r"\b(?:the|this|above) (?:passage|text|excerpt|paragraph|context)\b(?! of\b)|\bof the following\b"
    r"|\b(?:this|these|the (?:above|given|following|provided)) "
    r"(?:document|article|section|page|example|snippet|code|table|list)s?\b",
    re.IGNORECASE,
)
# "What is the purpose of this code?" points at something that only its passage shows; after several words of meaning,
# "this" may point at one of them, and "this year" needs no passage.
_POINTS = re.compile(r"\b(?:this|these)\b(?!\s+(?:year|quarter|month|week|season)s?\b)", re.IGNORECASE)
_SAID_BEFORE = 3
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

    within: int  # ranks within which a question had to find its passage
    splits: dict[str, list[Example]] = field(default_factory=lambda: {"train": [], "eval": [], "test": []})
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    reviewed: dict[str, int] = field(default_factory=dict)  # what a person did to the examples

    @property
    def kept(self) -> list[Example]:
        """The examples of all splits."""
        return list(chain(*self.splits.values()))

    def keep(self, example: Example, settings: Settings) -> None:
        """Put an example into the split of its passage."""
        self.splits[_split(example.gold_documents[0], settings)].append(example)
        self.counts["kept"] += 1


@dataclass(frozen=True)
class Pair:
    """A question with its answer. `verdict` has `supported` (None if it was not understood) and `said`; it is None if
    the LLM gave no verdict."""

    passage: Document
    question: str
    answer: str
    finished: bool
    verdict: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        said = {"said": self.verdict["said"]} if self.verdict else {}
        return {"question": self.question, "answer": self.answer, **said, "passage": self.passage.to_dict()}


def pairs_in(journal: Journal, settings: Settings) -> Callable[[Document, str], Pair | None]:
    """A function from a passage and a question to the pair in the journal, None if there is no answer."""
    answers, cut, verdicts = answers_of(journal), cut_answers_of(journal), verdicts_of(journal, settings)

    def pair(passage: Document, question: str) -> Pair | None:
        at = passage.id, question
        return Pair(passage, question, answers[at], at not in cut, verdicts.get(at)) if at in answers else None

    return pair


def judge(
    asked: Sequence[tuple[str, Sequence[Document]]], settings: Settings, journal: Journal, retriever: Retriever
) -> GateResult:
    """Pass every question with its answer in the journal through the gates, and split those that pass by passage.

    A question has one passage or, if it was given, several that may answer it: the first that passes is taken.
    """
    result = GateResult(settings.retrieved_within)
    result.counts.update(dict.fromkeys(("passages", "questions", "answers", *gates_of(settings)), 0))
    result.counts["questions"] = len(asked)
    pair_of = pairs_in(journal, settings)
    hits = retriever.search([question for question, _ in asked], search_depth(settings))
    seen: set[frozenset[str]] = set()
    for (question, passages), found in zip(asked, hits, strict=True):
        pairs = [pair for passage in passages if (pair := pair_of(passage, question))]
        result.counts["answers"] += len(pairs)
        if len(pairs) < len(passages) and all(not_answered_by(pair, settings) for pair in pairs):
            continue  # a request failed: the next run asks again
        pair, gate = _chosen(pairs, found, seen, settings)
        if not gate and pair:
            seen.add(_key(question))
            result.keep(example_of(pair.passage, question, pair.answer, found, settings), settings)
            continue
        result.counts[gate] += 1
        nothing = {"question": question, "answer": "", "passage": None}
        result.rejected.append({"why": gate, **(pair.to_dict() if pair else nothing)})
    return result


def search_depth(settings: Settings) -> int:
    """Number of hits that the gates and the hard negatives need."""
    return max(settings.retrieved_within, 2 * settings.hard_negatives + 1)


def example_of(passage: Document, question: str, answer: str, found: Sequence[Hit], settings: Settings) -> Example:
    """The example with its hard negatives: the best hits other than the passage that do not support the answer."""
    others = (hit.document for hit in found if hit.document.id != passage.id)
    wrong = (other for other in others if not lexical(settings, other, question, answer))
    return Example(question, answer, (passage,), hard_negatives=tuple(islice(wrong, settings.hard_negatives)))


def write(result: GateResult, folder: Path) -> list[str]:
    """Write train, eval and test.jsonl, and rejected.jsonl; empty splits are not written, and their names returned."""
    for name, examples in result.splits.items():
        if examples:
            write_jsonl(folder / f"{name}.jsonl", (example.to_dict() for example in examples))
        else:
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
    write_jsonl(folder / "rejected.jsonl", result.rejected)
    return [name for name, examples in result.splits.items() if not examples]


def _chosen(
    pairs: Sequence[Pair], found: Sequence[Hit], seen: set[frozenset[str]], settings: Settings
) -> tuple[Pair | None, str]:
    """The first pair that passes; else the first with an answer, which the user may rescue, with its gate."""
    stopped = [(pair, _stopped_by(pair, found, seen, settings)) for pair in pairs]
    by_choice = sorted(stopped, key=lambda each: (bool(each[1]), each[1] == NO_ANSWER))
    return by_choice[0] if by_choice else (None, NOT_RETRIEVED)


def _stopped_by(pair: Pair, found: Sequence[Hit], seen: set[frozenset[str]], settings: Settings) -> str:
    """The first gate that the pair fails, or ""."""
    if mentions_passage(pair.question):
        return MENTIONS
    if _key(pair.question) in seen:
        return REPEATS
    ranked = [hit.document.id for hit in found[: settings.retrieved_within]]
    return not_answered_by(pair, settings) or ("" if pair.passage.id in ranked else NOT_RETRIEVED)


def not_answered_by(pair: Pair, settings: Settings) -> str:
    """The first of the gates for answers that the pair fails, or ""."""
    verdict = pair.verdict
    stops = {
        NO_ANSWER: lambda: not pair.answer or abstains(pair.answer, ()),
        CUT: lambda: not pair.finished,
        UNSUPPORTED: lambda: not lexical(settings, pair.passage, pair.question, pair.answer),
        UNSUPPORTED_BY_LLM: lambda: verdict and verdict["supported"] is False,
        NOT_UNDERSTOOD: lambda: verdict and verdict["supported"] is None,
        NO_VERDICT: lambda: not verdict,
    }
    return next((gate for gate in gates_of(settings) if gate in stops and stops[gate]()), "")


def mentions_passage(question: str) -> bool:
    """Whether a question names its passage, or points at something that only somebody who sees the passage knows."""
    points = _POINTS.search(question)
    return bool(
        _MENTIONS.search(question) or (points and len(telling_words(question[: points.start()])) <= _SAID_BEFORE)
    )


def _key(question: str) -> frozenset[str]:
    """Key of a question: questions with the same word stems, in any order, count as repeated."""
    return frozenset(map(stem, telling_words(question))) or frozenset(words(question))


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
        "wrote, and use a stronger --generator or prompts that it follows"
    ]


def summary_table(result: GateResult, before_split: bool = False) -> Table:
    """Counts of what was asked, what each gate rejected, what was kept and where it is, as a rich table."""
    from groundtune.system.tables import TextTable

    table = TextTable("", "number")
    table.columns[1].justify = "right"
    for name in ("passages", "questions", "answers"):
        table.add_row(name, f"{result.counts[name]:,}")
    for gate in (gate for gate in GATES if gate in result.counts):
        detail = f" (among the first {result.within})" if gate == NOT_RETRIEVED else ""
        table.add_row(f"left out: {gate}{detail}", f"{result.counts[gate]:,}")
    for what, number in result.reviewed.items():
        table.add_row(f"review: {what}", f"{number:,}")
    table.add_row("kept", f"{result.counts['kept']:,}", end_section=True)
    for name, examples in () if before_split else result.splits.items():
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
