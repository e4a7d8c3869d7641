"""Both recipes on tiny models, from their historical scripts to the saved model, which must be the evaluated one."""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_family, tiny_documents, tiny_examples

import groundtune.recipes.train
from groundtune.cli import train_command
from groundtune.training.trainer import QATrainer

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "sft": ROOT / "scripts/train/qa_llm/train_w_gt.py",
    "swr": ROOT / "scripts/train/qa_llm/train_w_fixed_retriever.py",
}
INSTRUCTION = "Answer."
SECRET = "hf_" + "aB3dE5" * 6  # made up; the shape is a token's


def flags(family, embedding: Path, data: Path, output: Path, **changes: Any) -> list[str]:
    """A command line that takes a second or two; a change to `...` leaves a flag out."""
    values = {
        "model_name_or_path": family.folder, "embedding_model": embedding, "output_dir": output,
        "train_file": data / "train.jsonl", "eval_file": data / "eval.jsonl", "test_file": data / "test.jsonl",
        "full_dataset_file_path": data / "documents.jsonl", "full_dataset_index_path": output / "index",
        "instruction": INSTRUCTION, "max_seq_length": 300, "max_new_tokens": 16, "bootstrap_samples": 100,
        "eval_num_to_retrieve": 2, "per_device_train_batch_size": 2, "bf16": "false", "disable_tqdm": "true",
    } | changes  # fmt: skip
    return [word for name, value in values.items() if value is not ... for word in (f"--{name}", str(value))]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@dataclass
class Run:
    """A finished run: its folder, and if it ran in this process, its trainer and the initial weights."""

    folder: Path
    trainer: Any = None
    at_first: dict[str, torch.Tensor] = field(default_factory=dict)
    logged: str = ""

    @property
    def metrics(self) -> dict:
        return json.loads((self.folder / "metrics.json").read_text("utf-8"))

    def history(self, name: str) -> dict[int, float]:
        return {row["step"]: row[name] for row in self.metrics["history"] if row.get(name) is not None}


def run_here(patch: pytest.MonkeyPatch, folder: Path, start) -> Run:
    """Start a run in this process and keep hold of its trainer."""
    run = Run(folder)

    class Kept(QATrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            run.trainer = self
            run.at_first = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    patch.setattr(groundtune.recipes.train, "QATrainer", Kept)
    assert start() == 0
    return run


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """A Llama with small weights, which learns faster than those that must give varied answers untrained."""
    return make_family("llama", tmp_path_factory.mktemp("learner"), hidden_size=64, initializer_range=0.05)


@pytest.fixture(scope="module")
def sft_run(learner, static_embedding_folder, data_folder, tmp_path_factory) -> Run:
    """SFT of all weights by the script, in its own process, until the model has memorised its six examples.

    It is evaluated on its training questions, each of which retrieves only its gold passage.
    """
    folder = tmp_path_factory.mktemp("sft")
    arguments = flags(
        learner, static_embedding_folder, data_folder, folder, embedding_model=...,
        eval_embedding_model=static_embedding_folder, eval_file=data_folder / "train.jsonl",
        test_file=data_folder / "train.jsonl", eval_num_to_retrieve=1, max_new_tokens=40, num_train_epochs=60,
        per_device_train_batch_size=6, learning_rate=5e-3, logging_steps=1, use_flash_attention="false",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, SCRIPTS["sft"], *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report.html" in done.stdout and "Traceback" not in done.stderr
    return Run(folder)


@pytest.fixture(scope="module")
def swr_run(families, static_embedding_folder, data_folder, tmp_path_factory) -> Run:
    """SwR of a LoRA adapter by the script, in this process."""
    folder = tmp_path_factory.mktemp("swr")
    arguments = flags(
        families["gemma"], static_embedding_folder, data_folder, folder, use_peft="true", lora_r=4,
        embedding_max_num_to_retrieve=3, num_train_epochs=2, eval_steps=2, learning_rate=5e-2,
        metric_for_best_model="loss_with_gold_passage", hub_token=SECRET, run_name=f"http://me:{SECRET}@host/run",
    )  # fmt: skip

    def start() -> int:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS["swr"]), run_name="__main__")
        return ended.value.code

    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger().addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPTS["swr"]), *arguments])
        run = run_here(patch, folder, start)
    logging.getLogger().removeHandler(handler)
    run.logged = logged.getvalue()
    return run


