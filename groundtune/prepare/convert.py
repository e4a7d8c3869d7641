"""`groundtune convert`: published formats -> examples and documents, and examples -> formats of other tools."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from groundtune.data.evidence import SUPPORTED, support
from groundtune.data.files import in_the_way, read_documents, read_examples, replacing, write_jsonl
from groundtune.errors import DataError
from groundtune.prepare.formats import FORMATS, Converted, Options, beir, chats
from groundtune.schema import Document, Example
from groundtune.system.outputs import links_at
from groundtune.system.text import one_line, to_json

if TYPE_CHECKING:
    from rich.table import Table

_CANDIDATES = 20  # passages searched
_ENOUGH = 100  # problems after which a file is not read further: it is of another format

EXPORTS = {
    "to_messages": 'examples -> lines of {"messages", "documents"}',
    "to_prompt_completion": 'examples -> lines of {"prompt", "completion", "documents"}, lists of messages',
    "to_beir": "examples -> a BEIR folder",
}
# Formats whose examples may come without a passage.
SEARCHED = ("messages", "prompt_completion", "sharegpt", "alpaca", "csv", "feedback")
# Arguments that apply to some formats only.
FLAGS = {
    "unanswerable": ("squad", "natural_questions", "ms_marco"),
    "evidence": ("triviaqa",),
    "prompt_pattern": ("messages", "prompt_completion", "sharegpt"),
    "raft_answer": ("raft",),
    "limit": tuple(FORMATS),
    "instruction": ("to_messages", "to_prompt_completion"),
    "documents": ("to_beir", *SEARCHED),
}


@dataclass
class Summary:
    """What was written: counts of examples by file and kind; and what was left out, by reason."""

    files: dict[str, Counter[str]] = field(default_factory=dict)
    documents: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    dialogues: int = 0  # chat histories, in a format that has no place for them
    instructions: Counter[str] = field(default_factory=Counter)  # of dialogues; an example has no place for them
    tools: int = 0  # messages from and to tools, left out of dialogues

    def count(self, name: str, example: Example) -> None:
        self.files.setdefault(name, Counter()).update(
            {
                "examples": 1,
                "unanswerable": not example.answerable,
                "several answers": len(example.acceptable_answers) > 1,
                "no answer": not example.answer,
            }
        )


def check(name: str, inputs: Sequence[Path], folder: Path, given: Iterable[str]) -> list[str]:
    """All problems with the arguments; `given` names the optional ones that were given."""
    problems = [f"{path}: no such file or folder; check the path" for path in inputs if not os.path.exists(path)]
    if name == "beir":
        problems += [f"{path}: is a file; name the BEIR folder" for path in inputs if os.path.isfile(path)]
    else:
        problems += [f"{path}: is a folder; name the files in it" for path in inputs if os.path.isdir(path)]
    problems += [
        f"--{flag}: has no effect for {name}; it applies to {', '.join(FLAGS[flag])}"
        for flag in given
        if name not in FLAGS.get(flag, (name,))
    ]
    problems += in_the_way("output_dir", folder, folder=True)
    repeated = [stem for stem, n in Counter(map(stem_of, inputs)).items() if n > 1]
    problems += [f"{stem}: two inputs have this name, so their outputs would collide; rename one" for stem in repeated]
    if name == "beir" and len(inputs) > 1:
        problems.append("beir: convert one folder at a time, each to its own --output_dir")
    outputs = {os.path.realpath(folder / f"{stem}.jsonl") for stem in ("documents", *map(stem_of, inputs))}
    written = [folder / f"{stem}.jsonl" for stem in ("documents", "corpus", "queries", *map(stem_of, inputs))]
    problems += links_at(written, "output_dir") + links_at([folder / "qrels"], "output_dir")
    problems += [
        f"{path}: would be overwritten; choose another --output_dir"
        for path in inputs
        if os.path.realpath(path) in outputs
    ]
    return problems


def stem_of(path: Path) -> str:
    """`train-v2.0` of `squad/train-v2.0.json.gz`."""
    return Path(path.name.removesuffix(".gz")).stem


def convert(
    name: str,
    inputs: Sequence[Path],
    folder: Path,
    options: Options,
    limit: int = 0,
    documents: Sequence[Document] = (),
    on_example: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Write `folder`/documents.jsonl and a file of examples for each input, with at most `limit` examples if not 0.

    An example without a passage gets the one of `documents` that supports its answer; all of them are written.
    Inputs are streamed as far as their format allows; only the ids of documents are kept in memory.

    Raises:
        DataError: with all problems of all inputs, or if there are no examples; nothing is written then.
    """
    summary = Summary()
    problems: list[str] = []
    with ExitStack() as stack:
        output = _Output(folder, stack, summary)
        if documents:
            options = replace(options, search=supporting(documents))
            output.write(Converted(documents=tuple(documents)), "")
        for path in inputs:
            taken = 0
            for step in FORMATS[name].read(path, options, problems):
                output.write(step, stem_of(path))
                if step.example:
                    taken += 1
                    on_example(taken)
                if taken == limit > 0 or len(problems) >= _ENOUGH:
                    break
        if problems:
            raise DataError(problems)
        if not summary.files:
            why = ", ".join(f"{n} {reason}" for reason, n in summary.left_out.most_common()) or (
                "they contain no question"
            )
            raise DataError([f"{', '.join(map(str, inputs))}: no examples found: {why}; is the format {name}?"])
    return summary


