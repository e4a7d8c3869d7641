"""`groundtune questions`: passages -> questions and answers by an LLM, each saved in the journal as it arrives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.entries import shown
from groundtune.data.words import word_count, words
from groundtune.errors import DataError
from groundtune.prepare.journal import Journal
from groundtune.prompts.fences import fenced
from groundtune.schema import Document, Reply
from groundtune.system.inputs import read_text
from groundtune.system.text import encodable

if TYPE_CHECKING:
    from groundtune.model.generators import Writer

JournalRow = dict[str, Any]
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
NOT_ANSWERED = "NOT ANSWERED"
PLACEHOLDERS = {
    "questions.txt": ("{passage}",),
    "answer.txt": ("{passage}", "{question}"),
    "support.txt": ("{passage}", "{answer}"),
}
# A list number is not followed by a digit: "3.5 mm" and "10:30" do not begin with one.
_NUMBERING = re.compile(r"^\W*(?:(?:question|q)?\s*\d+\s*[.):](?!\d)|question:|q:|[-*•])\s*", re.IGNORECASE)
_LEAST_WORDS = 2  # of a question
# "Answer:", "**Answer:**" or "**Answer**:" before an answer; "**Answer: Ten euros.**".
_LABEL = re.compile(r"^[\s#>]*(?P<mark>[*_]{0,3})answer(?:(?P=mark)\s*:|\s*:\s*(?P=mark))\s*", re.IGNORECASE)
_MARKED = re.compile(
    r"^[\s#>]*(?P<mark>[*_]{1,3})answer\s*:(?!\s*(?P=mark))\s*(?P<answer>.*?)(?P=mark)\s*$", re.IGNORECASE | re.DOTALL
)
# The whole reply says that there is no answer, or its first sentence does in the capitals that the prompt asks for.
_NO_ANSWER = re.compile(rf"[\W_]*(?:(?i:{NOT_ANSWERED})[\W_]*|{NOT_ANSWERED}[*_]*[.!:;\n\u2014-].*)", re.DOTALL)
# At the end of a line; after a Greek letter a semicolon counts, and the Armenian mark is inside the questioning word.
_QUESTION_MARK = re.compile(r"[?？؟]$|[\u0370-\u03ff\u1f00-\u1fff][;\u037e]$|՞")


@dataclass(frozen=True)
class Settings:
    """Numbers, prompts, and the strictness of the gates."""

    question_prompt: str
    answer_prompt: str
    support_prompt: str
    support: str = "lexical"  # or "llm", or "both": how to check that a passage supports an answer
    checker: str = ""  # the LLM that checks, if it is not the generator
    passages: int = 200
    questions_per_passage: int = 2
    min_words: int = 30  # of a passage
    min_support: float = 0.6  # share of an answer's words that its passage contains
    retrieved_within: int = 20  # ranks within which a question must find its passage
    hard_negatives: int = 2
    eval_share: float = 0.1
    test_share: float = 0.1
    max_new_tokens: int = 256
    seed: int = 0


def read_prompt(path: Path | None, packaged: str) -> str:
    """The user's prompt file, or the packaged one.

    Raises:
        DataError: the file cannot be read or lacks a placeholder.
    """
    if path is None:
        return resources.files("groundtune.prepare").joinpath("prompts", packaged).read_text("utf-8")
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
            generator = self.load()
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + self.batch]]
            replies = generator.complete(messages, self.max_new_tokens)
            self.failures += [reply.failure for reply in replies if reply.failure]
            answered = zip(jobs[start : start + self.batch], replies, strict=True)
            self.journal.add({**job, **row_of(reply)} for job, reply in answered if not reply.failure)
            self.report(stage, min(start + self.batch, len(jobs)), len(jobs))


def generate(passages: Sequence[Document], settings: Settings, ask: Asker) -> None:
    """Ask for the questions and answers that are not in the journal yet."""
    journal = ask.journal
    asked = {row["passage"] for row in journal.rows if "questions" in row}
    new = [passage for passage in passages if passage.id not in asked]
    ask(
        "questions",
        [{"passage": passage.id} for passage in new],
        [question_prompt(settings, passage) for passage in new],
        lambda reply: {"questions": parse_questions(reply.text, settings.questions_per_passage)},
    )
    answered = {(row["passage"], row["question"]) for row in journal.rows if "answer" in row}
    by_id = {passage.id: passage for passage in passages}
    open_ = [(id, question) for id, question in questions_of(journal, by_id) if (id, question) not in answered]
    ask(
        "answers",
        [{"passage": id, "question": question} for id, question in open_],
        [answer_prompt(settings, by_id[id], question) for id, question in open_],
        lambda reply: dict(zip(("answer", "finished"), parse_answer(reply))),
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
    reads like an instruction; a prompt with examples for a base model needs the texts alone.
    """
    values = {"{number}": str(number)}
    for name, text in texts.items():
        values |= {f"{{{name}}}": text, f"{{<{name}>}}": fenced(name, text)}
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], prompt)


def parse_questions(text: str, at_most: int) -> list[str]:
    """The questions in a reply: lines with a question mark of any script, without list numbers or duplicates."""
    lines = (_NUMBERING.sub("", line.strip()).strip(" \"'*_") for line in text.splitlines())
    asked = (line for line in lines if _QUESTION_MARK.search(line) and word_count(line) >= _LEAST_WORDS)
    return list(dict.fromkeys(asked))[:at_most]


def parse_answer(reply: Reply) -> tuple[str, bool]:
    """The answer in a reply (empty if the reply says that there is none), and whether it was finished.

    Text with which a base model continues after its answer is cut off.
    """
    first, *more = re.split(r"\n[\s*_#]*(?:Question|Passage)[*_]*:", reply.text)
    marked = _MARKED.match(first)
    answer = (marked["answer"] if marked else _LABEL.sub("", first.strip())).strip()
    return "" if _NO_ANSWER.fullmatch(answer) else answer, reply.finished or bool(more)


def _suitable(text: str, settings: Settings) -> bool:
    letters = sum(map(str.isalpha, text))
    return len(words(text)) >= settings.min_words and letters >= 0.5 * len("".join(text.split()))


def questions_of(journal: Journal, by_id: Mapping[str, Document]) -> Iterator[tuple[str, str]]:
    """Passage ids and questions in the order of the sample, so that resuming changes nothing."""
    asked = {row["passage"]: row["questions"] for row in journal.rows if "questions" in row}
    return ((id, question) for id in by_id for question in asked.get(id, []))


def chance(seed: int, passage: Document) -> float:
    """A number in [0, 1) that depends only on the seed and the passage's text."""
    digest = hashlib.blake2b(f"{seed}:{passage.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