# What a run leaves


def test_no_secret_is_in_any_file_that_a_run_leaves_or_in_its_log(swr_run):
    """The token was given on the command line, by itself and in a URL."""
    files = [path for path in swr_run.folder.rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "README.md"} <= {path.name for path in files}
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in swr_run.logged and "checked: 7 warnings in 6 documents" in swr_run.logged


def test_what_the_doctor_warns_of_is_in_the_report(swr_run):
    """The tiny data's eval and test examples are also in train, which the report must show."""
    for name in ("report.html", "report.md"):
        text = (swr_run.folder / name).read_text("utf-8")
        assert "4 x question also in another split" in text and "3 x question also in another split" in text
    assert "groundtune doctor swr --train_file" in swr_run.logged


@pytest.mark.parametrize("name", ["sft_run", "swr_run"])
def test_a_run_leaves_model_history_results_and_report(request, name):
    run = request.getfixturevalue(name)
    weights = "model.safetensors" if name == "sft_run" else "adapter_model.safetensors"
    others = "tokenizer.json trainer_state.json metrics.json run.json report.md report.html"
    for file in (weights, *others.split(), "predictions/test_base.jsonl", "predictions/test_tuned.jsonl"):
        assert (run.folder / file).stat().st_size > 100, file
        if os.name != "nt":  # safetensors would make weights readable by their owner only
            assert (run.folder / file).stat().st_mode == (run.folder / "run.json").stat().st_mode, file
    assert {"base", "tuned", "difference", "history"} <= run.metrics.keys()
    record = json.loads((run.folder / "run.json").read_text("utf-8"))
    assert set(record["inputs"]) == {"train_file", "eval_file", "test_file", "full_dataset_file_path"}
    assert record["arguments"]["method"] == name[:3] and record["seed"] == 42
    assert all(len(file["sha256"]) == 64 for file in record["inputs"].values())


@pytest.mark.parametrize("name", ["sft_run", "swr_run"])
def test_every_evaluation_is_in_the_history_from_the_untouched_model_to_the_last_step(request, name):
    run = request.getfixturevalue(name)
    state = json.loads((run.folder / "trainer_state.json").read_text("utf-8"))
    steps = {"sft_run": [0, 30, 60], "swr_run": [0, 2, 4, 6]}[name]
    assert state["global_step"] == steps[-1]
    for metric in (
        "loss_with_gold_passage",
        "generation/f1",
        "generation/f1_low",
        "generation/rougeL",
        "retrieval/mrr",
    ):
        assert list(run.history(f"eval_{metric}")) == steps, metric
    assert sorted(p.name for p in (run.folder / "predictions").glob("eval_step_*")) == [
        f"eval_step_{step:06d}.jsonl" for step in steps
    ]
    for step in steps:  # and each score in it is the mean over the predictions of its step
        scores = [
            row["scores"]["generation/f1"] for row in lines(run.folder / f"predictions/eval_step_{step:06d}.jsonl")
        ]
        assert run.history("eval_generation/f1")[step] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize("name", ["sft_run", "swr_run"])
def test_metrics_and_differences_are_those_of_the_predictions(request, name):
    run = request.getfixturevalue(name)
    base, tuned = (lines(run.folder / f"predictions/test_{which}.jsonl") for which in ("base", "tuned"))
    examples = tiny_examples() if name == "sft_run" else tiny_examples()[3:]
    assert [row["question"] for row in base] == [row["question"] for row in tuned] == [e.question for e in examples]
    assert run.metrics["base"]["n"] == run.metrics["tuned"]["n"] == len(examples)
    for metric, difference in run.metrics["difference"].items():
        values = [[row["scores"][metric] for row in rows] for rows in (base, tuned)]
        before, after = (sum(v) / len(v) for v in values)
        assert run.metrics["base"][metric]["value"] == pytest.approx(before)
        assert run.metrics["tuned"][metric]["value"] == pytest.approx(after)
        assert difference["value"] == pytest.approx(after - before, abs=1e-9)
        assert difference["wins"] + difference["losses"] + difference["ties"] == difference["n"] == len(examples)


