"""The retriever of a server: opened again in the background when the documents have changed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from groundtune.data.files import read_documents, sha256_of
from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.retrieval.opening import index_folder, narrowed, open_retriever
from groundtune.retrieval.retrievers import Retriever, retrieve
from groundtune.retrieval.rewriting import open_rewriter
from groundtune.schema import Example, Hit
from groundtune.system.text import one_line

logger = logging.getLogger(__name__)

_LOOKED_AT_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Opened:
    """A state of the document database, ready to be searched."""

    retriever: Retriever
    documents: int
    sha256: str
    seen: tuple[int, ...]  # what tells a changed file

    @cached_property
    def among(self) -> Callable[[str], Retriever]:
        """The retriever among the passages that a filter leaves; the latest ones are kept."""
        return lru_cache(maxsize=16)(partial(narrowed, self.retriever))


class Finder:
    """Searches the documents. `refresh` is called often, and replaces the retriever once it is open again."""

    def __init__(self, arguments: InferenceArguments) -> None:
        self.arguments = arguments
        self.path = arguments.data.full_dataset_file_path
        self._rewriter = open_rewriter(arguments.searching, index_folder(arguments.data))
        self.now = self._open()
        self._tried, self._next_look = self.now.seen, 0.0
        self._opening: threading.Thread | None = None

    def search(self, examples: Sequence[Example], k: int | None = None, filter: str = "") -> list[tuple[Hit, ...]]:
        """The hits of each question, among the passages that a filter leaves. Raises `DataError` if it leaves none."""
        retrieval = self.arguments.retrieval
        retriever = self.now.among(filter) if filter else self.now.retriever
        rewrite = self._rewriter.queries if self._rewriter else None
        return retrieve(retriever, examples, k or retrieval.eval_num_to_retrieve, retrieval.query_history, rewrite)

    def refresh(self) -> None:
        """Begin to open the documents again if their file has changed since they were read."""
        if time.monotonic() < self._next_look or (self._opening and self._opening.is_alive()):
            return
        self._next_look = time.monotonic() + _LOOKED_AT_EVERY
        seen = self._seen()
        if seen and seen != self._tried:
            self._tried = seen
            self._opening = threading.Thread(target=self._reopen, name="documents", daemon=True)
            self._opening.start()

    def _reopen(self) -> None:
        try:
            self.now = self._open()
        except Exception as error:  # whatever is wrong with the new file, the earlier documents can be searched
            why = "; ".join(error.problems) if isinstance(error, DataError) else one_line(error)
            logger.warning("%s has changed but cannot be read; the earlier documents stay in use: %s", self.path, why)
        else:
            self._tried = self.now.seen
            logger.info("%s has changed; its %d documents are in use now", self.path, self.now.documents)

    def _open(self) -> Opened:
        seen = self._seen()  # before reading: a change while it is read is noticed at the next look
        documents = read_documents(self.path)
        retriever = open_retriever(self.arguments.retrieval, documents, index_folder(self.arguments.data))
        return Opened(retriever, len(documents), sha256_of(self.path), seen)

    def _seen(self) -> tuple[int, ...]:
        """Time, size and number of the file; empty while there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino
