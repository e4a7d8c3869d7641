"""Time of one optimizer step on the same rows: Groundtune against trl as it comes, trl tuned, and plain padding.

python -m benchmarks.train_step --against trl trl-tuned padded --data FOLDER
python -m benchmarks.train_step --against sharing          # shared prefixes against packed rows, by Groundtune alone
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import cross_entropy

from benchmarks.measure import Case, arguments, compare, decoder_folder, load_data, report, vocabulary
from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.methods import METHODS
from groundtune.model.loading import load_model, load_tokenizer
from groundtune.model.lora import FusedLinear
from groundtune.model.packing import pack, prefix_groups
from groundtune.prompts.policies import gold_passages
from groundtune.prompts.prompt import make_prompt
from groundtune.prompts.rows import Row, encode_rows
from groundtune.training.arguments import QATrainingArguments
from groundtune.training.batching import by_prefix
from groundtune.training.trainer import ROWS, QATrainer, compile_layers


class Side(Protocol):
    """One side of a comparison: an optimizer step on rows, and the loss of rows without a step."""

    def step(self, rows: Sequence[Row]) -> None: ...

    def loss(self, rows: Sequence[Row]) -> float: ...


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--against", nargs="+", default=["trl"], choices=[*SIDES, "sharing"], help="What to compare with"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Rows of one step; default: as Groundtune and trl")
    parser.add_argument("--full", action="store_true", help="All weights instead of LoRA")
    parser.add_argument("--compile_layers", action="store_true", help="As Groundtune's flag; compiling is not timed")
    options = parser.parse_args()
    if options.quick:
        options.batch_size = 2
    model = ModelArguments(model_name_or_path=str(decoder_folder(options)), use_peft=not options.full)
    tokenizer = load_tokenizer(model)
    report(cases(model, tokenizer, options))
    return 0


def cases(model: ModelArguments, tokenizer: Any, options: Any) -> Iterator[Case]:
    for against in options.against:
        if against == "sharing":
            yield from sharing(model, tokenizer, options)
        else:
            yield training_step(against, model, tokenizer, options)


def training_step(against: str, model: ModelArguments, tokenizer: Any, options: Any) -> Case:
    """Gold passages, `batch_size` rows per step; both sides get the same rows, each in its own choice of batches."""
    size = options.batch_size
    if options.shape:
        rows = made_rows(vocabulary(model.model_name_or_path), options.pairs * size, 64 if options.quick else 1024)
    else:
        rows = sample(data_rows(tokenizer, options), options.pairs * size)
    in_order = cut([rows[i] for i in by_prefix(groups_of(rows), size, torch.Generator().manual_seed(0))], size)
    theirs_order = cut(sorted(rows, key=len), size) if against == "trl-tuned" else in_order
    dtype = "float32" if against == "padded" else "auto"
    theirs_dtype = "float32" if against.startswith("padded") else "auto"
    ours, theirs = Ours(model, tokenizer, dtype), SIDES[against](model, tokenizer, theirs_dtype)
    if options.compile_layers:
        compile_layers(ours.model)
    check_same_loss(ours, theirs, in_order[0], tolerance=1e-4 if dtype == "float32" else 2e-2)
    tokens = sum(map(len, rows))
    case = compare(
        "training step, " + ("all weights" if options.full else "LoRA") + ", compiled" * options.compile_layers,
        against,
        lambda i: ours.step(in_order[i]),
        lambda i: theirs.step(theirs_order[i]),
        options.pairs,
        warm_up=lambda: (ours.step(in_order[0]), theirs.step(in_order[0][: 1 if "padded" in against else size])),
        rows_a_step=size,
        tokens_a_row=tokens // len(rows),
        dtype=dtype,
        theirs_dtype=theirs_dtype,
    )
    computed = [pack_of(batch) for batch in in_order]
    flops = sum(useful_flops(ours.model, batch, packing) for batch, packing in zip(in_order, computed))
    seconds = case.ours_s * options.pairs
    case.extra.update(
        ours_tokens_s=tokens / seconds, theirs_tokens_s=tokens / (case.theirs_s * options.pairs),
        share_of_peak=flops / seconds / 1e9 / case.peak_gflops,
    )  # fmt: skip
    return case


def sharing(model: ModelArguments, tokenizer: Any, options: Any) -> Iterator[Case]:
    """The share of the token saving by shared prefixes that becomes a time saving: (1 - t1 / t0) / (1 - n1 / n0)."""
    shared, own = (45, 15) if options.quick else (450, 150)
    size, words = options.batch_size, vocabulary(model.model_name_or_path)
    made = partial(made_groups, words, options.pairs, size, shared=shared, own=own)
    work = {f"{n} per passage, {shared} + {own}": made(n) for n in (2, 4, 8)} | {"nothing to share": made(1)}
    if not options.shape:
        work = {"gold passages of the data": data_groups(data_rows(tokenizer, options), options.pairs, size), **work}
    ours, unshared = (Ours(model, tokenizer, "auto", share_prefix) for share_prefix in ("on", "off"))
    for name, batches in work.items():
        yield sharing_case(name, batches, ours, unshared, options.pairs)


def sharing_case(name: str, batches: list[list[Row]], ours: Side, unshared: Side, pairs: int) -> Case:
    check_same_loss(ours, unshared, batches[0], tolerance=2e-2)
    case = compare(name, "packed rows", lambda i: ours.step(batches[i]), lambda i: unshared.step(batches[i]), pairs)
    rows = [row for batch in batches for row in batch]
    token_ratio = sum(map(len, rows)) / sum(len(pack_of(batch).ids) for batch in batches)
    case.extra["token_ratio"] = token_ratio
    if token_ratio > 1.01:
        saved = 1 - 1 / token_ratio
        case.extra["share_of_saving"] = (1 - 1 / case.ratio) / saved
        # Answers are not shared, and with a large vocabulary the head is most of a small model's work.
        apart = sum(useful_flops(unshared.model, [row], pack_of([row])) for row in rows)
        together = sum(useful_flops(ours.model, batch, pack_of(batch)) for batch in batches)
        case.extra["share_of_flops"] = (1 - together / apart) / saved
    return case


def data_rows(tokenizer: Any, options: Any) -> list[Row]:
    _, examples, _ = load_data(options.data)
    prompt = make_prompt(tokenizer, PromptArguments())
    return encode_rows(examples, [gold_passages(e) for e in examples], prompt, 2048)


def made_rows(vocabulary: int, n: int, tokens: int) -> list[Row]:
    """n rows of random ids, of 0.5 to 1.5 times `tokens` each; a tenth of each row is the answer."""
    rng = random.Random(0)
    lengths = [rng.randrange(tokens // 2, tokens * 3 // 2) for _ in range(n)]
    ids = [[rng.randrange(100, vocabulary - 100) for _ in range(length)] for length in lengths]
    return [Row(row[: -(len(row) // 10)], row[-(len(row) // 10) :], "") for row in ids]


def sample(rows: list[Row], n: int) -> list[Row]:
    """n rows, drawn at random in whole groups of common prefixes; the last group may be cut."""
    groups = groups_of(rows)
    random.Random(0).shuffle(groups)
    return [rows[i] for group in groups for i in group][:n]


def data_groups(rows: list[Row], batches: int, size: int) -> list[list[Row]]:
    pairs = [[rows[i] for i in group[:2]] for group in groups_of(rows) if len(group) >= 2]
    random.Random(0).shuffle(pairs)
    return cut([row for pair in pairs for row in pair], size)[:batches]


def made_groups(vocabulary: int, batches: int, size: int, per_passage: int, shared: int, own: int) -> list[list[Row]]:
    """Batches of `size` rows (at least one passage each) of random ids: `shared` tokens per passage, `own` per row."""
    rng = random.Random(0)

    def ids(n: int) -> list[int]:
        return [rng.randrange(100, vocabulary - 100) for _ in range(n)]

    answer = own // 3
    made = []
    for _ in range(batches):
        passages = [ids(shared) for _ in range(max(1, size // per_passage))]
        made.append([Row(p + ids(own - answer), ids(answer), "") for p in passages for _ in range(per_passage)])
    return made


def groups_of(rows: Sequence[Row]) -> list[list[int]]:
    return prefix_groups([row.prompt_ids for row in rows])


def cut(rows: Sequence[Row], size: int) -> list[list[Row]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def pack_of(batch: Sequence[Row]) -> Any:
    return pack([r.prompt_ids + r.answer_ids for r in batch], [len(r.prompt_ids) - 1 for r in batch])


def check_same_loss(ours: Side, theirs: Side, batch: Sequence[Row], tolerance: float) -> None:
    """Raise `AssertionError` unless both sides compute the same loss, so that they do the same work."""
    a, b = ours.loss(batch), theirs.loss(batch)
    if abs(a - b) > tolerance * abs(b):
        raise AssertionError(f"the losses of the first batch differ: {a} and {b}")


def useful_flops(model: Any, batch: Sequence[Row], packing: Any) -> float:
    """FLOPs of the matrix products that a step needs: layers forward and backward, head at answer positions, attention.

    A product of n tokens with a weight of p elements costs 2 n p, its gradient for the input another 2 n p, and for a
    trained weight 2 n p more. Elementwise work is not counted.
    """
    config = model.config.get_text_config()
    weights = trained = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
            weights += parameter.numel()
            trained += parameter.numel() if parameter.requires_grad else 0
    head = config.vocab_size * config.hidden_size
    answers = sum(len(row.answer_ids) for row in batch)
    tokens = len(packing.ids)
    full = any(p.requires_grad for n, p in model.named_parameters() if "embed" in n)
    positions = sum(len(row) ** 2 / 2 for row in batch)  # a lower bound where prefixes are shared
    attention = 4 * positions * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    shared = tokens / sum(len(row) for row in batch)
    return 2 * tokens * (2 * weights + trained) + 2 * answers * head * (3 if full else 2) + 3 * attention * shared


class Ours:
    """Groundtune's own trainer, one step at a time."""

    def __init__(
        self, model: ModelArguments, tokenizer: Any, dtype: str, share_prefix: str = "auto", blocks: bool = False
    ):
        training = QATrainingArguments(
            output_dir=tempfile.mkdtemp(), eval_strategy="no", disable_tqdm=True, bf16=dtype != "float32"
        )
        self.trainer = QATrainer(
            model=load(model, tokenizer, dtype),
            args=training,
            train_dataset=[Row([1] * 20, [2], "")],
            method=METHODS["sft"],
            evaluator=None,
            pad_id=tokenizer.pad_token_id,
            share_prefix=share_prefix,
            blocks=blocks,
        )
        self.model = self.trainer.model
        self.optimizer = adamw(self.model)

    def step(self, rows: Sequence[Row]) -> None:
        self.trainer.training_step(self.model, self.trainer.data_collator(rows), answer_tokens(rows))
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        batch = self.trainer._prepare_inputs(self.trainer.data_collator(rows))
        batch.pop(ROWS)
        with self.trainer.compute_loss_context_manager():
            return self.trainer.compute_loss(self.model, batch).item()


