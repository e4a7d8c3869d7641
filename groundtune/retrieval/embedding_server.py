"""Texts -> vectors by a server's `/v1/embeddings`, as OpenAI, vLLM, TEI, Ollama and others have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from groundtune.errors import DataError
from groundtune.model.endpoint import EMBEDDING_KEYS, Endpoint, EndpointError
from groundtune.retrieval.embedder import SoFar
from groundtune.retrieval.embedding_prompts import prompts_for
from groundtune.system.progress import bar, bars_shown
from groundtune.system.servers import address_of
from groundtune.system.text import hide_secrets, is_finite, one_line

_AT_ONCE = 8  # requests at the same time


@dataclass
class ServerEmbedder:
    """An embedding model on a server; its vectors are compared by their cosine.

    Raises `EndpointError`, with what is wrong on one line, for a request that fails after its retries and for an answer
    that is not a vector of the same length for each text.
    """

    name: str  # openai:URL
    served: str  # the server's name for the model
    query_prompt: str | None = None
    document_prompt: str | None = None
    batch_size: int = 64
    limit: None = field(default=None, init=False)  # not known here: some servers shorten texts, others refuse them
    similarity: str = field(default="cosine", init=False)

    def __post_init__(self) -> None:
        query, document = prompts_for(self.served, {})
        self.query_prompt = query if self.query_prompt is None else self.query_prompt
        self.document_prompt = document if self.document_prompt is None else self.document_prompt
        self._endpoint = Endpoint(address_of(self.name), self.served, concurrency=_AT_ONCE, keys=EMBEDDING_KEYS)

    @cached_property
    def dimensions(self) -> int:
        return int(self.embed_documents(["dimensions"]).shape[1])

    @property
    def model(self) -> Any:
        """What reads single tokens; raises `DataError`, because servers do not show their vectors."""
        raise DataError([f"--embedding_model: {hide_secrets(self.name)} is a server, which gives no vectors of single "
                         "tokens; name a model that is loaded here, or leave out what needs them"])  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """What tells one served model from another; its weights cannot be seen."""
        return {
            "server": hide_secrets(address_of(self.name)),
            "served": self.served,
            "document_prompt": self.document_prompt,
            "similarity": self.similarity,
        }

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of questions, float32 [n, dimensions]."""
        return self._embed(texts, self.query_prompt or "", lambda done, vectors: None, hidden=True)

    def embed_documents(self, texts: Sequence[str], so_far: SoFar = lambda done, vectors: None) -> np.ndarray:
        """Unit vectors of documents, float32 [n, dimensions].

        `so_far` is called between requests with the positions of the finished texts and the array of all vectors.
        """
        return self._embed(texts, self.document_prompt or "", so_far, len(texts) <= self.batch_size or not bars_shown())

    def _embed(self, texts: Sequence[str], prompt: str, so_far: SoFar, hidden: bool) -> np.ndarray:
        vectors = np.empty((0, 0), dtype=np.float32)
        step = self.batch_size * _AT_ONCE
        with bar("embedding", len(texts), hidden, unit="text") as progress:
            for start in range(0, len(texts), step):
                some = self._asked([prompt + text or " " for text in texts[start : start + step]])  # "" is refused
                if not start:
                    vectors = np.empty((len(texts), some.shape[1]), dtype=np.float32)
                if some.shape[1] != vectors.shape[1]:
                    raise self._wrong(f"vectors of {some.shape[1]} dimensions, and earlier of {vectors.shape[1]}")
                vectors[start : start + len(some)] = some
                progress.update(len(some))
                so_far(range(start + len(some)), vectors)
        return vectors

    def _asked(self, texts: Sequence[str]) -> np.ndarray:
        batches = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        bodies = [{"model": self.served, "input": list(batch), "encoding_format": "float"} for batch in batches]
        answers = self._endpoint.ask("/embeddings", bodies)
        vectors = [self._vectors(answer, len(batch)) for answer, batch in zip(answers, batches, strict=True)]
        if len(sizes := {some.shape[1] for some in vectors}) > 1:
            raise self._wrong(f"vectors of {' and of '.join(map(str, sorted(sizes)))} dimensions")
        found = np.concatenate(vectors)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def _vectors(self, answer: Any, texts: int) -> np.ndarray:
        """The vectors of one answer, in the order of the texts. Raises `EndpointError` for any other answer."""
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise self._wrong(f"no list of vectors ({one_line(repr(answer), 100)})")
        if len(data) != texts:
            raise self._wrong(f"{len(data)} vectors for {texts} texts")
        places = [one.get("index", i) for i, one in enumerate(data)]
        if any(type(place) is not int for place in places) or sorted(places) != list(range(texts)):
            raise self._wrong("vectors whose index is not that of their texts")
        rows: list[Any] = [None] * texts
        for place, one in zip(places, data):
            rows[place] = one.get("embedding")
        if not all(isinstance(row, list) and row and all(map(_is_number, row)) for row in rows):
            raise self._wrong("a vector that is no list of finite numbers")
        if len(sizes := {len(row) for row in rows}) > 1:
            raise self._wrong(f"vectors of {' and of '.join(map(str, sorted(sizes)))} dimensions")
        return np.array(rows, dtype=np.float32)

    def _wrong(self, what: str) -> EndpointError:
        url = hide_secrets(address_of(self.name))
        return EndpointError(f"{url}: /embeddings answered with {what}; is {self.served!r} an embedding model?")


def _is_number(value: object) -> bool:
    return is_finite(value) and abs(value) < 1e18
