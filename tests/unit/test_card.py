"""The model card agrees with metrics.json, contains no folder and no secret, and shows commands that parse."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import replace

import pytest
import yaml
from test_report import HOSTILE, NASTY, with_text
from test_results import COLOURS, results, wrong

from groundtune.reporting.card import ask_command, loading_code, model_card, without_folders
from groundtune.reporting.report import write_results
from groundtune.reporting.results import Results

TOKEN = "hf_" + "aB3dE5" * 6  # made up
HASHES = {name: letter * 64 for name, letter in zip(("train", "eval", "test", "documents"), "abcd")}


def record(**changes) -> dict:
    """Part of run.json of a run with local files; `changes` are arguments."""
    paths = {name: f"/home/me/secret project/{name}.jsonl" for name in HASHES}
    arguments = {
        "method": "swr",
        "data": {f"{name}_file": paths[name] for name in ("train", "eval", "test")},
        "retrieval": {"embedding_model": "intfloat/e5-base-v2", "eval_num_to_retrieve": 4, "retriever": "dense"},
        "prompt": {"instruction": "Answer.", "user_prefix": None},
        "model": {"model_name_or_path": "Qwen/Qwen3-4B", "use_peft": True, "lora_r": 16, "lora_alpha": 32},
        "evaluation": {"max_new_tokens": 99},
        "training": {"output_dir": "/home/me/runs/handbook", "hub_token": "***"},
    }
    flags = {"train": "train_file", "eval": "eval_file", "test": "test_file", "documents": "full_dataset_file_path"}
    return {
        "arguments": {**arguments, "changed": changes},
        "inputs": {
            flags[name]: {"path": paths[name], "sha256": HASHES[name], "bytes": 10, "rows": 1234} for name in HASHES
        },
        "versions": {"groundtune": "1.2.3", "torch": "2.13.0", "python": "3.11"},
        "identity": {"--model_name_or_path": "Qwen/Qwen3-4B", "--embedding_model": "intfloat/e5-base-v2"},
        "working_directory": "/home/me/secret project",
        "command": "groundtune swr --train_file '/home/me/secret project/train.jsonl'",
        "prompt_style": "chat template",
        "seed": 42,
    }


def made(base=None, tuned=None, **changes) -> Results:
    return results(base or wrong(), tuned or COLOURS, record=record(**changes))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_table_of_the_card_has_the_numbers_of_metrics_json(tmp_path):
    write_results(tmp_path, made(wrong(6) + COLOURS[6:], COLOURS))
    card = (tmp_path / "README.md").read_text("utf-8")
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    shown = {"Token F1": "generation/f1", "ROUGE-L": "generation/rougeL", "Exact match": "generation/exact\\_match"}
    for label, metric in shown.items():
        cells = re.search(rf"^\| {re.escape(label)} \|(.*)\|$", card, re.MULTILINE)[1].split("|")
        metric = metric.replace("\\", "")
        for cell, of in zip(cells, (metrics["base"], metrics["tuned"], metrics["difference"])):
            value, low, high = map(float, re.findall(r"[+-]?\d+\.\d+", cell))
            assert (value, low, high) == pytest.approx(
                [of[metric][name] for name in ("value", "low", "high")], abs=6e-3
            )
    assert "24 questions on 24 passages" in card
    assert front_matter(card)["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "f1", "name": "Token F1", "value": metrics["tuned"]["generation/f1"]["value"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "base, tuned, said",
    [(wrong(), COLOURS, "Tuned answers better"), (COLOURS, wrong(), "Tuned answers worse"),
     (COLOURS, COLOURS, "No difference")],
)  # fmt: skip
def test_the_verdict_is_in_words_also_if_it_is_worse(base, tuned, said):
    assert model_card(made(base, tuned)).split("\n\n")[2].startswith(f"**{said}")


def test_data_are_named_with_hash_and_count():
    card = model_card(made())
    for name, digest in HASHES.items():
        assert f"| {name}.jsonl | 1,234 | {digest} |" in card
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"] == {
        "name": "test.jsonl", "type": "private", "args": {"sha256": HASHES["test"], "questions": 24},
    }  # fmt: skip


def test_no_folder_and_no_secret_is_on_the_card():
    local = made(
        model_name_or_path="/models/private/gemma", embedding_model="/models/private/e5", hub_token=TOKEN,
        resume_from_checkpoint="/home/me/checkpoint-1",
    )  # fmt: skip
    identity = {"--model_name_or_path": "sha256 1", "--embedding_model": "sha256 2"}
    local = replace(
        local,
        record={**local.record, "identity": identity},
        notes=["/home/me/data/train.jsonl: 3 x odd (see C:\\Users\\me\\other.jsonl, https://example.com/a/b)"],
    )
    card = model_card(local)
    for text in ("/home", "secret project", "/models", "private/gemma", "Users", TOKEN, "hf_"):
        assert text not in card.replace("dataset:\n      name", ""), text
    assert "- train.jsonl: 3 x odd (see other.jsonl, https://example.com/a/b)" in card.replace("\\", "")
    assert "base_model" not in front_matter(card)  # the hub would look for it
    assert "Base model: gemma (a local folder)" in card
    assert (
        "written by `groundtune documents`; e5 was a local folder: use your own:" in card
        and "was a local folder" not in model_card(made())
    )


def test_the_front_matter_is_what_the_hub_reads():
    adapter, whole = (front_matter(model_card(made(use_peft=peft))) for peft in (True, False))
    assert (adapter["base_model"], adapter["base_model_relation"]) == ("Qwen/Qwen3-4B", "adapter")
    assert (adapter["library_name"], whole["library_name"]) == ("peft", "transformers")
    assert whole["base_model_relation"] == "finetune" and "lora" in adapter["tags"] and "lora" not in whole["tags"]
    assert adapter["pipeline_tag"] == "text-generation" and "groundtune" in adapter["tags"]
    assert "license" not in adapter and "datasets" not in adapter
    assert adapter["model-index"][0]["name"] == "handbook"


def test_a_model_that_is_published_is_called_by_its_name_there():
    card = model_card(made(hub_model_id="me/handbook-qa"))
    assert "name = 'me/handbook-qa'" in card and "groundtune ask me/handbook-qa " in card and "# handbook-qa" in card


def test_no_separate_test_is_said_first():
    card = model_card(replace(made(), selected_on_test=True))
    assert card.index("> **No separate test") < card.index("Base model")


@pytest.mark.parametrize("changes", [
    {}, {"retriever": "bm25"}, {"retriever": "hybrid", "eval_embedding_model": "owner/other", "query_prompt": "--q: "},
    {"user_prefix": "<s>[INST]", "assistant_prefix": "[/INST]", "sep_user": " ", "sep_sys": "</s>"},
    {"retriever": "bm25", "reranker": "owner/reranker", "rerank_depth": 9},
    {"retriever": "hybrid", "reranker": "maxsim", "rerank_depth": 9, "rerank_weight": 0.3},
])  # fmt: skip
def test_the_command_on_the_card_is_understood_and_says_what_the_run_used(changes):
    from groundtune.commands import ask
    from groundtune.commands.parsing import given

    (command,) = re.findall(r"^groundtune .*", model_card(made(**changes)), re.MULTILINE)
    assert command == ask_command(record(**changes))
    words = shlex.split(command)
    found = given(ask.parser(), words[2:])
    assert (found["model"], found["question"], found["instruction"]) == ("handbook", "Your question?", "Answer.")
    assert found["max_new_tokens"] == 99 and "eval_num_to_retrieve" not in found  # the default
    used = changes.get("eval_embedding_model", "intfloat/e5-base-v2")
    assert found.get("embedding_model") == (None if changes.get("retriever") == "bm25" else used)
    assert {name: found[name] for name in changes if name != "eval_embedding_model"} == {
        name: value for name, value in changes.items() if name != "eval_embedding_model"
    }


def test_the_card_does_not_tell_the_address_of_a_server():
    card = model_card(made(reranker="jina:http://10.0.0.7:8000/v1", reranker_model="rank-1"))
    assert "reranked by jina:URL" in card and "--reranker=jina:URL" in card and "--reranker_model=rank-1" in card
    assert "10.0.0.7" not in card


@pytest.mark.parametrize("text", [NASTY, *HOSTILE.values()])
def test_hostile_text_stays_text_in_markdown_yaml_and_python(text):
    markdown_it = pytest.importorskip("markdown_it")
    card = model_card(with_text(text))
    assert isinstance(front_matter(card), dict)
    nasty = replace(with_text(text), record=record(instruction=text, output_dir=f"out/{text}", user_prefix=text,
                                                   model_name_or_path=text))  # fmt: skip
    card = model_card(nasty)
    html = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    assert not re.search(r"<(script|img|a|form|h4|svg)\b", html)
    ast.parse(loading_code(nasty.record))
    assert isinstance(front_matter(card), dict)
    assert html.count("<table>") == 2 and html.count("<pre>") == 2


@pytest.mark.parametrize("text, expected", [
    ("/a/b/c.jsonl:3: x", "c.jsonl:3: x"), ("see /a/b/c", "see c"), ("a/b stays", "a/b stays"), ("1/2", "1/2"),
    ("https://a.b/c/d", "https://a.b/c/d"), ("'/a b/c'", "'/a b/c'"), (r"C:\a\b.txt", "b.txt"), ("../a/b", "../a/b"),
])  # fmt: skip
def test_absolute_paths_become_names(text, expected):
    assert without_folders(text) == expected
