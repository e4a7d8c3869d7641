"""Texts -> vectors, with the embedding model's own prompts, pooling and similarity."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from groundtune.errors import DataError
from groundtune.retrieval.embedding_prompts import prompts_for
from groundtune.retrieval.reading_limit import ReadingLimit, token_counts, try_embedding_model
from groundtune.system.model_folders import loading, refuse_embedding_model
from groundtune.system.panics import TRIAL, panics_raised
from groundtune.system.progress import bar, bars_shown
from groundtune.system.text import to_json

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


SoFar = Callable[[Sequence[int], np.ndarray], None]


class AnyEmbedder(Protocol):
    """What turns texts into vectors: a model that is loaded here (`Embedder`), or one on a server."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def similarity(self) -> str: ...

    @property
    def limit(self) -> ReadingLimit | None: ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything besides the text that determines a document's vector; mix vectors only if this is equal."""

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray: ...

    def embed_documents(self, texts: Sequence[str], so_far: SoFar = ...) -> np.ndarray: ...


@dataclass
class Embedder:
    """A frozen sentence-transformers embedding model.

    Only the library's own code and safetensors weights are loaded, so a model's folder cannot run code.
    Raises `OSError` or `ValueError` if the model cannot be loaded.
    """

    name: str
    query_prompt: str | None = None
    document_prompt: str | None = None
    batch_size: int = 64
    device: str | None = None
    dtype: str = "auto"  # what it computes in: as it was saved, or the name of a type of torch
    model: SentenceTransformer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        refuse_embedding_model(self.name)
        options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        try_embedding_model(self.name)
        with loading(self.name), panics_raised():
            self.model = SentenceTransformer(self.name, device=self.device, **options).eval()
            if os.path.isdir(self.name):
                self.model.encode([TRIAL], show_progress_bar=False)  # some damage shows only now
        if self.dtype != "auto":
            self.model.to(getattr(torch, self.dtype))
        query, document = prompts_for(self.name, self.model.prompts)
        self.query_prompt = query if self.query_prompt is None else self.query_prompt
        self.document_prompt = document if self.document_prompt is None else self.document_prompt

    @cached_property
    def similarity(self) -> str:
        """`cosine`, `dot`, `euclidean` or `manhattan`, from the model's configuration; cosine if it is not set (the
        library's default)."""
        return self.model.similarity_fn_name or "cosine"

    @property
    def dimensions(self) -> int:
        return int(self.model.get_embedding_dimension() or 0)

    @cached_property
    def limit(self) -> ReadingLimit | None:
        """How much of a text the model reads; None for models with static vectors, which read texts of any length.

        It has its own tokenizer: each encoding sets truncation and padding on the model's.
        """
        if math.isinf(self._max_tokens):
            return None
        tokenizer = copy.deepcopy(self.model.tokenizer)
        prompts = self.document_prompt or "", self.query_prompt or ""
        return ReadingLimit(self.name, tokenizer, int(self._max_tokens), *prompts)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything besides the text that determines a document's vector; mix vectors only if this is equal."""
        return {
            "weights": _sha256_of_weights(self.model),
            "config": _config_of_transformer(self.model),
            "tokenizer": _sha256_of_tokenizer(self.model.tokenizer),
            "modules": [type(module).__name__ + str(_config_of(module)) for module in self.model],
            "document_prompt": self.document_prompt,
            "similarity": self.similarity,
            "max_tokens": self.model.max_seq_length,
            "dtype": str(next(self.model.parameters()).dtype),
        }

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of questions, float32 [n, dimensions]; `similarity` says how they compare with documents."""
        return self._embed(texts, self.query_prompt, self._lengths(texts, self.query_prompt))

    def embed_documents(self, texts: Sequence[str], so_far: SoFar = lambda done, vectors: None) -> np.ndarray:
        """Vectors of documents, float32 [n, dimensions]; warns about texts that are longer than the model reads.

        `so_far` is called after each batch with the positions of the finished texts and the array of all vectors.
        """
        lengths = self._lengths(texts, self.document_prompt)
        self._warn_of_long(texts, lengths)
        hidden = len(texts) <= self.batch_size or not bars_shown()
        return self._embed(texts, self.document_prompt, lengths, so_far, hidden)

    def _embed(
        self,
        texts: Sequence[str],
        prompt: str | None,
        lengths: Sequence[int],
        so_far: SoFar = lambda done, vectors: None,
        hidden: bool = True,
    ) -> np.ndarray:
        batches = list(self._batches(lengths))
        done: list[int] = []
        vectors = np.empty((0, 0), dtype=np.float32)
        encoded = self._encoded([[texts[i] for i in these] for these in batches], prompt)
        with closing(encoded), bar("embedding", len(texts), hidden, unit="text") as progress:
            for these, some in zip(batches, encoded):
                if not done:
                    vectors = np.empty((len(texts), some.shape[1]), dtype=np.float32)
                vectors[these] = some
                done += these
                progress.update(len(these))
                so_far(done, vectors)
        return vectors

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions of the texts of each batch, longest first, so that memory runs out in the first batch or never.

        All batches encoded at one time have at most as many tokens as `batch_size` of the longest texts. The library
        would sort by characters, and a fifth of a batch of questions would be padding.
        """
        read = [max(1, int(min(length, self._max_tokens))) for length in lengths]
        order = sorted(range(len(read)), key=lambda i: -read[i])
        at_most = self.batch_size * max(read, default=0) // self._at_one_time
        start = 0
        while start < len(order):
            stop = start + min(self.batch_size, at_most // read[order[start]])
            yield order[start:stop]
            start = stop

    def _encoded(self, batches: Sequence[list[str]], prompt: str | None) -> Generator[np.ndarray, None, None]:
        """The vectors of each batch in turn; two batches at a time, each on half of the threads, if that is faster."""
        import torch

        if len(batches) < 2 or self._at_one_time < 2:
            yield from (self._encode(texts, prompt, self.model) for texts in batches)
            return
        threads, free, own = torch.get_num_threads(), [self.model, self._twin], threading.local()

        def begin() -> None:
            own.model = free.pop()
            torch.get_num_threads()  # a new thread adopts the global number on its first use
            torch.set_num_threads(-(-threads // 2))

        pool = ThreadPoolExecutor(2, initializer=begin)
        try:
            yield from pool.map(lambda texts: self._encode(texts, prompt, own.model), batches)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # also for threads created later

    @property
    def _at_one_time(self) -> int:
        """Number of batches encoded in parallel: two on a CPU, because an embedding model's matrix products are too
        small to keep many cores busy, and tokenizing uses none of them. Static vectors gain nothing from it."""
        import torch

        static = math.isinf(self._max_tokens)
        alone = static or self.batch_size < 2 or self.model.device.type != "cpu" or torch.get_num_threads() < 2
        return 1 if alone else 2

    @cached_property
    def _twin(self) -> SentenceTransformer:
        """A copy of the model that shares its weights but has its own tokenizer, which is not thread-safe."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(weight): weight for weight in weights})

    def _lengths(self, texts: Sequence[str], prompt: str | None) -> Sequence[int]:
        """Lengths in tokens; in characters for models with static vectors, which read texts of any length."""
        if math.isinf(self._max_tokens):
            return [len(text) for text in texts]
        return token_counts(self.model.tokenizer, prompt or "", texts)

    @property
    def _max_tokens(self) -> float:
        limit = self.model.max_seq_length
        return math.inf if limit is None else limit

    def _encode(self, texts: list[str], prompt: str | None, model: SentenceTransformer) -> np.ndarray:
        # prompt="" and not None: None would let the library put its default prompt in front.
        vectors = model.encode(
            texts,
            prompt=prompt or "",
            batch_size=len(texts),
            show_progress_bar=False,
            normalize_embeddings=self.similarity == "cosine",
            convert_to_numpy=True,
        )
        vectors = np.asarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise DataError([f"{self.name}: a vector is NaN or infinite; try --embedding_dtype float32"])
        if self.similarity == "cosine":
            _check_lengths(vectors, self.name)
        return vectors

    def _warn_of_long(self, texts: Sequence[str], lengths: Sequence[int]) -> None:
        limit = self._max_tokens
        too_long = [i for i, n in enumerate(lengths) if n > limit]
        if too_long:
            longest = max(too_long, key=lengths.__getitem__)
            logger.warning(
                "%d of %d documents are longer than the %d tokens that %s reads; a search does not see their ends. "
                "The longest has %d tokens: %.60r",
                len(too_long),
                len(texts),
                limit,
                self.name,
                lengths[longest],
                texts[longest],
            )


def off_length(lengths: np.ndarray) -> np.ndarray:
    """Which lengths are neither 1, as far as 16-bit weights allow, nor 0 (a text without known words)."""
    return (abs(lengths - 1) > 0.02) & (lengths > 1e-6)


def _check_lengths(vectors: np.ndarray, name: str) -> None:
    """Raise `DataError` unless each vector has length 1, or 0 for a text without known words. Otherwise inner products
    are not cosines, and the longest vectors would be found for every question."""
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = lengths[off_length(lengths)]
    if len(wrong):
        raise DataError(
            [
                f"{name}: its similarity is the cosine, but {len(wrong)} of {len(vectors)} vectors do not have length "
                f"1 (one is {wrong[0]:.3g}); upgrade sentence-transformers, or set similarity_fn_name to dot in its "
                "config_sentence_transformers.json"
            ]
        )


def _config_of_transformer(model: SentenceTransformer) -> dict[str, Any]:
    """Settings that differ from the architecture's defaults: with another activation the same weights give other
    vectors."""
    transformer = getattr(model[0], "auto_model", None)
    settings = transformer.config.to_diff_dict() if transformer is not None else {}
    return {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}


# The model's origin, the version that saved it, and the data type, which `settings` already contains.
_NOT_SETTINGS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


def _sha256_of_tokenizer(tokenizer: Any) -> str:
    """Hash of the tokenizer: the same words give another vector if they are tokenized differently."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        # How the last call truncated and padded is noted in there too.
        state: Any = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    else:
        state = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    return hashlib.sha256(to_json(state, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def _config_of(module: Any) -> dict[str, Any]:
    """Configuration of a module, such as its pooling mode."""
    read = getattr(module, "get_config_dict", None)
    return read() if read else {}


def _sha256_of_weights(model: torch.nn.Module) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
