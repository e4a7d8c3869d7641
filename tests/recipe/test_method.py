"""A new method is one file and one line: a method that only this test knows works everywhere that SwR works.

It draws a new order of the passages in each epoch, and has its own load function and evaluator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
from test_recipes import flags, lines

import groundtune.methods
from groundtune.cli import main
from groundtune.commands.parsing import parse_arguments
from groundtune.evaluation.evaluator import EndToEndEvaluator
from groundtune.methods import METHODS, SWR
from groundtune.model.loading import load_model
from groundtune.prompts.policies import Passage, Passages, augmented_passages
from groundtune.schema import Example, Hit
from groundtune.system.signals import Stopped
from groundtune.training.doctor import doctor_command
from groundtune.training.trainer import QATrainer

NAME = "shuffled"
LOADED: list[str] = []
READ: list[list[int]] = []  # prompts of the rows that were collated


def shuffled_passages(example: Example, hits: Sequence[Hit], rng: Random) -> Passages:
    passages = list(augmented_passages(example, hits))
    rng.shuffle(passages)
    return tuple(Passage(p.document, droppable=p.droppable) for p in passages)


def load(arguments, **settings):
    LOADED.append(arguments.model_name_or_path)
    return load_model(arguments, **settings)


@dataclass
class Shouting(EndToEndEvaluator):
    """Ends every answer with a marker word, so that its use shows in the predictions."""

    def _reply(self, question, generated):
        return replace(reply := super()._reply(question, generated), text=f"{reply.text} [by {NAME}]")


@pytest.fixture(autouse=True)
def method(monkeypatch):
    made = replace(
        SWR, name=NAME, title="Shuffled", help="train on passages in any order", reads="passages in any order",
        policy=shuffled_passages, load=load, evaluator=Shouting,
    )  # fmt: skip
    monkeypatch.setitem(METHODS, NAME, made)
    LOADED.clear()
    READ.clear()
    return made


@pytest.fixture(scope="module")
def words(families, static_embedding_folder, data_folder, tmp_path_factory):
    """The flags of a short run into a folder; all share one index."""
    index = tmp_path_factory.mktemp("index")

    def made(folder: Path, **changes) -> list[str]:
        options = {
            "use_peft": "true", "lora_r": 2, "max_new_tokens": 3, "learning_rate": 1e-2, "num_train_epochs": 2,
            "per_device_train_batch_size": 2, "eval_strategy": "no", "full_dataset_index_path": index,
            "embedding_max_num_to_retrieve": 4,
        }  # fmt: skip
        return flags(families["gemma"], static_embedding_folder, data_folder, folder, **options | changes)

    return made


def run(capsys, *words) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_it_is_in_the_help_and_has_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    assert "train on passages in any order" in capsys.readouterr().out
    assert f"usage: groundtune {NAME} " in run(capsys, NAME, "-h") and NAME in run(capsys, "doctor", "-h")


def test_it_goes_the_whole_way(words, families, tmp_path, capsys):
    folder = tmp_path / "run"
    given = words(folder)
    found = json.loads(run(capsys, "doctor", NAME, *given, "--json"))
    assert found["errors"] == 0 and found["token_table_is_estimated"]  # it retrieves
    run(capsys, NAME, *given)
    assert [str(families["gemma"].folder)] == LOADED
    for file in ("test_base", "test_tuned"):
        assert all(row["answer"].endswith(f"[by {NAME}]") for row in lines(folder / f"predictions/{file}.jsonl"))
    assert json.loads((folder / "run.json").read_text("utf-8"))["arguments"]["method"] == NAME
    for page in ("README.md", "report.md", "report.html"):
        assert "Shuffled: " in (folder / page).read_text("utf-8")
    assert "passages in any order" in (folder / "README.md").read_text("utf-8")

    run(capsys, "evaluate", folder, "--json")
    assert len(LOADED) == 2
    answers = [row["answer"] for row in lines(folder / "evaluation/predictions/retrieved.jsonl")]
    assert answers == [row["answer"] for row in lines(folder / "predictions/test_tuned.jsonl")]
    asked = json.loads(run(capsys, "ask", folder, "When does the library open?", "--json"))
    assert asked["sources"] and len(LOADED) == 3
    assert "done" not in run(capsys, NAME, *given)  # a finished run is not trained again
    assert len(LOADED) == 3


def test_a_run_of_a_method_that_is_no_longer_known_loads_and_answers(words, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    run(capsys, NAME, *words(folder, max_steps=1))
    monkeypatch.delitem(METHODS, NAME)
    run(capsys, "evaluate", folder, "--json")
    assert not lines(folder / "evaluation/predictions/retrieved.jsonl")[0]["answer"].endswith(f"[by {NAME}]")


@pytest.fixture(params=[NAME, "raft"])
def noting(request, method, monkeypatch):
    """The name of a method that notes the prompts of every training batch."""

    def collate(rows, pad_id, **how):
        READ.append([tuple(row.prompt_ids) for row in rows])
        return SWR.collate(rows, pad_id, **how)

    monkeypatch.setitem(METHODS, request.param, replace(METHODS[request.param], collate=collate))
    return request.param


def test_each_epoch_reads_passages_in_an_order_of_its_own(words, noting, tmp_path, capsys):
    run(capsys, noting, *words(tmp_path / "run"))
    steps = list(READ)
    half = len(steps) // 2
    first, second = ({ids for batch in part for ids in batch} for part in (steps[:half], steps[half:]))
    assert first != second
    READ.clear()
    run(capsys, noting, *words(tmp_path / "again"))
    assert steps == READ  # and the same in another run with the same seed


def test_a_run_that_is_resumed_inside_its_second_epoch_has_the_same_weights(
    words, noting, tmp_path, capsys, monkeypatch
):
    every_step = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 100, "load_best_model_at_end": "false"}
    run(capsys, noting, *words(tmp_path / "whole", **every_step))
    read, steps = list(READ), len(list((tmp_path / "whole").glob("checkpoint-*")))
    step = QATrainer.training_step
    stop_after = steps // 2 + 1  # inside the second epoch

    def stopping(trainer, *args, **kwargs):
        if trainer.state.global_step == stop_after:
            raise Stopped(15)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(QATrainer, "training_step", stopping)
    READ.clear()
    assert main([noting, *words(tmp_path / "cut", **every_step)]) == 143
    assert (tmp_path / "cut" / f"checkpoint-{stop_after}").is_dir()
    monkeypatch.setattr(QATrainer, "training_step", step)
    READ.clear()
    run(capsys, noting, *words(tmp_path / "cut", **every_step))
    assert READ[-1] == read[-1] and read[-len(READ) :] == READ
    name = "adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_policy_that_became_another_is_named_and_the_run_is_not_resumed(words, tmp_path, capsys, monkeypatch):
    given = words(tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=2)
    run(capsys, NAME, *given)
    (tmp_path / "run/report.html").unlink()  # as if it had been killed before its end
    monkeypatch.setitem(METHODS, NAME, replace(METHODS[NAME], policy=augmented_passages))
    capsys.readouterr()
    assert main([NAME, *given]) == 2
    assert "policy: " in capsys.readouterr().err


def test_flags_choose_the_passages_of_any_method_and_every_page_says_so(words, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = {"max_steps": 1, "passage_order": "ranked", "num_distractors": 1, "gold_dropout": 0.5}
    run(capsys, "sft", *words(folder, **flags))
    for page in ("README.md", "report.md", "report.html"):
        text = (folder / page).read_text("utf-8")
        assert "ranked; 1 distractor: retrieved; without gold in 50 % of the rows" in text, page
    capsys.readouterr()
    assert main(["sft", *words(folder, **flags | {"gold_dropout": 0.25})]) == 2
    assert "--gold_dropout: 0.5" in capsys.readouterr().err


def test_bad_numbers_are_named_and_so_is_an_abstention_that_would_count_as_an_answer(words, tmp_path, capsys):
    assert main(["raft", *words(tmp_path / "run", gold_dropout=1.0, num_distractors=-1)]) == 2
    problems = capsys.readouterr().err
    assert "--gold_dropout: 1.0 is not in [0, 1)" in problems and "--num_distractors: -1 is too small" in problems
    found = json.loads(run(capsys, "doctor", "raft", *words(tmp_path / "run", abstention="Tja."), "--json"))
    assert [one["check"] for one in found["findings"]].count("unknown-abstention") == 1
    assert "one-citation" not in str(found["findings"])
    assert "--abstention Tja." in doctor_command(parse_arguments("raft", words(tmp_path / "run", abstention="Tja.")))


@pytest.mark.parametrize(
    "method, flags, warned",
    [
        ("swr", {"citations": "taught", "passage_order": "gold_first"}, True),
        ("swr", {"citations": "taught"}, False),
        ("raft", {"citations": "taught"}, False),
        ("sft", {"citations": "taught", "passage_order": "shuffled"}, True),
        ("sft", {"citations": "taught", "passage_order": "shuffled", "num_distractors": 2}, False),
        ("swr", {"citations": "taught", "num_distractors": 0}, True),
        ("swr", {"citations": "afterwards"}, False),
    ],
)
def test_the_doctor_warns_where_every_citation_that_is_taught_is_the_same(
    method, flags, warned, words, tmp_path, capsys
):
    found = json.loads(run(capsys, "doctor", method, *words(tmp_path / "run", **flags), "--json"))
    assert [one["check"] for one in found["findings"]].count("one-citation") == warned


def test_no_other_module_spells_the_name_of_a_method():
    package = Path(groundtune.methods.__file__).parents[1]
    for path in package.rglob("*.py"):
        if path.parent.name != "methods":
            text = path.read_text("utf-8")
            assert not [name for name in ("sft", "swr") if f'"{name}"' in text or f"'{name}'" in text], path


def test_listing_the_methods_takes_neither_torch_nor_numpy():
    import subprocess
    import sys

    code = "import sys, groundtune.methods; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