# Overfitting


def test_sft_learns_its_examples_by_heart_and_answers_word_for_word_and_stops(sft_run):
    assert list(sft_run.history("loss").values())[-1] < 0.05
    assert list(sft_run.history("eval_loss_with_gold_passage").values())[-1] < 0.05
    base, tuned = (lines(sft_run.folder / f"predictions/test_{which}.jsonl") for which in ("base", "tuned"))
    assert [row["answer"] for row in tuned] == [e.answer for e in tiny_examples()]
    assert all(row["finished"] for row in tuned)
    assert sft_run.metrics["tuned"]["generation/f1"]["value"] == 1 > sft_run.metrics["base"]["generation/f1"]["value"]
    assert sft_run.metrics["difference"]["generation/f1"]["value"] > 0.5
    assert all(row["scores"]["retrieval/recall@1"] == 1 for row in tuned)


# Which weights changed


def test_full_fine_tuning_moves_every_parameter(sft_run, learner):
    from transformers import AutoModelForCausalLM

    before = dict(learner.model().named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(sft_run.folder).named_parameters())
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_lora_moves_every_parameter_of_the_adapter_and_no_other(swr_run, families):
    now = dict(swr_run.trainer.model.named_parameters())
    for name, parameter in now.items():
        assert torch.equal(parameter, swr_run.at_first[name]) == ("lora_" not in name), name
    assert sum("lora_" in name for name in now) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    original = dict(families["gemma"].model().named_parameters())
    frozen = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in now.items()}
    for name, parameter in original.items():
        torch.testing.assert_close(frozen[name].float(), parameter, rtol=0, atol=0)


def test_the_untouched_model_is_evaluated_before_the_first_step(sft_run, swr_run, families):
    """Step 0 is the model from the folder: its gold loss equals that of a new copy."""
    from groundtune.training.batching import collate
    from groundtune.training.loss import answer_loss

    family = families["gemma"]
    with torch.no_grad():
        loss = answer_loss(family.model(), collate(swr_run.trainer.eval_dataset, family.tokenizer.pad_token_id))
    assert swr_run.history("eval_loss_with_gold_passage")[0] == pytest.approx(loss.item(), rel=1e-4)
    # In the overfit run eval and test are one file, so step 0 and "base" are the same answers.
    step_0, base = (lines(sft_run.folder / f"predictions/{n}.jsonl") for n in ("eval_step_000000", "test_base"))
    assert [row["answer"] for row in step_0] == [row["answer"] for row in base]


# Rows


def test_swr_rows_hold_gold_first_and_then_retrieved_passages(swr_run, families):
    tokenizer = families["gemma"].tokenizer
    documents = {document.text: document for document in tiny_documents()}
    for example, row in zip(tiny_examples(), swr_run.trainer.train_dataset, strict=True):
        text = tokenizer.decode(row.prompt_ids)
        held = sorted((passage for passage in documents if passage in text), key=text.index)
        assert held[0] == example.gold_documents[0].text
        assert 3 <= len(held) <= 4  # k = 3 hits, of which gold may be one
        assert sum(text.count(passage) for passage in held) == len(held)
        assert text.index(example.question) > text.index(held[-1])


def test_sft_rows_hold_gold_only(families, static_embedding_folder, data_folder, tmp_path, monkeypatch):
    family = families["mistral"]
    arguments = flags(family, static_embedding_folder, data_folder, tmp_path, max_steps=1, eval_strategy="no")
    run = run_here(monkeypatch, tmp_path, lambda: train_command("sft", arguments))
    for example, row in zip(tiny_examples(), run.trainer.train_dataset, strict=True):
        text = family.tokenizer.decode(row.prompt_ids)
        assert [d.text for d in tiny_documents() if d.text in text] == [d.text for d in example.gold_documents]
    assert run.metrics["best_step"] is None and run.metrics["selected_on_test"] is False


