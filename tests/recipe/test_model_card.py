"""The code on a model card is run: it loads the model of its folder and answers as the evaluation did."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import HISTORICAL_PREFIXES, tiny_documents, tiny_examples
from test_recipes import flags, lines

from groundtune.cli import train_command

pytestmark = pytest.mark.usefixtures("no_drawing")

KINDS = {
    "all weights, chat template": ("llama", {}),
    "LoRA, chat template": ("gemma", {"use_peft": "true", "lora_r": 2}),
    "LoRA, no beginning in the template": ("qwen", {"use_peft": "true", "lora_r": 2}),
    "LoRA, historical prefixes": ("mistral", {"use_peft": "true", "lora_r": 2, **HISTORICAL_PREFIXES}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_on_the_card_answers_as_the_evaluation_did(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch, capsys, kind
):
    family, changes = KINDS[kind]
    folder = tmp_path / "my model"
    arguments = flags(
        families[family], static_embedding_folder, data_folder, folder, max_steps=2, eval_strategy="no",
        learning_rate=3e-2, **changes,
    )  # fmt: skip
    assert train_command("swr", arguments) == 0
    card = (folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    documents = {document.page_content: document for document in tiny_documents()}
    row = next(row for row in lines(folder / "predictions/test_tuned.jsonl") if not row["chat_history"])
    passages = [documents[found["page_content"]].text for found in row["retrieved_docs"]]
    code = re.sub(r"^passages = .*", lambda _: f"passages = {passages!r}", code, flags=re.MULTILINE)
    code = re.sub(r"^question = .*", lambda _: f"question = {row['question']!r}", code, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)  # the card's name is the folder's
    capsys.readouterr()
    found: dict = {}
    exec(code, found)  # noqa: S102  from our own card
    assert found["inputs"]["input_ids"].shape[1] == row["prompt_tokens"]
    assert capsys.readouterr().out.strip() == row["answer"].strip()


def test_the_card_of_a_run_names_its_data_and_none_of_its_folders(
    families, static_embedding_folder, data_folder, tmp_path
):
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path / "out", max_steps=1, use_peft="true"
    )
    assert train_command("sft", arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    inputs = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["inputs"]
    for name, rows in {"train": len(tiny_examples()), "eval": 4, "test": 3}.items():
        assert f"| {name}.jsonl | {rows} | {inputs[f'{name}_file']['sha256']} |" in card
    assert f"| documents.jsonl | {len(tiny_documents())} |" in card
    for path in (tmp_path, data_folder, static_embedding_folder, families["mistral"].folder, Path.cwd()):
        assert str(path) not in card
    assert "4 x question also in another split" in card  # what the doctor warns of must be seen
