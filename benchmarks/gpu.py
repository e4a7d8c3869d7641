"""Everything about one GPU in one command: first whether the fast ways are exact, then how fast they are.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out FOLDER --only packing sharing "Qwen3 0.6B"

Each section has a limit of seconds. One that fails or takes longer is reported, and the next goes on in a new process.
`FOLDER/gpu.json` holds the figures and `FOLDER/gpu.md` the table of docs/performance.md. Weights are random, so nothing
is downloaded; `--quick` takes a minute on a CPU with tiny shapes, and shows only that everything runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import SHAPES, matmul_peak, random_decoder, synchronize, versions
from benchmarks.train_step import SIDES, Ours, check_same_loss, cut, pack_of, useful_flops
from groundtune.arguments import ModelArguments
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import generate_greedy
from groundtune.model.loading import load_model, load_tokenizer, lora_on
from groundtune.model.lora import fuse
from groundtune.prompts.rows import Row
from groundtune.system.outputs import in_place_of
from groundtune.system.text import one_line, to_json
from groundtune.training.batching import collate
from groundtune.training.loss import answer_loss
from groundtune.training.trainer import compile_layers

NOT_MEASURED = "not measured"


class Unmeasured(Exception):
    """What keeps a row from being measured here, in words: a package or a device is missing."""


@dataclass(frozen=True)
class Found:
    """One row of the table: its name in the section, the result in words, and the figures behind it."""

    row: str
    result: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """The rows that `measure(quick)` finds within `limit` seconds."""

    limit: float
    rows: tuple[str, ...]
    measure: Callable[[bool], Iterator[Found]]


# Exactness: loss and gradient of a batch against the same rows one at a time


def packing(quick: bool) -> Iterator[Found]:
    """Rows end to end, nothing shared."""
    yield from both_dtypes(quick, shared=0, share_prefix=False)


def sharing(quick: bool) -> Iterator[Found]:
    """Four questions on each passage set, whose tokens are computed once."""
    yield from both_dtypes(quick, shared=24 if quick else 700, share_prefix=True)


def windows(quick: bool) -> Iterator[Found]:
    """The same with layers that see a window of a quarter of the row, in turn with layers that see all."""
    config = {"use_sliding_window": True, "sliding_window": 16 if quick else 256}
    layers = ["sliding_attention", "full_attention"]
    yield from both_dtypes(quick, shared=24 if quick else 700, share_prefix=True, layer_types=layers, **config)


def blocks(quick: bool) -> Iterator[Found]:
    """Block attention: a passage is computed once, wherever its questions have it, under the mask of a row alone."""
    yield from both_dtypes(quick, shared=24 if quick else 300, share_prefix=True, blocks=True)


def fused_lora(quick: bool) -> Iterator[Found]:
    """The fused LoRA product against PEFT's layers."""
    yield from both_dtypes(quick, shared=0, share_prefix=False, lora=True)


def qlora(quick: bool) -> Iterator[Found]:
    """An adapter on weights of four bits, packed against one row at a time."""
    need("bitsandbytes")
    if not torch.cuda.is_available():
        raise Unmeasured("there is no GPU")
    yield exactness("bfloat16", quick, 24 if quick else 700, share_prefix=True, lora=True, load_in_4bit=True)


def both_dtypes(quick: bool, shared: int, share_prefix: bool, **how: Any) -> Iterator[Found]:
    for dtype in ("float32", "bfloat16"):
        yield exactness(dtype, quick, shared, share_prefix, **how)


def exactness(
    dtype: str, quick: bool, shared: int, share_prefix: bool, lora: bool = False, load_in_4bit: bool = False,
    blocks: bool = False, **config: Any,
) -> Found:  # fmt: skip
    """Loss and gradient of one packed batch, against the sum over its rows one at a time by transformers and PEFT.

    For block attention, which those do not have, against its own rows one at a time, with nothing shared.
    In float32 they agree to 1e-5 (loss) and a cosine of 0.9999; bfloat16 keeps 8 bits, and sums in another order.
    """
    folder = random_decoder(SHAPES["tiny" if quick else "2 layers"], **config)
    try:
        arguments = ModelArguments(model_name_or_path=str(folder), dtype=dtype, load_in_4bit=load_in_4bit)
        make = block_rows if blocks else rag_rows
        rows = make(8, shared, own=48 if quick else 400, answer=8 if quick else 64, words=words_of(folder))
        model, reference = (loaded(arguments, lora, fused) for fused in (True, False))
        for packed in (model, reference) if blocks else (model,):
            if problem := use_packed_attention(packed, blocks=blocks):
                raise AssertionError(f"this model cannot be packed: {problem}")
        total = sum(len(row.answer_ids) for row in rows)
        batch = collate(rows, 0, packed=True, share_prefix=share_prefix)
        ours, gradient = loss_and_gradient(model, [batch], total)
        theirs, expected = loss_and_gradient(reference, [collate([row], 0, packed=blocks) for row in rows], total)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    error, cosine = abs(ours - theirs) / abs(theirs), torch.cosine_similarity(gradient, expected, dim=0).item()
    length = (gradient.norm() / expected.norm()).item()
    least = (1e-5, 0.9999, 1e-3) if dtype == "float32" else (2e-2, 0.99, 0.05)
    exact = error < least[0] and cosine > least[1] and abs(length - 1) < least[2]
    figures = {"loss": ours, "expected_loss": theirs, "cosine": cosine, "length": length, "exact": exact}
    result = f"loss differs by {error:.1e} of it, cosine of the gradients {cosine:.6f}"
    return Found(dtype, result if exact else f"**wrong**: {result}, lengths {length:.3f}", figures)


