"""A million passages: what an index takes to make, what a search finds and how fast, and the memory of `ask`.

python -m benchmarks.million --folder FOLDER --passages 1000000 --originals 40000
python -m benchmarks.million --folder FOLDER --documents FILE [FILE ...] --questions FILE [FILE ...]

The originals are the passages of `--documents`, then pieces of sixty words of the docstrings of Python's library and of
the installed packages, each embedded by the model. The other passages are their copies: nine of ten words, and a vector
with noise as long as the median distance to the nearest neighbour. The queries are the questions of `--questions`, or
the beginnings of pieces that are no passages. Each step is a process of its own; `--step` makes one.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import alone
from groundtune.data.files import read_documents, scan_questions, write_jsonl
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.retrieval.stores.near import exact, knn
from groundtune.schema import Document

_PIECE = 60  # words of a piece
_SHORTEST = 12  # words of a piece, and of a query made of one
_LEFT_OUT = 0.1  # of the words of a copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="Where all of it goes; default: a temporary one")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--originals", type=int, default=40_000, help="Passages that the model embeds")
    parser.add_argument("--documents", nargs="*", default=[], help="Document databases whose passages come first")
    parser.add_argument("--questions", nargs="*", default=[], help="Files of examples whose questions are asked")
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--embedding_dtype", default="auto", help="As Groundtune's flag, for the originals")
    parser.add_argument("--vector_dtype", default="float32", help="As Groundtune's flag")
    parser.add_argument("--queries", type=int, default=1000)
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
    words: list[str] = []
    for name, value in vars(options).items():
        if value is not None and name != "step":
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    steps = [step for step in STEPS if step != "ask" or options.model]
    return [alone("benchmarks.million", [*words, "--step", step]) for step in steps]


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Write the texts of the originals and of the queries."""
    options.folder.mkdir(parents=True, exist_ok=True)
    originals = [document.text for path in options.documents for document in read_documents(path)]
    found = list(dict.fromkeys(pieces()))
    random.Random(0).shuffle(found)
    asked = [example.question for path in options.questions for _, example in scan_questions(path).entries]
    asked += [" ".join(found.pop().split()[:_SHORTEST]) for _ in range(options.queries - len(asked))]
    originals = (originals + found)[: options.originals]
    write_jsonl(options.folder / "originals.jsonl", (Document(text).to_dict() for text in originals))
    (options.folder / "queries.json").write_text(json.dumps(asked[: options.queries]))
    return {"originals": len(originals), "queries": len(asked[: options.queries])}


def pieces() -> Iterator[str]:
    """The docstrings of Python's library and of the installed packages, in pieces."""
    warnings.simplefilter("ignore")  # of others' code
    library = Path(sysconfig.get_paths()["stdlib"])
    for root in (library, Path(sysconfig.get_paths()["purelib"])):
        for path in sorted(root.rglob("*.py")):
            if root == library and "site-packages" in path.parts:
                continue
            try:
                nodes = list(ast.walk(ast.parse(path.read_bytes())))
            except (SyntaxError, ValueError):
                continue
            for node in nodes:
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    words = (ast.get_docstring(node) or "").split()
                    for start in range(0, len(words) - _SHORTEST + 1, _PIECE):
                        yield " ".join(words[start : start + _PIECE])


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Embed the originals and the queries."""
    documents, questions = read_documents(options.folder / "originals.jsonl"), _questions(options)
    embedder = Embedder(options.embedding_model, dtype=options.embedding_dtype)
    vectors = load_or_build_index(options.folder / "of_originals", documents, embedder).vectors
    np.save(options.folder / "originals.npy", vectors)
    np.save(options.folder / "queries.npy", embedder.embed_questions(questions))
    about = {"name": embedder.name, "similarity": embedder.similarity, "settings": embedder.settings}
    (options.folder / "embedder.json").write_text(json.dumps(about))
    return {"embedded": len(documents) + len(questions)}


def write(options: argparse.Namespace) -> dict[str, Any]:
    """The document database: the originals, then their copies."""
    texts = [document.text.split() for document in read_documents(options.folder / "originals.jsonl")]
    rng, path = random.Random(1), options.folder / "documents.jsonl"

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(options.passages):
            copy, original = divmod(number, len(texts))
            kept = [word for word in texts[original] if not copy or rng.random() > _LEFT_OUT]
            yield Document(f"{' '.join(kept)} ({number})", metadata={"copy": copy, "number": original}).to_dict()

    write_jsonl(path, rows())
    return {"mb": path.stat().st_size / 2**20}


def _questions(options: argparse.Namespace) -> list[str]:
    return json.loads((options.folder / "queries.json").read_text())


class Embedded:
    """Stands in for an embedding model: gives the vectors of the documents, and of the queries, that were made."""

    def __init__(self, options: argparse.Namespace) -> None:
        about = json.loads((options.folder / "embedder.json").read_text())
        self.name, self.settings, self.similarity = about["name"], about["settings"], about["similarity"]
        self.dimensions = np.load(options.folder / "queries.npy").shape[1]
        self.limit, self.options = None, options

    def embed_documents(self, texts: Sequence[str], so_far: Any = None) -> np.ndarray:
        base, rng = np.load(self.options.folder / "originals.npy"), np.random.default_rng(0)
        noise = nearest(base, rng) / np.sqrt(base.shape[1])
        vectors = np.empty((len(texts), base.shape[1]), dtype=np.float32)
        for start in range(0, len(texts), len(base)):
            some = base[: len(texts) - start].copy()
            if start:
                some += noise * rng.standard_normal(some.shape, dtype=np.float32)
                some /= np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-9)
            vectors[start : start + len(some)] = some
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
    questions = _questions(options)
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
    folder, question = options.folder, _questions(options)[0]
    given = ["ask", options.model, question, "--embedding_model", options.embedding_model]
    given += ["--full_dataset_file_path", str(folder / "documents.jsonl"), "--max_new_tokens", "16", "--json"]
    given += ["--full_dataset_index_path", str(folder / "index"), "--vector_dtype", options.vector_dtype]
    given += ["--embedding_dtype", options.embedding_dtype]
    asked = alone("groundtune.cli", given)
    return {f"ask_{name}": asked[name] for name in ("wall_s", "cpu_s", "peak_mb")}


def _memory() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


STEPS = {
    "collect": collect, "embed": embed, "write": write, "read": read, "vectors": vectors, "words": words,
    "search": search, "ask": ask,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
