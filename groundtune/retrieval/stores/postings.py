"""For each word the documents that have it, with its BM25 score in each: in memory, or mapped from files.

BM25 (Robertson et al. 1994) as `bm25s` computes it, k1 = 1.5, b = 0.75, on `search_words`.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.mapped import ids_of
from groundtune.data.words import search_words
from groundtune.retrieval.stores.made import made_in
from groundtune.schema import Document
from groundtune.system.outputs import in_place_of
from groundtune.system.progress import bar, bars_shown

logger = logging.getLogger(__name__)

_FORMAT = 2
_ARRAYS = {"data": np.float32, "indices": np.int32, "indptr": np.int64, "most": np.float32}
_VOCABULARY = {"letters": np.uint8, "ends": np.int64, "numbers": np.int32}
_COMMON = 50  # a word in more than 1 of so many documents is added only where it can matter
_LOOKED_UP = 32  # documents of a word are added in the time in which one document is looked up among them

_BLOCK = 64  # documents
_LEAST = float(np.finfo(np.float32).tiny)  # above 0

Weights = Mapping[str, float]  # word -> how often it counts


@dataclass(frozen=True)
class Vocabulary(Mapping[str, int]):
    """The numbers of words, looked up in arrays that may be mapped: as a dictionary, a million words take 0.2 GB.

    The words stand one behind the other in `letters` (UTF-8), in the order of their bytes; the i-th ends at `ends[i]`
    and has the number `numbers[i]`.
    """

    letters: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, words: Mapping[str, int]) -> Vocabulary:
        known = sorted((word.encode("utf-8", "surrogatepass"), number) for word, number in words.items())
        letters = np.frombuffer(b"".join(word for word, _ in known), np.uint8)
        ends = np.cumsum([len(word) for word, _ in known], dtype=np.int64)
        return cls(letters, ends, np.array([number for _, number in known], np.int32))

    def __getitem__(self, word: str) -> int:
        sought = word.encode("utf-8", "surrogatepass")
        at = bisect_left(range(len(self)), sought, key=self._word)
        if at == len(self) or self._word(at) != sought:
            raise KeyError(word)
        return int(self.numbers[at])

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self._word(i).decode("utf-8", "surrogatepass") for i in range(len(self)))

    def _word(self, i: int) -> bytes:
        return bytes(self.letters[self.ends[i - 1] if i else 0 : self.ends[i]])


@dataclass(frozen=True)
class Postings:
    """Word `w` stands in the documents `indices[indptr[w]:indptr[w + 1]]`, in ascending order, with the scores at the
    same places of `data`; `most[w]` is the largest of them."""

    documents: int
    vocabulary: Mapping[str, int]
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    most: np.ndarray

    def scores(self, weights: Weights) -> np.ndarray:
        """The score of every document, float32."""
        scores = np.zeros(self.documents, dtype=np.float32)
        for _, weight, places in self._found(weights):
            np.add.at(scores, self.indices[places], self.data[places] * np.float32(weight))
        return scores

    def at(self, weights: Weights, positions: np.ndarray) -> np.ndarray:
        """The scores of the documents at these positions, float32."""
        scores = np.zeros(len(positions), dtype=np.float32)
        for _, weight, places in self._found(weights):
            self._add(scores, positions, weight, places)
        return scores

    def best(self, weights: Weights, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents with the highest scores, and these: at least the `depth` best of those that have a word.

        Rare words first. As soon as few documents can still be among the best, however much the other words add, these
        are added up for them alone (MaxScore, Turtle and Flood 1995).
        """
        found = self._found(weights)
        lengths = [places.stop - places.start for _, _, places in found]
        most = [weight * float(self.most[word]) for word, weight, _ in found]
        scores = np.zeros(self.documents, dtype=np.float32)
        so_far, rest = 0.0, sum(most)
        looked_at = self.documents // _COMMON
        for i, (_, weight, places) in enumerate(found):
            if lengths[i] > looked_at and so_far > rest:
                looked_at, least = 2 * lengths[i], _least(scores, depth)  # it takes as long as adding a word
                possible = scores >= max(least - rest, _LEAST)
                lookups = np.count_nonzero(possible) * (len(found) - i)
                if least > rest and lookups * _LOOKED_UP < sum(lengths[i:]):
                    positions = np.flatnonzero(possible)
                    sums = scores[positions]
                    for _, its_weight, its_places in found[i:]:
                        self._add(sums, positions, its_weight, its_places)
                    return positions, sums
            np.add.at(scores, self.indices[places], self.data[places] * np.float32(weight))
            so_far, rest = so_far + most[i], rest - most[i]
        positions = np.flatnonzero(scores >= max(_least(scores, depth), _LEAST))
        return positions, scores[positions]

    def _found(self, weights: Weights) -> list[tuple[int, float, slice]]:
        """The words that stand anywhere, with their weights, and the places of their documents: the rarest first, so
        that a document's score is rounded the same however it is found."""
        known = [(self.vocabulary.get(word), weight) for word, weight in weights.items()]
        found = [(w, weight, slice(*map(int, self.indptr[w : w + 2]))) for w, weight in known if w is not None]
        return sorted(found, key=lambda one: one[2].stop - one[2].start)

    def _add(self, scores: np.ndarray, positions: np.ndarray, weight: float, places: slice) -> None:
        having = self.indices[places]
        at = np.minimum(np.searchsorted(having, positions.astype(having.dtype)), len(having) - 1)
        hit = having[at] == positions
        scores[hit] += self.data[places][at[hit]] * np.float32(weight)