def supporting(documents: Sequence[Document]) -> Callable[[str, str], list[Document]]:
    """A function of question and answer that finds the passage that supports the answer best, or none.

    Candidates are the first 20 by BM25 for both together: unlike a retriever in use, it may read the answer.
    """
    from groundtune.retrieval.retrievers import BM25Retriever

    retriever = BM25Retriever(documents)

    def search(question: str, answer: str) -> list[Document]:
        (hits,) = retriever.search([f"{question}\n{answer}"], _CANDIDATES)
        scored = [(support(answer, question, hit.document.text), hit.document) for hit in hits]
        best = max((score for score, _ in scored), default=0.0)
        return [document for score, document in scored if score == best >= SUPPORTED][:1]

    return search


class _Output:
    """The output files of a conversion; they replace existing files together when `stack` ends without an error."""

    def __init__(self, folder: Path, stack: ExitStack, summary: Summary) -> None:
        self._folder, self._stack, self._summary = folder, stack, summary
        self._files: dict[str, BinaryIO] = {}
        self._known: set[str] = set()

    def write(self, step: Converted, name: str) -> None:
        for document in step.documents:
            self._document(document)
        if step.unsaid.instruction:
            self._summary.instructions[step.unsaid.instruction] += 1
        self._summary.tools += step.unsaid.tools
        if step.left_out:
            self._summary.left_out[step.left_out] += 1
        if step.example:
            for document in (*step.example.gold_documents, *step.example.hard_negatives):
                self._document(document)
            self._line(step.split or name, step.example.to_dict())
            self._summary.count(f"{step.split or name}.jsonl", step.example)

    def _document(self, document: Document) -> None:
        if not document.text or document.id in self._known:
            return
        self._known.add(document.id)
        self._summary.documents += 1
        self._line("documents", document.to_dict())

    def _line(self, name: str, row: dict[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = self._stack.enter_context(replacing(self._folder / f"{name}.jsonl"))
        self._files[name].write(to_json(row).encode("utf-8") + b"\n")


def export(name: str, inputs: Sequence[Path], folder: Path, instruction: str, documents: Path | None) -> Summary:
    """Write examples for other tools; `name` is one of `EXPORTS`.

    Raises:
        DataError: with all problems of the inputs; nothing is written then.
    """
    summary = Summary()
    splits = {stem_of(path): read_examples(path) for path in inputs}
    database = read_documents(documents) if documents else []
    suffix = "tsv" if name == "to_beir" else "jsonl"
    for split, examples in splits.items():
        for example in examples:
            summary.count(f"{split}.{suffix}", example)
    if name == "to_beir":
        beir.write(folder, splits, database, _write_lines)
        summary.dialogues = sum(bool(example.chat_history) for examples in splits.values() for example in examples)
        return summary
    row = {"to_messages": chats.messages_row, "to_prompt_completion": chats.prompt_row}[name]
    for split, examples in splits.items():
        write_jsonl(folder / f"{split}.jsonl", (row(example, instruction) for example in examples))
    return summary


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as file:
        for line in lines:
            file.write(line.encode("utf-8") + b"\n")


def summary_table(summary: Summary) -> Table:
    """The number of examples in each file, as a rich table."""
    from groundtune.system.tables import TextTable

    columns = ["examples", *(n for n in ("unanswerable", "several answers", "no answer") if summary_has(summary, n))]
    table = TextTable("file", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in summary.files.items():
        table.add_row(name, *(f"{counts[column]:,}" for column in columns))
    return table


def summary_has(summary: Summary, column: str) -> bool:
    return any(counts[column] for counts in summary.files.values())


def notes(summary: Summary) -> list[str]:
    """Notes beside the table: questions left out, dialogues, and examples without an answer."""
    lines = [f"left out: {n:,} questions {reason}" for reason, n in summary.left_out.most_common()]
    if summary.instructions:
        text, most = summary.instructions.most_common(1)[0]
        n, kinds = summary.instructions.total(), len(summary.instructions)
        which = "it" if kinds == 1 else f"the most frequent of {kinds} different ones ({most:,} times)"
        given = shlex.quote(one_line(text, 200))
        lines.append(f"left out: the instruction (system message) of {n:,} dialogues; {which}: --instruction {given}")
    if summary.tools:
        lines.append(f"left out: {summary.tools:,} messages from or to tools; put what they say into the passages")
    if summary.dialogues:
        where = "it is stored in the metadata of the queries (chat_history), which BEIR retrievers do not read"
        lines.append(f"{summary.dialogues:,} of the questions follow a dialogue: {where}")
    if summary_has(summary, "no answer"):
        way = "groundtune index --eval_file"
        lines.append(f"Examples without an answer can be used to measure retrieval ({way}); training skips them.")
    return lines
