"""What the order of passages costs in shared prefixes: tokens that a training epoch computes, counted and not timed.

python -m benchmarks.passage_order --data FOLDER --model MODEL
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import load_data
from groundtune.arguments import DISTRACTORS, ORDERS, ModelArguments, PassageArguments, PromptArguments
from groundtune.methods import METHODS
from groundtune.model.loading import load_tokenizer
from groundtune.prompts.prompt import make_prompt
from groundtune.prompts.rows import EpochRows, encode_rows
from groundtune.retrieval.retrievers import BM25Retriever, retrieve
from groundtune.schema import UNANSWERABLE
from groundtune.training.batching import prefix_order, share_saved

K, BATCH = 3, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Folder with Faire; default: the demo's data")
    parser.add_argument("--model", required=True, help="Folder with the tokenizer")
    parser.add_argument("--max_seq_length", type=int, default=2048)
    options = parser.parse_args()
    documents, train, _ = load_data(options.data)
    prompt = make_prompt(load_tokenizer(ModelArguments(model_name_or_path=options.model)), PromptArguments())
    hits = retrieve(BM25Retriever(documents), train, PassageArguments(ORDERS[1]).searched(K), "user")
    table = Table("passages of a row", "gold dropout", "rows without gold", "tokens", "saved by shared prefixes")
    mixed = list(DISTRACTORS)
    for order, kinds, dropout in [
        *((order, ["retrieved"], 0.0) for order in ORDERS), *((order, mixed, 0.0) for order in ORDERS),
        (ORDERS[1], mixed, 0.2),
    ]:  # fmt: skip
        draws = METHODS["raft"].draws(PassageArguments(order, K, kinds, dropout), K, documents)
        policy = METHODS["raft"].policy
        rows = EpochRows(encode_rows, policy, train, hits, prompt, options.max_seq_length, 0, draws)
        row_numbers = prefix_order(BATCH)(rows.of_epoch, torch.Generator().manual_seed(0))
        batches = [row_numbers[i : i + BATCH] for i in range(0, len(row_numbers), BATCH)]
        without = sum(example.answer == UNANSWERABLE for example, _ in rows.drawn)
        tokens, saved = sum(map(len, rows)), share_saved(rows, batches)
        table.add_row(f"{order}: {', '.join(kinds)}", f"{dropout:g}", str(without), f"{tokens:,}", f"{saved:.1%}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
