"""A million passages: what an index takes to make, what a search finds and how fast, and the memory of `ask`.

python -m benchmarks.million --folder FOLDER --passages 1000000

A tenth of the passages are embedded: sentences of the Python language reference, drawn at random, by their first
tokens. The others have copies of these vectors, with noise as long as the median distance to the nearest neighbour. The
queries are sentences that stand in no passage. Each step is a process of its own; `--step` makes one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import alone, sentences
from groundtune.data.files import read_documents, write_jsonl
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.stores import local
from groundtune.schema import Document

_COPIES = 10
_TOKENS = 32  # of a passage, which its vector is made of
_CHARACTERS = 360  # per passage
_QUERIES = 1000
_PIECE = 10_000  # passages embedded between two writings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="Where all of it goes; default: a temporary one")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument(
        "--embedding_dtype", default="auto", help="As Groundtune's flag, for the tenth that is embedded"
    )
    parser.add_argument("--vector_dtype", default="float32", help="As Groundtune's flag")
    parser.add_argument("--queries", type=int, default=_QUERIES)
    parser.add_argument("--model", help="Folder of the model that answers in `ask`; without it, that is not measured")
    parser.add_argument("--step", choices=STEPS, help="Only this step, in this process")
    options = parser.parse_args()
    if not options.embedding_model:
        from groundtune.demo import embedding_model

        options.embedding_model = str(embedding_model())
    if options.step:
        print(json.dumps({"step": options.step, **STEPS[options.step](options)}))
        return 0
    with tempfile.TemporaryDirectory(prefix="groundtune-million-") as temporary:
        options.folder = options.folder or Path(temporary)
        for row in measured(options):
            print(json.dumps(row), flush=True)
    return 0


def measured(options: argparse.Namespace) -> Sequence[dict[str, Any]]:
    """A row for each step, with its seconds and the peak memory of its process."""
    words = [f"--{name}={value}" for name, value in vars(options).items() if value is not None and name != "step"]
    steps = [step for step in STEPS if step != "ask" or options.model]
    return [alone("benchmarks.million", [*words, "--step", step]) for step in steps]


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Embed a tenth of the passages, and the queries."""
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts, questions = passages(options.passages // _COPIES, options.queries)
    embedder = Embedder(options.embedding_model, dtype=options.embedding_dtype)
    embedder.model.max_seq_length = _TOKENS
    done = sorted(folder.glob("vectors-*.npy"))
    for start in range(len(done) * _PIECE, len(texts), _PIECE):
        vectors = embedder.embed_documents(texts[start : start + _PIECE])
        np.save(folder / "piece.npy", vectors)
        (folder / "piece.npy").rename(folder / f"vectors-{start:08}.npy")
    np.save(folder / "queries.npy", embedder.embed_questions(questions))
    return {"embedded": len(texts)}


def passages(many: int, queries: int) -> tuple[list[str], list[str]]:
    """The texts of passages, and questions about sentences that stand in none of them."""
    rng, known = random.Random(0), sentences()
    rng.shuffle(known)
    kept_out = known[: min(queries, len(known) // 5)]
    texts = []
    for _ in range(many):
        drawn: list[str] = []
        while sum(map(len, drawn)) < _CHARACTERS:
            drawn.append(rng.choice(known[len(kept_out) :]))
        texts.append(" ".join(drawn))
    return texts, [kept_out[i % len(kept_out)] for i in range(queries)]


def write(options: argparse.Namespace) -> dict[str, Any]:
    """The document database: each text ten times, with the number of the copy."""
    texts, _ = passages(options.passages // _COPIES, options.queries)
    rows = (
        Document(f"{text} (copy {copy})", metadata={"copy": copy, "number": number}).to_dict()
        for copy in range(_COPIES)
        for number, text in enumerate(texts)
    )
    path = options.folder / "documents.jsonl"
    write_jsonl(path, rows)
    return {"mb": path.stat().st_size / 2**20}


class Embedded:
    """Stands in for an embedding model: gives the vectors of the documents, and of the queries, that were made."""

    def __init__(self, options: argparse.Namespace) -> None:
        embedder = Embedder(options.embedding_model)
        self.name, self.settings, self.similarity = embedder.name, embedder.settings, embedder.similarity
        self.limit, self.dimensions, self.folder = None, embedder.dimensions, options.folder

    def embed_documents(self, texts: Sequence[str], so_far: Any = None) -> np.ndarray:
        base = np.concatenate([np.load(path) for path in sorted(self.folder.glob("vectors-*.npy"))])
        rng = np.random.default_rng(0)
        noise = nearest(base, rng) / np.sqrt(base.shape[1])
        vectors = np.empty((len(texts), base.shape[1]), dtype=np.float32)
        for copy in range(len(texts) // len(base)):
            some = base + (noise * rng.standard_normal(base.shape, dtype=np.float32) if copy else 0)
            some /= np.linalg.norm(some, axis=1, keepdims=True)
            vectors[copy * len(base) : (copy + 1) * len(base)] = some
        return vectors

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        return np.load(self.folder / "queries.npy")[: len(texts)]


def nearest(base: np.ndarray, rng: np.random.Generator) -> float:
    """The median distance of a vector to its nearest neighbour."""
    from groundtune.retrieval.stores.near import knn

    similar = knn(base[rng.choice(len(base), min(len(base), 1000), replace=False)], base, 2, "cosine")[0][:, 1]
    return float(np.median(np.sqrt(np.maximum(0, 2 - 2 * similar))))


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of the index without embedding: reading the documents, vectors, lists and words."""
    from groundtune.retrieval.stores.local import load_or_build_index
    from groundtune.retrieval.stores.postings import postings_in, postings_of

    embedder, seconds = Embedded(options), {}
    begin = time.perf_counter()
    documents = read_documents(options.folder / "documents.jsonl")
    seconds["documents_s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    load_or_build_index(options.folder / "index", documents, embedder, options.vector_dtype)
    seconds["vectors_s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    postings_in(options.folder / "index", documents) if len(documents) > local.LARGE else postings_of(documents)
    seconds["words_s"] = time.perf_counter() - begin
    return {"passages": len(documents), **seconds}


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Recall@10 of the vectors against exact search, and queries a second of vectors, words and both."""
    from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever
    from groundtune.retrieval.stores.local import load_or_build_index
    from groundtune.retrieval.stores.near import exact

    embedder = Embedded(options)
    begin = time.perf_counter()
    documents = read_documents(options.folder / "documents.jsonl")
    index = load_or_build_index(options.folder / "index", documents, embedder, options.vector_dtype)
    bm25 = BM25Retriever(documents, options.folder / "index")
    _ = bm25.postings
    found: dict[str, Any] = {"load_s": time.perf_counter() - begin, "memory_mb": _memory()}
    _, questions = passages(1, options.queries)
    vectors = embedder.embed_questions(questions)
    dense = DenseRetriever(embedder, index)
    for name, retriever in (("dense", dense), ("bm25", bm25), ("mix", MixRetriever(dense, bm25))):
        begin = time.perf_counter()
        retriever.search(questions, 10)
        found[f"{name}_per_s"] = len(questions) / (time.perf_counter() - begin)
    found["memory_after_mb"] = _memory()
    positions, right = index.search(vectors, 10)[1], exact(vectors, index.vectors, 10, index.similarity)[1]
    found["recall@10"] = float(np.mean([np.isin(a, b).mean() for a, b in zip(right, positions)]))
    found["lists"] = index.near.lists if index.near else 0
    return found


def ask(options: argparse.Namespace) -> dict[str, Any]:
    """One question to the model that `--model` names; the peak memory is that of the whole command."""
    folder, (question,) = options.folder, passages(1, 1)[1]
    words = ["ask", options.model, f"What is meant by: {question}", "--embedding_model", options.embedding_model]
    words += ["--full_dataset_file_path", str(folder / "documents.jsonl"), "--max_new_tokens", "16", "--json"]
    words += ["--full_dataset_index_path", str(folder / "index"), "--vector_dtype", options.vector_dtype]
    asked = alone("groundtune.cli", words)
    return {"ask_s": asked["wall_s"], "ask_peak_mb": asked["peak_mb"]}


def _memory() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


STEPS = {"embed": embed, "write": write, "build": build, "search": search, "ask": ask}

if __name__ == "__main__":
    sys.exit(main())