class Trl:
    """trl's SFTTrainer on the same token ids and labels, one step at a time."""

    def __init__(self, model: ModelArguments, tokenizer: Any, dtype: str, **settings: Any):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(
            output_dir=tempfile.mkdtemp(), report_to="none", disable_tqdm=True, max_length=None,
            use_cpu=not torch.cuda.is_available(), **settings,
        )  # fmt: skip
        dataset = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
        loaded = load(model, tokenizer, dtype, fused=False)
        self.trainer = SFTTrainer(model=loaded, args=config, train_dataset=dataset, processing_class=tokenizer)
        self.model = self.trainer.model
        self.optimizer = adamw(self.model)

    def step(self, rows: Sequence[Row]) -> None:
        self.trainer.training_step(self.model, self.collate(rows), answer_tokens(rows))
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        batch = self.trainer._prepare_inputs(self.collate(rows))
        with self.trainer.compute_loss_context_manager():
            return self.trainer.compute_loss(self.model, batch, num_items_in_batch=answer_tokens(rows)).item()

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        return self.trainer.data_collator(
            [
                {"input_ids": r.prompt_ids + r.answer_ids, "labels": [-100] * len(r.prompt_ids) + r.answer_ids}
                for r in rows
            ]
        )


class Padded:
    """The historical procedure: every row padded to 2,048 tokens, logits and labels at every position.

    One row at a time, because the logits of one row take 2 GB; the optimizer steps after all rows, as on our side.
    """

    def __init__(self, model: ModelArguments, tokenizer: Any, dtype: str):
        self.model, self.pad = load(model, tokenizer, dtype, fused=False), tokenizer.pad_token_id
        self.optimizer = adamw(self.model)

    def step(self, rows: Sequence[Row]) -> None:
        for row in rows:
            batch = self.batch(row)
            loss = self.model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
            (loss / len(rows)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        """The loss on answers only, from the same logits: the quantity that our side minimises."""
        total = 0.0
        for row in rows:
            logits = self.model(**self.batch(row)).logits[0, len(row.prompt_ids) - 1 : len(row) - 1]
            total += cross_entropy(logits, torch.tensor(row.answer_ids, device=logits.device), reduction="sum").item()
        return total / sum(len(row.answer_ids) for row in rows)

    def batch(self, row: Row) -> dict[str, torch.Tensor]:
        ids = torch.full((1, 2048), self.pad)
        ids[0, : len(row)] = torch.tensor(row.prompt_ids + row.answer_ids)
        mask = (torch.arange(2048) < len(row))[None].long()
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}


