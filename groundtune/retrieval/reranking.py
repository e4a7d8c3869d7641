"""Search results in a better order: the first of them are read together with the question, and scored again.

That is too slow for all documents, and much more exact than comparing one vector of each: a reranker sees which word of
a passage meets which word of the question.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeGuard

import numpy as np

from groundtune.arguments import MAXSIM, NO_RERANKER, RetrievalArguments
from groundtune.errors import DataError, ModelError
from groundtune.model.endpoint import RERANKER_KEYS, Endpoint, EndpointError
from groundtune.retrieval.embedder import AnyEmbedder, Embedder
from groundtune.retrieval.queries import Query, texts_within, too_long_note
from groundtune.retrieval.reading_limit import ReadingLimit
from groundtune.retrieval.retrievers import Retriever, scaled, several
from groundtune.schema import Document, Hit
from groundtune.system.model_folders import cannot_load, embedding_problems, hub_problems, loading
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.panics import TRIAL, panics_raised
from groundtune.system.progress import bar, bars_shown
from groundtune.system.servers import address_of, server_kind
from groundtune.system.text import hide_secrets, is_finite, one_line, to_json

logger = logging.getLogger(__name__)

Asked = Sequence[tuple[str, Sequence[Document]]]  # queries, each with the passages to score for it

_WEIGHTS = {MAXSIM: 0.5}  # of the reranker's score, if nothing else is asked for; that of a reranker model is 1
_COUNTED = 20_000  # documents in which tokens are counted
_FEW = 32  # queries that are scored without a progress bar
_OWN_LENGTH = 1e9  # tokenizers without a limit state one above this


class Reranker(Protocol):
    """What scores passages for queries; `limit` is how much of a query it reads."""

    @property
    def limit(self) -> ReadingLimit | None: ...

    def scores(self, asked: Asked) -> Iterator[np.ndarray]:
        """The scores of each query's passages, in order; higher is better, and only passages of one query compare."""


@dataclass(frozen=True)
class RerankedRetriever:
    """A retriever whose first `depth` hits are put in a new order.

    Their scores are those of the reranker, with `weight`, and of the retriever, with the rest, each scaled to 0..1 over
    these hits. Hits beyond them keep their order and their retriever's score on the same scale, which is 0 or less. A
    passage's scores for the parts of a query count the same, as in the search.
    """

    retriever: Retriever
    reranker: Reranker
    depth: int = 20
    weight: float = 1.0

    @property
    def limit(self) -> ReadingLimit | None:
        return self.retriever.limit

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        asked = several(queries)
        found = self.retriever.search(asked, max(k, self.depth))
        return [self._ordered(hits, scores)[:k] for hits, scores in zip(found, self._scores(asked, found))]

    def _scores(self, queries: Sequence[Query], found: Sequence[Sequence[Hit]]) -> Iterator[np.ndarray]:
        """The reranker's scores of each query's first hits."""
        tops = [[hit.document for hit in hits[: self.depth]] for hits in found]
        parts = [(part, top) for query, top in zip(queries, tops) for part in query.parts if top]
        for line in too_long_note([query for query, top in zip(queries, tops) if top], self.reranker.limit):
            logger.warning(line)
        texts = texts_within([part for part, _ in parts], self.reranker.limit)
        scores = self.reranker.scores([(text, top) for text, (_, top) in zip(texts, parts)])
        for query, top in zip(queries, tops):
            of_parts = [next(scores) for _ in query.parts] if top else [np.zeros(0, dtype=np.float32)]
            yield np.mean(of_parts, axis=0)

    def _ordered(self, hits: Sequence[Hit], scores: np.ndarray) -> tuple[Hit, ...]:
        if not len(scores):
            return tuple(hits)
        before, top = np.array([hit.score for hit in hits]), len(scores)
        least, most = before[:top].min(), before[:top].max()
        mixed = (1 - self.weight) * (before - least) / (most - least if most > least else 1)
        mixed[:top] += self.weight * scaled(scores[None])[0]
        order = [*np.argsort(-mixed[:top], kind="stable"), *range(top, len(hits))]
        return tuple(Hit(hits[i].document, float(mixed[i])) for i in order)


