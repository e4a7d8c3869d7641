"""Shared code of the benchmarks: data and models, interleaved timing, the matmul peak, JSON lines and a table."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gemma import gemma
from groundtune.data.files import read_documents, read_examples
from groundtune.schema import Document, Example


@dataclass(frozen=True)
class Case:
    """One comparison: median seconds per pass of each side, and the speed-up of ours (`ratio`)."""

    case: str
    against: str
    ratio: float
    lowest: float
    highest: float
    ours_s: float
    theirs_s: float
    pairs: int
    peak_gflops: float
    extra: dict[str, Any] = field(default_factory=dict)


def compare(
    case: str,
    against: str,
    ours: Callable[[int], Any],
    theirs: Callable[[int], Any],
    pairs: int,
    warm_up: Callable[[], Any] | None = None,
    **extra: Any,
) -> Case:
    """Time `ours(i)` and `theirs(i)` for i in 0 .. pairs - 1, interleaved A B B A, after an untimed `warm_up`.

    The default warm-up is one call of each side; pass a shorter one for work that takes minutes.

    The ratio is that of the total times, because the work differs between values of i; the range is over the pairs.
    """
    if warm_up is None:
        ours(0), theirs(0)
    else:
        warm_up()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(pairs):
        sides = [("ours", ours), ("theirs", theirs)]
        for name, side in sides if i % 2 == 0 else reversed(sides):
            seconds[name].append(_seconds(side, i))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"])]
    return Case(
        case,
        against,
        ratio=sum(seconds["theirs"]) / sum(seconds["ours"]),
        lowest=min(ratios),
        highest=max(ratios),
        ours_s=statistics.median(seconds["ours"]),
        theirs_s=statistics.median(seconds["theirs"]),
        pairs=pairs,
        peak_gflops=matmul_peak(),
        extra=extra,
    )


def _seconds(work: Callable[[int], Any], i: int) -> float:
    synchronize()
    begin = time.perf_counter()
    work(i)
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(dtype: torch.dtype = torch.bfloat16, size: int = 2048) -> float:
    """GFLOPS of a square matrix product, best of ten: the reference for useful work."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size * 4 if device == "cuda" else size
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest = min(_seconds(lambda _: a @ b, i) for i in range(10))
    return 2 * size**3 / fastest / 1e9


def versions() -> dict[str, str]:
    """The hardware and versions to quote with every figure."""
    packages = ("torch", "transformers", "peft", "trl", "sentence-transformers", "faiss-cpu")
    found = {"python": platform.python_version(), "machine": _machine(), "threads": str(torch.get_num_threads())}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def report(cases: Iterable[Case]) -> None:
    """Print one JSON line per case, as soon as it is finished, then the versions and a table."""
    table = Table("case", "against", "ratio", "range", "ours", "theirs", "more")
    for c in cases:
        row = asdict(c)
        print(json.dumps({**{k: v for k, v in row.items() if k != "extra"}, **row["extra"]}, default=float), flush=True)
        more = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in c.extra.items())
        spread = f"{c.lowest:.2f} to {c.highest:.2f}"
        table.add_row(c.case, c.against, f"{c.ratio:.2f}x", spread, f"{c.ours_s:.2f} s", f"{c.theirs_s:.2f} s", more)
    print(json.dumps({"versions": versions()}))
    Console().print(table)


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", type=Path, help="Folder with train_w_qa.jsonl, eval_w_qa.jsonl and documents.pkl; default: the demo's"
    )
    parser.add_argument("--model", type=Path, help="Decoder (folder); default: Gemma 3 270M")
    parser.add_argument(
        "--shape", choices=["0.6B", "1.7B", "8B"], help="Random weights in a shape of Qwen3, on made rows, instead"
    )
    parser.add_argument("--quick", action="store_true", help="A tiny random model and few pairs: under a minute")
    parser.add_argument("--pairs", type=int, default=5, help="Interleaved pairs of timings")
    return parser


def load_data(folder: Path | None) -> tuple[list[Document], list[Example], list[Example]]:
    """Documents, training examples and eval examples."""
    if folder is not None:
        return (
            read_documents(folder / "documents.pkl"),
            read_examples(folder / "train_w_qa.jsonl"),
            read_examples(folder / "eval_w_qa.jsonl"),
        )
    from groundtune.demo import write_data

    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        write_data(made)
        return (
            read_documents(made / "documents.jsonl"),
            read_examples(made / "train.jsonl"),
            read_examples(made / "test.jsonl"),
        )


def decoder_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the model to measure; `--quick` makes a tiny one of the same architecture and tokenizer."""
    if getattr(arguments, "shape", None):
        return random_decoder(SHAPES["tiny" if arguments.quick else arguments.shape])
    folder = gemma() if arguments.model is None else arguments.model
    return tiny_copy(folder) if arguments.quick else folder


def vocabulary(folder: str | Path) -> int:
    """Vocabulary size of the model in `folder`."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).get_text_config().vocab_size


# Qwen3's published configurations: vocabulary size, hidden size, intermediate size, layers, attention heads, whether
# head and embedding are tied.
SHAPES = {
    "0.6B": (151_936, 1024, 3072, 28, 16, True),
    "1.7B": (151_936, 2048, 6144, 28, 16, True),
    "8B": (151_936, 4096, 12288, 36, 32, False),
    "2 layers": (151_936, 1024, 3072, 2, 16, True),  # of 0.6B
    "tiny": (1000, 64, 128, 2, 8, True),
}


def random_decoder(shape: tuple[int, int, int, int, int, bool], **config: Any) -> Path:
    """A folder with random bfloat16 weights in a shape of `SHAPES`, and a tokenizer of a few words.

    `config` adds to the model's configuration.

    The cost of a step does not depend on the values of the weights, and nothing has to be downloaded.
    """
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    words, width, inner, layers, heads, tied = shape
    settings = Qwen3Config(
        vocab_size=words, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=1, pad_token_id=0, **config,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="groundtune-random-"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    # Repeat one block of numbers: drawing eight billion normal numbers would take minutes.
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat = weight.view(-1)
            if "norm" in name:
                flat.fill_(1)
                continue
            for i in range(0, len(flat), len(block)):
                part = flat[i : i + len(block)]
                part.copy_(block[: len(part)])
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "word": 2}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    return folder


def tiny_copy(folder: Path) -> Path:
    """A random two-layer model of the same architecture, with the same tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    config.update({"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32})
    if getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention", "full_attention"]
    tiny = Path(tempfile.mkdtemp(prefix="groundtune-tiny-"))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tiny)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tiny)
    return tiny