def _least(scores: np.ndarray, depth: int) -> float:
    """A score that at least `depth` documents have: the largest of so many blocks (each of documents that are equally
    far apart). Much faster than a partition of all scores, most of which are 0."""
    blocks = len(scores) // _BLOCK
    if depth > blocks:
        return float(np.partition(scores, -depth)[-depth]) if depth < len(scores) else 0.0
    largest = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
    return float(np.partition(largest, blocks - depth)[blocks - depth])


def postings_of(documents: Sequence[Document]) -> Postings:
    """The postings of the documents, in memory."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing bm25s sets DEBUG
    bm25 = bm25s.BM25(k1=1.5, b=0.75)
    ids: dict[str, int] = {}  # as ids, the terms of all passages need little memory
    with bar("words", len(documents), len(documents) < 10_000 or not bars_shown(), unit="passage") as progress:
        terms = []
        for document in documents:
            terms.append([ids.setdefault(term, len(ids)) for term in search_words(document.text)])
            progress.update(1)
    bm25.index((terms, ids), show_progress=False)
    data, indices, indptr = (bm25.scores[name] for name in ("data", "indices", "indptr"))
    return Postings(len(documents), ids, data, indices, indptr, _most(data, indptr))


def postings_in(folder: Path, documents: Sequence[Document]) -> Postings:
    """The postings of the documents, mapped from files below `folder`, which are made first if they are of others."""
    folder = folder / "words"
    identity = {"format": _FORMAT, "ids": hashlib.sha256(ids_of(documents).tobytes()).hexdigest()}

    def make() -> dict[str, Any]:
        logger.info(
            "indexing the words of %d passages for BM25, once; needs about %.1f GB of memory",
            len(documents),
            _memory(documents) / 2**30,
        )
        _write(folder, postings_of(documents))
        return {}

    def read(manifest: Mapping[str, Any]) -> Postings:
        def mapped(names: Mapping[str, Any]) -> dict[str, np.ndarray]:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
            return {name: array.view(np.ndarray) for name, array in arrays.items()}  # of which a part is taken faster

        return Postings(len(documents), Vocabulary(**mapped(_VOCABULARY)), **mapped(_ARRAYS))

    return made_in(folder, identity, make, read)


def _most(data: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """The largest score of each word; 0 for one that stands nowhere."""
    most = np.zeros(len(indptr) - 1, dtype=np.float32)
    used = np.flatnonzero(np.diff(indptr) > 0)
    if len(used):
        most[used] = np.maximum.reduceat(data, indptr[used])
    return most


def _memory(documents: Sequence[Document]) -> float:
    """Bytes that indexing takes, from the words of some documents: measured as 45 for each word."""
    some = [documents[i] for i in range(0, len(documents), 1 + len(documents) // 200)]
    return 45.0 * len(documents) * sum(len(search_words(document.text)) for document in some) / len(some)


def _write(folder: Path, made: Postings) -> None:
    vocabulary = Vocabulary.of(made.vocabulary)
    for arrays, of in ((_ARRAYS, made), (_VOCABULARY, vocabulary)):
        for name, dtype in arrays.items():
            with in_place_of(folder / f"{name}.npy") as file:
                np.save(file, getattr(of, name).astype(dtype, copy=False), allow_pickle=False)