# A fresh process

LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

found = {}
for folder, adapter, new, prompts in json.load(sys.stdin):
    if adapter:
        from peft import AutoPeftModelForCausalLM as Loader
    else:
        Loader = AutoModelForCausalLM
    model, generation = Loader.from_pretrained(folder).eval(), GenerationConfig.from_pretrained(folder)
    with torch.no_grad():
        found[folder] = []
        for ids in prompts:
            inputs = torch.tensor([ids])
            whole = model.generate(inputs, max_new_tokens=new, generation_config=generation)[0]
            found[folder].append([model(inputs).logits[0, -1].tolist(), whole[len(ids):].tolist()])
assert not any(name.startswith("groundtune") for name in sys.modules)
print(json.dumps(found))
"""


def test_a_fresh_process_without_groundtune_loads_the_same_model_and_gives_the_same_answers(
    sft_run, swr_run, families, tmp_path
):
    from groundtune.arguments import PromptArguments
    from groundtune.prompts.prompt import make_prompt

    jobs, expected = [], {}
    for run, name in ((sft_run, "llama"), (swr_run, "gemma")):
        prompt = make_prompt(families[name].tokenizer, PromptArguments(instruction=INSTRUCTION))
        rows = lines(run.folder / "predictions/test_tuned.jsonl")
        by_question, documents = {e.question: e for e in tiny_examples()}, {d.page_content: d for d in tiny_documents()}
        prompts = [
            prompt.prompt_ids(
                [documents[d["page_content"]] for d in row["retrieved_docs"]],
                by_question[row["question"]].chat_history, row["question"],
            )
            for row in rows
        ]  # fmt: skip
        assert [len(ids) for ids in prompts] == [row["prompt_tokens"] for row in rows]
        jobs.append([str(run.folder), name == "gemma", 16 if name == "gemma" else 40, prompts])
        expected[str(run.folder)] = prompt, prompts, [row["answer"] for row in rows]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], input=json.dumps(jobs), cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "newly initialized" not in done.stderr and "missing" not in done.stderr.lower()
    found = json.loads(done.stdout)
    for folder, (prompt, _, answers) in expected.items():
        assert [prompt.answer_text(ids) for _, ids in found[folder]] == answers
    swr = str(swr_run.folder)
    model = swr_run.trainer.model.eval()
    for (logits, _), ids in zip(found[swr], expected[swr][1], strict=True):
        with torch.no_grad():
            torch.testing.assert_close(
                torch.tensor(logits), model(torch.tensor([ids])).logits[0, -1], rtol=1e-5, atol=1e-4
            )


# Choosing the checkpoint

PLANNED = {0: 0.0, 1: 0.4, 2: 0.1, 3: 0.7, 4: 0.2}  # the metric by step; the base model is not a checkpoint


@pytest.mark.parametrize(
    "metric, best, peft",
    [("generation/rougeL", 3, False), ("loss_with_gold_passage", 2, True), ("eval_generation/unfinished", 2, False)],
)
def test_the_best_step_by_the_chosen_metric_is_loaded_tested_and_saved(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch, metric, best, peft
):
    from safetensors.torch import load_file

    plain = QATrainer.evaluation_loop

    def planned(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        name = f"eval_{metric.removeprefix('eval_')}"
        assert name in output.metrics
        output.metrics[name] = PLANNED[self.state.global_step]
        return output

    monkeypatch.setattr(QATrainer, "evaluation_loop", planned)
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path, test_file=..., max_steps=4, eval_steps=1,
        metric_for_best_model=metric, use_peft=str(peft).lower(), learning_rate=3e-2, bf16=..., lora_r=2,
    )  # fmt: skip
    run = run_here(monkeypatch, tmp_path, lambda: train_command("sft", arguments))
    assert run.metrics["best_step"] == best
    assert run.metrics["selected_on_test"] is True
    assert run.metrics["base"]["n"] == 4  # the eval file
    assert f"step {best}" in (tmp_path / "report.md").read_text("utf-8")
    file = "adapter_model.safetensors" if peft else "model.safetensors"
    saved, chosen, last = (load_file(tmp_path / f / file) for f in (".", f"checkpoint-{best}", "checkpoint-4"))
    assert all(torch.equal(saved[name], chosen[name]) for name in chosen)
    assert not all(torch.equal(saved[name], last[name]) for name in last)
    # The numbers of "tuned" equal those of the chosen step, which answered the same questions.
    tuned, then = (lines(tmp_path / f"predictions/{n}.jsonl") for n in ("test_tuned", f"eval_step_{best:06d}"))
    assert [row["answer"] for row in tuned] == [row["answer"] for row in then]


@pytest.mark.parametrize("metric", ["retrieval/recall@7", "judge/correctness", "loss"])
def test_a_metric_that_the_run_does_not_measure_is_refused_before_training(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch, capsys, metric
):
    monkeypatch.setattr(QATrainer, "train", lambda *args, **kwargs: pytest.fail("training began"))
    arguments = flags(families["mistral"], static_embedding_folder, data_folder, tmp_path, metric_for_best_model=metric)
    assert train_command("sft", arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--")]
    assert line.startswith(f"--metric_for_best_model: {metric} is not measured here; choose one of loss_with_gold")
    assert "retrieval/recall@2" in line and "generation/rougeL" in line and "grounded/quotes" in line


def test_a_metric_that_only_the_test_examples_have_is_refused(
    families, static_embedding_folder, data_folder, tmp_path, capsys
):
    test = lines(data_folder / "test.jsonl")
    test[0]["answerable"] = False
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, test)), encoding="utf-8")
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path / "run", test_file=tmp_path / "test.jsonl",
        metric_for_best_model="errors/unanswerable_answered",
    )  # fmt: skip
    assert train_command("sft", arguments) == 2
    assert "--metric_for_best_model: errors/unanswerable_answered is not measured here" in capsys.readouterr().err


def test_without_loading_the_best_nothing_was_selected(families, static_embedding_folder, data_folder, tmp_path):
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path, test_file=..., max_steps=1,
        load_best_model_at_end="false", eval_max_samples=2, eval_on_start="false",
    )  # fmt: skip
    assert train_command("swr", arguments) == 0
    run = Run(tmp_path)
    assert run.metrics["selected_on_test"] is False and run.metrics["best_step"] is None
    assert len(lines(tmp_path / "predictions/eval_step_000001.jsonl")) == 2 and run.metrics["base"]["n"] == 4


# Data


def test_blank_lines_of_published_data_are_left_out_and_the_run_goes_on(
    families, static_embedding_folder, data_folder, tmp_path
):
    rows = lines(data_folder / "eval.jsonl")
    rows[1]["question"], rows[2]["gold_answer"] = " ", ""
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path, eval_file=tmp_path / "eval.jsonl",
        test_file=..., max_steps=1, eval_on_start="false",
    )  # fmt: skip
    assert train_command("sft", arguments) == 0
    assert Run(tmp_path).metrics["base"]["n"] == 2


def test_a_run_is_repeatable(families, static_embedding_folder, data_folder, tmp_path):
    from safetensors.torch import load_file

    weights, answers = [], []
    for name in ("first", "second"):
        folder = tmp_path / name
        arguments = flags(
            families["mistral"], static_embedding_folder, data_folder, folder, max_steps=3, use_peft="true",
            lora_dropout=0.2, eval_strategy="no", full_dataset_index_path=tmp_path / "index",
        )  # fmt: skip
        assert train_command("swr", arguments) == 0
        weights.append(load_file(folder / "adapter_model.safetensors"))
        answers.append([row["answer"] for row in lines(folder / "predictions/test_tuned.jsonl")])
    assert answers[0] == answers[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