def load(model: ModelArguments, tokenizer: Any, dtype: str, fused: bool = True) -> Any:
    """The same weights for every side; only ours uses `fused` LoRA layers."""
    torch.manual_seed(0)
    loaded = load_model(
        replace(model, dtype=dtype), bf16=dtype != "float32", stop_ids=(tokenizer.eos_token_id,), pad_id=0
    )
    if not fused:
        for module in loaded.modules():
            if isinstance(module, FusedLinear):
                module.__class__ = Linear
    return loaded.to("cuda") if torch.cuda.is_available() else loaded


def answer_tokens(rows: Sequence[Row]) -> torch.Tensor:
    return torch.tensor(sum(len(row.answer_ids) for row in rows))


def adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)


SIDES: dict[str, Any] = {
    "trl": Trl,
    # trl's documented memory-for-speed setting; padding-free rows need FlashAttention to be exact and fast.
    "trl-tuned": partial(Trl, gradient_checkpointing=False),
    "trl-packed": partial(Trl, gradient_checkpointing=False, padding_free=True),
    "trl-liger": partial(Trl, gradient_checkpointing=False, use_liger_kernel=True),
    "padded": Padded,
    "padded-float32": Padded,  # as it used to be run, against Groundtune's defaults
}

if __name__ == "__main__":
    sys.exit(main())
