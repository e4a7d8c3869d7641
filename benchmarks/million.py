"""A million passages: what an index takes to make, what a search finds and how fast, and the memory of `ask`.

python -m benchmarks.million --folder FOLDER --passages 1000000

A passage is some sentences of the Python language reference, drawn at random; its vector is the mean of those of the
first two, which a model has embedded. Nine of ten passages are copies of another, whose vectors have noise as long as
the median distance to the nearest neighbour. The queries are the beginnings of two sentences that stand in no
passage. Each step is a process of its own; `--step` makes one.
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
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.retrieval.stores.near import exact, knn
from groundtune.schema import Document

_COPIES = 10
_CHARACTERS = 360  # per passage
_QUERIES = 1000
_WORDS = 6  # of each of the two sentences behind a query, which then is as long as a question


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="Where all of it goes; default: a temporary one")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--embedding_dtype", default="auto", help="As Groundtune's flag, for the sentences")
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
    """Embed the sentences of the passages, and the queries."""
    options.folder.mkdir(parents=True, exist_ok=True)
    known, questions = known_sentences(options.queries)
    embedder = Embedder(options.embedding_model, dtype=options.embedding_dtype)
    np.save(options.folder / "sentences.npy", embedder.embed_documents(known))
    np.save(options.folder / "queries.npy", embedder.embed_questions(questions))
    about = {"name": embedder.name, "similarity": embedder.similarity, "settings": embedder.settings}
    (options.folder / "embedder.json").write_text(json.dumps(about))
    return {"embedded": len(known) + len(questions)}


def known_sentences(queries: int) -> tuple[list[str], list[str]]:
    """The sentences of passages, and queries of sentences that stand in none."""
    known, rng = sentences(), random.Random(0)
    rng.shuffle(known)
    kept_out = len(known) // 5
    pairs = [rng.sample(known[:kept_out], 2) for _ in range(queries)]
    return known[kept_out:], [" ".join(word for part in pair for word in part.split()[:_WORDS]) for pair in pairs]


def drawn(options: argparse.Namespace) -> list[list[int]]:
    """The sentences of each passage that is no copy, by their numbers."""
    known, rng, passages = known_sentences(options.queries)[0], random.Random(1), []
    for _ in range(options.passages // _COPIES):
        passages.append([rng.randrange(len(known))])
        while sum(len(known[i]) for i in passages[-1]) < _CHARACTERS:
            passages[-1].append(rng.randrange(len(known)))
    return passages


def write(options: argparse.Namespace) -> dict[str, Any]:
    """The document database: each text ten times, with the number of the copy."""
    known, _ = known_sentences(options.queries)
    texts = [" ".join(known[i] for i in passage) for passage in drawn(options)]
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
        about = json.loads((options.folder / "embedder.json").read_text())
        self.name, self.settings, self.similarity = about["name"], about["settings"], about["similarity"]
        self.dimensions = np.load(options.folder / "queries.npy").shape[1]
        self.limit, self.options = None, options

    def embed_documents(self, texts: Sequence[str], so_far: Any = None) -> np.ndarray:
        of_sentences = np.load(self.options.folder / "sentences.npy")
        base = np.stack([of_sentences[passage[:2]].mean(axis=0) for passage in drawn(self.options)])
        base /= np.maximum(np.linalg.norm(base, axis=1, keepdims=True), 1e-9)
        rng = np.random.default_rng(0)
        noise = nearest(base, rng) / np.sqrt(base.shape[1])
        vectors = np.empty((len(texts), base.shape[1]), dtype=np.float32)
        for copy in range(len(texts) // len(base)):
            some = base + (noise * rng.standard_normal(base.shape, dtype=np.float32) if copy else 0)
            some /= np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-9)
            vectors[copy * len(base) : (copy + 1) * len(base)] = some
        return vectors

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        return np.load(self.options.folder / "queries.npy")[: len(texts)]


def nearest(base: np.ndarray, rng: np.random.Generator) -> float:
    """The median distance of a vector to its nearest neighbour."""
    similar = knn(base[rng.choice(len(base), min(len(base), 1000), replace=False)], base, 2, "cosine")[0][:, 1]
    return float(np.median(np.sqrt(np.maximum(0, 2 - 2 * similar))))


def read(options: argparse.Namespace) -> dict[str, Any]:
    """The first pass over the document database."""
    return {"passages": len(read_documents(options.folder / "documents.jsonl"))}


def vectors(options: argparse.Namespace) -> dict[str, Any]:
    """The index of the vectors, without embedding."""
    documents = read_documents(options.folder / "documents.jsonl")
    index = load_or_build_index(options.folder / "index", documents, Embedded(options), options.vector_dtype)
    return {"dimensions": index.dimensions}


def words(options: argparse.Namespace) -> dict[str, Any]:
    """The index of the words."""
    documents = read_documents(options.folder / "documents.jsonl")
    return {"words": len(BM25Retriever(documents, options.folder / "index").postings.vocabulary)}


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Recall@10 of the vectors against exact search, and queries a second of vectors, words and both."""
    embedder = Embedded(options)
    begin = time.perf_counter()
    documents = read_documents(options.folder / "documents.jsonl")
    index = load_or_build_index(options.folder / "index", documents, embedder, options.vector_dtype)
    bm25 = BM25Retriever(documents, options.folder / "index")
    _ = bm25.postings
    found: dict[str, Any] = {"load_s": time.perf_counter() - begin, "memory_mb": _memory()}
    _, questions = known_sentences(options.queries)
    queries = embedder.embed_questions(questions)
    dense = DenseRetriever(embedder, index)
    for name, retriever in (("dense", dense), ("bm25", bm25), ("mix", MixRetriever(dense, bm25))):
        begin, worked = time.perf_counter(), time.process_time()
        retriever.search(questions, 10)
        found[f"{name}_per_s"] = len(questions) / (time.perf_counter() - begin)
        found[f"{name}_cpu_ms"] = 1000 * (time.process_time() - worked) / len(questions)
    found["memory_after_mb"] = _memory()
    positions, right = index.search(queries, 10)[1], exact(queries, index.vectors, 10, index.similarity)[1]
    found["recall@10"] = float(np.mean([np.isin(a, b).mean() for a, b in zip(right, positions)]))
    found["lists"] = index.near.lists if index.near else 0
    return found


def ask(options: argparse.Namespace) -> dict[str, Any]:
    """One question to the model that `--model` names; the peak memory is that of the whole command."""
    folder, question = options.folder, known_sentences(options.queries)[1][0]
    given = ["ask", options.model, f"What is meant by: {question}", "--embedding_model", options.embedding_model]
    given += ["--full_dataset_file_path", str(folder / "documents.jsonl"), "--max_new_tokens", "16", "--json"]
    given += ["--full_dataset_index_path", str(folder / "index"), "--vector_dtype", options.vector_dtype]
    given += ["--embedding_dtype", options.embedding_dtype]
    asked = alone("groundtune.cli", given)
    return {f"ask_{name}": asked[name] for name in ("wall_s", "cpu_s", "peak_mb")}


def _memory() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


STEPS = {
    "embed": embed, "write": write, "read": read, "vectors": vectors, "words": words, "search": search, "ask": ask,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
