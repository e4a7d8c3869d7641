"""Time and peak memory of `groundtune documents`, `groundtune index` and a search, on many files that are made here.

python -m benchmarks.corpus --passages 100000
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SMALL = 100  # passages; so few that they do not affect a command's memory
_PER_FILE = 20
_CHARACTERS = 360  # per passage; about 120 tokens with its header
_QUESTIONS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000, help="About so many are written")
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--embedding_dtype", default="auto", help="As Groundtune's flag")
    parser.add_argument("--folder", type=Path, help="Where all of it goes; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="300 passages, and no comparison with fewer")
    parser.add_argument("--search", type=Path, help="Only search the documents in this folder, in this process")
    options = parser.parse_args()
    options.passages = 300 if options.quick else options.passages
    if not options.embedding_model:
        from groundtune.demo import embedding_model

        options.embedding_model = str(embedding_model())
    embedding = ["--embedding_model", options.embedding_model, "--embedding_dtype", options.embedding_dtype]
    if options.search:
        print(json.dumps(search(options.search, options.embedding_model, options.embedding_dtype)))
        return 0
    with tempfile.TemporaryDirectory(prefix="groundtune-corpus-") as temporary:
        folder = options.folder or Path(temporary)
        small = [] if options.quick else measured(folder / "small", _SMALL, embedding)
        rows = measured(folder / "corpus", options.passages, embedding)
    for row, with_few in zip(rows, small):
        row[f"peak_mb_with_{_SMALL}"] = with_few["peak_mb"]
        row["kb_a_passage"] = 1024 * (row["peak_mb"] - with_few["peak_mb"]) / max(1, row["passages"] - _SMALL)
    for row in rows:
        print(json.dumps(row))
    if not options.quick:
        from benchmarks.measure import versions

        print(json.dumps({"versions": versions()}))
    show(rows)
    return 0


def measured(folder: Path, passages: int, embedding: Sequence[str]) -> list[dict[str, Any]]:
    """One row each for documents, index and search: passages, seconds, and the process's peak memory in megabytes."""
    size = write_files(folder / "files", passages)
    documents = ["--full_dataset_file_path", str(folder / "documents.jsonl")]
    cut = ["documents", str(folder / "files"), "-o", str(folder / "documents.jsonl"), "--tokenizer", embedding[1]]
    made = alone("groundtune.cli", [*cut, "--chunk_size", "192", "--chunk_overlap", "0", "--json"])
    made = {**made, "passages": sum(made["passages"].values()), "files_mb": size / 2**20}
    embed = ["index", *documents, *embedding, "--json"]
    indexed = alone("groundtune.cli", embed)
    if indexed["documents"] != made["passages"]:
        raise AssertionError(f"{made['passages']} passages were written and {indexed['documents']} indexed")
    found = alone("benchmarks.corpus", ["--search", str(folder), *embedding])
    kept = ("passages", "wall_s", "peak_mb")
    rows = [
        {"case": "documents", **{k: made[k] for k in (*kept, "files_mb")}},
        {"case": "index", "passages": made["passages"], **{k: indexed[k] for k in kept[1:]}},
        {"case": f"search, {_QUESTIONS} questions", **found},
    ]
    return [{**row, "passages_s": row["passages"] / row["wall_s"]} for row in rows[:2]] + rows[2:]


