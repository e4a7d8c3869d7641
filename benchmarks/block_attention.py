"""Block attention against full attention: the tokens of an epoch, a training step, and the first token of an answer.

    python -m benchmarks.block_attention --data FOLDER [--only tokens step first_token]

Rows are those of SwR: gold passages, then retrieved ones. Full attention shares the prefixes that rows have in common,
block attention every passage, each with the batches that suit it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measure import Case, arguments, compare, decoder_folder, load_data, report, vocabulary
from benchmarks.train_step import Ours
from groundtune.arguments import BLOCK, ModelArguments, PromptArguments
from groundtune.methods import METHODS
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import open_decoder
from groundtune.model.kv_cache import MB, PassageCache
from groundtune.model.loading import load_model, load_tokenizer
from groundtune.prompts.policies import draw
from groundtune.prompts.prompt import make_prompt
from groundtune.prompts.rows import Row, encode_rows
from groundtune.retrieval.retrievers import BM25Retriever, retrieve
from groundtune.training.batching import prefix_order, share_saved

SECTIONS = ("tokens", "step", "first_token")


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS, help="What to measure")
    parser.add_argument("--batch_size", type=int, default=8, help="Rows of a step")
    parser.add_argument("--k", type=int, default=4, help="Passages retrieved for a row, beside its gold passages")
    parser.add_argument("--passages", type=int, default=4, help="Passages of a prompt, for the first token")
    parser.add_argument("--tokens", type=int, default=300, help="Tokens of each")
    options = parser.parse_args()
    if options.quick:
        options.batch_size, options.k, options.tokens, options.pairs = 4, 2, 30, 2
    model = ModelArguments(model_name_or_path=str(decoder_folder(options)), use_peft=True)
    tokenizer = load_tokenizer(model)
    report(cases(model, tokenizer, options))
    return 0


def cases(model: ModelArguments, tokenizer: Any, options: Any) -> Iterator[Case]:
    if {"tokens", "step"} & set(options.only):
        blocks = swr_rows(tokenizer, options)
        full = [replace(row, borders=()) for row in blocks]
        batches = [batches_of(rows, options.batch_size) for rows in (blocks, full)]
        tokens = sum(map(len, full))
        left = [round(tokens * (1 - share_saved(rows, these))) for rows, these in zip((blocks, full), batches)]
        print(
            f"{len(full)} rows, {tokens:,} tokens; with shared prefixes {left[1]:,}, with block attention {left[0]:,}"
        )
        if "step" in options.only:
            yield training_step(model, tokenizer, blocks, full, batches, left[1] / left[0], options)
    if "first_token" in options.only:
        yield from first_token(model, options)


def swr_rows(tokenizer: Any, options: Any) -> list[Row]:
    documents, examples, _ = load_data(options.data)
    examples = examples[:40] if options.quick else examples
    prompt = make_prompt(tokenizer, PromptArguments(passage_attention=BLOCK))
    hits = retrieve(BM25Retriever(documents), examples, options.k, "user")
    policy = METHODS["swr"].policy
    passages = [policy(example, found, draw(0, 0, i)) for i, (example, found) in enumerate(zip(examples, hits))]
    return encode_rows(examples, passages, prompt, 4096)


def batches_of(rows: Sequence[Row], size: int) -> list[list[int]]:
    order = prefix_order(size)(rows, torch.Generator().manual_seed(0))
    return [order[i : i + size] for i in range(0, len(order), size)]


def training_step(
    model: ModelArguments, tokenizer: Any, blocks: list[Row], full: list[Row], batches: list[list[list[int]]],
    bound: float, options: Any,
) -> Case:  # fmt: skip
    """Steps on batches drawn from the epoch; the ratio is of times per token of the rows, as these differ in length."""
    rng = random.Random(0)
    ours_rows, theirs_rows = (
        [[rows[i] for i in batch] for batch in rng.sample(these, options.pairs)]
        for rows, these in zip((blocks, full), batches)
    )
    ours, theirs = (Ours(model, tokenizer, "auto", blocks=blocks) for blocks in (True, False))
    case = compare(
        "training step, rows of SwR", "shared prefixes",
        lambda i: ours.step(ours_rows[i]), lambda i: theirs.step(theirs_rows[i]), options.pairs,
        lambda: (ours.step(ours_rows[0][:1]), theirs.step(theirs_rows[0][:1])),
        rows_a_step=options.batch_size, token_bound=bound,
    )  # fmt: skip
    lengths = [sum(len(row) for batch in these for row in batch) for these in (ours_rows, theirs_rows)]
    ratio = case.ratio * lengths[0] / lengths[1]
    case.extra.update(ratio_per_token=ratio, share_of_saving=(1 - 1 / ratio) / (1 - 1 / bound))
    return case


@torch.no_grad()
def first_token(model: ModelArguments, options: Any) -> Iterator[Case]:
    """One question on passages that were read before, and on passages that were not."""
    words, rng = vocabulary(model.model_name_or_path), random.Random(0)
    loaded = load_model(replace(model, use_peft=False, dtype="bfloat16"), bf16=True, stop_ids=(1,), pad_id=0).eval()

    def ids(n: int) -> list[int]:
        return [rng.randrange(100, words - 100) for _ in range(n)]

    header, warm = ids(20), [ids(options.tokens) for _ in range(options.passages)]
    with torch.autocast(loaded.device.type, dtype=torch.bfloat16):
        if problem := use_packed_attention(loaded, to_train=False, blocks=True):
            raise AssertionError(problem)
        kept = PassageCache(1024 * MB)

        def asked(passages: list[list[int]], blocks: bool) -> Any:
            rng.shuffle(passages)
            prompt, borders = list(header), [len(header)]
            for passage in passages:
                prompt += passage
                borders.append(len(prompt))
            decoder = open_decoder(loaded, 1, 2 * len(prompt), (), kept if blocks else None)
            decoder.start([prompt + ids(30)], [1], [borders] if blocks else [])

        asked(warm, True)
        new = [[ids(options.tokens) for _ in range(options.passages)] for _ in range(options.pairs + 1)]
        name = f"first token, {options.passages} passages of {options.tokens} tokens"
        mb = max(block.size for block in kept.blocks.values()) / 1e6
        for case, ours in (("read before", lambda i: asked(warm, True)), ("new", lambda i: asked(new[i], True))):
            yield compare(
                f"{name}, {case}", "full attention", ours, lambda i: asked(warm, False), options.pairs,
                lambda: (asked(new[-1], True), asked(warm, False)), mb_a_passage=mb,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
