"""What flows through the project: documents, dialogue turns, examples, hits, predictions.

Standard library only, frozen, and free of any idea of files, tokens or models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

USER = "user"
ASSISTANT = "assistant"
# What a model learns to say where the passages hold no answer.
UNANSWERABLE = "The passages do not answer this question."


@dataclass(frozen=True)
class Document:
    """One passage of the document database.

    `fmt_content` is the page content with its metadata written in; it is what retrievers and models read.
    """

    page_content: str
    fmt_content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def text(self) -> str:
        """What retrievers and models read: `fmt_content`, else `page_content`, stripped."""
        return self.fmt_content.strip() or self.page_content.strip()

    @cached_property
    def id(self) -> str:
        """The same text is the same document, whatever file it came from: SHA-256 of `text`, 16 hex digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {"page_content": self.page_content, "fmt_content": self.fmt_content, "metadata": self.metadata}


@dataclass(frozen=True)
class Turn:
    """One message of a dialogue; `speaker` is `USER` or `ASSISTANT`, whatever the file called them."""

    speaker: str
    message: str


@dataclass(frozen=True)
class Example:
    """`<chat_history, question, passage, answer>`: what is trained on and evaluated.

    `answer` is what is learnt; `gold_answers` are all that count as right, none meaning just `answer`. An example that
    is not `answerable` has gold documents that do not hold the answer, and an `answer` that says so.
    `source` says where it came from (`train.jsonl:17`), so that every message about it can name the line.
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
    def acceptable_answers(self) -> tuple[str, ...]:
        """`answer` first, then the other `gold_answers`, each once: what an answer is scored against."""
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
    """What a model wrote to one prompt; or, where `failure` is not empty, why it wrote nothing.

    `finished` says whether it ended by itself, and did not run into the token limit. The counts are the tokens of the
    prompt and of the text, None where a server does not tell.
    """

    text: str = ""
    finished: bool = True
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    failure: str = ""


@dataclass(frozen=True)
class Prediction:
    """One question answered end to end, with all that is needed to judge it by eye.

    `hits` is what was retrieved, best first. `read` are the passages in the prompt: in the context `retrieved` the
    first `passages_read` of the hits, in the other contexts what `passages.CONTEXTS` says.
    `finished` says whether the model ended its answer itself, and did not run into the token limit.
    `failure` is not empty where there is no answer to score; `outcome` is one of `outcomes.OUTCOMES`, or empty.
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

    def to_dict(self) -> dict[str, Any]:
        optional = {
            "read_docs": [d.to_dict() for d in self.read] if self.context != "retrieved" else None,
            "failure": self.failure,
            "outcome": self.outcome,
            "judged": self.judged,
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
            "scores": self.scores,
            "context": self.context,
            **{name: value for name, value in optional.items() if value},
        }
