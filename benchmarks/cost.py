"""The doctor's estimates of memory and time against measured steps, each model in a process of its own.

python -m benchmarks.cost --model FOLDER [FOLDER ...]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import arguments, decoder_folder, matmul_peak, versions, vocabulary
from benchmarks.memory import megabytes
from benchmarks.train_step import Ours, made_rows
from groundtune.arguments import ModelArguments
from groundtune.model.loading import computes_bf16, load_tokenizer
from groundtune.training.cost import step_cost

WAYS = ("lora", "all")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4, help="Rows of a step")
    parser.add_argument("--tokens", type=int, default=512, help="Tokens of a row, of which a tenth are learnt")
    parser.add_argument("--way", choices=WAYS, help="Measure this way of training alone, in this process")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options)))
        return 0
    for way in WAYS:
        words = [sys.executable, "-m", "benchmarks.cost", *sys.argv[1:], "--way", way]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)
    print(json.dumps({"versions": versions()}))
    return 0


def measured(options: Any) -> dict[str, Any]:
    """Estimated and measured megabytes above the loaded model, and seconds of a step of one core.

    Processor time, because other work on the machine does not count in it.
    """
    folder = decoder_folder(options)
    model = ModelArguments(model_name_or_path=str(folder), use_peft=options.way == "lora")
    tokens = 64 if options.quick else options.tokens
    batches = [made_rows(vocabulary(folder), options.rows, tokens)] * (2 if options.quick else 4)
    bf16 = torch.cuda.is_available() or computes_bf16()
    cost = step_cost(model, bf16=bf16)
    side = Ours(model, load_tokenizer(model), "auto" if bf16 else "float32", "off")
    loaded, seconds = megabytes(peak=False), []
    for rows in batches:
        begin = time.process_time()
        side.step(rows)
        seconds.append(time.process_time() - begin)
    rows = batches[0]
    read, learnt = sum(map(len, rows)), sum(len(row.answer_ids) for row in rows)
    operations = sum(cost.training(len(row), len(row.answer_ids)) for row in rows)
    rate, step = matmul_peak(torch.bfloat16 if bf16 else torch.float32), statistics.median(seconds[1:])
    before = (2 if bf16 and options.way == "lora" else 4) * cost.parameters  # bytes that were loaded
    return {
        "model": Path(folder).name, "way": options.way, "dtype": "bfloat16" if bf16 else "float32",
        "tokens": read, "answer_tokens": learnt,
        "estimated_mb": (cost.memory(read, learnt) - before) / 2**20, "measured_mb": megabytes(peak=True) - loaded,
        "tflop": operations / 1e12, "seconds": step, "gflops": operations / step / 1e9, "matmul_gflops": rate,
        "share": operations / step / 1e9 / rate,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
