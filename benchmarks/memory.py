"""Peak memory of training steps on shared prefixes: Groundtune against trl as it comes, each in a process of its own.

python -m benchmarks.memory --model FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks.measure import arguments, decoder_folder, versions, vocabulary
from benchmarks.train_step import SIDES, Ours, made_groups
from groundtune.arguments import ModelArguments
from groundtune.model.loading import load_tokenizer


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--against", default="trl", choices=[*SIDES], help="What to compare with")
    parser.add_argument("--per_passage", type=int, default=4, help="Rows of one step, on one passage")
    parser.add_argument("--side", choices=["ours", *SIDES], help="Measure this side alone, in this process")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(peak(options)))
        return 0
    ours, theirs = (alone(side, sys.argv[1:]) for side in ("ours", options.against))
    shared, own = lengths(options)
    row = {"case": f"peak memory, {options.per_passage} per passage, {shared} + {own}", "against": options.against}
    row["ratio"] = ours["peak_mb"] / theirs["peak_mb"]
    row["ratio_above_model"] = above(ours) / max(above(theirs), 1.0)
    row |= {
        f"{side}_{name}": value for side, found in (("ours", ours), ("theirs", theirs)) for name, value in found.items()
    }
    print(json.dumps(row))
    print(json.dumps({"versions": versions()}))
    return 0


def alone(side: str, words: list[str]) -> dict[str, float]:
    """`peak` of one side in a new process, because freed memory is not always returned to the system."""
    command = [sys.executable, "-m", "benchmarks.memory", *words, "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def above(found: dict[str, float]) -> float:
    return found["peak_mb"] - found["loaded_mb"]


def lengths(options: Any) -> tuple[int, int]:
    """Number of tokens that the rows of a step share, and of each row's own tokens."""
    return (45, 15) if options.quick else (450, 150)


def peak(options: Any) -> dict[str, float]:
    """Megabytes after loading the model, and at the peak of three steps; allocated on CUDA, else resident memory."""
    model = ModelArguments(model_name_or_path=str(decoder_folder(options)), use_peft=True)
    tokenizer = load_tokenizer(model)
    side = (Ours if options.side == "ours" else SIDES[options.side])(model, tokenizer, "auto")
    loaded = megabytes(peak=False)
    for rows in made_groups(vocabulary(model.model_name_or_path), 3, 1, options.per_passage, *lengths(options)):
        side.step(rows)
    return {"loaded_mb": loaded, "peak_mb": megabytes(peak=True)}


def megabytes(peak: bool) -> float:
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    import resource

    import psutil

    if not peak:
        return psutil.Process().memory_info().rss / 2**20
    # The peak may be from loading, which users experience too. macOS counts bytes, Linux kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    sys.exit(main())
