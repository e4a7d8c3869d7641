"""Damages files of checkpoints and indexes (flipped, cut, swapped, emptied, removed): all is noticed, nothing crashes.

A damaged checkpoint is skipped for an earlier one; a damaged index is embedded again.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from conftest import FakeEmbedder, tiny_documents
from tiny_run import VARIANTS, Child, flags, make_inputs, warm_up

# Each takes the file, files to swap it with and a random generator; False: it changed nothing.


def flip(path: Path, others: list[Path], rng: random.Random) -> bool:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return True


def cut(path: Path, others: list[Path], rng: random.Random) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    return True


def lengthen(path: Path, others: list[Path], rng: random.Random) -> bool:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 9)))
    return True


def empty(path: Path, others: list[Path], rng: random.Random) -> bool:
    path.write_bytes(b"")
    return True


def swap(path: Path, others: list[Path], rng: random.Random) -> bool:
    other = rng.choice(others)
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    return mine != its


def remove(path: Path, others: list[Path], rng: random.Random) -> bool:
    path.unlink()
    return True


WAYS: dict[str, Callable[[Path, list[Path], random.Random], bool]] = {
    "flipped": flip, "cut": cut, "lengthened": lengthen, "emptied": empty, "swapped": swap, "removed": remove,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, work = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="corruptions_"))
    warm_up()
    make_inputs(work / "inputs")
    assert Child(lambda: _run(work), work / "run.log").wait() == 0, (work / "run.log").read_text()
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("groundtune").addHandler(handler)
    logging.getLogger("groundtune").propagate = False
    results: Counter[tuple[str, str]] = Counter()
    while sum(results.values()) < options.corruptions:
        where, check = rng.choice([("checkpoint", _checkpoint_noticed), ("index", _index_noticed)])
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(work / "run" if where == "checkpoint" else _index(work), copy)
        folder = copy / "checkpoint-4" if where == "checkpoint" else next(copy.iterdir())
        path = rng.choice(sorted(path for path in folder.iterdir() if not path.name.startswith(".")))
        others = [
            p for p in copy.rglob("*") if p.is_file() and p != path and (p.parent == folder or p.name == path.name)
        ]
        way = rng.choice(sorted(WAYS))
        if not path.stat().st_size or not WAYS[way](path, others, rng):
            continue
        warnings.clear()
        try:
            noticed = check(copy, warnings)
        except Exception as error:
            noticed = False
            print(f"CRASH {error!r}")
        if not noticed:
            print(f"{path.relative_to(copy)} {way}: not noticed")
        results[where, "noticed" if noticed else "MISSED"] += 1
    for (where, result), n in sorted(results.items()):
        print(f"{n:5} {where} {result}")
    missed = sum(n for (_, result), n in results.items() if result == "MISSED")
    print(f"{options.corruptions} corruptions, {options.corruptions - missed} noticed")
    shutil.rmtree(work)
    return 1 if missed else 0


def _run(work: Path) -> int:
    """Two checkpoints and an index of fake vectors."""
    from groundtune.cli import train_command
    from groundtune.retrieval.stores.local import load_or_build_index

    load_or_build_index(_index(work), tiny_documents(), FakeEmbedder())
    changes = {"max_steps": 4, "eval_strategy": "steps", "save_total_limit": 3}
    return train_command("swr", flags(work / "inputs", work / "run", VARIANTS[0], **changes))


def _index(work: Path) -> Path:
    return work / "index"


def _checkpoint_noticed(output: Path, warnings: list[str]) -> bool:
    from groundtune.runs.checkpoints import newest_checkpoint

    found = newest_checkpoint(output)
    return found is not None and found.step == 2 and "checkpoint-4" in " ".join(warnings)


def _index_noticed(folder: Path, warnings: list[str]) -> bool:
    """Every document is embedded again with the right vector, with a warning unless only the manifest is missing."""
    from groundtune.retrieval.stores.local import load_or_build_index

    embedder, documents = FakeEmbedder(), tiny_documents()
    index = load_or_build_index(folder, documents, embedder)
    right = np.array_equal(index.vectors, FakeEmbedder().embed_documents([d.text for d in documents]))
    return right and len(embedder.documents) == len(documents)


if __name__ == "__main__":
    sys.exit(main())