@dataclass(frozen=True)
class MaxSim:
    """The vectors of an embedding model's tokens, of which it usually keeps the mean only: the mean similarity of each
    token of the query to the token of the passage that is most like it (ColBERT's score, Khattab and Zaharia 2020).

    A token counts by its rarity in the documents, log((n + 1) / (documents with it + 1)): every passage has an "of".
    """

    embedder: Embedder
    documents: Sequence[Document] = ()

    @property
    def limit(self) -> ReadingLimit | None:
        return self.embedder.limit

    def scores(self, asked: Asked) -> Iterator[np.ndarray]:
        """Each passage is embedded once, however many queries it was found for, and forgotten after its batch."""
        found = [np.zeros(len(passages), dtype=np.float32) for _, passages in asked]
        places: dict[str, list[tuple[int, int]]] = {}
        documents: dict[str, Document] = {}
        for i, (_, passages) in enumerate(asked):
            for j, passage in enumerate(passages):
                documents[passage.id] = passage
                places.setdefault(passage.id, []).append((i, j))
        queries = self._vectors([text for text, _ in asked], self.embedder.query_prompt)
        weights = [self._weights(text, len(tokens)) for (text, _), tokens in zip(asked, queries)]
        longest_first = sorted(documents.values(), key=lambda document: -len(document.text))
        size = self.embedder.batch_size
        with bar("reranking", len(documents), len(asked) < _FEW or not bars_shown(), unit="passage") as progress:
            for start in range(0, len(longest_first), size):
                these = longest_first[start : start + size]
                vectors = self._vectors([document.text for document in these], self.embedder.document_prompt)
                for document, tokens in zip(these, vectors):
                    for i, j in places[document.id]:
                        found[i][j] = weights[i] @ (queries[i] @ tokens.T).max(axis=1)
                progress.update(len(these))
        yield from found

    def _vectors(self, texts: Sequence[str], prompt: str | None) -> list[np.ndarray]:
        """The vectors of each text's tokens, float32 [tokens, dimensions] of length 1."""
        size = self.embedder.batch_size
        read: Any = self.embedder.model.encode(
            list(texts), prompt=prompt or "", batch_size=size, show_progress_bar=False, output_value=None
        )  # not "token_embeddings", which takes the padding on the left of a text for a part of it
        vectors = [one["token_embeddings"][one["attention_mask"].bool()].float().cpu().numpy() for one in read]
        return [some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-9) for some in vectors]

    def _weights(self, query: str, tokens: int) -> np.ndarray:
        """The weight of each token of a query; they add up to 1."""
        ids, rarest = self._ids([(self.embedder.query_prompt or "") + query])[0], math.log(len(self._counted) + 1)
        weights = np.array([self._rarity.get(id, rarest) for id in ids], dtype=np.float32)
        if len(weights) != tokens or not weights.sum() > 0:  # a model may read a text in its own way
            return np.full(tokens, 1 / tokens, dtype=np.float32)
        return weights / weights.sum()

    @cached_property
    def _rarity(self) -> dict[int, float]:
        """The weight of each token that stands in the documents; of many documents some are counted, spread evenly."""
        some = self._counted
        found: Counter[int] = Counter()
        for start in range(0, len(some), 1000):
            for ids in self._ids([self.documents[i].text for i in some[start : start + 1000]]):
                found.update(set(ids))
        return {id: math.log((len(some) + 1) / (n + 1)) for id, n in found.items()}

    @property
    def _counted(self) -> range:
        """Positions of the documents in which tokens are counted."""
        return range(0, len(self.documents), -(-len(self.documents) // _COUNTED) or 1)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        limit = self.embedder.limit
        if limit is None:
            raise ValueError(f"{self.embedder.name} has no vectors of tokens")
        return limit.tokenizer(texts, truncation=True, max_length=limit.max_tokens, verbose=False)["input_ids"]


@dataclass
class CrossEncoderReranker:
    """A sentence-transformers cross-encoder: a model that reads question and passage as one text, and rates them.

    As for embedding models, only the library's own code and safetensors weights are loaded. Raises `OSError` or
    `ValueError` if the model cannot be loaded, or gives anything but one score.
    """

    name: str
    batch_size: int = 64

    def __post_init__(self) -> None:
        from sentence_transformers import CrossEncoder
        from torch.nn import Identity

        if problems := embedding_problems(self.name, "reranker") or hub_problems(self.name, wanted="reranker"):
            raise ValueError(problems[0])
        # Its own activation is not read: it names what to import, and changes no order.
        options: dict[str, Any] = {"trust_remote_code": False, "activation_fn": Identity()}
        weights = {"use_safetensors": True}
        with loading(self.name), panics_raised():
            if os.path.isdir(self.name):  # names and shapes first, before memory is taken for what the settings claim
                CrossEncoder(self.name, model_kwargs={**weights, "device_map": "meta"}, **options)
            self.model = CrossEncoder(self.name, model_kwargs=weights, **options).eval()
            if self.model.num_labels != 1:
                raise ValueError(f"it gives {self.model.num_labels} scores, and a reranker gives one")
            if os.path.isdir(self.name):
                self._predict(TRIAL, [TRIAL])  # some damage shows only now

    @cached_property
    def limit(self) -> ReadingLimit | None:
        """Half of what it reads: the other half is the passage's. A longer passage loses its end."""
        longest = self.model.max_seq_length
        if longest is None or longest > _OWN_LENGTH:
            return None
        return ReadingLimit(self.name, copy.deepcopy(self.model.tokenizer), max(1, longest // 2), "", "")

    def scores(self, asked: Asked) -> Iterator[np.ndarray]:
        with bar("reranking", len(asked), len(asked) < _FEW or not bars_shown(), unit="query") as progress:
            for text, passages in asked:
                yield self._predict(text, [passage.text for passage in passages])
                progress.update(1)

    def _predict(self, query: str, texts: Sequence[str]) -> np.ndarray:
        pairs = [(query, text) for text in texts]
        scores = np.asarray(self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False))
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            raise DataError([f"--reranker: {self.name}: a score is NaN or infinite; name another reranker"])
        return scores


@dataclass(frozen=True)
class ServerReranker:
    """A server that rates passages: `jina`, the API of Jina, Cohere, vLLM and others, or `tei`, that of Hugging Face's
    text-embeddings-inference. A passage without its score is an error, since any order would be a guess."""

    endpoint: Endpoint
    kind: str

    limit = None  # servers shorten what they cannot read

    def scores(self, asked: Asked) -> Iterator[np.ndarray]:
        at_once = {"tei": 32, "jina": 1000}[self.kind]  # texts in a request: what these servers take by default
        cut = [
            (i, text, passages[start : start + at_once])
            for i, (text, passages) in enumerate(asked)
            for start in range(0, len(passages), at_once)
        ]
        replies = self.endpoint.ask("/rerank", [self._body(text, passages) for _, text, passages in cut])
        found: list[list[float]] = [[] for _ in asked]
        for (i, _, passages), reply in zip(cut, replies, strict=True):
            found[i] += self._read(reply, len(passages))
        yield from (np.array(scores, dtype=np.float32) for scores in found)

    def _body(self, query: str, passages: Sequence[Document]) -> dict[str, Any]:
        texts = [passage.text for passage in passages]
        if self.kind == "tei":
            return {"query": query, "texts": texts, "raw_scores": True, "truncate": True}
        return {"model": self.endpoint.model, "query": query, "documents": texts, "top_n": len(texts)}

    def _read(self, reply: Any, n: int) -> list[float]:
        """The scores of the n passages of a request. Raises `EndpointError` for anything else."""
        try:
            results, key = (reply, "score") if self.kind == "tei" else (reply["results"], "relevance_score")
            scores = [(_whole(result["index"]), _finite(result[key])) for result in results]
            if sorted(i for i, _ in scores) != list(range(n)):
                raise ValueError(f"scores of the passages {sorted(i for i, _ in scores)}, not of all {n}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            why = one_line(f"{type(error).__name__}: {error}", 120)
            said = one_line(hide_secrets(to_json(reply, default=str)), 120)
            where = f"--reranker: {hide_secrets(self.endpoint.url)}"
            raise EndpointError(f"{where}: not the reply of a {self.kind} reranker ({why}): {said}") from error
        return [score for _, score in sorted(scores)]


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"index {value!r}")
    return value


def _finite(value: Any) -> float:
    if not is_finite(value):
        raise ValueError(f"score {value!r}")
    return float(value)


def open_reranker(
    retrieval: RetrievalArguments, embedder: AnyEmbedder | None = None, documents: Sequence[Document] = ()
) -> Reranker | None:
    """The reranker that `--reranker` names, tried once; None if there is to be none. `maxsim` needs the embedding model
    and the documents.

    Raises `ModelError` if it cannot be loaded, and `EndpointError` if the server cannot be used.
    """
    name = retrieval.reranker
    if name in ("", NO_RERANKER):
        return None
    if name == MAXSIM:
        if not has_token_vectors(embedder):
            model = hide_secrets(embedder.name if embedder else retrieval.embedding_model)
            raise ModelError(
                f"--reranker {MAXSIM}: {model} gives no vectors of tokens; name an embedding model with a transformer, "
                "or a reranker model"
            )
        return MaxSim(embedder, documents)
    if kind := server_kind(name):
        url = address_of(name).rstrip("/").removesuffix("/rerank")
        server = ServerReranker(Endpoint(url, retrieval.reranker_model, keys=RERANKER_KEYS), kind)
        next(server.scores([(TRIAL, [Document(TRIAL)])]))  # before hours of work
        return server
    try:
        return CrossEncoderReranker(name, retrieval.embedding_batch_size)
    except Exception as error:  # libraries do not validate a model's settings, so anything may be raised
        if is_out_of_memory(error) or isinstance(error, DataError):
            raise
        raise ModelError(f"--reranker: {cannot_load(name, error)}") from error


def has_token_vectors(embedder: AnyEmbedder | None) -> TypeGuard[Embedder]:
    """Whether the model has a vector for each token: one with static vectors, or one on a server, has not."""
    return isinstance(embedder, Embedder) and embedder.limit is not None


def reranked(retriever: Retriever, retrieval: RetrievalArguments, reranker: Reranker | None) -> Retriever:
    """The retriever with its reranker, if there is one."""
    if reranker is None:
        return retriever
    weight = retrieval.rerank_weight
    weight = _WEIGHTS.get(retrieval.reranker, 1.0) if weight is None else weight
    return RerankedRetriever(retriever, reranker, retrieval.rerank_depth, weight)