def loaded(arguments: ModelArguments, lora: bool, fused: bool) -> Any:
    """The model on the device; an adapter of random weights, because one that starts at zero would hide an error."""
    torch.manual_seed(0)
    model: Any = load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)
    if lora:
        model = lora_on(model, arguments)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.02).to(parameter)
        if fused and (problem := fuse(model)):
            raise AssertionError(problem)
    return model.to(device()).train()


def loss_and_gradient(model: Any, batches: Sequence[Any], total: int) -> tuple[float, torch.Tensor]:
    """The loss per answer token over all batches, and its gradient as one vector in float32, on the CPU."""
    loss = 0.0
    for batch in batches:
        inputs = {name: value.to(device()) if hasattr(value, "to") else value for name, value in batch.items()}
        part = answer_loss(model, inputs, answer_tokens=total)
        part.backward()
        loss += part.item()
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


@torch.no_grad()
def generation(quick: bool) -> Iterator[Found]:
    """Answers of many questions at once, against one at a time by `generate` of transformers."""
    questions, new = (4, 6) if quick else (32, 64)
    for dtype in ("float32", "bfloat16"):
        folder = random_decoder(SHAPES["tiny" if quick else "2 layers"])
        try:
            arguments = ModelArguments(model_name_or_path=str(folder), dtype=dtype)
            rows = rag_rows(questions, 24 if quick else 700, own=16 if quick else 120, answer=2, words=words_of(folder))
            model, plain = (loaded(arguments, False, False).eval() for _ in range(2))
            if problem := use_packed_attention(model, to_train=False):
                raise AssertionError(f"this model cannot be packed: {problem}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        prompts = [row.prompt_ids for row in rows]
        together = generate_greedy(model, prompts, stop_ids=[1], pad_id=0, max_new_tokens=new, batch_size=questions)
        same = sum(answer.ids == alone(plain, prompt, new) for answer, prompt in zip(together, prompts, strict=True))
        result, exact = f"{same} of {questions} answers are equal", same == questions or dtype == "bfloat16"
        figures = {"same": same, "questions": questions, "exact": exact}
        yield Found(dtype, result if exact else f"**wrong**: only {result}", figures)


def alone(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt], device=device())
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


# Speed


