"""Evaluations that a server answers during training have the scores of those that the model in training answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Refusal
from peft import PeftModel
from test_recipes import flags, lines

from groundtune.cli import train_command
from groundtune.model.generation import generate_greedy

STEPS = [0, 3, 6, 9]


@dataclass
class Vllm:
    """What vLLM does: it loads adapters by name from a path, and answers with the one that a request names."""

    family: Any
    stop_ids: tuple[int, ...]
    adapters: dict[str, Any] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    broken: str = ""  # the end of an adapter's name that it does not answer with

    def __call__(self, body: dict) -> Any:
        if "lora_path" in body:
            if body["lora_name"] in self.adapters:
                return Refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
            self.adapters[body["lora_name"]] = PeftModel.from_pretrained(self.family.model(), body["lora_path"])
            self.loaded.append(body["lora_name"])
            return b'"Success: LoRA adapter added"'
        if "lora_name" in body:
            return b'"Success"' if self.adapters.pop(body["lora_name"], None) else Refusal(404, "no such adapter")
        if self.broken and body["model"].endswith(self.broken):
            return Refusal(400, "CUDA error")
        return self.completion(body)

    def completion(self, body: dict) -> bytes:
        (answer,) = generate_greedy(
            self.adapters[body["model"]], [body["prompt"]], stop_ids=self.stop_ids, pad_id=0,
            max_new_tokens=body["max_tokens"], batch_size=1,
        )  # fmt: skip
        text = self.family.tokenizer.decode(answer.ids, skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": "stop" if answer.finished else "length"}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(answer.ids), "total_tokens": 0}
        made = {"id": "1", "object": "text_completion", "created": 0, "model": body["model"]}
        return json.dumps({**made, "choices": [choice], "usage": usage}).encode()


@pytest.fixture(scope="module")
def words(families, static_embedding_folder, data_folder):
    def words(output: Path, **changes: Any) -> list[str]:
        return flags(
            families["llama"], static_embedding_folder, data_folder, output, use_peft="true", learning_rate=0.05,
            num_train_epochs=3, eval_steps=3, **changes,
        )  # fmt: skip

    return words


@pytest.fixture
def vllm(families):
    family = families["llama"]
    return Vllm(family, family.prompt().stop_ids)


def trained(words, folder: Path, vllm: Vllm, **changes: Any) -> dict[int, dict]:
    """A run with evaluations on the server; the logged values of each step."""
    with FakeServer(vllm, content_type="application/json") as server:
        assert train_command("sft", words(folder, eval_endpoint=f"openai:{server.url}", **changes)) == 0
    return history(folder)


def history(folder: Path) -> dict[int, dict]:
    found: dict[int, dict] = {}
    for row in json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]:
        kept = {k: v for k, v in row.items() if k.startswith("eval_") and not _of_time(k)}
        found.setdefault(row["step"], {}).update(kept)
    return {step: row for step, row in found.items() if row}


def _of_time(name: str) -> bool:
    return "latency" in name or name in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def test_the_scores_of_each_step_the_best_of_them_and_the_model_are_those_of_a_local_evaluation(
    words, vllm, tmp_path, no_drawing
):
    assert train_command("sft", words(tmp_path / "local")) == 0
    served = trained(words, tmp_path / "served", vllm)
    assert list(served) == STEPS and len({row["eval_generation/new_tokens"] for row in served.values()}) > 1
    assert served == history(tmp_path / "local")
    local, remote = (json.loads((tmp_path / name / "metrics.json").read_text("utf-8")) for name in ("local", "served"))
    assert local["best_step"] == remote["best_step"]
    for path in sorted((tmp_path / "local/predictions").iterdir()):
        theirs = lines(tmp_path / "served/predictions" / path.name)
        assert [(row["question"], row["answer"]) for row in lines(path)] == [
            (row["question"], row["answer"]) for row in theirs
        ]
    names = ("adapter_model.safetensors",)
    assert all((tmp_path / "local" / n).read_bytes() == (tmp_path / "served" / n).read_bytes() for n in names)


def test_every_step_has_a_name_of_its_own_and_nothing_stays_loaded_or_on_disk(words, vllm, tmp_path, no_drawing):
    trained(words, tmp_path, vllm)
    asked, *steps = vllm.loaded
    assert asked.endswith("-step-0")  # the trial before training
    assert [name.rpartition("-")[2] for name in steps] == [str(step) for step in STEPS]
    assert vllm.adapters == {} and not list(tmp_path.glob(".serving-*"))


def test_answers_that_fail_are_no_zeros_and_their_step_cannot_be_the_best(words, vllm, tmp_path, no_drawing, caplog):
    vllm.broken = "step-6"
    found = trained(words, tmp_path, vllm)
    assert set(found[6]) == {"eval_loss_with_gold_passage"} and "eval_generation/f1" in found[9]
    assert "step 6: 4 answers failed, so it has no scores: " in caplog.text and "CUDA error" in caplog.text
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["best_step"] != 6


def test_a_name_that_a_killed_run_left_loaded_is_loaded_again(words, vllm, tmp_path, no_drawing):
    trained(words, tmp_path / "first", vllm)
    left = {name: None for name in vllm.loaded}
    again = Vllm(vllm.family, vllm.stop_ids, adapters=left)
    found = trained(words, tmp_path / "first", again, overwrite_output_dir="true")
    assert list(found) == STEPS and again.adapters == {}


def test_a_server_that_cannot_load_adapters_is_refused_before_anything_is_answered(words, tmp_path, capsys):
    with FakeServer(lambda body: Refusal(404, "Not Found")) as server:
        assert train_command("sft", words(tmp_path, eval_endpoint=f"openai:{server.url}")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--eval_endpoint")]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true" in line and "same path" in line
    assert not list(tmp_path.glob(".serving-*")) and not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_peft": "false"}, "add --use_peft"),
        ({"eval_strategy": "no"}, "has no effect with --eval_strategy no"),
        ({"save_strategy": "best"}, "--save_strategy best would have to wait"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau would have to wait"),
        ({"eval_endpoint": "http://localhost:1/v1"}, "is not a server"),
    ],
)
def test_what_a_server_cannot_evaluate_is_one_line(words, tmp_path, capsys, changes, said):
    given = {"eval_endpoint": "openai:http://127.0.0.1:1/v1", **changes}
    peft = {"use_peft": given.pop("use_peft")} if "use_peft" in given else {}
    assert train_command("sft", [*words(tmp_path, **given), *[w for k, v in peft.items() for w in (f"--{k}", v)]]) == 2
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--eval_endpoint")]
    assert len(found) == 1 and said in found[0]
