"""A sweep with fake commands: which cells there are, what runs and what does not, who wins, and what is written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from xml.etree import ElementTree

import pytest
from documented import blocks

from groundtune.cli import main
from groundtune.commands.evaluate import parser as evaluation_parser
from groundtune.commands.parsing import given, parse_arguments
from groundtune.commands.plan import identified, read_plan
from groundtune.commands.sweep import _estimate, _reported
from groundtune.data.files import sha256_of, write_jsonl, write_text
from groundtune.errors import DataError
from groundtune.evaluation.figures import (
    Figures,
    compared,
    evaluated,
    finished_cells,
    read_figures,
    scored_of,
    write_figures,
)
from groundtune.evaluation.predictions import evaluation_of, write_predictions
from groundtune.evaluation.standings import At, standings
from groundtune.recipes.sweep import (
    BEFORE,
    FAILED,
    FINISHED,
    IN_USE,
    NO_TIME,
    expected_minutes,
    in_a_process,
    on,
    sweep,
)
from groundtune.reporting.sweep_report import _metric, all_standings, markdown, table, write_sweep
from groundtune.runs.cells import Plan, chosen
from groundtune.schema import Document, Example, Prediction
from groundtune.system.locks import alone
from groundtune.system.text import as_json, without_secrets

PLAN = """
output_dir: {folder}/runs
questions: {folder}/dev.jsonl
seeds: [0, 1]
baseline: sft
evaluate:
  mix: {{retriever: mix, contexts: "retrieved,gold"}}
  dense: {{retriever: dense}}
settings:
  model_name_or_path: model
  learning_rate: 5e-4
  use_peft: true
cells:
  base: {{method: none}}
  sft: {{method: sft}}
  swr: {{method: swr, citations: off}}
  raft: {{method: raft, seeds: [7]}}
"""
ROOT = Path(__file__).parents[2]
QUESTIONS = 40
GAIN = {"base": -0.2, "sft": 0.0, "swr": 0.3, "raft": 0.01}
SECONDS = count()
SECRET = "What does the secret passage say?"


def examples() -> list[Example]:
    return [
        Example(f"{SECRET} {i}", f"Answer {i}.", (Document(f"Passage {i // 2}"),), source=f"dev.jsonl:{i + 1}")
        for i in range(QUESTIONS)
    ]


@pytest.fixture
def plan(tmp_path) -> Plan:
    write_jsonl(tmp_path / "dev.jsonl", (example.to_dict() for example in examples()))
    return named(write_plan(tmp_path, PLAN))


def write_plan(folder: Path, text: str, name: str = "try.yaml") -> Path:
    write_text(folder / name, text.format(folder=folder.as_posix()))
    return folder / name


def named(path: Path) -> Plan:
    """The plan with settings as `identified` would give them, but of no model."""
    plan = read_plan(str(path), {})
    cells = []
    for cell in plan.cells:
        evaluations = []
        for asked in cell.evaluations:
            flags = dict(word.removeprefix("--").split("=", 1) for word in asked.words[1:] if word.startswith("--"))
            settings = compared({name: flags[name] for name in ("eval_file", "retriever") if name in flags})
            evaluations.append(replace(asked, settings=settings))
        settings = {"method": cell.method, "--learning_rate": 5e-4, "--seed": cell.seed}
        cells.append(replace(cell, settings=settings, evaluations=tuple(evaluations)))
    return replace(plan, cells=tuple(cells))


class Commands:
    """Fake commands: they write what the real ones write, and remember that they ran."""

    def __init__(self, failing: str = "") -> None:
        self.ran: list[str] = []
        self.failing = failing

    def __call__(self, words, log: Path) -> int:
        flags = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        folder = Path(flags["output_dir"])
        label = folder.parent.name if words[0] == "evaluate" else folder.name
        self.ran.append(f"{words[0]} {folder.name if words[0] == 'evaluate' else label} {label}".strip())
        if self.failing and label.startswith(self.failing):
            log.parent.mkdir(parents=True, exist_ok=True)
            write_text(log, "all is well\nthe disk is full\n")
            return 3
        folder.mkdir(parents=True, exist_ok=True)
        if words[0] == "evaluate":
            evaluate(folder, flags, label, words[1])
        elif not (folder / "run.json").exists():  # a finished run is left as it is
            write_text(folder / "run.json", as_json(record({"train and evaluate": 600.0, "load model": 30.0})))
        return 0


def record(durations: dict[str, float]) -> dict:
    finished = f"2026-11-30T10:00:{next(SECONDS):06d}+00:00"
    about = {"finished": finished, "working_directory": os.getcwd(), "versions": {"torch": "2"}}
    return {"durations": durations, "platform": "Linux", "device": "a CPU", **about}


def evaluate(folder: Path, flags: dict[str, str], label: str, model: str) -> None:
    rng = random.Random(label)
    for context in flags.get("contexts", "retrieved").split(","):
        given = []
        for number, example in enumerate(examples()):
            score = 0.3 + 0.01 * (number % 7) + GAIN[label.partition("-")[0]] + rng.gauss(0, 0.03)
            scores = {"generation/f1": min(1.0, max(0.0, score)), "latency/generation_s": 1.0}
            given.append(Prediction(example, (), SECRET, True, 0, 10, 5, scores, context, (), judged={"j": SECRET}))
        write_predictions(folder / "predictions" / f"{context}.jsonl", evaluation_of(given, 200))
    arguments = {"data": {"eval_file": flags["eval_file"]}, "retrieval": {"retriever": flags.get("retriever", "mix")}}
    arguments["model"] = {"model_name_or_path": model}
    inputs = {"eval_file": {"path": flags["eval_file"], "sha256": sha256_of(flags["eval_file"])}}
    about = {**record({"model": 120.0}), "arguments": arguments, "inputs": inputs}
    write_text(folder / "run.json", as_json(about))
    write_text(folder / "metrics.json", "{}\n")


def run(plan: Plan, commands: Commands | None = None, seconds: float | None = None, only=()) -> dict[str, str]:
    ended = sweep(plan, chosen(plan, list(only)), seconds, lambda line: None, commands or Commands())
    return {one.cell.label: one.how for one in ended}


def figures(plan: Plan) -> list[Figures]:
    return list(finished_cells(plan.cells, plan.results)[0].values())


# The plan


def test_cells_are_listed_seed_by_seed_and_the_base_model_once(plan):
    labels = [cell.label for cell in plan.cells]
    assert labels == ["base", "sft-seed0", "swr-seed0", "raft-seed7", "sft-seed1", "swr-seed1"]
    assert plan.names == ["base", "sft", "swr", "raft"] and plan.baseline == "sft"


def test_a_cell_is_an_ordinary_command_with_its_flags_as_written(plan):
    by_label = {cell.label: cell for cell in plan.cells}
    swr, base = by_label["swr-seed1"], by_label["base"]
    assert {"--citations=off", "--learning_rate=5e-4", "--seed=1", "--eval_strategy=no"} <= set(swr.words)
    assert f"--output_dir={plan.output_dir / 'swr-seed1'}" in swr.words
    mix, dense = swr.evaluations
    assert mix.words[0] == str(plan.output_dir / "swr-seed1") and mix.contexts == ("retrieved", "gold")
    assert "--retriever=dense" in dense.words and dense.contexts == ("retrieved",)
    assert base.words == ("model",) and base.evaluations[0].words[0] == "model"
    assert not any(word.startswith(("--use_peft", "--learning_rate", "--seed")) for word in base.evaluations[0].words)


def test_a_grid_is_every_combination_and_may_vary_the_method(tmp_path):
    text = """
