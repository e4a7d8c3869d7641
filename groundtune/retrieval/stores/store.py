"""What a store of vectors can do; `local.py` keeps them in files of this machine, `milvus.py` in a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from groundtune.data.mapped import ids_of
from groundtune.filters import Condition
from groundtune.schema import Document

# Above this number of documents, files are mapped instead of read, a search looks at the most similar documents only,
# and a mix compares the best documents of vectors and words.
LARGE = 100_000


class Store(Protocol):
    """The vectors of all documents, and the search among those that a filter leaves.

    Scores are the embedding model's similarity: higher is better. Positions are those in `documents`.
    """

    @property
    def documents(self) -> Sequence[Document]: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def allowed(self) -> np.ndarray | None:
        """Positions of the documents that a filter leaves, in order; None: all."""

    @property
    def whole(self) -> bool:
        """Whether the scores of all documents are at hand for every query, so that a mix can compare all of them."""

    def narrowed(self, allowed: np.ndarray, condition: Condition) -> Store:
        """The same store, with another filter: one more `condition`, which leaves the documents `allowed`."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)].

        A position of -1 means that a search that does not look at all documents has found no more.
        """

    def scores(self, queries: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The similarity of each query to each document, or to those at the positions `among`: [queries, documents]."""


def findable(store: Store) -> set[str]:
    """The ids of the documents that a search can find."""
    ids = ids_of(store.documents)
    return {f"{int(id):016x}" for id in (ids if store.allowed is None else ids[store.allowed])}