def alone(module: str, words: Sequence[str]) -> dict[str, Any]:
    """A command's JSON output, with its wall and processor time in seconds and its process's peak resident memory in
    megabytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # this child only; RUSAGE_CHILDREN gives the largest child
    if status:
        raise RuntimeError(f"{module} {' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    seconds = {"wall_s": time.perf_counter() - begin, "cpu_s": usage.ru_utime + usage.ru_stime}
    return {**json.loads(said), **seconds, "peak_mb": peak}


def search(folder: Path, embedding_model: str, dtype: str) -> dict[str, Any]:
    """Seconds to load documents and index, to embed the questions, and to search the four best passages of each."""
    import numpy as np

    from groundtune.data.files import read_documents
    from groundtune.retrieval.embedder import Embedder
    from groundtune.retrieval.stores.local import load_or_build_index

    begin = time.perf_counter()
    embedder, documents = Embedder(embedding_model, dtype=dtype), read_documents(folder / "documents.jsonl")
    index = load_or_build_index(folder / "index", documents, embedder)
    loaded = time.perf_counter()
    drawn = random.Random(1).sample(sentences(), _QUESTIONS)
    queries = embedder.embed_questions([f"What is meant by: {sentence}" for sentence in drawn])
    embedded = time.perf_counter()
    scores, _ = index.search(queries, 4)
    end = time.perf_counter()
    best = (queries[:5] @ index.vectors.T).max(axis=1)
    if not np.allclose(scores[:5, 0], best, atol=1e-4):
        raise AssertionError(f"the best passages score {scores[:5, 0]}, and there are some with {best}")
    seconds = {"load_s": loaded - begin, "embed_s": embedded - loaded, "search_s": end - embedded}
    return {"passages": len(documents), **seconds}


def write_files(folder: Path, passages: int) -> int:
    """Write Markdown, text and HTML files in turn, one section per passage; returns their total size in bytes."""
    folder.mkdir(parents=True)
    made, size = paragraphs(random.Random(0)), 0
    for number, start in enumerate(range(0, passages, _PER_FILE)):
        these = [next(made) for _ in range(min(_PER_FILE, passages - start))]
        kind, write = (("md", markdown), ("txt", text), ("html", web_page))[number % 3]
        path = folder / f"{number // 100:04}" / f"page-{number:06}.{kind}"
        path.parent.mkdir(exist_ok=True)
        size += path.write_text(write(f"Page {number}", these), encoding="utf-8")
    return size


def sentences() -> list[str]:
    """The sentences of the Python language reference, which ships with Python."""
    from pydoc_data.topics import topics

    words = " ".join(re.sub(r"\n[-=*~^\"]{3,}\n", "\n\n", topics[name]) for name in sorted(topics))
    found = (" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?:])\s+|\n\s*\n", words))
    return list(dict.fromkeys(s for s in found if 40 <= len(s) <= 160 and s[0].isupper()))


def paragraphs(rng: random.Random) -> Iterator[str]:
    known = sentences()
    while True:
        drawn: list[str] = []
        while sum(map(len, drawn)) < _CHARACTERS:
            drawn.append(rng.choice(known))
        yield " ".join(drawn)


def heading(paragraph: str) -> str:
    return " ".join(re.findall(r"\w+", paragraph)[:4])


def markdown(title: str, these: Sequence[str]) -> str:
    return f"# {title}\n\n" + "\n\n".join(f"## {heading(one)}\n\n{one}" for one in these) + "\n"


def text(title: str, these: Sequence[str]) -> str:
    return "\n\n".join([title, *these]) + "\n"


def web_page(title: str, these: Sequence[str]) -> str:
    body = "".join(f"<h2>{html.escape(heading(one))}</h2><p>{html.escape(one)}</p>" for one in these)
    return f"<html><head><title>{title}</title></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("case", "passages", "seconds", "passages/s", "peak MB", f"with {_SMALL}", "KB a passage", "more")
    for row in rows:
        more = {k: v for k, v in row.items() if k.endswith("_s") and k not in ("wall_s", "passages_s")}
        table.add_row(
            row["case"],
            f"{row['passages']:,}",
            f"{row['wall_s']:.1f}",
            f"{row['passages_s']:.0f}" if "passages_s" in row else "",
            f"{row['peak_mb']:,.0f}",
            f"{row.get(f'peak_mb_with_{_SMALL}', 0):,.0f}",
            f"{row.get('kb_a_passage', 0):.2f}",
            ", ".join(f"{name} {value:.2f}" for name, value in more.items()),
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