questions: dev.jsonl
settings: {{model_name_or_path: m}}
grid:
  method: [sft, swr]
  learning_rate: [1e-4, 5e-4]
"""
    plan = read_plan(str(write_plan(tmp_path, text)), {"num_train_epochs": "2"})
    assert plan.names == [
        "method=sft,learning_rate=1e-4", "method=sft,learning_rate=5e-4",
        "method=swr,learning_rate=1e-4", "method=swr,learning_rate=5e-4",
    ]  # fmt: skip
    assert [cell.method for cell in plan.cells] == ["sft", "sft", "swr", "swr"]
    assert all("--num_train_epochs=2" in cell.words for cell in plan.cells)
    assert plan.baseline == plan.names[0] and plan.output_dir == Path("runs/try")


def test_an_eval_file_of_the_plan_chooses_checkpoints_and_the_last_test_stays_small(tmp_path):
    text = "questions: dev.jsonl\nsettings: {{eval_file: e.jsonl}}\ncells: {{a: {{}}}}\noutput_dir: o\n"
    path = write_plan(tmp_path, text)
    words = read_plan(str(path), {}).cells[0].words
    assert "--eval_file=e.jsonl" in words and f"--test_file={Path('o') / 'probe.jsonl'}" in words
    chosen_by_eval = read_plan(str(path), {"eval_strategy": "steps"}).cells[0].words
    assert "--eval_strategy=steps" in chosen_by_eval and not any(word.startswith("--save") for word in chosen_by_eval)


BAD = {
    "cells: {{a: {{}}}}": "questions: missing",
    "questions: q\ncells: {{a: {{}}}}\ngrid: {{k: [1]}}": "give either `cells` or `grid`",
    "questions: q": "give either `cells` or `grid`",
    "questions: q\ncells: {{a: {{method: magic}}}}": "try.yaml:2: a: no method is called magic",
    "questions: q\ncells: {{a: {{}}}}\nsomething: 1": "try.yaml:3: something: no such part",
    "questions: q\nquestions: r\ncells: {{a: {{}}}}": "try.yaml:2: questions: is also given in line 1",
    "questions: q\ncells:\n  a: {{k: 1}}\n  a: {{k: 2}}": "try.yaml:4: a: is also given in line 3",
    "questions: q\ncells: {{../a: {{}}}}": "the name of a cell is the name of a folder",
    "questions: q\ncells: {{.: {{}}}}": "the name of a cell is the name of a folder",
    "questions: q\ncells: {{a: {{seed: 3}}}}": "seed: cannot be set by a plan",
    "questions: q\ncells: {{a: {{output_dir: /etc}}}}": "output_dir: cannot be set by a plan",
    "questions: q\ncells: {{a: {{k: {{x: 1}}}}}}": "write a JSON object as text",
    "questions: q\ncells: {{a: {{}}}}\nseeds: [one]": "seeds: must be a list of whole numbers",
    "questions: q\ncells: {{a: {{}}}}\nbaseline: b": "baseline: no cell is called b; take one of a",
    "questions: q\ncells: {{a: {{}}}}\nmetric: f1": "metric: no figures of f1 are kept",
    "questions: q\ncells: {{a: {{}}}}\nalso: [latency/generation_s]": "also: no figures of latency/generation_s",
    "questions: q\ncells: [a, b]": "cells: must have a name and its flags",
    "questions: q\ngrid: {{k: []}}": "try.yaml:2: k: has no value",
    "questions: q\ngrid: {{k: [a/b, a|b]}}": "two combinations have the same name",
    "questions: q\ncells: {{a: {{}}}}\nevaluate: {{a/b: {{}}}}": "the name of an evaluation",
    "questions: [q]\ncells: {{a: {{}}}}": "questions: must be one text",
    "questions: q\ncells: {{a: {{}}}}\nreport: [a, b]": "try.yaml:3: report: must be one text",
    "questions: q\ncells: {{a: {{}}}}\nresults: {{a: b}}": "try.yaml:3: results: must be one text",
    'questions: q\ncells: {{a: {{}}}}\nreport: "a\\0b"': "try.yaml:3: report: must be one text, without null",
    "questions: q\ncells: {{a: {{}}}}\nseeds: [0, 1, 0]": "try.yaml:3: seeds: 0 is there twice",
    "questions: q\ncells: {{a: {{}}}}\nevaluate: {{m: {{output_dir: x}}}}": "output_dir: cannot be set by a plan",
    "questions: q\ncells: {{" + "a" * 101 + ": {{}}}}": "up to 100 letters",
    "questions: &x q\ncells: {{a: {{k: *x}}}}": "is an alias",
    "- a": "the file contains a list; it must map argument names to values",
    "a": "the file contains one value; it must map",
    "questions: q\ngrid: {{" + ", ".join(f"k{i}: [1, 2]" for i in range(11)) + "}}": "2,048 combinations",
}


@pytest.mark.parametrize("text, problem", BAD.items(), ids=range(len(BAD)))
def test_what_is_wrong_with_a_plan_is_one_line_with_its_place(tmp_path, text, problem):
    with pytest.raises(DataError) as raised:
        read_plan(str(write_plan(tmp_path, text)), {})
    assert any(problem in line and "\n" not in line for line in raised.value.problems), raised.value.problems


def test_wrong_flags_of_any_cell_are_reported_before_anything_runs(tmp_path, plan, capsys):
    text = PLAN.replace("citations: off", "citation: taught").replace("retriever: dense", "retrieve: dense")
    text = text.replace("retrieved,gold", "retrieved,../gold,")
    assert main(["sweep", str(write_plan(tmp_path, text)), "--dry_run"]) == 2
    shown = capsys.readouterr().err
    assert 'evaluation mix: --contexts: unknown: ../gold, ""; choose from' in shown
    assert "swr: --citation: no such argument" in shown and "retrieve: no such argument" in shown
    assert "sft: --train_file: missing" in shown
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["probe.jsonl"]


# Running


def test_every_cell_is_trained_and_evaluated_once_and_a_second_start_runs_nothing(plan):
    commands = Commands()
    assert set(run(plan, commands).values()) == {FINISHED}
    assert commands.ran[:2] == ["evaluate evaluation-mix base", "evaluate evaluation-dense base"]
    assert commands.ran[2:5] == ["sft sft-seed0 sft-seed0", "evaluate evaluation-mix sft-seed0",
                                 "evaluate evaluation-dense sft-seed0"]  # fmt: skip
    assert len(commands.ran) == 2 + 5 * 3
    again = Commands()
    assert set(run(plan, again).values()) == {BEFORE} and again.ran == []


def test_what_others_measured_counts_by_its_settings_and_not_where_it_ran(plan, tmp_path):
    run(plan)
    elsewhere = replace(plan, output_dir=tmp_path / "another machine")
    assert set(run(elsewhere, commands := Commands()).values()) == {BEFORE} and not commands.ran
    first = plan.cells[1]
    changed = replace(first, settings=first.settings | {"--learning_rate": 1e-3, "--new_flag": "its default"})
    cells = tuple(changed if cell is first else cell for cell in plan.cells)
    told: list[str] = []
    ended = sweep(replace(plan, cells=cells), cells, None, told.append, commands)
    assert [one.cell.label for one in ended if one.how == FINISHED] == ["sft-seed0"]
    assert any("--learning_rate: 0.0005 there, 0.001 here" in line for line in told)


def test_a_cell_that_fails_is_reported_and_the_others_go_on(plan):
    ended = sweep(plan, plan.cells, None, lambda line: None, Commands(failing="swr"))
    failed = [one for one in ended if one.how == FAILED]
    assert [one.cell.label for one in failed] == ["swr-seed0", "swr-seed1"]
    assert "exit status 3: the disk is full" in failed[0].why and "swr-seed0.log" in failed[0].why
    assert len([one for one in ended if one.how == FINISHED]) == 4
    assert set(run(plan).values()) == {BEFORE, FINISHED}


def test_what_is_evaluated_is_kept_though_another_evaluation_fails(plan):
    class Dense(Commands):
        def __call__(self, words, log):
            return 1 if any("evaluation-dense" in word for word in words) else super().__call__(words, log)

    assert run(plan, Dense(), only=["sft-seed0"]) == {"sft-seed0": FAILED}
    cell = next(cell for cell in plan.cells if cell.label == "sft-seed0")
    assert set(read_figures(plan.results_file(cell)).scored) == {"mix"} and figures(plan) == []
    run(plan, commands := Commands(), only=["sft-seed0"])
    assert commands.ran == ["sft sft-seed0 sft-seed0", "evaluate evaluation-dense sft-seed0"]
    assert set(figures(plan)[0].scored) == {"mix", "dense"}


def test_evaluations_made_by_hand_are_recognised_and_others_are_not(plan):
    cell = next(cell for cell in plan.cells if cell.label == "sft-seed0")
    by_hand = Commands()
    by_hand([cell.method, *cell.words], Path("log"))
    by_hand(["evaluate", *cell.evaluations[0].words], Path("log"))
    commands = Commands()
    run(plan, commands, only=["sft-seed0"])
    assert commands.ran == ["sft sft-seed0 sft-seed0", "evaluate evaluation-dense sft-seed0"]
    place = plan.folder(cell) / "evaluation-mix"
    assert evaluated(cell.evaluations[0], place) and not evaluated(cell.evaluations[1], place)
    write_text(place / "run.json", '{"arguments": 3}')
    assert not evaluated(cell.evaluations[0], place)


def test_an_evaluation_of_other_weights_or_with_failures_is_made_again(plan):
    cell = next(cell for cell in plan.cells if cell.label == "sft-seed0")
    run(plan, only=["sft-seed0"])
    plan.results_file(cell).unlink()
    place = plan.folder(cell) / "evaluation-mix"
    write_text(place / "metrics.json", '{"failures": ["judge: 3 of 40 verdicts failed"]}')
    run(plan, commands := Commands(), only=["sft-seed0"])
    assert commands.ran == ["sft sft-seed0 sft-seed0", "evaluate evaluation-mix sft-seed0"]
    plan.results_file(cell).unlink()
    (plan.folder(cell) / "run.json").unlink()  # as --overwrite_output_dir does: it is trained again
    run(plan, commands := Commands(), only=["sft-seed0"])
    assert len(commands.ran) == 3
    base = replace(plan.cells[0].evaluations[0], words=("another", *plan.cells[0].evaluations[0].words[1:]))
    run(plan, only=["base"])
    place = plan.folder(plan.cells[0]) / "evaluation-mix"
    assert evaluated(plan.cells[0].evaluations[0], place) and not evaluated(base, place)


def test_the_reason_of_a_failed_evaluation_is_what_failed_in_it(plan):
    def failing(words, log):
        status = Commands()(words, log)
        if words[0] != "evaluate":
            return status
        folder = Path(next(word for word in words if word.startswith("--output_dir=")).partition("=")[2])
        write_text(folder / "metrics.json", '{"failures": ["judge: 3 of 40 verdicts failed"]}')
        write_text(log, "Report: evaluation.html")
        return 1

    (ended,) = sweep(plan, plan.cells[:1], None, lambda line: None, failing)
    assert ended.how == FAILED and "judge: 3 of 40 verdicts failed" in ended.why


def test_an_evaluation_that_is_not_the_one_asked_for_is_no_success(plan):
    def other(words, log):
        return Commands()([*words[:2], *(word.replace("retriever=mix", "retriever=bm25") for word in words[2:])], log)

    (ended,) = sweep(plan, plan.cells[:1], None, lambda line: None, other)
    assert ended.how == FAILED and "is not the evaluation that was asked for" in ended.why


def test_a_secret_among_the_flags_of_an_evaluation_does_not_hide_it(plan):
    asked = plan.cells[0].evaluations[0]
    options = '{"user_key": "abcdef"}'
    known = replace(asked, settings={**asked.settings, "judge_options": options})
    run(plan, only=["base"])
    place = plan.folder(plan.cells[0]) / "evaluation-mix"
    about = json.loads((place / "run.json").read_text("utf-8"))
    about["arguments"]["judge"] = {"judge_options": without_secrets({"judge_options": options})["judge_options"]}
    write_text(place / "run.json", as_json(about))
    assert evaluated(known, place)


def test_an_evaluation_with_a_file_that_changed_since_is_made_again(plan, tmp_path):
    run(plan, only=["base"])
    place = plan.folder(plan.cells[0]) / "evaluation-mix"
    wordings = tmp_path / "wordings.txt"
    write_text(wordings, "pass")
    about = json.loads((place / "run.json").read_text("utf-8"))
    about["arguments"]["evaluation"] = {"abstentions": str(wordings)}
    about["inputs"]["abstentions"] = {"path": str(wordings), "sha256": sha256_of(wordings)}
    write_text(place / "run.json", as_json(about))

    def asked():
        known = plan.cells[0].evaluations[0]
        return replace(known, settings={**known.settings, **compared({"abstentions": str(wordings)})})

    assert evaluated(asked(), place)
    write_text(wordings, "no comment")
    assert not evaluated(asked(), place)
    del about["inputs"]["abstentions"]  # as of an older version
    write_text(place / "run.json", as_json(about))
    assert not evaluated(asked(), place)


def test_named_files_and_models_are_compared_by_their_contents_and_numbers_in_full(tmp_path):
    for name in ("judge_prompt", "rewrite_prompt", "abstentions", "forgetting"):
        write_text(tmp_path / "a.txt", "one")
        before = compared({name: str(tmp_path / "a.txt")})
        write_text(tmp_path / "b.txt", "one")
        assert compared({name: str(tmp_path / "b.txt")}) == before
        write_text(tmp_path / "a.txt", "two")
        assert compared({name: str(tmp_path / "a.txt")}) != before
    words = ["m", "--judge_prompt", str(tmp_path / "a.txt"), "correctness"]
    several = {"judge_prompt": given(evaluation_parser(), words)["judge_prompt"]}
    before = compared(several)
    write_text(tmp_path / "a.txt", "three")
    assert compared(several) != before and compared(several)["judge_prompt"].endswith(" correctness")
    assert compared({"eval_max_samples": 1234567}) != compared({"eval_max_samples": 1234568})
    assert compared({"a": "5e-4", "b": 4, "c": "0.70"}) == {"a": "0.0005", "b": "4", "c": "0.7"}


def test_the_estimate_keeps_a_cell_of_which_nothing_is_known_from_starting_too_late(plan):
    estimated = {cell.label: 600.0 for cell in plan.cells}
    ended = sweep(plan, plan.cells[1:2], 90 * 60, lambda line: None, Commands(), estimated=estimated)
    assert [one.how for one in ended] == [NO_TIME] and "about 600 min" in ended[0].why


def test_only_some_cells_by_name_or_with_a_seed(plan):
    assert list(run(plan, only=["base", "swr-seed1"])) == ["base", "swr-seed1"]


def test_no_cell_is_started_that_would_not_end_in_time(plan):
    assert set(run(plan, seconds=0).values()) == {NO_TIME}
    run(plan, only=["base", "sft-seed0"])  # 10.5 minutes of training, 2 of each evaluation
    found = run(plan, commands := Commands(), seconds=14 * 60)
    assert (found["base"], found["sft-seed0"], found["swr-seed0"]) == (BEFORE, BEFORE, NO_TIME) and not commands.ran
    assert run(plan, seconds=15 * 60)["swr-seed0"] == FINISHED
    known = figures(plan)
    assert on("another CPU", known) == [] and on("a CPU", known) == on("", known) == known
    assert expected_minutes(plan.cells[0], known) == pytest.approx(4.0)
    assert expected_minutes(plan.cells[4], known) == pytest.approx(14.5)
    assert expected_minutes(plan.cells[4], []) is None and expected_minutes(plan.cells[4], [], 9.0) == 9.0


def test_a_cell_that_another_process_works_on_is_left_to_it(plan):
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(plan.output_dir, file="sft-seed0.cell"):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    found = run(plan, only=["sft"])
    done.set()
    thread.join()
    assert found == {"sft-seed0": IN_USE, "sft-seed1": FINISHED}


def test_a_command_runs_in_a_process_of_its_own_and_its_log_can_be_repeated(tmp_path):
    log = tmp_path / "x.log"
    assert in_a_process(["compare", "nowhere", "nobody"], log) == 2
    text = log.read_text("utf-8")
    assert "$ groundtune compare nowhere nobody" in text and "nowhere: no such file or folder" in text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_stops_the_command_and_then_the_sweep(tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import sys; from pathlib import Path; from groundtune.recipes import sweep; from groundtune.cli import _run\n"
        "sweep._CODE = \"import os, time; open(os.environ['READY'], 'w').close(); time.sleep(60)\"\n"
        "sys.exit(_run(lambda: sweep.in_a_process(['x'], Path(sys.argv[1]))))"
    )
    environment = {**os.environ, "READY": str(ready)}
    words = [sys.executable, "-c", code, str(tmp_path / "log")]
    begin = time.monotonic()
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as child:
        while not ready.exists() and time.monotonic() < begin + 60:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
        assert "stopped by SIGTERM" in child.stderr.read()
    assert time.monotonic() - begin < 60


# Figures


def test_figures_hold_no_text_of_the_data_and_are_read_as_they_were_written(plan):
    run(plan)
    path = plan.results_file(plan.cells[1])
    text = path.read_text("utf-8")
    assert "secret" not in text.lower() and "Answer" not in text and "Passage" not in text
    assert str(plan.output_dir) not in text
    found = read_figures(path)
    assert (found.cell, found.seed, found.minutes["training"]) == ("sft", 0, 10.0)
    assert found.minutes["besides training"] == pytest.approx(0.5, abs=0.01) and found.minutes["mix"] == 2.0
    scored = found.scored["mix"]["retrieved"]
    assert len(set(scored.questions)) == QUESTIONS and scored.passages[:4] == (0, 0, 1, 1)
    assert set(scored.scores) == {"generation/f1"}  # no times, which say nothing elsewhere
    write_figures(path.with_name("copy.json"), found)
    assert path.with_name("copy.json").read_text("utf-8") == text


def test_a_repeated_question_is_another_one():
    example = examples()[0]
    scored = scored_of([Prediction(example, (), "a", True, 0, 1, 1, {"generation/f1": 0.5}, "gold", ())] * 2)
    assert len(set(scored.questions)) == 2


DAMAGES = {
    "no JSON": lambda row: "nonsense",
    "a list": lambda row: [row],
    "a part is missing": lambda row: {k: v for k, v in row.items() if k != "minutes"},
    "a part too many": lambda row: row | {"more": 1},
    "a name that leaves the folder": lambda row: row | {"cell": "../../x"},
    "a name of a context": lambda row: row | {"scored": {"mix": {"<script>": row["scored"]["mix"]["gold"]}}},
    "minutes that are text": lambda row: row | {"minutes": {"mix": "9"}},
    "minutes without an end": lambda row: row | {"minutes": {"mix": 1e9}},
    "a seed that is text": lambda row: row | {"seed": "0"},
    "a version that is a list": lambda row: row | {"versions": {"torch": []}},
    "scores too few": lambda row: change(row, "scores", {"generation/f1": [0.5]}),
    "a score that is text": lambda row: change(row, "scores", {"generation/f1": ["0.5"] * QUESTIONS}),
    "a score that is no number": lambda row: change(row, "scores", {"generation/f1": [float("nan")] * QUESTIONS}),
    "another metric": lambda row: change(row, "scores", {"../f1": [0.5] * QUESTIONS}),
    "a question with its text": lambda row: change(row, "questions", ["What?"] * QUESTIONS),
    "a question twice": lambda row: change(row, "questions", ["0" * 16] * QUESTIONS),
    "passages that are text": lambda row: change(row, "passages", ["1"] * QUESTIONS),
    "no questions": lambda row: change(change(row, "questions", []), "passages", []),
}


def change(row: dict, name: str, value: object) -> dict:
    scored = row["scored"]["mix"]["retrieved"] | {name: value}
    return row | {"scored": {"mix": {"retrieved": scored}}}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_figures_that_a_stranger_changed_are_refused_in_one_line(plan, damage):
    run(plan, only=["base"])
    path = plan.results_file(plan.cells[0])
    damaged = damage(json.loads(path.read_text("utf-8")))
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged), "utf-8")
    with pytest.raises(DataError) as raised:
        read_figures(path)
    (problem,) = raised.value.problems
    assert problem.startswith(f"{path}: not the figures of a cell") and "\n" not in problem


# Who wins


def test_the_winner_is_clear_of_every_other_cell(plan):
    run(plan)
    found = standings(plan.names, figures(plan), At("mix", "retrieved", "generation/f1"), "sft", 500)
    assert found.winner == "swr" and found.sentence.startswith("The winner is swr")
    verdicts = {row.name: row.verdict for row in found.cells}
    assert verdicts == {"base": "worse", "sft": "", "swr": "better", "raft": "no clear difference"}
    assert (found.comparisons, round(found.level, 4)) == (3, 0.9833)
    assert len(found.of("swr").of_seeds) == 2 and found.of("base").minutes == 0


def test_without_a_clear_winner_the_cheapest_of_those_that_stand_is_named(plan):
    run(plan)
    kept = [one for one in figures(plan) if one.cell != "swr"]
    dear = [replace(one, minutes={**one.minutes, "training": 99.0}) if one.cell == "sft" else one for one in kept]
    found = standings(plan.names, dear, At("mix", "retrieved", "generation/f1"), "sft", 500)
    assert not found.winner and set(found.standing) == {"sft", "raft"} and found.cheapest == "raft"
    assert found.sentence.startswith("No clear winner: ") and found.sentence.endswith("the cheapest is raft.")
    assert found.of("swr").mean is None
    elsewhere = [replace(one, machine={"device": "a GPU"}) if one.cell == "sft" else one for one in dear]
    found = standings(plan.names, elsewhere, At("mix", "retrieved", "generation/f1"), "sft", 500)
    assert found.cheapest == "" and "cheapest" not in found.sentence
    assert "on machines or in precisions that differ" in markdown(plan, elsewhere, [found])


def test_minutes_of_another_precision_say_nothing(plan):
    run(plan)
    known = [replace(one, machine={**one.machine, "precision": "bfloat16"}) for one in figures(plan)]
    here = replace(plan.cells[4], words=(*plan.cells[4].words, "--bf16=false"))
    assert expected_minutes(here, known) is None
    assert expected_minutes(replace(here, words=(*plan.cells[4].words, "--bf16=true")), known) is not None


def test_where_lower_is_better_the_lowest_wins(plan):
    run(plan)
    renamed = []
    for one in figures(plan):
        scored = one.scored["mix"]["retrieved"]
        scores = {"errors/answerable_refused": scored.scores["generation/f1"]}
        renamed.append(replace(one, scored={"mix": {"retrieved": replace(scored, scores=scores)}}))
    found = standings(plan.names, renamed, At("mix", "retrieved", "errors/answerable_refused"), "sft", 500)
    assert found.winner == "base" and found.of("swr").verdict == "worse"


def cells_of_chance(rng: random.Random, cells: int, seeds: int) -> list[Figures]:
    """Cells that differ by chance alone."""
    found = []
    for cell in range(cells):
        for seed in range(seeds):
            given = [
                Prediction(e, (), "", True, 0, 1, 1, {"generation/f1": rng.betavariate(2, 3)}, "retrieved", ())
                for e in examples()
            ]
            found.append(Figures(f"c{cell}", "swr", seed, {}, {"mix": {}}, {"mix": {"retrieved": scored_of(given)}},
                                 {}, {}, {}, ""))  # fmt: skip
    return found


@pytest.mark.slow
def test_cells_that_differ_by_chance_alone_have_a_winner_or_a_better_one_in_few_sweeps():
    rng, false, tests = random.Random(0), 0, 150
    for _ in range(tests):
        names = [f"c{i}" for i in range(5)]
        at = At("mix", "retrieved", "generation/f1")
        found = standings(names, cells_of_chance(rng, 5, 2), at, "c0", samples=400)
        false += bool(found.winner) or any(row.verdict in ("better", "worse") for row in found.cells)
    assert false / tests <= 0.09  # of at most 5 %, with the chance of 150 tests


def test_on_few_passages_nobody_wins(plan):
    run(plan)
    few = []
    for one in figures(plan):
        scored = one.scored["mix"]["retrieved"]
        few.append(replace(one, scored={"mix": {"retrieved": replace(scored, passages=tuple(
            number % 5 for number in range(QUESTIONS)))}}))  # fmt: skip
    found = standings(plan.names, few, At("mix", "retrieved", "generation/f1"), "sft", 200)
    assert not found.winner and "fewer than 20 passages" in found.sentence


# The report


def test_the_report_has_one_table_one_plot_and_says_what_is_not_measured(plan):
    run(plan, only=["base", "sft", "swr-seed0"])
    found = all_standings(plan, figures(plan), 300)
    write_sweep(plan, figures(plan), found)
    text = plan.report.read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| Cell | Seeds | F1 (mix, retrieved) | F1 (mix, gold) | F1 (dense, retrieved) | - sft")
    assert any(row.startswith("| raft | 0 | not measured |") for row in rows)
    assert next(row for row in rows if row.startswith("| sft ")).split("|")[2].strip() == "2"
    assert "4 of 6 runs are measured" in text and "Clearly better than sft: swr" in text
    assert "Not measured: raft." in text and "a CPU" in text
    svg = (plan.report.parent / "try.svg").read_text("utf-8")
    root = ElementTree.fromstring(svg)  # noqa: S314  our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "var(--" not in svg
    assert "raft (not measured)" in svg


def test_names_that_begin_alike_are_whole_on_a_terminal_of_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"learning_rate={rate},num_train_epochs=3,lora_r=16" for rate in ("1e-2", "1e-3")]
    write_text(tmp_path / "try.yaml", "\n  ".join(["questions: q\ncells:", *(f"{name}: {{}}" for name in names)]))
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only", "-o", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and "1e-2" in shown and "1e-3" in shown


def test_a_metric_is_headed_by_a_name_that_no_other_one_has():
    assert _metric("citations/recall") == "Citations, recall" and _metric("generation/recall") == "Recall"
    assert _metric("grounded/tokens") == "Grounded, tokens" and _metric("retrieval/recall@4") == "Recall@4"


def between_marks(page: str, name: str) -> str:
    """What a sweep wrote into a page."""
    begin, end = (f"<!-- sweep {name}: {mark} -->" for mark in ("begin", "end"))
    return page.partition(begin)[2].partition(end)[0].strip("\n") + "\n"


def test_the_seeds_of_a_row_are_those_that_have_the_score(plan):
    run(plan, only=["sft", "swr"])
    lacking = [replace(one, scored={**one.scored, "mix": {}}) if one.seed == 1 else one for one in figures(plan)]
    found = all_standings(plan, lacking, 300)
    assert found[0].of("swr").seeds == len(found[0].of("swr").of_seeds) == 1 and found[2].of("swr").seeds == 2
    row = next(row for row in table(found)[1] if row[0] == "swr")
    assert row[1] == "1"
    nowhere = [replace(one, scored={**one.scored, "mix": {}}) for one in figures(plan)]
    row = next(row for row in table(all_standings(plan, nowhere, 300))[1] if row[0] == "swr")
    assert row[1] == "2"


def test_a_seed_whose_file_was_copied_does_not_count_twice(plan, tmp_path, capsys):
    run(plan)
    results = tmp_path / "runs" / "results"
    (results / "sft-seed1.json").write_bytes((results / "sft-seed0.json").read_bytes())
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only"]) == 2
    assert "sft: two files are of seed 0" in capsys.readouterr().err


def test_a_page_with_marks_keeps_all_that_is_outside_them(plan):
    begin, end = "<!-- sweep try: begin -->", "<!-- sweep try: end -->"
    page = plan.output_dir.parent / "results.md"
    write_text(page, f"# Results\n\n{begin}\nstale\n{end}\n\nthe rest\n")
    plan = replace(plan, report=page)
    run(plan)
    found = all_standings(plan, figures(plan), 300)
    for _ in range(2):
        write_sweep(plan, figures(plan), found)
    text = page.read_text("utf-8")
    assert text.startswith(f"# Results\n\n{begin}\n\n") and text.endswith(f"\n{end}\n\nthe rest\n")
    assert "stale" not in text and text.count(begin) == text.count(end) == 1
    assert between_marks(text, "try") == markdown(plan, figures(plan), found, "try.svg")


def test_a_page_without_marks_is_not_replaced(plan, tmp_path, capsys):
    page = tmp_path / "runs" / "sweep.md"
    page.parent.mkdir()
    write_text(page, "my own notes\n")
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only"]) == 2
    assert "sweep.md exists and has no lines <!-- sweep try: begin -->" in capsys.readouterr().err
    assert page.read_text("utf-8") == "my own notes\n"


def test_the_report_is_made_from_the_files_of_figures_alone(plan, tmp_path, capsys):
    run(plan)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name != "results" and path.name != "try.yaml":
            path.unlink()
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["measured"], shown["winner"]) == (6, "swr")
    assert (tmp_path / "runs" / "sweep.md").is_file()


def test_files_of_other_cells_are_in_no_report(plan, tmp_path, capsys):
    run(plan)
    path = tmp_path / "runs" / "results" / "sft-seed1.json"
    there = read_figures(path)
    write_figures(path, replace(there, settings={**there.settings, "--learning_rate": 1e-3}))
    told: list[str] = []
    found, known = _reported(plan, False, told.append)
    assert len(known) == 5 and found[0].of("sft").seeds == 1
    assert "sft-seed1.json, which is another cell: --learning_rate: 0.001 there, 0.0005 here" in told[0]
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only"]) == 2  # by the files alone
    assert "sft: seeds 0 and 1: --learning_rate: 0.0005 there, 0.001 here" in capsys.readouterr().err
    others = {name: {**asked, "eval_file": "sha256 0"} for name, asked in there.evaluations.items()}
    write_figures(path, replace(there, evaluations=others))
    assert main(["sweep", str(tmp_path / "try.yaml"), "--report_only"]) == 2
    assert "sft: evaluation mix: its questions are not those of base" in capsys.readouterr().err


def test_what_is_measured_in_part_is_in_the_report(plan):
    run(plan, only=["base"])
    path = plan.results_file(plan.cells[0])
    there = read_figures(path)
    write_figures(path, replace(there, evaluations={"mix": there.evaluations["mix"]}))
    assert len(_reported(plan, False, print)[1]) == 1 and not figures(plan)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--only", "nobody"], "--only: no cell is called nobody; take one of base, sft, swr, raft"),
        (["--time_budget", "soon"], "--time_budget: soon: write a number with s, m or h"),
        (["--set", "learning_rate"], "--set: learning_rate: write FLAG=VALUE"),
        (["--report_only", "--dry_run"], "--dry_run: has no effect with --report_only"),
        (["--report_only", "--time_budget", "9m"], "--time_budget: has no effect with --report_only"),
    ],
)
def test_wrong_arguments_of_the_command_are_one_line(plan, tmp_path, capsys, words, problem):
    assert main(["sweep", str(tmp_path / "try.yaml"), *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_plan_whose_questions_are_missing_is_refused(tmp_path, capsys):
    assert main(["sweep", str(write_plan(tmp_path, PLAN)), "--dry_run"]) == 2
    assert "questions: " in (shown := capsys.readouterr().err) and "cannot be read" in shown


def test_a_plan_is_identified_by_contents_not_by_paths(tmp_path, families, static_embedding_folder, data_folder):
    text = f"""
