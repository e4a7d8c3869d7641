"""Random damage to valid files, against every parser of files.py and config.py: a DataError, or what the file says.

    python tests/faults/fuzz_parsers.py [seconds [seed]]

Whatever a parser accepts must be writable again: a half-read file is worse than a refused one.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from groundtune.commands.config import read_config  # noqa: E402
from groundtune.data.files import (
    read_documents,
    read_examples,
    scan_documents,
    scan_examples,
    write_documents,
    write_jsonl,
)
from groundtune.errors import DataError
from groundtune.schema import Document, Example  # noqa: E402

MOST_SECONDS = 2.0  # for one file of a few hundred bytes, in CPU time
WORDS = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"1e999", b"-", b"9" * 50,
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b"question", b"gold_docs", b"metadata",
    b"&a ", b"*a", b"<<: ", b"!!python/name:os.system", b"? ", b"---\n", b"%YAML 9.9\n", b"|", b">",
    b"c", b"R", b"\x81", b"b", b"\x93", b"h\x00", b"q\x00",
    b"PAR1", b"\x15\x00", struct.pack("<I", 2**31 - 1), struct.pack("<q", -1),
]  # fmt: skip


def _example_line() -> str:
    document = {
        "page_content": "The library opens at nine.",
        "fmt_content": "",
        "metadata": {"n": [1, None, 0.5, True]},
    }
    turns = [
        {"speaker": "user", "message": "Hi"},
        {"speaker": "system", "message": "Hé", "source_documents": [document]},
    ]
    example = {
        "question": "When?", "gold_docs": [document], "gold_answer": "At nine.", "chat_history": turns,
        "hard_neg_docs": [document],
    }  # fmt: skip
    return json.dumps(example, ensure_ascii=False)


def _pickled() -> bytes:
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    state = b"}(" + text("page_content") + text("some") + text("metadata") + b"}" + text("n") + b"K\x07su"
    stub = text("local_rqa.schema.document") + text("Document") + b"\x93"
    return b"\x80\x04](" + (stub + b")\x81" + state + b"b") * 2 + b"e."


def seeds(folder: Path) -> dict[str, bytes]:
    """A valid file of every kind, by its name."""
    documents = [Document("One.", "Title: A\nOne.", {"title": "A", "n": 1}), Document("Zwei, é😀.")]
    write_documents(folder / "seed.jsonl", documents)
    found = {
        "train.jsonl": (_example_line() + "\n").encode() * 2,
        "documents.jsonl": (folder / "seed.jsonl").read_bytes(),
        "documents.pkl": _pickled(),
        "run.yaml": b"seed: 3\nlearning_rate: 1e-4\nlora_target_modules: [q_proj, 'v']\nsep_user: \" \"\nrun: {a: 1}\n",
        "run.json": b'{"seed": 3, "use_peft": true, "lora_target_modules": ["q"],\n "kwargs": {"a": [1]}}\n',
    }
    try:
        write_documents(folder / "seed.parquet", documents)
        found["documents.parquet"] = (folder / "seed.parquet").read_bytes()
    except DataError:  # without pyarrow
        pass
    return found


def _write_again(read: list[Any], path: Path) -> None:
    documents = [d for e in read for d in (e.gold_documents if isinstance(e, Example) else [e])]
    write_documents(path.with_name("again.jsonl"), documents)
    assert read_documents(path.with_name("again.jsonl"))


def _examples(path: Path) -> None:
    scan_examples(path)
    _write_again(read_examples(path), path)


def _documents(path: Path) -> None:
    scan_documents(path)
    _write_again(read_documents(path), path)


def _config(path: Path) -> None:
    write_jsonl(path.with_name("again.jsonl"), [{"flags": entry.flag()} for entry in read_config(str(path))])


PARSERS: dict[str, Callable[[Path], None]] = {
    "train.jsonl": _examples, "documents.jsonl": _documents, "documents.pkl": _documents,
    "documents.parquet": _documents, "run.yaml": _config, "run.json": _config,
}  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes changed, removed, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(changed) + 1), chance.choice((0, 1, 1, 2, 5, 40))
        kind = chance.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = chance.choice(WORDS) * chance.choice((1, 1, 1, 3, 3000))
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * chance.choice((1, 2, 50))
        elif changed:
            i = chance.randrange(len(changed))
            changed[i] ^= 1 << chance.randrange(8)
    return bytes(changed)


def fuzz(seconds: float, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Damage files for `seconds`; the numbers of files read and refused, by kind, and every failure."""
    chance, outcomes, failures = random.Random(seed), Counter(), []
    valid = seeds(folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, data in valid.items():
            path, given = folder / name, damaged(data, chance)
            path.write_bytes(given)
            begin = time.process_time()
            try:
                PARSERS[name](path)
                outcomes[name, "read"] += 1
            except DataError as error:
                outcomes[name, "refused"] += 1
                if not all(error.problems) or any("\n" in problem for problem in error.problems):
                    failures.append(f"{name}: not one line each: {error.problems}\n{given[:2000]!r}")
            except Exception:  # which is what this looks for
                failures.append(f"{name}: {traceback.format_exc()}\n{given[:2000]!r}")
            if (took := time.process_time() - begin) > MOST_SECONDS:
                failures.append(f"{name}: {took:.1f} seconds\n{given[:2000]!r}")
    return outcomes, failures


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(2**32)
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failures = fuzz(seconds, seed, Path(folder))
    print(*failures, sep="\n")
    for name in PARSERS:
        print(f"{name}: {outcomes[name, 'read']} read, {outcomes[name, 'refused']} refused")
    print(f"{outcomes.total()} damaged files in {seconds:.0f} seconds, seed {seed}: {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
