"""Questions a second in retrieval: all at once, as an evaluation does it, against one at a time.

python -m benchmarks.retrieval --data FOLDER
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import arguments, compare, load_data, report
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.queries import query_of
from groundtune.retrieval.retrievers import DenseRetriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.schema import Document, Hit


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    add_embedding_flag(parser)
    options = parser.parse_args()
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