questions: {(data_folder / "eval.jsonl").as_posix()}
output_dir: {{folder}}/runs
settings:
  model_name_or_path: {Path(families["llama"].folder).as_posix()}
  embedding_model: {static_embedding_folder.as_posix()}
  train_file: {(data_folder / "train.jsonl").as_posix()}
  eval_file: {(data_folder / "eval.jsonl").as_posix()}
  full_dataset_file_path: {(data_folder / "documents.jsonl").as_posix()}
cells:
  base: {{{{method: none}}}}
  a: {{{{learning_rate: 5e-4}}}}
  b: {{{{learning_rate: 0.0005, output_dir: x}}}}
""".replace(", output_dir: x", "")
    (tmp_path / "runs").mkdir()
    write_text(tmp_path / "runs" / "probe.jsonl", (data_folder / "eval.jsonl").read_text("utf-8"))
    base, a, b = identified(read_plan(str(write_plan(tmp_path, text)), {})).cells
    assert a.settings == b.settings and a.settings["--learning_rate"] == 5e-4
    assert str(tmp_path) not in json.dumps([a.settings, base.settings])
    assert a.settings["--model_name_or_path"] == base.settings["--model_name_or_path"]
    assert base.evaluations[0].settings["eval_file"].startswith("sha256 ")


def real_settings(families, data_folder: Path) -> str:
    """Lines of settings that name a real model and real files."""
    files = {"train_file": "train", "eval_file": "eval", "test_file": "eval", "full_dataset_file_path": "documents"}
    flags = {"model_name_or_path": Path(families["llama"].folder).as_posix(), "retriever": "bm25"}
    flags |= {flag: (data_folder / f"{name}.jsonl").as_posix() for flag, name in files.items()}
    return "\n".join(f"  {flag}: {value}" for flag, value in flags.items())


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_machine_may_choose_the_precision_which_then_tells_no_cells_apart(
    tmp_path, families, data_folder, monkeypatch, native, dtype
):
    monkeypatch.setattr("groundtune.model.loading.computes_bf16", lambda: native)
    text = f"""
