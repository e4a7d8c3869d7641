"""`groundtune questions`: passages -> questions and answers by an LLM, saved in the journal batch by batch."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.entries import shown
from groundtune.data.words import words
from groundtune.errors import DataError
from groundtune.prepare.journal import Journal
from groundtune.prepare.written import own_part, parse_answer, parse_questions
from groundtune.prompts.fences import fenced
from groundtune.schema import Document, Reply
from groundtune.system.inputs import read_text
from groundtune.system.text import encodable

if TYPE_CHECKING:
    from groundtune.model.generators import Writer

JournalRow = dict[str, Any]
Asked = tuple[Document, str]  # a passage and a question to answer from it
# What a row of the journal holds, by the field that only rows of its kind have.
_TEXT, _TEXTS, _FLAG, _VERDICT = "a text", "a list of texts", "true or false", "true, false or null"
_ROWS = {
    "questions": {"passage": _TEXT, "questions": _TEXTS},
    "answer": {"passage": _TEXT, "question": _TEXT, "answer": _TEXT, "finished": _FLAG},
    "check": {"passage": _TEXT, "question": _TEXT, "check": _TEXT, "supported": _VERDICT, "said": _TEXT},
}
_IS: dict[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str) and encodable(value),
    _TEXTS: lambda value: isinstance(value, list) and all(map(_IS[_TEXT], value)),
    _FLAG: lambda value: isinstance(value, bool),
    _VERDICT: lambda value: value is None or isinstance(value, bool),
}
_MISSING = object()
PLACEHOLDERS = {
    "questions.txt": ("{passage}",),
    "answer.txt": ("{passage}", "{question}"),
    "support.txt": ("{passage}", "{answer}"),
}


@dataclass(frozen=True)
class Settings:
    """Numbers, prompts, and the strictness of the gates."""

    question_prompt: str
    answer_prompt: str
    support_prompt: str
    support: str = "lexical"  # or "llm", or "both": how to check that a passage supports an answer
    checker: str = ""  # the LLM that checks, if it is not the generator
    one_line_answers: bool = False  # as the examples in the prompt of a base model have
    passages: int = 200
    questions_per_passage: int = 2
    min_words: int = 30  # of a passage
    min_support: float = 0.6  # share of an answer's words that its passage contains
    retrieved_within: int = 0  # ranks within which a question must find its passage; 0: `found_within`
    passages_tried: int = 3  # for a given question: passages, best first, that may answer it
    hard_negatives: int = 2
    eval_share: float = 0.1
    test_share: float = 0.1
    max_new_tokens: int = 256
    seed: int = 0


def read_prompt(path: Path | None, packaged: str, by_example: bool = False) -> str:
    """The user's prompt file, or the packaged one, which may show the work `by_example` to a model that follows no
    instructions.

    Raises:
        DataError: the file cannot be read or lacks a placeholder.
    """
    if path is None:
        name = packaged.replace(".txt", "_by_example.txt") if by_example else packaged
        return resources.files("groundtune.prepare").joinpath("prompts", name).read_text("utf-8")
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError([f"{path}: cannot be read ({error}); name a text file in UTF-8"]) from error
    if missing := [name for name in PLACEHOLDERS[packaged] if name not in text.replace("{<", "{").replace(">}", "}")]:
        raise DataError([f"{path}: lacks {' and '.join(missing)}; put it where the text should be inserted"])
    return text


def sample_passages(documents: Iterable[Document], settings: Settings) -> list[Document]:
    """A random but reproducible sample of suitable passages: neither short nor mostly figures.

    A larger sample contains every smaller one, so `passages` can be raised to continue earlier work.
    """
    suitable = (document for document in documents if _suitable(document.body, settings))
    return sorted(suitable, key=lambda document: chance(settings.seed, document))[: settings.passages]


@dataclass
class Asker:
    """Sends prompts to a generator in batches, and saves each reply in the journal as it arrives.

    `load` is called only if there is something to ask. Failed requests are in `failures` but not in the journal, so
    the next run repeats them.
    """

    load: Callable[[], Writer]
    journal: Journal
    max_new_tokens: int
    batch: int
    report: Callable[[str, int, int], None] = lambda stage, done, total: None
    failures: list[str] = field(default_factory=list)

    def __call__(
        self, stage: str, jobs: Sequence[JournalRow], prompts: Sequence[str], row_of: Callable[[Reply], JournalRow]
    ) -> None:
        """Save `{**job, **row_of(reply)}` for each job whose prompt got a reply."""
        for start in range(0, len(jobs), self.batch):
            self.report(stage, start, len(jobs))
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + self.batch]]
            replies = self.load().complete(
                messages, self.max_new_tokens, on_done=self._counting(stage, start, len(jobs))
            )
            self.failures += [reply.failure for reply in replies if reply.failure]
            answered = zip(jobs[start : start + self.batch], replies, strict=True)
            self.journal.add({**job, **row_of(reply)} for job, reply in answered if not reply.failure)
            self.report(stage, min(start + self.batch, len(jobs)), len(jobs))

    def _counting(self, stage: str, done: int, total: int) -> Callable[[int], None]:
        """A function that reports each reply: a batch may take minutes."""
        numbers = count(done + 1)
        return lambda _: self.report(stage, next(numbers), total)


@dataclass(frozen=True)
class Sampled:
    """Passages that the generator writes questions about."""

    passages: Sequence[Document]

    def write(self, settings: Settings, ask: Asker, check: Callable[[Sequence[Asked]], None]) -> None:
        """Ask for the questions, answers and verdicts that are not in the journal yet."""
        known = {row["passage"] for row in ask.journal.rows if "questions" in row}
        new = [passage for passage in self.passages if passage.id not in known]
        ask(
            "questions",
            [{"passage": passage.id} for passage in new],
            [question_prompt(settings, passage) for passage in new],
            lambda reply: {"questions": parse_questions(own_part(reply), settings.questions_per_passage)},
        )
        asked = [(passage, question) for question, (passage,) in self.asked(ask.journal)]
        answer(asked, settings, ask)
        check(asked)

    def asked(self, journal: Journal) -> list[tuple[str, tuple[Document, ...]]]:
        """The questions in the journal with the passage of each, in the order of the sample, so that resuming changes
        nothing."""
        written = {row["passage"]: row["questions"] for row in journal.rows if "questions" in row}
        return [(question, (passage,)) for passage in self.passages for question in written.get(passage.id, [])]

    def read(self, journal: Journal) -> list[Document]:
        """The passages that have been asked about."""
        written = {row["passage"] for row in journal.rows if "questions" in row}
        return [passage for passage in self.passages if passage.id in written]


def answer(asked: Sequence[Asked], settings: Settings, ask: Asker) -> None:
    """Ask for the answers that are not in the journal yet."""
    known = {(row["passage"], row["question"]) for row in ask.journal.rows if "answer" in row}
    new = [at for at in dict.fromkeys(asked) if (at[0].id, at[1]) not in known]
    ask(
        "answers",
        [{"passage": passage.id, "question": question} for passage, question in new],
        [answer_prompt(settings, passage, question) for passage, question in new],
        lambda reply: dict(zip(("answer", "finished"), parse_answer(reply, settings.one_line_answers))),
    )


def open_journal(folder: Path, settings: Settings, generator: str) -> Journal:
    """The journal in `folder`. Raises `DataError` unless it was made with the same prompts, numbers and generator."""
    return Journal(folder / "generated.jsonl", what_decides_a_reply(settings, generator), _wrong_with)


def _wrong_with(row: JournalRow) -> str:
    """What is wrong with a row of the journal; empty if nothing is."""
    kinds = [kind for kind in _ROWS if kind in row]
    if len(kinds) != 1:
        return f"has {' and '.join(kinds) or 'none'} of the fields {', '.join(_ROWS)}, of which a row has one"
    fields = _ROWS[kinds[0]]
    wrong = [f"{name} is not {kind}" for name, kind in fields.items() if not _IS[kind](row.get(name, _MISSING))]
    return ", ".join(wrong + [f"{shown(name)} is unknown" for name in row if name not in fields])


def what_decides_a_reply(settings: Settings, generator: str) -> dict[str, Any]:
    """The settings that replies depend on; a journal can be continued only if they are the same."""
    prompts = {"question prompt": settings.question_prompt, "answer prompt": settings.answer_prompt}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in prompts.items()}
    numbers = {"questions per passage": settings.questions_per_passage, "max new tokens": settings.max_new_tokens}
    return {"generator": generator, **hashes, **numbers}


def question_prompt(settings: Settings, passage: Document) -> str:
    return fill(settings.question_prompt, settings.questions_per_passage, passage=passage.text)


def answer_prompt(settings: Settings, passage: Document, question: str) -> str:
    return fill(settings.answer_prompt, passage=passage.text, question=question)


def fill(prompt: str, number: int = 0, **texts: str) -> str:
    """The prompt with each `{name}` replaced by its text, and each `{<name>}` by its text inside a fence.

    Braces in the texts are not replaced. The packaged prompts fence all texts, as a passage may contain something that
    reads like an instruction; a prompt of the user's own may take the texts alone.
    """
    values = {"{number}": str(number)}
    for name, text in texts.items():
        values |= {f"{{{name}}}": text, f"{{<{name}>}}": fenced(name, text)}
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], prompt)


def found_within(documents: int) -> int:
    """Number of first search results among which a question must find its passage, for a database of this size.

    A quarter of the square root, at most 20: measured in docs/prepare.md on questions that people asked.
    """
    return min(20, max(1, round(documents**0.5 / 4)))


def _suitable(text: str, settings: Settings) -> bool:
    letters = sum(unicodedata.category(character)[0] in "LM" for character in text)  # M: vowels of many scripts
    return len(words(text)) >= settings.min_words and letters >= 0.5 * len("".join(text.split()))


def chance(seed: int, passage: Document) -> float:
    """A number in [0, 1) that depends only on the seed and the passage's text."""
    digest = hashlib.blake2b(f"{seed}:{passage.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
