"""The data types of the project: documents, dialogue turns, examples, hits, predictions.

Frozen, standard library only; they know nothing of files, tokens or models.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

USER = "user"
ASSISTANT = "assistant"
# The answer a model learns to give when the passages do not contain one.
UNANSWERABLE = "The passages do not answer this question."


@dataclass(frozen=True)
class Ended:
    """How an answer ended: by itself (`finished`), or at the token limit; its mean log-probability, if that is known.

    `withheld`: it was unlikely, so that the passages do not answer the question was said instead.
    """

    finished: bool
    logprob: float | None = None
    withheld: bool = False


Words = Generator[str, None, Ended]  # an answer as it arrives


@dataclass(frozen=True)
class Sampling:
    """Draw the tokens of an answer by their probabilities; an equal seed draws the same from equal ones."""

    temperature: float
    seed: int


def nfc(text: str) -> str:
    """The text with composed characters: an "ü" may also be written as "u" and a mark, which looks the same."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


class _Composed:
    """Dataclasses whose texts are in NFC, whatever file, folder, server or call they come from."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                object.__setattr__(self, name, nfc(value))
            elif isinstance(value, tuple) and value and isinstance(value[0], str):
                object.__setattr__(self, name, tuple(map(nfc, value)))


@dataclass(frozen=True)
class Document(_Composed):
    """One passage of the document database.

    `fmt_content` is the page content with its metadata written in; retrievers and models read this text.
    """

    page_content: str
    fmt_content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def text(self) -> str:
        """The text that retrievers and models read: `fmt_content`, else `page_content`, stripped."""
        return self.fmt_content.strip() or self.page_content.strip()

    @property
    def body(self) -> str:
        """The text without its metadata: `page_content`, else `text`; for comparing what passages say."""
        return self.page_content or self.text

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of `text`, so equal texts are one document, whatever their file."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {"page_content": self.page_content, "fmt_content": self.fmt_content, "metadata": self.metadata}


@dataclass(frozen=True)
class Turn(_Composed):
    """One message of a dialogue; `speaker` is `USER` or `ASSISTANT`, whatever name the file used."""

    speaker: str
    message: str


@dataclass(frozen=True)
class Example(_Composed):
    """`<chat_history, question, passage, answer>`: one example for training or evaluation.

    The model learns `answer`; `gold_answers` lists all correct answers, and if empty only `answer` is correct. If an
    example is not `answerable`, its gold documents do not contain the answer and its `answer` says so.
    `source` is the example's file and line (`train.jsonl:17`), so that messages can name them.
    """

    question: str
    answer: str
    gold_documents: tuple[Document, ...]
    chat_history: tuple[Turn, ...] = ()
    hard_negatives: tuple[Document, ...] = ()
    source: str = ""
    gold_answers: tuple[str, ...] = ()
    answerable: bool = True

    @property
    def has_evidence(self) -> bool:
        """Whether a search can find a passage with the answer; retrieval is measured on these examples only."""
        return self.answerable and bool(self.gold_documents)

    @property
    def acceptable_answers(self) -> tuple[str, ...]:
        """The answers to score against: `answer` first, then the other `gold_answers`, each once."""
        return tuple(dict.fromkeys([self.answer, *self.gold_answers]))

    def to_dict(self) -> dict[str, Any]:
        """One line of an examples file; fields at their defaults are left out."""
        row = {
            "question": self.question,
            "gold_docs": [document.to_dict() for document in self.gold_documents],
            "gold_answer": self.answer,
            "chat_history": [{"speaker": turn.speaker, "message": turn.message} for turn in self.chat_history],
            "hard_neg_docs": [document.to_dict() for document in self.hard_negatives],
        }
        row |= {"gold_answers": list(self.gold_answers)} if self.gold_answers else {}
        return row | ({} if self.answerable else {"answerable": False})


@dataclass(frozen=True)
class Hit:
    """A retrieved document with the retriever's score (higher is better)."""

    document: Document
    score: float


@dataclass(frozen=True)
class Reply:
    """A model's reply to one prompt or, if `failure` is not empty, the reason why there is none.

    `finished` is False if the reply was cut off at the token limit. The counts are the tokens of the prompt and of
    the text, `logprob` is the mean log-probability of the latter; None if they are not known.
    """

    text: str = ""
    finished: bool = True
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    failure: str = ""
    logprob: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One question answered end to end, with everything a person needs to judge it.

    `hits` are the retrieved passages, best first. `read` are the passages in the prompt: in the context `retrieved`
    the first `passages_read` hits, in the other contexts the passages chosen by `prompts.policies.CONTEXTS`.
    `finished` is False if the answer was cut off at the token limit.
    `failure` is not empty if there is no answer to score; `outcome` is one of `outcomes.OUTCOMES`, or empty. `logprob`
    is the mean log-probability of the answer's tokens. `withheld` is what the model wrote, perhaps nothing, if it was
    too unlikely to be given as the answer (`evaluation.confidence`), else None. `cited` is the answer with the marks of
    its passages, if they were asked for (`prompts.citations`).
    """

    example: Example
    hits: tuple[Hit, ...]
    answer: str
    finished: bool
    passages_read: int
    prompt_tokens: int | None
    new_tokens: int | None
    scores: dict[str, float] = field(default_factory=dict)
    context: str = "retrieved"
    read: tuple[Document, ...] = ()
    failure: str = ""
    outcome: str = ""
    judged: dict[str, str] = field(default_factory=dict)  # what each judge wrote
    logprob: float | None = None
    withheld: str | None = None
    cited: str = ""

    def to_dict(self) -> dict[str, Any]:
        optional = {
            "read_docs": [d.to_dict() for d in self.read] if self.context != "retrieved" else None,
            "failure": self.failure,
            "outcome": self.outcome,
            "judged": self.judged,
            "cited": self.cited,
        }
        return {
            "source": self.example.source,
            "question": self.example.question,
            "chat_history": [{"speaker": t.speaker, "message": t.message} for t in self.example.chat_history],
            "gold_answer": self.example.answer,
            "gold_answers": list(self.example.acceptable_answers),
            **({} if self.example.answerable else {"answerable": False}),
            "answer": self.answer,
            "finished": self.finished,
            "gold_docs": [d.to_dict() for d in self.example.gold_documents],
            "retrieved_docs": [{**h.document.to_dict(), "score": h.score} for h in self.hits],
            "passages_read": self.passages_read,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            **({} if self.logprob is None else {"logprob": self.logprob}),
            **({} if self.withheld is None else {"withheld": self.withheld}),
            "scores": self.scores,
            "context": self.context,
            **{name: value for name, value in optional.items() if value},
        }