output_dir: {{folder}}/runs
questions: {(data_folder / "eval.jsonl").as_posix()}
settings:
{real_settings(families, data_folder)}
  bf16: VALUE
cells:
  base: {{{{method: none}}}}
  a: {{{{method: sft}}}}
"""
    auto, fixed = (
        identified(read_plan(str(write_plan(tmp_path, text.replace("VALUE", value))), {}))
        for value in ("auto", str(native).lower())
    )
    evaluated_by_machine = f"evaluate: {{{{retrieved: {{{{bf16: auto}}}}}}}}{text.replace('  bf16: VALUE', '')}"
    alone = identified(read_plan(str(write_plan(tmp_path, evaluated_by_machine)), {}))
    assert all("bf16" not in cell.evaluations[0].settings for cell in alone.cells)
    for chosen_, written in zip(auto.cells, fixed.cells, strict=True):
        assert (chosen_.words, chosen_.evaluations[0].words) == (written.words, written.evaluations[0].words)
        its = written.settings.get("--bf16", written.evaluations[0].settings.get("bf16"))
        assert its in (native, str(native).lower())
        there = Figures(
            written.name, written.method, written.seed, written.settings,
            {one.name: one.settings for one in written.evaluations}, {}, {}, {"device": "a CPU"}, {}, "",
        )  # fmt: skip
        assert there.precision == dtype and there.other_than(chosen_) == there.other_than(written) == []
        other = replace(there, settings={**there.settings, "--bf16": not native}, evaluations={
            name: {**settings, "bf16": str(not native).lower()} for name, settings in there.evaluations.items()
        })  # fmt: skip
        assert other.other_than(chosen_) == []
        assert other.other_than(written) != []


def test_cells_that_take_other_steps_are_estimated_each_and_all_their_problems_come_at_once(plan, monkeypatch, capsys):
    asked: list[str] = []

    def minutes(cell):
        asked.append(cell.label)
        if cell.name in failing:
            raise DataError([f"{cell.name}.jsonl:1: odd"])
        return 60.0 if cell.method == "sft" else 180.0

    failing: set[str] = set()
    monkeypatch.setattr("groundtune.commands.sweep._training_minutes", minutes)
    total = sum(one or 0.0 for one in _estimate(plan.cells, [], print, dry=True).values())
    assert asked == ["sft-seed0", "swr-seed0", "raft-seed7"] and total == 2 * 60 + 3 * 180
    assert "sft-seed1: about 60 min" in (shown := capsys.readouterr().out) and "about 11 h" in shown
    failing = {"sft", "raft"}
    with pytest.raises(DataError) as error:
        _estimate(plan.cells, [], print, dry=True)
    assert [problem.partition(":")[0] for problem in error.value.problems[:2]] == ["sft-seed0", "raft-seed7"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("study: nonsense", "--study: unknown: nonsense"),
        ("forgetting: no.jsonl", "--forgetting: no such file"),
        ("embedding_model: /no/folder", "/no/folder"),
        ("eval_num_to_retrieve: 0", "--eval_num_to_retrieve: 0"),
        ("abstain_below: foo", "--abstain_below: foo"),
        ("abstentions: no.txt", "--abstentions: no such file"),
        ("right_metric: judge/correctness", "--right_metric: judge/correctness needs a judge"),
        ("eval_file: ", "--eval_file: missing"),
        ("eval_file: {folder}/broken.jsonl", "broken.jsonl:2"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_known_before_anything_is_trained(
    tmp_path, families, data_folder, flags, problem
):
    rows = (data_folder / "eval.jsonl").read_text("utf-8").splitlines()
    write_text(tmp_path / "broken.jsonl", f"{rows[0]}\nno JSON\n")
    text = f"""
