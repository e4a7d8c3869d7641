"""Checks of the text of examples and documents, without a tokenizer; time is linear in the data.

An error is something that training would refuse or get wrong; a warning is something that is hardly ever intended.
Every finding names its place: `train.jsonl:17: gold_answer: what is wrong; what to do`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from groundtune.arguments import DataArguments
from groundtune.data.files import FilePath, scan_documents, scan_examples
from groundtune.data.overlap import HOLDS, share_held, twins
from groundtune.data.passages import article_of
from groundtune.data.words import telling_words
from groundtune.errors import gathered
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn

ERROR, WARNING, NOTE = "error", "warning", "note"  # a note needs no change to the data

_CONTAINED = 0.95  # a document with this share of its text in another one is contained in it
_MOST_COMPARED = 200_000  # documents, which take about 2 GB to compare

# Check name -> title used when its findings are counted.
TITLES = {
    "format": "what cannot be read",
    "blank": "blank question or answer, skipped",
    "misspelt": "ignored field or turn",
    "thought": "thought in an answer",
    "encoding": "damaged characters",
    "language": "language in which not everything can be measured",
    "repeated-document": "duplicate document",
    "same-file": "file used twice",
    "repeated-question": "duplicate question in the file",
    "leaked-question": "question also in another split",
    "leaked-gold": "gold passage also in the training file",
    "gold-not-in-database": "gold passage missing from the document database",
    "answer-off-passage": "answer without a word of its gold passages",
    "without-gold": "answerable question without a gold passage",
    "gold-as-negative": "hard negative that is also a gold passage",
    "negative-with-gold-text": "hard negative with the text of a gold passage",
    "contained-passage": "document contained in another",
    "shared-article": "split that shares articles with the training file",
    "declining-answer": "gold answer that declines to answer",
    "unknown-abstention": "abstention that would count as an answer",
    "one-citation": "citations of the first passage alone",
    "emulated-bf16": "bfloat16 on hardware without it",
    "moved-gold": "gold passage under another title or source",
    "reworded-gold": "gold passage that was reworded or cut elsewhere",
    "gone-gold": "gold passage that is gone",
    "history": "chat history whose speakers do not alternate",
    "model": "tokenizer that cannot be loaded",
    "too-long": "example over the length limit",
    "long-answer": "gold answer longer than --max_new_tokens",
    "unfinished-row": "row that does not end with an end token",
    "other-answer": "row that teaches something other than its gold answer",
    "doubled-bos": "row that begins with two BOS tokens",
    "no-bos": "chat template without the tokenizer's BOS token",
    "long-passage": "document longer than the embedding model reads",
    "long-query": "search query longer than the embedding model reads",
}


@dataclass(frozen=True)
class Finding:
    """One problem. `where` is "train.jsonl:17", or the whole file; `field` may be empty.

    `tokens` is the length of the text if it is too long, else None.
    """

    severity: str
    check: str
    where: str
    field: str
    message: str
    tokens: int | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.message) if part)

    def to_dict(self) -> dict[str, Any]:
        file, line = place(self.where)
        return {"file": file or None, "line": line or None, **asdict(self)}


@dataclass(frozen=True)
class Dataset:
    """The data of a run: every document once, the usable examples of each split, and the findings so far.

    `document_places[i]` is the file and line of `documents[i]`. `paths` maps flags to files; `entries` maps files to
    the number of documents or examples read, including those that are left out.
    """

    documents: list[Document]
    document_places: list[str]
    examples: dict[str, list[Example]]
    paths: dict[str, str]
    findings: list[Finding]
    entries: dict[str, int]


def place(where: str) -> tuple[str, int]:
    """File and line of "train.jsonl:17"; line 0 for a file as a whole."""
    file, colon, line = where.rpartition(":")
    return (file, int(line)) if colon and line.isdecimal() else (where, 0)


def read_dataset(data: DataArguments) -> Dataset:
    """Read all given files. An invalid line or file becomes a finding, and reading continues."""
    flags = ("full_dataset_file_path", "train_file", "eval_file", "test_file")
    paths = {flag: path for flag in flags if (path := getattr(data, flag))}
    findings: list[Finding] = []
    entries: dict[str, int] = {}
    documents, places = _documents(paths[flags[0]], findings, entries) if flags[0] in paths else ([], [])
    examples = {
        flag.removesuffix("_file"): _examples(path, findings, entries)
        for flag, path in paths.items()
        if flag != flags[0]
    }
    return Dataset(documents, places, examples, paths, findings, entries)


def check_texts(dataset: Dataset) -> list[Finding]:
    """The findings from reading the files, and those of every check below."""
    # A file given twice, for example as eval and as test file, is reported once.
    return list(dict.fromkeys([*dataset.findings, *(found for check in CHECKS for found in check(dataset))]))


def _documents(path: str, findings: list[Finding], entries: dict[str, int]) -> tuple[list[Document], list[str]]:
    contents = scan_documents(path)
    entries[path] = len(contents.entries)
    findings += _noticed_by_the_reader(path, contents.problems, contents.suspicions)
    first: dict[str, str] = {}
    documents: list[Document] = []
    for where, document in contents.entries:
        if document.text in first:
            message = f"repeats the text of {first[document.text]}; one copy is kept, delete the other"
            findings.append(_warning("repeated-document", where, _text_field(document), message))
        else:
            first[document.text] = where
            documents.append(document)
    return documents, list(first.values())


def _examples(path: str, findings: list[Finding], entries: dict[str, int]) -> list[Example]:
    """The examples that have both a question and an answer; published data sometimes lacks one."""
    contents = scan_examples(path)
    entries[path] = len(contents.entries)
    findings += _noticed_by_the_reader(path, contents.problems, contents.suspicions)
    usable = []
    for where, example in contents.entries:
        texts = {"question": example.question, "gold_answer": example.answer}
        blank = [name for name, text in texts.items() if not text.strip()]
        message = "is blank, so the example is skipped; fill it in, or delete the line"
        findings.extend(_warning("blank", where, name, message) for name in blank)
        usable += [] if blank else [example]
    if contents.entries and not usable:
        message = "every question or answer is blank; write at least one example"
        findings.append(Finding(ERROR, "blank", str(path), "", message))
    return usable


def _noticed_by_the_reader(path: FilePath, problems: Iterable[str], suspicions: Iterable[str]) -> Iterator[Finding]:
    for severity, check, lines in ((ERROR, "format", problems), (WARNING, "misspelt", suspicions)):
        for line in lines:
            # A field is one word, so "documents.pkl: refused, nothing was executed: ..." has no field.
            parts = re.fullmatch(rf"({re.escape(str(path))}(?::\d+)?): (?:(\S+): )?(.*)", line, re.DOTALL)
            where, field, message = parts.groups("") if parts else ("", "", line)
            yield Finding(severity, check, where, field, message)


def _warning(check: str, where: str, field: str, message: str) -> Finding:
    return Finding(WARNING, check, where, field, message)


def _text_field(document: Document) -> str:
    return "fmt_content" if document.fmt_content.strip() else "page_content"


# The checks


def _damaged_characters(dataset: Dataset) -> Iterator[Finding]:
    for where, document in zip(dataset.document_places, dataset.documents):
        if damage := _damage(document.text):
            yield _warning("encoding", where, _text_field(document), damage)
    for example in _all_examples(dataset):
        turns = [(f"chat_history[{i}].message", turn.message) for i, turn in enumerate(example.chat_history)]
        for field, text in (("question", example.question), ("gold_answer", example.answer), *turns):
            if damage := _damage(text):
                yield _warning("encoding", example.source, field, damage)


# As models write them; other marks of thoughts are control tokens, which no file holds.
_THOUGHT = re.compile(r"</?(?:think|thinking|thought|reasoning)>|\[/?THINK\]")


def _thoughts(dataset: Dataset) -> Iterator[Finding]:
    for example in _all_examples(dataset):
        turns = [
            (f"chat_history[{i}].message", turn.message)
            for i, turn in enumerate(example.chat_history)
            if turn.speaker == ASSISTANT
        ]
        for field, text in (("gold_answer", example.answer), *turns):
            if found := _THOUGHT.search(text):
                message = f"contains {found[0]}: thoughts are not part of an answer; keep only what follows them"
                yield _warning("thought", example.source, field, message)


# UTF-8 decoded as Latin-1 or Windows-1252: C2 or C3 with a continuation byte, and damaged quotation marks.
_MOJIBAKE = re.compile(r"[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0153\u009d\u2122\u02dc\u201c\u201d\u00a6]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def _damage(text: str) -> str:
    if found := _MOJIBAKE.search(text):
        return f"contains {found[0]!r}, which is UTF-8 decoded as Latin-1; convert the source again, as UTF-8"
    if "\ufffd" in text:
        return "contains U+FFFD, a character lost in decoding; convert the source again with the right encoding"
    if found := _CONTROL.search(text):
        return f"contains the control character {found[0]!r}; remove it"
    return ""


def _files_given_twice(dataset: Dataset) -> Iterator[Finding]:
    for flag, other in _same_files(dataset):
        consequence = (
            "the evaluation would use training data; hold some examples out"
            if other == "train_file"
            else "the checkpoint would be selected on the test questions; hold some examples out"
        )
        yield _warning("same-file", dataset.paths[flag], "", f"is also --{other}, so {consequence}")


def _same_files(dataset: Dataset) -> list[tuple[str, str]]:
    pairs = (("eval_file", "train_file"), ("test_file", "train_file"), ("test_file", "eval_file"))
    real = {flag: os.path.realpath(path) for flag, path in dataset.paths.items()}
    return [(flag, other) for flag, other in pairs if flag in real and real[flag] == real.get(other)]


def _repeated_questions(dataset: Dataset) -> Iterator[Finding]:
    for examples in dataset.examples.values():
        first: dict[tuple[str, ...], Example] = {}
        for example in examples:
            before = first.setdefault(_asked(example), example)
            if before is not example:
                same = _plain(before.answer) == _plain(example.answer)
                advice = "with the same answer; delete one" if same else "with another answer; keep the right one"
                yield _warning(
                    "repeated-question", example.source, "question", f"is also asked in {before.source}, {advice}"
                )


def _leaks(dataset: Dataset) -> Iterator[Finding]:
    """Questions and gold passages of train that also appear in eval or test, and questions of eval in test."""
    given_twice = [tuple(flag.removesuffix("_file") for flag in pair) for pair in _same_files(dataset)]
    leaked: set[str] = set()
    for split, other in (("eval", "train"), ("test", "train"), ("test", "eval")):
        if not {split, other} <= dataset.examples.keys() or (split, other) in given_twice:
            continue
        asked = {_asked(example): example.source for example in reversed(dataset.examples[other])}
        gold = {_content(d): e.source for e in reversed(dataset.examples[other]) for d in e.gold_documents}
        for example in dataset.examples[split]:
            before = asked.get(_asked(example))
            if before and example.source not in leaked:
                leaked.add(example.source)
                use = "chosen" if other == "eval" else "trained"
                message = (
                    f"is also {before}, so the model was {use} on a question that it is tested on; delete one of the "
                    "two"
                )
                yield _warning("leaked-question", example.source, "question", message)
            elif not before and other == "train":
                yield from _leaked_gold(example, gold)


def _leaked_gold(example: Example, gold: dict[str, str]) -> Iterator[Finding]:
    for i, document in enumerate(example.gold_documents):
        if before := gold.get(_content(document)):
            message = (
                f"is also gold in {before}, so the question may be answered from memory; split the data by passage"
            )
            yield _warning("leaked-gold", example.source, f"gold_docs[{i}]", message)


def _asked(example: Example) -> tuple[str, ...]:
    """Key of a question with its chat history: "and then?" is the same question only after the same dialogue."""
    return (_plain(example.question), *(_plain(turn.message) for turn in example.chat_history))


def _content(document: Document) -> str:
    """Key of a passage regardless of title and source, which `Document.id` includes."""
    return _plain(document.page_content) or document.text


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .?!\u3002\uff1f\uff01")


def _gold_not_in_database(dataset: Dataset) -> Iterator[Finding]:
    if not dataset.documents:
        return
    ids = {document.id for document in dataset.documents}
    pages = {d.page_content.strip(): where for d, where in zip(dataset.documents, dataset.document_places)}
    for example in _all_examples(dataset):
        for i, gold in enumerate(example.gold_documents):
            if gold.id not in ids:
                near = pages.get(gold.page_content.strip()) if gold.page_content.strip() else None
                hint = f"use the fmt_content of {near}" if near else "add it there, or correct its text"
                message = f"is not in the document database, so retrieval cannot find it; {hint}"
                yield _warning("gold-not-in-database", example.source, f"gold_docs[{i}]", message)


def _answers_off_passage(dataset: Dataset) -> Iterator[Finding]:
    known: dict[str, set[str]] = {}
    for example in _all_examples(dataset):
        if not example.answerable:  # its answer says that the passages do not answer, so it need not share their words
            continue
        answer = _content_words(example.answer)
        for gold in example.gold_documents:
            if gold.id not in known:
                known[gold.id] = _content_words(gold.text)
        if answer and example.gold_documents and not any(answer & known[gold.id] for gold in example.gold_documents):
            message = "shares no word with its gold passages; check that they hold the answer"
            yield _warning("answer-off-passage", example.source, "gold_answer", message)


def _without_gold(dataset: Dataset) -> Iterator[Finding]:
    for example in _all_examples(dataset):
        if example.answerable and not example.gold_documents:
            message = (
                "lists no passage, so its row reads what a search finds, and recall is not measured on it; name the "
                'passages that contain the answer, or write "answerable": false'
            )
            yield _warning("without-gold", example.source, "gold_docs", message)


def _content_words(text: str) -> set[str]:
    """Content words of a text. An answer of only stop words ("Yes.", "It is not.") has none and is not checked."""
    # Five letters, so that "return" and "returned" match.
    return {word[:5] for word in telling_words(text)}


def _gold_as_negatives(dataset: Dataset) -> Iterator[Finding]:
    for example in _all_examples(dataset):
        gold = {document.id: i for i, document in enumerate(example.gold_documents)}
        for i, negative in enumerate(example.hard_negatives):
            if negative.id in gold:
                message = f"is gold_docs[{gold[negative.id]}]; remove it from one of the two"
                yield _warning("gold-as-negative", example.source, f"hard_neg_docs[{i}]", message)


def _negatives_with_gold_text(dataset: Dataset) -> Iterator[Finding]:
    for example in _all_examples(dataset):
        gold = {document.id: document.body for document in example.gold_documents}
        for i, negative in enumerate(example.hard_negatives):
            shares = [share_held(text, negative.body) for text in gold.values()]
            if negative.id not in gold and shares and max(shares) >= HOLDS:
                message = f"has {100 * max(shares):.0f} % of a gold passage's text, so it may answer too; remove it"
                yield _warning("negative-with-gold-text", example.source, f"hard_neg_docs[{i}]", message)


def _twins(dataset: Dataset) -> Iterator[Finding]:
    """Documents whose text another document contains."""
    bodies = [document.body for document in dataset.documents[:_MOST_COMPARED]]
    for i, j in twins(bodies, _CONTAINED).items():
        if bodies[i] == bodies[j] and i < j:
            continue  # of two equal ones the second is enough
        message = f"is contained in {dataset.document_places[j]}, so a search finds one in place of the other; keep one"
        yield _warning("contained-passage", dataset.document_places[i], _text_field(dataset.documents[i]), message)


def _shared_articles(dataset: Dataset) -> Iterator[Finding]:
    """Splits whose gold passages come from articles of which other passages are trained on."""
    gold = [document for example in dataset.examples.get("train", []) for document in example.gold_documents]
    trained, read = {article_of(document) for document in gold} - {""}, set(map(_content, gold))
    for split in ("eval", "test"):
        examples = dataset.examples.get(split, [])
        new = [e for e in examples if not any(_content(document) in read for document in e.gold_documents)]
        shared = sum(any(article_of(document) in trained for document in e.gold_documents) for e in new)
        path = dataset.paths.get(f"{split}_file", "")
        if shared:
            message = (
                f"{shared} of {len(examples)} examples are about other passages of articles that are trained on, so "
                "they are easier than new articles; groundtune split --by article separates them"
            )
            yield _warning("shared-article", path, "", message)


def _histories(dataset: Dataset) -> Iterator[Finding]:
    for example in _all_examples(dataset):
        turns: Sequence[Turn] = example.chat_history
        twice = next((i for i in range(1, len(turns)) if turns[i].speaker == turns[i - 1].speaker), None)
        if twice is not None:
            message = (
                f"is {turns[twice].speaker!r} twice in a row; the two turns are merged in the prompt, add the missing "
                "one"
            )
            yield _warning("history", example.source, f"chat_history[{twice}].speaker", message)
        elif turns and turns[-1].speaker == USER:
            message = (
                "is 'user', but the question follows without an answer to it; add the answer, or move the turn into "
                "the question"
            )
            yield _warning("history", example.source, f"chat_history[{len(turns) - 1}].speaker", message)


def _all_examples(dataset: Dataset) -> Iterator[Example]:
    for examples in dataset.examples.values():
        yield from examples


CHECKS: tuple[Callable[[Dataset], Iterator[Finding]], ...] = (
    _damaged_characters,
    _thoughts,
    _files_given_twice,
    _repeated_questions,
    _leaks,
    _gold_not_in_database,
    _answers_off_passage,
    _without_gold,
    _gold_as_negatives,
    _negatives_with_gold_text,
    _twins,
    _shared_articles,
    _histories,
)


def in_order(findings: Iterable[Finding], dataset: Dataset) -> list[Finding]:
    """Errors before warnings, then in the order in which a run reads the files, then by line."""
    files = {str(path): i for i, path in reversed(list(enumerate(dataset.paths.values())))}

    def key(finding: Finding) -> tuple[bool, int, int]:
        file, line = place(finding.where)
        return finding.severity != ERROR, files.get(file, -1), line

    return sorted(findings, key=key)


def counts(findings: Iterable[Finding]) -> list[str]:
    """One line for each file and check that has warnings: what, how often, and the first place."""
    lines = []
    for (file, check), found in _kinds(findings).items():
        line = place(found[0].where)[1]
        first = f"{'line' if len(found) == 1 else 'first in line'} {line}" if line else found[0].message
        lines.append(f"{file}: {len(found)} x {TITLES[check]} ({first})")
    return lines


_MANY = 5  # up to this many warnings of one kind in one file get a line each
_NAMED = 3  # places named in the summary line if there are more


def condensed(findings: Iterable[Finding], dataset: Dataset) -> list[str]:
    """One line for each finding, but a single line for many of one kind in one file; errors first.

    The line for many warnings has their number, their share of the file, the longest ones (the first ones, if length is
    not the problem), and what to do.
    """
    findings = list(findings)
    errors = gathered([str(finding) for finding in findings if finding.severity == ERROR])
    findings = [finding for finding in findings if finding.severity != ERROR]
    masses = {kind: found for kind, found in _kinds(findings).items() if len(found) > _MANY}
    lines = [f"{ERROR}: {line}" for line in errors]
    for finding in findings:
        kind = place(finding.where)[0], finding.check
        if finding.severity != WARNING or kind not in masses:
            lines.append(f"{finding.severity}: {finding}")
        elif finding is masses[kind][0]:
            lines.append(f"{WARNING}: {_mass(masses[kind], dataset)}")
    return lines


def _kinds(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Warnings by file and check."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.severity == WARNING:
            kinds.setdefault((place(finding.where)[0], finding.check), []).append(finding)
    return kinds


def _mass(found: Sequence[Finding], dataset: Dataset) -> str:
    file = place(found[0].where)[0]
    things = "documents" if file == dataset.paths.get("full_dataset_file_path") else "examples"
    total = dataset.entries[file]
    share = len({finding.where for finding in found}) / total
    worst, *others = sorted(found, key=lambda finding: -(finding.tokens or 0))[:_NAMED]
    then = " and ".join(
        f"{place(f.where)[1]}" + (f" ({f.tokens:,} tokens)" if f.tokens is not None else "") for f in others
    )
    percent = f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.1g}"
    return (
        f"{file}: {len(found):,} x {TITLES[worst.check]} ({percent} % of {total:,} {things}); "
        f"the {'first' if worst.tokens is None else 'longest'}: {worst}; then lines {then}"
    )