def training(shape: str, quick: bool) -> Iterator[Found]:
    """Optimizer steps with LoRA on RAG-shaped rows, and the questions of an evaluation, at one size of Qwen3."""
    folder = random_decoder(SHAPES["tiny" if quick else shape])
    try:
        yield from of_shape(folder, quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def of_shape(folder: Path, quick: bool) -> Iterator[Found]:
    size, steps = (2, 2) if quick else (8, 6)
    arguments = ModelArguments(model_name_or_path=str(folder), use_peft=True)
    tokenizer = load_tokenizer(arguments)
    length = {"shared": 24, "own": 24, "answer": 8} if quick else {"shared": 420, "own": 930, "answer": 70}
    batches = cut(rag_rows(size * steps, **length, words=words_of(folder), per_passage=2), size)
    peak = matmul_peak()
    ours = Ours(arguments, tokenizer, "auto")
    first, seconds = step_seconds(ours, batches)
    computed = sum(len(pack_of(batch).ids) for batch in batches) / len(batches)
    flops = sum(useful_flops(ours.model, batch, pack_of(batch)) for batch in batches) / len(batches)
    tokens = sum(len(row) for batch in batches for row in batch) / len(batches)
    share = flops / seconds / 1e9 / peak
    figures = {
        "seconds": seconds, "first_step_seconds": first, "tokens_of_rows_a_second": tokens / seconds,
        "computed_tokens_a_second": computed / seconds, "share_of_peak": share, "peak_gflops": peak,
        "memory_gb": memory_gb(),
    }  # fmt: skip
    told = f"{computed / seconds:,.0f} tokens a second ({tokens / seconds:,.0f} of rows), {share:.0%} of the peak"
    yield Found("LoRA step", told, figures)
    yield from evaluation(ours, batches, quick)
    compile_layers(ours.model)
    compiled_first, compiled = step_seconds(ours, batches)
    result = f"{seconds / compiled:.2f}x the speed, {compiled_first - compiled:.0f} s to compile"
    yield Found("the same with --compile_layers", result, {"seconds": compiled, "first_step_seconds": compiled_first})
    yield Found("against trl", *against_trl(ours, arguments, tokenizer, batches, min(seconds, compiled)))


def against_trl(
    ours: Ours, arguments: ModelArguments, tokenizer: Any, batches: Sequence[Sequence[Row]], seconds: float
) -> tuple[str, dict[str, Any]]:
    """The fastest of trl's settings that run here, on the same rows."""
    need("trl", "datasets")
    names = ["trl-tuned", *(["trl-packed"] if importlib.util.find_spec("flash_attn") else [])]
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        names.append("trl-liger")
    found: dict[str, float] = {}
    for name in names:
        theirs = SIDES[name](arguments, tokenizer, "auto")
        check_same_loss(ours, theirs, batches[0], tolerance=2e-2)
        found[name] = step_seconds(theirs, batches)[1]
        del theirs
        free()
    best = min(found, key=found.__getitem__)
    return f"{found[best] / seconds:.2f}x the speed of {best}", {"ratio": found[best] / seconds, "seconds": found}


def evaluation(ours: Ours, batches: Sequence[Sequence[Row]], quick: bool) -> Iterator[Found]:
    """Questions answered a second: each a prompt of the rows, and as many new tokens as its answer has."""
    prompts = [row.prompt_ids for batch in batches for row in batch] * (1 if quick else 3)
    new = len(batches[0][0].answer_ids)

    def answer() -> None:
        generate_greedy(ours.model, prompts, stop_ids=[1], pad_id=0, max_new_tokens=new, batch_size=len(prompts))

    with torch.autocast(device().type, torch.bfloat16):
        first, seconds = timed(answer), timed(answer)
    figures = {"questions_a_second": len(prompts) / seconds, "first_pass_seconds": first, "new_tokens": new}
    result = f"{len(prompts) / seconds:.1f} questions a second, {new} new tokens each"
    yield Found("evaluation", result, figures)


def step_seconds(side: Any, batches: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """Seconds of the first pass over a batch, which compiles kernels, and the median of the later steps."""
    first = timed(partial(side.step, batches[0]))
    for batch in batches[1:2]:  # another length may compile once more
        side.step(batch)
    return first, statistics.median(timed(partial(side.step, batch)) for batch in batches)


def timed(work: Callable[[], Any]) -> float:
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


# Rows, devices, packages


def rag_rows(n: int, shared: int, own: int, answer: int, words: int, per_passage: int = 4) -> list[Row]:
    """n rows as a retriever makes them: `shared` tokens common to `per_passage` questions, `own` after them.

    Own tokens vary by a fifth, and the answer is the last of them; ids are random.
    """
    rng = random.Random(0)
    ids = partial(random_ids, rng, words)
    rows: list[Row] = []
    while len(rows) < n:
        passages = ids(shared)
        for _ in range(per_passage):
            rest = ids(round(own * rng.uniform(0.8, 1.2)))
            rows.append(Row(passages + rest[:-answer], [*rest[-answer:-1], 1], f"row {len(rows)}"))
    return rows[:n]


def block_rows(n: int, shared: int, own: int, answer: int, words: int, passages: int = 4) -> list[Row]:
    """n rows that read passages of `shared` tokens, out of half as many again, each in an order of its own."""
    rng = random.Random(0)
    ids = partial(random_ids, rng, words)
    header, pool = ids(8), [ids(shared) for _ in range(passages * 3 // 2)]
    rows = []
    for i in range(n):
        prompt = header + [id for passage in rng.sample(pool, passages) for id in passage] + ids(own - answer)
        borders = tuple(range(len(header), len(header) + passages * shared + 1, shared))
        rows.append(Row(prompt, [*ids(answer - 1), 1], f"row {i}", borders=borders))
    return rows


def random_ids(rng: random.Random, words: int, count: int) -> list[int]:
    return [rng.randrange(3, words) for _ in range(count)]


def words_of(folder: Path) -> int:
    vocabulary: int = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    return vocabulary


def need(*packages: str) -> None:
    """Raise `Unmeasured` for the first of these packages that is not installed."""
    for package in packages:
        if not importlib.util.find_spec(package):
            raise Unmeasured(f"{package} is not installed")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


_DTYPES = ("float32", "bfloat16")
_SPEED = ("LoRA step", "evaluation", "the same with --compile_layers", "against trl")
SECTIONS = {
    "packing": Section(45, _DTYPES, packing),
    "sharing": Section(30, _DTYPES, sharing),
    "windows": Section(30, _DTYPES, windows),
    "block attention": Section(30, _DTYPES, blocks),
    "fused LoRA": Section(30, _DTYPES, fused_lora),
    "QLoRA": Section(30, ("bfloat16",), qlora),
    "generation": Section(45, _DTYPES, generation),
    "Qwen3 0.6B": Section(90, _SPEED, partial(training, "0.6B")),
    "Qwen3 1.7B": Section(100, _SPEED, partial(training, "1.7B")),
    "Qwen3 8B": Section(150, _SPEED, partial(training, "8B")),
}


# Running the sections, each under its limit


def here(names: Sequence[str], quick: bool) -> Iterator[dict[str, Any]]:
    """Measure sections in this process; what each event says, the last if a section failed: its process is spoilt."""
    yield {"machine": machine()}
    for name in names:
        yield {"begin": name}
        begin = time.perf_counter()
        try:
            for found in SECTIONS[name].measure(quick):
                yield {"section": name, "row": found.row, "result": found.result, **found.figures}
        except Unmeasured as why:
            yield {"section": name, "missing": str(why)}
        except Exception as error:
            yield {"section": name, "failed": f"{type(error).__name__}: {one_line(error)}"}
            return
        yield {"end": name, "section_seconds": time.perf_counter() - begin}
        free()


def elsewhere(names: Sequence[str], quick: bool, limits: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """The events of `here` from another process, which is ended when a section exceeds its limit, or fails.

    A new one goes on with the next section.
    """
    left = list(names)
    while left:
        before = list(left)
        process = subprocess.Popen(_command(left, quick), stdout=subprocess.PIPE, text=True, encoding="utf-8")
        timer, late, now = threading.Timer(0, process.kill), threading.Event(), ""
        try:
            for event in filter(None, map(_event, process.stdout or ())):
                yield event
                if name := event.get("begin"):
                    now = name
                    left.remove(name)
                    timer = threading.Timer(limits[name], _end, (process, late))
                    timer.start()
                elif now and ("end" in event or "failed" in event):
                    timer.cancel()
                    now = ""
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if now:
            crashed = f"its process ended ({process.returncode})"
            yield {"section": now, "failed": f"took longer than {limits[now]:g} s" if late.is_set() else crashed}
        elif left == before:
            yield from ({"section": name, "failed": "no process could be started"} for name in left)
            return


def _command(names: Sequence[str], quick: bool) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", "--here", *(["--quick"] if quick else []), "--only", *names]


def _end(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    process.kill()


def _event(line: str) -> dict[str, Any] | None:
    """An event that a process printed; other lines are those of libraries."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def machine() -> dict[str, str]:
    """Device, driver and versions, to quote with every figure."""
    return {**versions(), "driver": _driver()}


def _driver() -> str:
    if not torch.cuda.is_available() or not (program := shutil.which("nvidia-smi")):
        return "none"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return one_line(done.stdout) or "unknown"


def table(events: Sequence[Mapping[str, Any]] = ()) -> str:
    """The Markdown table of every row of every section: its result, or why there is none."""
    lines = ["| section | row | result |", "|---|---|---|"]
    for name, section in SECTIONS.items():
        these = [event for event in events if event.get("section") == name]
        results = {event["row"]: event["result"] for event in these if "row" in event}
        why = next((event[kind] for kind in ("missing", "failed") for event in these if kind in event), "")
        missing = f"{NOT_MEASURED}: {why}" if why else NOT_MEASURED
        lines += [f"| {name} | {row} | {results.get(row, missing)} |" for row in section.rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), metavar="SECTION",
                        help=f"Only these sections: {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("."), help="Folder for gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="Tiny shapes and few steps, on a CPU too")
    parser.add_argument("--limit", type=float, default=1.0, help="Factor on the limit of seconds of every section")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        for event in here(options.only, options.quick):
            print(to_json(event), flush=True)
        return 0
    if not torch.cuda.is_available() and not options.quick:
        parser.error("there is no GPU here; --quick shows on a CPU that everything runs")
    options.out.mkdir(parents=True, exist_ok=True)
    events: list[dict[str, Any]] = []
    limits = {name: section.limit * options.limit for name, section in SECTIONS.items()}
    for event in elsewhere(options.only, options.quick, limits):
        events.append(event)
        print(to_json(event), flush=True)
        for name, text in (("gpu.json", to_json(events, indent=1) + "\n"), ("gpu.md", table(events))):
            with in_place_of(options.out / name) as file:  # after every event: the machine may be taken away
                file.write(text.encode())
    print(table(events))
    wrong = [event for event in events if "failed" in event or event.get("exact") is False]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