output_dir: {{folder}}/runs
questions: {(data_folder / "eval.jsonl").as_posix()}
evaluate:
  mix:
    retriever: bm25
    {flags}
settings:
{real_settings(families, data_folder)}
cells:
  a: {{{{method: sft}}}}
"""
    with pytest.raises(DataError) as error:
        identified(read_plan(str(write_plan(tmp_path, text)), {}))
    assert any(problem in line and "a: evaluation mix: " in line for line in error.value.problems), error.value.problems


def test_two_cells_never_share_a_folder_and_changes_never_the_results_of_the_plan(tmp_path):
    text = PLAN.replace("  base: {{method: none}}", "  sft-seed0: {{method: none}}")
    with pytest.raises(DataError, match="two cells would be sft-seed0; give one of them another name"):
        read_plan(str(write_plan(tmp_path, text)), {})
    path = str(write_plan(tmp_path, PLAN + "results: kept\n"))
    with pytest.raises(DataError, match="with --set, these would be of other cells; give --output_dir, too"):
        read_plan(path, {"num_train_epochs": "2"})
    assert read_plan(path, {}).results == tmp_path / "kept"
    longer = read_plan(path, {"num_train_epochs": "2"}, str(tmp_path / "longer"))
    assert (longer.results, longer.report) == (tmp_path / "longer" / "results", tmp_path / "longer" / "sweep.md")


# What is in the repository


@pytest.mark.parametrize("name", ["study", "small", "choices", "smollm2", "dialogues"])
def test_the_plans_of_the_study_are_read_and_every_command_parses(name):
    plan = read_plan(str(ROOT / "examples" / "study" / f"{name}.yaml"), {})
    for cell in plan.cells:
        if cell.method:
            assert parse_arguments(cell.method, cell.words).training.eval_strategy == "no"
        for asked in cell.evaluations:
            assert given(evaluation_parser(), asked.words)["output_dir"].endswith(f"evaluation-{asked.name}")


def test_the_page_of_results_is_what_the_figures_in_the_repository_give():
    """After a new cell: groundtune sweep examples/study/study.yaml --report_only"""
    plan = read_plan(str(ROOT / "examples" / "study" / "study.yaml"), {})
    there = [read_figures(path) for cell in plan.cells if (path := plan.results_file(cell)).is_file()]
    found = all_standings(plan, there)
    picture = "study.svg" if there else ""
    shown = between_marks((ROOT / "docs" / "results.md").read_text("utf-8"), "study")
    assert shown == markdown(plan, there, found, picture)
    assert (ROOT / "docs" / "study.svg").is_file() == bool(picture)


def test_figures_in_the_repository_belong_to_cells_of_their_plan():
    known: set[Path] = set()
    for name in ("study", "small", "choices", "smollm2", "dialogues"):
        plan = read_plan(str(ROOT / "examples" / "study" / f"{name}.yaml"), {})
        known |= {plan.results_file(cell) for cell in plan.cells}
    assert set((ROOT / "examples" / "study" / "results").rglob("*.json")) <= known


def test_the_plans_in_the_documentation_are_plans(tmp_path):
    whole, part = (block.text for block in blocks("docs/howto/sweep.md") if block.language == "yaml")
    plan = read_plan(str(write_plan(tmp_path, whole.replace("{", "{{").replace("}", "}}"))), {})
    assert len(plan.cells) == 9 and plan.baseline == "learning_rate=2e-4"
    text = whole.partition("method:")[0].replace("baseline", "# ") + part
    plan = read_plan(str(write_plan(tmp_path, text.replace("{", "{{").replace("}", "}}"))), {})
    assert plan.names == ["base", "sft", "swr", "shuffled", "small_passages"] and len(plan.cells) == 1 + 4 * 3
