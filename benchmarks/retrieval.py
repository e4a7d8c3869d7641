"""Questions a second in retrieval: all at once, as an evaluation does it, against one at a time.

python -m benchmarks.retrieval --data FOLDER
python -m benchmarks.retrieval --data FOLDER --without_embedding    # search and fusion alone, of 1,000 questions
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np

from benchmarks.measure import arguments, compare, load_data, report
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.queries import query_of
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, MixRetriever
from groundtune.retrieval.stores.local import Index, load_or_build_index
from groundtune.schema import Document, Hit


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    add_embedding_flag(parser)
    parser.add_argument("--without_embedding", action="store_true", help="Time search and fusion alone")
    options = parser.parse_args()
    if options.without_embedding:
        for row in without_embedding(options):
            print(json.dumps(row))
        return 0
    if options.quick:
        options.pairs = 2
    documents, train, _ = load_data(options.data)
    retriever = make_index(documents[:200] if options.quick else documents, options)
    queries = [query_of(e.question, e.chat_history, "user") for e in train][: 64 if options.quick else 512]
    together, apart = retriever.search(queries, 4), [retriever.search([q], 4)[0] for q in queries]
    same = sum(all(map(_alike, a, b)) for a, b in zip(together, apart))
    if same < 0.99 * len(queries):
        raise AssertionError(f"only {same} of {len(queries)} questions find the same passages on both sides")
    case = compare(
        "retrieval",
        "one at a time",
        lambda i: retriever.search(queries, 4),
        lambda i: [retriever.search([query], 4) for query in queries],
        options.pairs,
        same_passages=same / len(queries),
        passages=len(retriever.index.documents),
    )
    case.extra.update(ours_questions_s=len(queries) / case.ours_s, theirs_questions_s=len(queries) / case.theirs_s)
    report([case])
    return 0


class Drawn:
    """Stands in for an embedding model: random unit vectors, because their values do not change the time."""

    name, similarity, limit, dimensions = "drawn", "cosine", None, 384

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.random.default_rng(len(texts)).standard_normal((len(texts), self.dimensions), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def without_embedding(options: Any) -> Iterator[dict[str, Any]]:
    """Seconds that each retriever takes for many questions at once, over vectors that are at hand."""
    documents, train, _ = load_data(options.data)
    many = 50 if options.quick else 1000
    asked = list(islice(cycle(query_of(e.question, e.chat_history, "fused") for e in train), many))
    dense = DenseRetriever(Drawn(), Index(documents, Drawn().embed_questions([d.text for d in documents])))
    bm25 = BM25Retriever(documents)
    bm25.search(asked[:1], 4)  # makes the index of the words
    retrievers = {
        "dense": dense,
        "bm25": bm25,
        "mix": MixRetriever(dense, bm25),
        "hybrid": HybridRetriever([dense, bm25]),
    }
    for name, retriever in retrievers.items():
        begin = time.perf_counter()
        retriever.search(asked, 4)
        yield {"case": name, "questions": many, "passages": len(documents), "seconds": time.perf_counter() - begin}


def _alike(hit: Hit, other: Hit) -> bool:
    """Whether two hits are equal; hits with equal scores may come in any order."""
    return hit.document == other.document or abs(hit.score - other.score) < 1e-6


def add_embedding_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--embedding_dtype", default="auto", help="As Groundtune's flag; both sides compute in it")
    parser.add_argument("--index", help="Index folder to keep; default: a temporary one")


def make_index(documents: Sequence[Document], options: Any) -> DenseRetriever:
    from groundtune.demo import embedding_model

    embedder = Embedder(options.embedding_model or str(embedding_model()), dtype=options.embedding_dtype)
    folder = options.index or tempfile.mkdtemp(prefix="groundtune-index-")
    return DenseRetriever(embedder, load_or_build_index(folder, documents, embedder))


if __name__ == "__main__":
    sys.exit(main())
