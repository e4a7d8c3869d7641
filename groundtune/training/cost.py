"""What training will cost, before it starts: the memory and operations of a step, counted on a model without weights.

The model is built on PyTorch's "meta" device, whose tensors have a shape and no data, and takes two small steps there:
what a step computes and keeps for the gradient grows with its tokens, its answer tokens and, in attention, the pairs of
tokens that see each other. That holds for any architecture, and takes a few seconds for a model of any size.
`benchmarks/cost.py` compares the estimates with measured steps.
"""

from __future__ import annotations

import time
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import torch

from groundtune.arguments import ModelArguments
from groundtune.model.loading import lora_on
from groundtune.system.progress import rounded_time
from groundtune.training.arguments import RunArguments

_NAME = "groundtune counted"  # of the attention below among those of transformers
_TOKENS, _ANSWER = 64, 16  # of the counted steps
_GRADIENT, _ADAM = 4, 8  # bytes for each trained weight, which is float32, as are AdamW's two averages
_FOUR_BITS = 0.53  # bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, QLoRA)
# Measured by benchmarks/cost.py: the share of a matrix product's rate that a step reaches, and what passes need beside
# the tensors that they keep.
_REACHED, _TRANSIENT = 0.7, 1.25


@dataclass(frozen=True)
class _Counted:
    """Bytes that are kept for the gradient, and operations of the forward pass and of the whole step."""

    kept: float
    forward: float
    step: float


@dataclass(frozen=True)
class StepCost:
    """What a training step takes: bytes, and floating-point operations (two for a multiplication and an addition).

    `weights`: their bytes. `per_answer`: in addition for each token that is learnt, which goes through the output layer
    as well. `per_pair`: operations of the forward pass for each pair of tokens that attend to each other.
    """

    parameters: int
    trained: int
    weights: int
    per_token: _Counted
    per_answer: _Counted
    per_pair: float

    def memory(self, tokens: int, answer_tokens: int) -> float:
        """Bytes of a step on so many tokens: weights, their gradients, AdamW's averages, what the gradient needs."""
        kept = _TRANSIENT * (tokens * self.per_token.kept + answer_tokens * self.per_answer.kept)
        return self.weights + self.trained * (_GRADIENT + _ADAM) + kept

    def training(self, tokens: float, answer_tokens: float) -> float:
        """Operations of a step on one row, in attention too: its gradient takes five products, with one repeated."""
        linear = tokens * self.per_token.step + answer_tokens * self.per_answer.step
        return linear + 3.5 * self.per_pair * tokens**2 / 2


@dataclass(frozen=True)
class RunCost:
    """What training takes in all: tokens, operations, seconds on this machine, and the bytes of its largest step."""

    tokens: int
    operations: float
    seconds: float
    operations_per_second: float
    memory: dict[str, float]
    memory_here: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Sentences for a person."""
        parts = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in self.memory.items())
        rate = f"{self.operations_per_second / 1e9:,.0f} GFLOP/s, {_REACHED:.0%} of a matrix product timed just now"
        amount = f"{self.tokens:,} tokens, {self.operations / 1e12:,.3g} TFLOP"
        needed = sum(self.memory.values())
        fits = (
            ""
            if needed < self.memory_here
            else (
                f"; this machine has {self.memory_here / 1e9:.2g} GB, so a pass will take fewer rows: "
                "--gradient_checkpointing true or a smaller --per_device_train_batch_size needs less"
            )
        )
        return [
            "cost of training (estimated, without evaluations; docs/howto/memory-and-time.md)",
            f"time    {rounded_time(self.seconds)}: {amount} at {rate}",
            f"memory  {needed / 1e9:.2g} GB: {parts}{fits}",
        ]


def run_cost(arguments: RunArguments, rows: int, tokens: int, answer_tokens: int, longest: int) -> RunCost:
    """The cost of training on `rows` rows with so many tokens in all, of which the longest row has `longest`.

    Raises what `step_cost` raises.
    """
    training, model = arguments.training, arguments.model
    bf16 = bool(training.bf16)
    step = step_cost(model, bf16=bf16, checkpointing=bool(training.gradient_checkpointing))
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    epochs = training.max_steps * per_step / rows if training.max_steps > 0 else training.num_train_epochs
    operations = epochs * rows * step.training(tokens / rows, answer_tokens / rows)
    rate = _REACHED * matmul_rate(torch.bfloat16 if bf16 else torch.float32)
    batch = min(rows, training.per_device_train_batch_size)
    kept = step.memory(batch * longest, round(batch * longest * answer_tokens / tokens)) - step.memory(0, 0)
    memory = {
        "weights": float(step.weights),
        "gradients and optimizer": float(step.trained * (_GRADIENT + _ADAM)),
        f"{batch} rows of {longest:,} tokens": kept,
    }
    return RunCost(round(epochs * tokens), operations, operations / rate, rate, memory, _memory_here())


def _memory_here() -> int:
    """Bytes of memory of the device of the run."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    import psutil

    return psutil.virtual_memory().total


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product on the device of the run, the best of five."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    size = 1024 if device == "cpu" else 4096
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * size**3 / fastest


