"""Every file in configs/ works with every method, and its memory estimate matches the formula on the page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from groundtune.commands.parsing import parse_arguments

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
MODELS = [path for path in FILES if path.parent == FOLDER]
PAGE = (FOLDER / "README.md").read_text("utf-8")
FIELDS = ("P", "Q", "T", "L", "d", "f", "k", "V", "weights", "trained", "backward", "evaluation", "sum")


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def table() -> dict[str, SimpleNamespace]:
    """The rows of the page's table by file, parameters in units of one."""
    rows = {}
    for line in re.findall(r"^\| `(.*)\|$", PAGE, re.MULTILINE):
        name, *numbers = (cell.strip(" `") for cell in line.split("|"))
        row = SimpleNamespace(**dict(zip(FIELDS, map(float, numbers), strict=True)))
        row.P, row.Q, row.T = row.P * 1e9, row.Q * 1e9, row.T * 1e6
        rows[name] = row
    return rows


def estimate(row: SimpleNamespace, settings: dict) -> dict[str, float]:
    """Memory in bytes by the formula of the page."""
    lora, four_bits = settings["use_peft"], settings.get("load_in_4bit", False)
    tokens = settings["per_device_train_batch_size"] * settings["max_seq_length"]
    answers = settings["per_device_train_batch_size"] * settings["max_new_tokens"]
    layer = 8 * row.f + (32 if lora else 58) * row.d
    found = {
        "weights": 6 * row.P if not lora else 0.52 * row.Q + 2 * (row.P - row.Q) if four_bits else 2 * row.P,
        "trained": 16 * row.T if lora else 12 * row.P,
        "backward": (2 if lora else 4) * row.L * tokens * row.d + 2 * tokens * layer + 4 * answers * row.V + 8 * 2**26,
        "evaluation": 4 * row.L * row.k * settings["per_device_eval_batch_size"] * settings["max_seq_length"],
    }
    total = found["weights"] + found["trained"] + max(found["backward"], found["evaluation"]) + 1e9
    return {**found, "sum": total}


@pytest.mark.parametrize("path", FILES, ids=name_of)
@pytest.mark.parametrize("method", ["sft", "swr", "raft"])
def test_a_file_is_understood_and_lacks_nothing_but_the_data(path, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(method, ["--config", str(path), "--output_dir", "out"])
    problems = arguments.check()
    if arguments.model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        problems = [problem for problem in problems if "needs the package bitsandbytes" not in problem]
    if path in MODELS:
        missing = {"train_file", "eval_file", "test_file", "full_dataset_file_path"}
        assert {re.match(r"--(\w+): no such file: ", problem)[1] for problem in problems} == missing
    else:  # the use cases name their data on the command line
        required = {"train_file", "eval_file", "full_dataset_file_path"}
        assert {re.match(r"--(\w+): missing; ", problem)[1] for problem in problems} == required
    training = arguments.training
    assert training.load_best_model_at_end and training.metric_for_best_model == "generation/f1"
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 8  # as the comments say
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.model.model_name_or_path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_names_no_flag_by_an_old_spelling_and_none_twice(path):
    from groundtune.commands.config import read_config
    from groundtune.commands.parsing import RENAMED, WITHOUT_EFFECT

    names = [entry.name for entry in read_config(str(path))]
    assert not {*RENAMED, *WITHOUT_EFFECT} & set(names)


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_the_memory_that_a_file_promises_is_what_the_formula_gives(path):
    row, settings = table()[path.name], yaml.safe_load(path.read_text("utf-8"))
    found = estimate(row, settings)
    assert settings["gradient_checkpointing"] is True  # the formula of the table
    assert {name: round(found[name] / 1e9, 1) for name in FIELDS[8:-1]} == {
        name: getattr(row, name) for name in FIELDS[8:-1]
    }
    assert round(found["sum"] / 1e9) == row.sum
    header = path.read_text("utf-8").partition("\n\n")[0]
    assert f"GPU memory: about {row.sum:.0f} GB, estimated" in header and "not measured" in header
    card = re.search(r"on an? (\d+) GB GPU|on one (\d+) GB GPU", header)
    assert card is None or row.sum < int(card[1] or card[2])


@pytest.mark.parametrize("path", [path for path in FILES if path not in MODELS], ids=name_of)
def test_a_use_case_promises_what_the_formula_gives_for_the_shape_of_mistral(path):
    text = path.read_text("utf-8")
    total = estimate(table()["mistral-7b-lora.yaml"], yaml.safe_load(text))["sum"]
    assert f"GPU memory: about {total / 1e9:.0f} GB, as ../mistral-7b-lora.yaml" in text and "not measured" in text


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_the_header_shows_the_command_and_what_to_change(path):
    header = path.read_text("utf-8").partition("\n\n")[0]
    assert f"# Run: groundtune swr --config configs/{path.name} --output_dir runs/{path.stem} (or sft)" in header
    assert "\n# To change: " in header
    gated = re.search(r"^model_name_or_path: (google|meta-llama)/", path.read_text("utf-8"), re.MULTILINE)
    assert ("Gated: " in header) == bool(gated)


def test_the_table_lists_exactly_the_files_there_are():
    assert set(table()) == {path.name for path in MODELS}


@pytest.mark.parametrize("tied", [True, False])
def test_the_shapes_of_the_table_are_those_of_the_models(tied):
    """Two models are built here on the meta device: as published, and with the adapter that the file sets."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    name = "qwen3-4b-lora.yaml" if tied else "llama3.1-8b-qlora.yaml"
    row = table()[name]
    shape = {
        "vocab_size": int(row.V), "hidden_size": int(row.d), "intermediate_size": int(row.f),
        "num_hidden_layers": int(row.L), "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": int(row.k) // 128, "tie_word_embeddings": tied,
    }  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config((Qwen3Config if tied else LlamaConfig)(**shape))
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    )
    total = sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    found = (total, linear, trained)
    assert found == pytest.approx((row.P, row.Q, row.T), rel=2e-3)
