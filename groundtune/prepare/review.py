"""A stop for a person between writing and splitting: a Markdown file to edit, and what was done in it.

The file survives hands and editors: white space does not count, markers may be emphasised, and whatever cannot be
understood is a problem with its line rather than lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundtune.data.entries import shown
from groundtune.errors import DataError
from groundtune.prepare.gates import GateResult, example_of, search_depth
from groundtune.prepare.questions import Settings
from groundtune.retrieval.retrievers import Retriever
from groundtune.schema import Document, Example
from groundtune.system.inputs import read_text
from groundtune.system.outputs import in_place_of
from groundtune.system.text import one_line

_Place = tuple[str, str]  # the id of a passage, and a question
DELETED = "deleted in the review"
_ABOUT = """# Questions to review

Edit this file and save it; then continue with:

    {command}

- Correct a question or its answer in place. Further lines of an answer are indented by two spaces.
- Delete a question together with its answer, or a whole passage with its heading.
- Add a question below any passage: a line that begins with `Question:`, and one that begins with `Answer:`.
- `Rejected (reason):` marks a question that failed a quality gate. It is left out unless you write `Question:` instead.
- Lines that begin with `>` only show the passage.
"""
_HEADING = re.compile(r"#+\s*passage\s+([0-9a-f]{16})\b", re.IGNORECASE)
_KIND = r"(?:(?P<kind>question|answer)\s*\d*|(?P<rejected>rejected)\s*\([^:\uff1a]*\))"
_MARKER = re.compile(
    rf"(?:[-+*]\s+)?(?P<mark>[*_]{{0,3}}){_KIND}(?:(?P=mark)\s*[:\uff1a]|[:\uff1a](?P=mark))\s*", re.IGNORECASE
)
_QUOTED = ">"
_RULE = re.compile(r"([-*_])\s*(?:\1\s*){2,}")


@dataclass(frozen=True)
class Entry:
    """A question of the file with its answer, below its passage."""

    passage: Document
    question: str
    answer: str


def write(result: GateResult, passages: Sequence[Document], path: Path, command: str) -> None:
    """Write all passages, each with its questions and those that the gates rejected; `command` continues."""
    below: dict[str, list[str]] = {passage.id: [] for passage in passages}
    for example in result.kept:
        below[example.gold_documents[0].id] += _lines("Question", example.question, example.answer)
    for row in (row for row in result.rejected if row["passage"]):
        passage = Document(**row["passage"])
        below[passage.id] += _lines(f"Rejected ({row['why']})", row["question"], row["answer"])
    with in_place_of(path) as file:
        file.write(_ABOUT.format(command=command).encode())
        for passage in passages:
            quoted = [f"> {line}".rstrip() for line in passage.text.splitlines()]  # at every kind of line break
            lines = ["", f"## Passage {passage.id}", "", *quoted, "", *below[passage.id]]
            file.write("\n".join(lines).encode("utf-8", "replace"))


def _lines(marker: str, question: str, answer: str) -> list[str]:
    return [*_indented(f"{marker}: {question}"), *_indented(f"Answer: {answer}"), ""]


def _indented(text: str) -> list[str]:
    first, *more = text.splitlines()
    return [first.rstrip(), *(f"  {line}".rstrip() for line in more)]


@dataclass
class _Part:
    """A heading or marker with the text that follows it."""

    where: str
    kind: str  # "passage", "question", "answer" or "rejected"
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def read(path: Path, documents: Iterable[Document]) -> list[Entry]:
    """The questions of an edited file with their passages, which are among `documents`.

    Raises `DataError` with every problem.
    """
    try:
        lines = read_text(path).removeprefix("\ufeff").splitlines()
    except (OSError, ValueError) as error:
        problem = f"{path}: cannot be read ({one_line(error, 200)}); save it as text in UTF-8, or write it again"
        raise DataError([f"{problem} with --review"]) from error
    problems: list[str] = []
    parts = list(_parts(path, lines, problems))
    named = {part.lines[0] for part in parts if part.kind == "passage"}
    by_id = {document.id: document for document in documents if document.id in named}
    entries = list(_entries(parts, by_id, problems))
    if problems:
        raise DataError(problems)
    if not entries:
        raise DataError([f"{path}: every question was deleted; nothing was written"])
    return entries


def _parts(path: Path, lines: Sequence[str], problems: list[str]) -> Iterator[_Part]:
    part = None
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if begun := _begun(where, line):
            if part:
                yield part
            part = begun
        elif part is None:
            continue
        elif not line.strip() or _RULE.fullmatch(line.rstrip()):
            part.lines.append("")
        elif part.kind == "passage":
            if line.startswith(">") or part.lines[-1] == _QUOTED:  # a line that an editor broke
                part.lines.append(_QUOTED)
            else:
                problems.append(f"{where}: {shown(line)} belongs to no question; begin it with Question: or Answer:")
        elif line.startswith(("#", ">")):
            problems.append(f"{where}: {shown(line)} is below a question; indent it by two spaces if it belongs to it, "
                            'or write the heading "## Passage ID" above it')  # fmt: skip
        else:
            part.lines.append(line.removeprefix("  "))
    if part:
        yield part


def _begun(where: str, line: str) -> _Part | None:
    """The part that a line begins, if it does."""
    if marker := _MARKER.match(line):
        return _Part(where, (marker["kind"] or marker["rejected"]).lower(), [line[marker.end() :]])
    heading = _HEADING.match(line)
    return _Part(where, "passage", [heading[1].lower()]) if heading else None


def _entries(parts: Sequence[_Part], documents: Mapping[str, Document], problems: list[str]) -> Iterator[Entry]:
    reader = _Reader(documents, problems)
    for part in parts:
        yield from reader.take(part)
    reader.close()


@dataclass
class _Reader:
    """Puts passages, questions and answers together."""

    documents: Mapping[str, Document]
    problems: list[str]
    passage: Document | None = None
    named: bool = False  # whether there was a heading, known or not
    open: _Part | None = None  # a question that waits for its answer
    seen: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, part: _Part) -> Iterator[Entry]:
        if part.kind == "answer":
            yield from self._answered(part)
            return
        self.close()
        if part.kind == "passage":
            id = part.lines[0]
            self.passage, self.named = self.documents.get(id), True
            if self.passage is None:
                self._problem(part, f"passage {id} is not in the documents; name one that is, or delete it")
        else:
            self.open = part
            if not self.named:
                self._problem(part, 'stands above the first passage; move it below a heading "## Passage ID"')

    def close(self) -> None:
        """A question must not be left without an answer."""
        if self.open and self.open.kind == "question":
            self._problem(self.open, 'the question has no answer; write one on a line that begins with "Answer:"')
        self.open = None

    def _answered(self, part: _Part) -> Iterator[Entry]:
        asked, self.open = self.open, None
        if asked is None:
            self._problem(part, "the answer has no question; write one above it, or delete it")
        elif asked.kind == "question" and self.passage:
            question = one_line(asked.text)  # for comparison: editors break lines, and remove blanks at their ends
            before = self.seen.setdefault((self.passage.id, question), asked.where)
            if not question:
                self._problem(asked, "the question is blank; write it, or delete its answer, too")
            elif not part.text:
                self._problem(part, "the answer is blank; write it, or delete its question, too")
            elif before is not asked.where:
                self._problem(asked, f"repeats the question of {before.rpartition(':')[2]}; delete one")
            else:
                yield Entry(self.passage, question, part.text)

    def _problem(self, part: _Part, problem: str) -> None:
        self.problems.append(f"{part.where}: {problem}")


def apply(result: GateResult, entries: Sequence[Entry], settings: Settings, retriever: Retriever) -> GateResult:
    """The result with the examples of an edited file, in the splits of their passages, and with what was changed."""
    before = {_place(e.gold_documents[0], e.question): e for e in result.kept}
    after = {_place(entry.passage, entry.question): entry for entry in entries}
    same = [at for at in after if at in before and one_line(before[at].answer) == one_line(after[at].answer)]
    changes, deleted = _changes(before, after)
    counts = {"unchanged": len(same), "changed": changes["kept"] - len(same) + changes["reworded"]}
    counts |= {"moved to another passage": changes["moved"]} if changes["moved"] else {}
    reviewed = GateResult(result.within, counts=result.counts.copy())
    reviewed.reviewed = {**counts, "added": changes["added"], "deleted": len(deleted)}
    reviewed.counts["kept"] = 0
    rejected = [row for row in result.rejected if not _is_back(row, after)]
    reviewed.rejected = rejected + [_deleted(before[at]) for at in deleted]
    hits = retriever.search([entry.question for entry in entries], search_depth(settings))
    for (at, entry), found in zip(after.items(), hits, strict=True):
        # What only an editor changed, such as the ends of its lines, stays as it was.
        question, answer = (before[at].question, before[at].answer) if at in same else (entry.question, entry.answer)
        reviewed.keep(example_of(entry.passage, question, answer, found, settings), settings)
    return reviewed


def _changes(before: Collection[_Place], after: Collection[_Place]) -> tuple[Counter[str], list[_Place]]:
    """How many questions were kept, moved, reworded and added, and which were deleted.

    A question counts as reworded if its passage lost one and gained another.
    """
    gone, new = [at for at in before if at not in after], [at for at in after if at not in before]
    moved = {question for _, question in gone} & {question for _, question in new}
    gone, new = ([at for at in these if at[1] not in moved] for these in (gone, new))
    reworded = Counter(passage for passage, _ in gone) & Counter(passage for passage, _ in new)
    left, deleted = reworded.copy(), []
    for at in gone:
        if left[at[0]]:
            left[at[0]] -= 1
        else:
            deleted.append(at)
    number = reworded.total()
    kept = len(after) - len(new) - len(moved)
    return Counter(kept=kept, moved=len(moved), reworded=number, added=len(new) - number), deleted


def _place(passage: Document, question: str) -> _Place:
    return passage.id, one_line(question)


def _is_back(row: dict[str, Any], after: Collection[_Place]) -> bool:
    """Whether a rejected question was accepted by the person."""
    return bool(row["passage"]) and _place(Document(**row["passage"]), row["question"]) in after


def _deleted(example: Example) -> dict[str, Any]:
    passage = example.gold_documents[0].to_dict()
    return {"why": DELETED, "question": example.question, "answer": example.answer, "passage": passage}
