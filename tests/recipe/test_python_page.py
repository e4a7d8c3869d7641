"""docs/python.md and the notebook, each from its first line to its last in one namespace, on tiny models."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import write_data
from documented import ROOT, replaced, run_by, run_python, with_defaults

import groundtune
from groundtune import demo

NOTEBOOK = ROOT / "examples/quickstart.ipynb"
TINY = {"max_seq_length": 300, "bootstrap_samples": 100, "bf16": False}
TRAINING = {**TINY, "max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no"}
CONFIG = """
model_name_or_path: mistralai/Mistral-7B-Instruct-v0.2
embedding_model: intfloat/e5-base-v2
train_file: train.jsonl
eval_file: eval.jsonl
test_file: test.jsonl
full_dataset_file_path: documents.jsonl
use_peft: true
"""


@pytest.fixture
def names(families, static_embedding_folder) -> dict[str, str]:
    """What the page calls the models, and what stands for them here."""
    return {
        "mistralai/Mistral-7B-Instruct-v0.2": str(families["mistral"].folder),
        "intfloat/e5-base-v2": str(static_embedding_folder),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder; sizes that the page does not set are tiny."""
    monkeypatch.chdir(tmp_path)
    for name, sizes in {"train": {**TRAINING, "max_new_tokens": 8}, "evaluate": {**TINY, "max_new_tokens": 8}}.items():
        monkeypatch.setattr(groundtune, name, with_defaults(getattr(groundtune, name), **sizes), raising=False)
    return tmp_path


def test_every_block_of_the_page_runs_in_its_order(names, folder, capsys):
    write_data(folder)
    (folder / "run.yaml").write_text(replaced(CONFIG, names))
    (page,) = run_by(__file__).values()
    namespace: dict[str, Any] = {}
    for block in page:
        run_python(replaced(block.text, names), str(block), namespace)
    shown = capsys.readouterr().out
    assert {path.name for path in (folder / "runs").iterdir()} == {"swr", "sft", "base"}
    assert "token F1 of the tuned model: " in shown and "swr " in shown and "gold base " in shown
    assert "learning_rat: no such argument; similar: learning_rate" in shown and "lora_r: invalid int value" in shown
    functions = ("train", "load", "evaluate", "compare", "open_retriever")
    assert all(f"groundtune.{name}(" in "".join(block.text for block in page) for name in functions)
    text = (ROOT / "docs/python.md").read_text("utf-8")
    exceptions = re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
    assert len(exceptions) > 6 and all(hasattr(groundtune, name) or hasattr(builtins, name) for name in exceptions)


def test_every_cell_of_the_notebook_runs_in_its_order_and_runs_again(names, folder, monkeypatch, capsys):
    def link_models(into: Path) -> None:
        into.mkdir(exist_ok=True)
        for name, model in zip(("smollm2-135m-instruct", "minilm"), names.values(), strict=True):
            if not (into / name).is_symlink():
                (into / name).symlink_to(model, target_is_directory=True)

    def write(into: Path) -> None:
        into.mkdir(exist_ok=True)
        write_data(into)

    monkeypatch.setattr(demo, "link_models", link_models)
    monkeypatch.setattr(demo, "write_data", write)
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    first = run_cells(cells)
    assert first["answer"].sources and (folder / "runs/quickstart/report.html").exists()
    monkeypatch.setattr("groundtune.recipes.train.QATrainer", lambda **options: pytest.fail("it was trained again"))
    again = run_cells(cells)
    assert again["run"].results.verdict == first["run"].results.verdict
    assert "documents\n" in capsys.readouterr().out


def run_cells(cells: list[dict[str, Any]]) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            run_python("".join(cell["source"]), cell["id"], namespace)
    return namespace


def test_the_notebook_is_one_of_format_4_without_outputs():
    text = NOTEBOOK.read_text("utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    common = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        code = cell["cell_type"] == "code"
        assert set(cell) == common | ({"execution_count", "outputs"} if code else set())
        assert not code or (cell["execution_count"], cell["outputs"]) == (None, [])
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and cell["source"][-1].strip()
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)) and len(text) < 10_000
