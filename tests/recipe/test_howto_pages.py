"""The commands of README and of the how-to pages, with tiny models in place of large ones.

Every page has its own folder with the files, runs and server that its commands mention. Models are replaced by
name; sizes are added to the commands that train or answer.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="needs the extra [endpoint]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import tiny_examples, write_data
from documented import ROOT, blocks, replaced, run_by, run_python, run_script, steps, with_defaults
from fake_server import FakeServer

import groundtune
from groundtune.cli import main
from groundtune.data.checks import TITLES
from groundtune.data.files import read_documents, scan_examples, write_jsonl

PAGES = run_by(__file__)
TINY = {  # added to a command unless it sets them itself
    "max_seq_length": 300, "max_new_tokens": 8, "bootstrap_samples": 100, "bf16": "false",
}  # fmt: skip
TRAINING = {**TINY, "max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no", "disable_tqdm": "true"}
CONFIG = """
model_name_or_path: mistralai/Mistral-7B-Instruct-v0.2
embedding_model: intfloat/e5-base-v2
train_file: train.jsonl
eval_file: eval.jsonl
test_file: test.jsonl
full_dataset_file_path: documents.jsonl
use_peft: true
lora_r: 4
learning_rate: 5e-2
"""


def speak(body: dict) -> str:
    """A judge's rating where one is asked for, else an answer."""
    return "It is right. [[4]]" if "double brackets" in json.dumps(body) else "At nine."


@pytest.fixture(scope="module")
def names(families, static_embedding_folder) -> dict[str, str]:
    """What the pages call the models, and what stands for them here."""
    return {
        "mistralai/Mistral-7B-Instruct-v0.2": str(families["mistral"].folder),
        "intfloat/e5-base-v2": str(static_embedding_folder),
    }


@pytest.fixture(scope="module")
def world(names, tmp_path_factory) -> Path:
    """A folder as the pages assume it: data under all of its names, run.yaml, and a finished run."""
    folder = tmp_path_factory.mktemp("world")
    write_data(folder)
    for split in ("train", "eval", "test"):
        shutil.copy(folder / f"{split}.jsonl", folder / f"{split}_w_qa.jsonl")
    examples = [example.to_dict() for example in tiny_examples()]
    write_jsonl(folder / "examples.jsonl", examples)
    without = {"question": "What does it cost?", "gold_answer": "Not said.", "gold_docs": [], "answerable": False}
    write_jsonl(folder / "dev.jsonl", [*examples[:2], without])
    shutil.copy(folder / "documents.jsonl", folder / "documents_old.jsonl")
    chat = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}]
    passage = {"documents": ["The library opens at nine."]}
    (folder / "chats.jsonl").write_text(json.dumps({"messages": chat, **passage}) + "\n")
    (folder / "other.txt").write_text("The sun rises in the east.\n\nWater boils at a hundred degrees.\n")
    (folder / "run.yaml").write_text(replaced(CONFIG, names))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(with_sizes(["swr", "--config", "run.yaml", "--output_dir", "runs/my_qa_model"])) == 0
    return folder


def with_sizes(words: list[str]) -> list[str]:
    """The same command with tiny sizes."""
    sizes = {"sft": TRAINING, "swr": TRAINING, "evaluate": TINY, "ask": TINY}.get(words[0], {})
    if words[0] == "ask":
        sizes = {name: value for name, value in sizes.items() if name != "bootstrap_samples"}
    return words + [w for name, value in sizes.items() if f"--{name}" not in words for w in (f"--{name}", str(value))]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs_in_its_order(page, world, names, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(groundtune, "train", with_defaults(groundtune.train, **TRAINING), raising=False)
    with FakeServer(speak) as server:
        for block in PAGES[page]:
            text = replaced(block.text, {**names, "http://localhost:8000/v1": server.url})
            if block.language == "python":
                run_python(text, str(block), {})
                continue
            for step in steps(text):
                if isinstance(step, str):
                    run_script(step, folder)
                else:
                    assert main(with_sizes(step)) == 0, (block, step, capsys.readouterr().err)
    for made in re.findall(r"--output_dir (\S+)", "".join(block.text for block in PAGES[page])):
        assert any((folder / made).iterdir()), made


def test_the_pages_show_every_command_of_ours_but_the_demo():
    shown = " ".join(block.text for page in PAGES.values() for block in page)
    assert all(
        f"groundtune {name} " in shown for name in ("sft", "swr", "doctor", "evaluate", "compare", "index", "ask")
    )


@pytest.mark.parametrize("page", ["README.md", "docs/howto/own-data.md", "docs/howto/multi-turn.md"])
def test_the_json_that_a_page_shows_is_what_the_readers_take(page, tmp_path):
    shown = [json.loads(block.text) for block in blocks(page) if block.language == "json"]
    assert shown
    for row in shown:
        path = tmp_path / "shown.jsonl"
        path.write_text(json.dumps(row) + "\n")
        if "question" in row:
            contents = scan_examples(path)
            assert not [*contents.problems, *contents.suspicions] and contents.entries[0][1].answer
        else:
            assert read_documents(path)[0].fmt_content


def test_troubleshooting_explains_every_warning_of_the_doctor_and_quotes_what_is_really_said():
    page = (ROOT / "docs/howto/troubleshooting.md").read_text("utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    for status in re.findall(r"\b\d+\b", main.__doc__):
        assert any(status in row.split(", ") for row in rows), f"exit status {status}"
    assert [title for title in TITLES.values() if title not in rows] == []
    package = Path(groundtune.__file__).parent
    source = re.sub(r'"\s+f?"', "", "".join(path.read_text("utf-8") for path in package.rglob("*.py")))
    spoken = page.partition("## Before it starts")[2].partition("## Afterwards")[0]
    quoted = [
        part.strip()
        for line in spoken.splitlines()
        for message in re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("| ") else "")
        for part in message.split("...")
    ]
    assert len(quoted) > 20 and [part for part in quoted if part not in source] == []