def step_cost(arguments: ModelArguments, *, bf16: bool, checkpointing: bool = False) -> StepCost:
    """Count a step of the model in a folder or on the hub; only its configuration is read.

    Raises what libraries raise if the model cannot be built or run without data: then there is no estimate.
    """
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    counting = _Attention()
    AttentionInterface.register(_NAME, counting)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(arguments.model_name_or_path, revision=arguments.model_revision)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=_NAME)
        computes = torch.bfloat16 if bf16 else torch.float32
        parameters = sum(weight.numel() for weight in model.parameters())
        weights = _bytes_of_weights(model, arguments, computes)
        model.to(computes)  # as under autocast
        if arguments.use_peft:
            model = lora_on(model, arguments)
            model.to(computes)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        few, many = (_counted(model.train(), answer, counting) for answer in (1, 1 + _ANSWER))
    per_answer = _Counted(*((b - a) / _ANSWER for a, b in zip(astuple(few), astuple(many))))
    per_token = _Counted(*((a - b) / _TOKENS for a, b in zip(astuple(few), astuple(per_answer))))
    layers = config.get_text_config().num_hidden_layers
    if checkpointing:  # the input of each layer is kept, and everything inside one layer at a time
        kept = per_token.kept / layers + layers * config.get_text_config().hidden_size * computes.itemsize
        per_token = replace(per_token, kept=kept, step=per_token.step + per_token.forward)
    return StepCost(parameters, trained, weights, per_token, per_answer, counting.operations)


def _bytes_of_weights(model: Any, arguments: ModelArguments, computes: torch.dtype) -> int:
    """Bytes of the weights as they are loaded (`model/loading.py`), and of autocast's copies of trained ones."""
    parameters = sum(weight.numel() for weight in model.parameters())
    if arguments.load_in_4bit:
        linear = sum(m.weight.numel() for m in model.get_decoder().modules() if type(m) is torch.nn.Linear)
        return round((parameters - linear) * computes.itemsize + linear * _FOUR_BITS)
    if arguments.use_peft:
        return parameters * computes.itemsize
    return parameters * (4 if computes == torch.float32 else 4 + computes.itemsize)


def _counted(model: Any, answer: int, counting: _Attention) -> _Counted:
    """One step on `_TOKENS` tokens of which `answer` are learnt."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils.flop_counter import FlopCounterMode

    kept: dict[StorageWeakRef, torch.Tensor] = {}  # tensors, because a place that is freed would be given to another
    of_model = {StorageWeakRef(weight.untyped_storage()) for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in of_model:
            kept[storage] = tensor
        return tensor

    counting.operations = 0
    last = model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0][:, -answer:],))
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        ids = torch.zeros(1, _TOKENS, dtype=torch.long)
        logits = model(input_ids=ids, use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    last.remove()
    model.zero_grad()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return _Counted(size + logits.nbytes, forward, counter.get_total_flops())


class _Attention:
    """Attention that computes nothing; it keeps what a fused kernel keeps, and counts the operations for each pair."""

    def __init__(self) -> None:
        self.operations = 0  # of the forward pass, over all layers: two products

    def __call__(self, module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        heads, of_query, of_value = query.shape[1], query.shape[-1], value.shape[-1]
        self.operations += 2 * heads * (of_query + of_value)
        if not torch.cuda.is_available():  # as `packing.Packed` attends there
            key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
        return _Kept.apply(query, key, value).transpose(1, 2).contiguous(), None


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
