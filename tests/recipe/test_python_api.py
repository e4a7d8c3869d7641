"""The package's functions do what its commands do, any number of times, without side effects on the caller."""

from __future__ import annotations

import inspect
import json
import logging
import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_documents, tiny_examples
from fake_server import FakeServer

import groundtune
import groundtune.recipes.evaluate
import groundtune.recipes.train
import groundtune.training.trainer
from groundtune import api
from groundtune.cli import main
from groundtune.errors import DataError, ModelError
from groundtune.model.endpoint import EndpointError
from groundtune.reporting.report import write_results
from groundtune.retrieval.retrievers import BM25Retriever, MixRetriever

SECRET = "hf_" + "aB3dE5" * 6  # made up; the shape is a token's
QUESTION = tiny_examples()[3].question  # the first of test.jsonl; it has no history


@pytest.fixture(scope="module")
def given(families, static_embedding_folder, data_folder) -> dict[str, Any]:
    """Keyword arguments, in Python style, for a training of a second or two."""
    return {
        "model_name_or_path": families["mistral"].folder, "embedding_model": static_embedding_folder,
        "train_file": data_folder / "train.jsonl", "eval_file": data_folder / "eval.jsonl",
        "test_file": data_folder / "test.jsonl", "full_dataset_file_path": data_folder / "documents.jsonl",
        "instruction": "Answer.", "max_seq_length": 300, "max_new_tokens": 8, "bootstrap_samples": 100,
        "eval_num_to_retrieve": 2, "per_device_train_batch_size": np.int64(2), "bf16": False, "use_peft": True,
        "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj", "down_proj"], "max_steps": 3, "learning_rate": 5e-2,
        "eval_strategy": "no", "gguf_file": None, "quiet": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(given, tmp_path_factory) -> groundtune.Run:
    folder = tmp_path_factory.mktemp("run")
    run = groundtune.train("swr", output_dir=folder, full_dataset_index_path=folder / "index", **given)
    answers = [[p.answer for p in evaluation.predictions] for evaluation in (run.results.base, run.results.tuned)]
    assert all(base != tuned for base, tuned in zip(*answers, strict=True)), "or one could stand for the other"
    return run


@pytest.fixture
def refused(monkeypatch) -> None:
    """Refuse to train."""
    monkeypatch.setattr(groundtune.recipes.train, "QATrainer", lambda **options: pytest.fail("a training began"))


def problems(call, *args: Any, **arguments: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        call(*args, **arguments)
    return caught.value.problems


# Train


def test_the_results_of_a_run_are_those_in_its_folder_byte_by_byte(run, tmp_path):
    """What `load` reads back writes every file again as the training wrote it."""
    write_results(tmp_path, groundtune.load(run.folder).results)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names >= {"metrics.json", "run.json", "report.html", "report.md", "README.md"} and len(names) == 8
    for name in names:
        assert (tmp_path / name).read_bytes() == (run.folder / name).read_bytes(), name
    read = groundtune.load(run.folder).results
    assert read.base == run.results.base and read.tuned == run.results.tuned and read.notes == run.results.notes
    assert read.differences == run.results.differences and read.verdict == run.results.verdict


def test_what_a_notebook_prints_of_a_run_is_short(run):
    for shown in (run, run.results, run.ask(QUESTION)):
        assert len(repr(shown)) < 8000 and tiny_examples()[3].gold_documents[0].page_content not in repr(run.results)
    assert run.table().row_count > 5
    assert str(run.ask(QUESTION)) == run.ask(QUESTION).text


def test_a_finished_run_that_is_asked_for_again_is_returned_and_not_trained(run, given, refused):
    again = groundtune.train("swr", output_dir=run.folder, full_dataset_index_path=run.folder / "index", **given)
    assert again.folder == run.folder and again.results.verdict == run.results.verdict
    changed = {**given, "learning_rate": 1e-3}
    said = problems(groundtune.train, "swr", output_dir=run.folder, **changed)
    assert any(line.startswith("learning_rate: 0.05 in the finished run, 0.001 now") for line in said)
    assert "overwrite_output_dir" in said[-1] and "--" not in " ".join(said)


def test_keywords_mean_what_flags_mean_and_the_defaults_are_those_of_the_command(given, monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(groundtune.recipes.train, "train", found.append)
    monkeypatch.setattr("groundtune.commands.train._print_results", lambda *args: None)
    (tmp_path / "run.yaml").write_text(f"output_dir: {tmp_path}\nlora_r: 2\nsave_total_limit: 7\nrun_name: x\n")
    values = {name: value for name, value in given.items() if name not in ("gguf_file", "quiet")}
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert main(["swr", "--config", str(tmp_path / "run.yaml"), *words]) == 0
    groundtune.train("swr", config=tmp_path / "run.yaml", **{**values, "gguf_file": None})
    by_flags, by_keywords = found
    for group in ("data", "retrieval", "prompt", "model", "evaluation", "logger", "output"):
        assert getattr(by_flags, group) == getattr(by_keywords, group)
    assert by_flags.training.to_dict() == by_keywords.training.to_dict()
    assert by_keywords.model.lora_r == 4 and by_keywords.training.save_total_limit == 7
    groundtune.train("swr", config=tmp_path / "run.yaml", save_total_limit=None, lr_scheduler_kwargs={"a": 1})
    assert found[-1].training.save_total_limit == 2 and found[-1].training.lr_scheduler_kwargs == {"a": 1}


def test_every_problem_is_named_at_once_by_its_keyword_or_by_the_line_of_its_file(given, refused, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("seed: 1\nlora_dropout: 2\nmax_new_tokens: many\n")
    said = problems(
        groundtune.train, "swr", config=config, output_dir=tmp_path / "out", **given | {
            "learning_rat": 1, "use_peft": "maybe", "lora_alpha": 1.5, "max_new_tokens": 8,
        },
    )  # fmt: skip
    starts = [
        f"{config}:3: max_new_tokens: ",
        "use_peft: ",
        "learning_rat: no such argument; similar: learning_rate",
        "",
    ]
    assert said[3].startswith("lora_alpha: invalid int value: '1.5'") and "--" not in "".join(said)
    assert all(line.startswith(start) for start, line in zip(starts, said, strict=True)), said
    assert problems(groundtune.train, "swr", lora_r=object())[0].startswith("lora_r: is of type object; give ")
    config.write_text("seed: 1\nlora_dropout: 2\n")
    said = problems(
        groundtune.train, "sft", config=config, output_dir=tmp_path / "out",
        **given | {"train_file": "not there.jsonl", "max_new_tokens": 400, "load_in_4bit": True, "use_peft": False},
    )  # fmt: skip
    for start in (f"{config}:2: lora_dropout: ", "train_file: no such file", "max_new_tokens: 400 leaves no room",
                  "load_in_4bit: "):  # fmt: skip
        assert any(line.startswith(start) for line in said), (start, said)
    assert not [line for line in said if "--" in line]
    assert problems(groundtune.train, "rlhf") == ["method: 'rlhf' is unknown; use one of sft, swr, raft"]
    for name in ("help", "json"):
        assert problems(groundtune.train, "sft", **{name: True})[0].startswith(f"{name}: ")


def test_a_model_that_cannot_be_loaded_is_a_model_error_by_keyword(given, refused, tmp_path):
    (tmp_path / "embedding").mkdir()
    with pytest.raises(DataError, match="^embedding_model: "):
        groundtune.train("swr", output_dir=tmp_path / "out", **given | {"embedding_model": tmp_path / "embedding"})
    with pytest.raises(DataError, match="^model_name_or_path: no/such-model: not a folder here"):
        groundtune.train("swr", output_dir=tmp_path / "out", **given | {"model_name_or_path": "no/such-model"})
    for name in ("model_name_or_path", "embedding_model"):
        shutil.copytree(given[name], tmp_path / name)
        next((tmp_path / name).rglob("*.safetensors")).write_bytes(b"\xffot weights")
        with pytest.raises(DataError, match="model.safetensors: is not safetensors, or is cut after 11 bytes"):
            groundtune.train("swr", output_dir=tmp_path / "out", **given | {name: tmp_path / name})


# The caller's state


def state() -> dict[str, Any]:
    """State that belongs to the calling program."""
    loggers = [logging.getLogger(name) for name in (None, "groundtune", "transformers")]
    return {
        "generators": [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()],
        "variables": {**os.environ, "PYTEST_CURRENT_TEST": ""},
        "handlers": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)],
        "logging": [(each.level, list(each.handlers), each.propagate) for each in loggers],
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "threads": torch.get_num_threads(),
        "words": list(sys.argv),
    }


@pytest.fixture
def around(monkeypatch, signals_of_a_terminal):
    """A calling program with its own settings, which must be unchanged afterwards."""
    monkeypatch.setattr(sys, "argv", ["program", "--password", "hunter2", "hunter3"])
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    logging.getLogger("groundtune").setLevel(logging.NOTSET)
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    before = state()
    yield
    after = state()
    transformers.utils.logging.set_verbosity(level)
    assert after == before


def test_a_run_changes_nothing_of_the_program_and_records_its_own_call(given, tmp_path, around, capfd):
    groundtune.train(
        "sft", output_dir=tmp_path, full_dataset_index_path=tmp_path / "index", run_group="theirs", hub_token=SECRET,
        seed=7, **given,
    )  # fmt: skip
    record = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert record["command"].startswith("groundtune.train('sft', output_dir='") and "seed=7" in record["command"]
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert not any(word in file.read_bytes() for word in (b"hunter", SECRET.encode())), file
    assert capfd.readouterr().out == "", "nothing is printed"


def test_nothing_that_answers_changes_the_program(run, around, tmp_path, data_folder, capfd):
    loaded = groundtune.load(run.folder, quiet=True)
    loaded.ask(QUESTION)
    loaded.evaluate(eval_max_samples=1, output_dir=tmp_path / "evaluation")
    groundtune.compare(loaded, tmp_path / "evaluation", output=tmp_path / "page.html")
    groundtune.open_retriever(data_folder / "documents.jsonl", retriever="bm25", quiet=True).search([QUESTION], 1)
    record = json.loads((tmp_path / "evaluation/run.json").read_text("utf-8"))
    assert record["command"].startswith(f"groundtune.evaluate({str(run.folder)!r}, quiet=True, eval_max_samples=1, ")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "groundtune.compare(" in page and "hunter" not in page
    shown = capfd.readouterr()
    assert shown.out == "" and "it/s" not in shown.err and "%" not in shown.err


def test_progress_is_shown_unless_it_is_not_wanted(run, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("groundtune.system.progress.EVERY", 0.0)
    loaded = groundtune.load(run.folder)
    loaded.evaluate(eval_max_samples=2, output_dir=tmp_path / "evaluation")
    shown = capfd.readouterr()
    assert "model answers, retrieved" in shown.err and shown.out == ""


def test_embedding_shows_how_far_it_is_though_nothing_is_logged(
    static_embedding_folder, data_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr("groundtune.system.progress.EVERY", 0.0)
    for quiet in (False, True):
        groundtune.open_retriever(
            data_folder / "documents.jsonl", embedding_model=static_embedding_folder, embedding_batch_size=2,
            full_dataset_index_path=tmp_path / str(quiet), quiet=quiet,
        )  # fmt: skip
        assert ("embedding: 2 of " in capfd.readouterr().err) is not quiet


def test_in_a_notebook_training_has_one_bar_and_no_table_of_every_metric(given, monkeypatch, tmp_path):
    class Table(transformers.TrainerCallback):
        """Like transformers' NotebookProgressCallback, which replaces the progress bar."""

    trainers = []

    class Kept(groundtune.QATrainer):
        def train(self, *args, **options):
            trainers.append(self)
            raise ArithmeticError("seen")

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", Table)
    monkeypatch.setattr(groundtune.training.trainer, "DEFAULT_PROGRESS_CALLBACK", Table)
    monkeypatch.setattr(groundtune.recipes.train, "QATrainer", Kept)
    with pytest.raises(ArithmeticError, match="seen"):
        groundtune.train("sft", output_dir=tmp_path, **{**given, "quiet": False})
    callbacks = trainers[0].callback_handler.callbacks
    assert not any(isinstance(callback, Table) for callback in callbacks)
    assert sum(isinstance(callback, transformers.ProgressCallback) for callback in callbacks) == 1


def test_ctrl_c_saves_the_step_and_is_a_keyboard_interrupt_and_the_same_call_goes_on(
    given, monkeypatch, tmp_path, around, caplog
):
    step, done = groundtune.QATrainer.training_step, []

    def interrupted(self, *args, **options):
        done.append(step(self, *args, **options))
        if len(done) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return done[-1]

    arguments = {**given, "output_dir": tmp_path, "full_dataset_index_path": tmp_path / "index"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(groundtune.QATrainer, "training_step", interrupted)
        groundtune.train("sft", **arguments)
    said = "stopped by SIGINT after step 1, which is saved in "
    assert any(said in message and "same call" in message for message in caplog.messages)
    assert problems(groundtune.load, tmp_path) == [
        f"{tmp_path}: it contains no finished run; name the output_dir of a run that `train` finished"
    ]
    resumed = groundtune.train("sft", **arguments)
    assert resumed.results.record["resumed_from_step"] == 1


def test_in_another_thread_all_of_it_works(given, tmp_path):
    found: list[Any] = []

    def work() -> None:
        try:
            run = groundtune.train("sft", output_dir=tmp_path, full_dataset_index_path=tmp_path / "index", **given)
            found.extend([run.ask(QUESTION).text, run.evaluate(eval_max_samples=1).failures])
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 2 and isinstance(found[0], str) and found[1] == []


# Ask


def test_an_answer_is_the_one_that_the_evaluation_gave_with_the_passages_it_read(run):
    rows = [json.loads(line) for line in (run.folder / "predictions/test_tuned.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 3
    for row, example in zip(rows, tiny_examples()[3:], strict=True):
        answer = run.ask(example.question, example.chat_history)
        assert (answer.question, answer.text) == (example.question, row["answer"])
        assert [source.document.page_content for source in answer.sources] == [
            hit["page_content"] for hit in row["retrieved_docs"][: row["passages_read"]]
        ]
        assert answer.sources[0].score >= answer.sources[-1].score and answer.sources[0].title


def test_each_question_stands_alone_unless_it_is_given_what_was_said(run):
    first = run.ask(QUESTION)
    assert run.ask(QUESTION) == first, "nothing is remembered"
    turns = (groundtune.Turn("user", QUESTION), groundtune.Turn("assistant", first.text))
    assert first.chat_history == turns
    second = run.ask("And dogs?", first.chat_history)
    assert second.chat_history[:2] == turns and len(second.chat_history) == 4
    assert problems(run.ask, " ") == ["question: is empty; write one"]


def test_the_model_is_opened_once_and_let_go_when_it_is_closed_or_evaluated(run, monkeypatch):
    opened = []
    opens = groundtune.load(run.folder)
    real = sys.modules["groundtune.serving.dialogue"].open_dialogue
    monkeypatch.setattr(
        "groundtune.serving.dialogue.open_dialogue", lambda arguments: opened.append(arguments) or real(arguments)
    )
    for _ in range(2):
        opens.ask(QUESTION)
    assert len(opened) == 1
    opens.close()
    opens.ask(QUESTION)
    opens.evaluate(eval_max_samples=1)
    opens.ask(QUESTION)
    assert len(opened) == 3


def test_what_load_is_given_takes_the_place_of_what_the_run_remembers(run):
    fewer = groundtune.load(run.folder, eval_num_to_retrieve=1, max_new_tokens=2)
    assert len(fewer.ask(QUESTION).sources) == 1
    with FakeServer(lambda body: "At nine.") as server:
        asks = groundtune.load(run.folder, generator=server.url, generator_model="m", generator_api="chat")
        assert problems(asks.ask, QUESTION)[0].startswith(f"generator: {server.url!r} is not a server")
        address = f"openai:{server.url}"
        asks = groundtune.load(run.folder, generator=address, generator_model="m", generator_api="chat")
        assert asks.ask(QUESTION).text == "At nine."
    with pytest.raises(EndpointError) as caught:
        groundtune.load(run.folder, generator=address, generator_model="m", endpoint_retries=0).evaluate()
    assert "endpoint" not in caught.value.problems[0] and "is the server running" in caught.value.problems[0]


# Load


def test_only_a_finished_run_is_loaded_and_only_with_arguments_that_there_are(run, tmp_path):
    loaded = groundtune.load(str(run.folder))
    assert (loaded.folder, loaded.method) == (run.folder, "swr")
    assert problems(groundtune.load, tmp_path / "none")[0].startswith(f"{tmp_path / 'none'}: no such folder; ")
    assert problems(groundtune.load, tmp_path)[0].startswith(f"{tmp_path}: it contains no finished run; ")
    run.evaluate(eval_max_samples=1, output_dir=tmp_path / "evaluation")
    assert "no finished run" in problems(groundtune.load, tmp_path / "evaluation")[0]
    said = problems(groundtune.load, run.folder, max_new_token=3, eval_file="x", bf16="perhaps")
    assert sorted(line.partition(":")[0] for line in said) == ["bf16", "eval_file", "max_new_token"]
    assert problems(groundtune.load, run.folder, config="x.yaml") == [
        "config: is not an argument of this function; remove it"
    ]


@pytest.mark.parametrize(
    "file, change",
    [
        ("run.json", lambda record: record["arguments"]["evaluation"].update(bootstrap_samples=10**9)),
        ("metrics.json", lambda metrics: metrics.update(history=[1])),
        ("metrics.json", lambda metrics: metrics.pop("best_step") and None or metrics.update(selected_on_test="no")),
    ],
)
def test_results_that_no_run_wrote_are_a_problem_of_one_line(run, tmp_path, file, change):
    folder = tmp_path / "edited"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
    content = json.loads((folder / file).read_text("utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the results of a run|is not from 100 to 100,000") as caught:
        groundtune.load(folder).results  # noqa: B018
    assert len(caught.value.problems) == 1
    (folder / "metrics.json").unlink()
    if file == "metrics.json":
        with pytest.raises(DataError, match="metrics.json: cannot be read"):
            groundtune.load(folder).results  # noqa: B018


def test_a_strangers_run_shows_its_results_and_names_what_lies_outside_it_in_a_call_that_then_works(
    run, tmp_path, monkeypatch
):
    folder = tmp_path / "theirs"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
    record = json.loads((folder / "run.json").read_text("utf-8"))
    (folder / "run.json").write_text(json.dumps({**record, "by": "a stranger"}))
    theirs = groundtune.load(folder, quiet=True)
    assert theirs.results.verdict == run.results.verdict
    for read in ("groundtune.data.files.open", "groundtune.retrieval.embedder.Embedder.__init__"):
        monkeypatch.setattr(read, lambda *args, **options: pytest.fail("it was opened"), raising=False)
    calls = [problems(theirs.ask, QUESTION), problems(theirs.evaluate, eval_max_samples=1)]
    monkeypatch.undo()
    names = [["base_model", "full_dataset_file_path", "embedding_model"]]
    names.append(["base_model", "eval_file", "full_dataset_file_path", "embedding_model"])
    for (said,), function, wanted in zip(calls, ("load", "evaluate"), names, strict=True):
        assert "this machine has no record of creating the folder" in said and "--" not in said
        call = said.partition("name them yourself: ")[2]
        assert call.startswith(f"groundtune.{function}({str(folder)!r}, quiet=True, ")
        assert all(f"{name}=" in call for name in wanted)
        done = eval(call)  # noqa: S307  a call that we printed
        assert done.ask(QUESTION).text if function == "load" else done.failures == []


# Evaluate


def test_an_evaluation_repeats_the_numbers_of_the_training(run, tmp_path):
    found = run.evaluate(with_base=True, contexts="retrieved,gold", output_dir=tmp_path)
    assert list(found.evaluations) == ["retrieved", "gold"] and found.failures == []
    for system, then in (("model", run.results.tuned), ("base", run.results.base)):
        now = found.evaluations["retrieved"][system].metrics
        assert {n: i for n, i in now.items() if "latency" not in n} == {
            n: i for n, i in then.metrics.items() if "latency" not in n
        }
    assert (tmp_path / "evaluation.html").stat().st_size > 1000 and found.output_dir == tmp_path


def test_run_folder_and_name_are_evaluated_with_the_defaults_of_the_command(run, monkeypatch, capsys):
    found = []

    def kept(arguments, on_progress):
        found.append(arguments)
        raise ModelError("seen")

    monkeypatch.setattr(groundtune.recipes.evaluate, "evaluate", kept)
    assert main(["evaluate", str(run.folder)]) == 2
    for call in (run.evaluate, lambda: groundtune.evaluate(run), lambda: groundtune.evaluate(model=str(run.folder))):
        assert problems(call) == ["seen"]
    for group in ("data", "retrieval", "prompt", "model", "evaluation", "generator", "judge", "answers", "run"):
        assert len({repr(getattr(arguments, group)) for arguments in found}) == 1
    monkeypatch.undo()
    assert problems(groundtune.evaluate, contexts=["gold"], eval_max_samples=-1)[:2] == [
        "eval_file: missing; name a file of examples (.jsonl)",
        "model: missing; name a folder or hub model, or a server with generator openai:URL",
    ]


# Compare


def test_runs_evaluations_and_files_are_compared_as_the_command_does(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = run.folder / "predictions/test_base.jsonl"
    found = groundtune.compare(base, run, run.evaluate(output_dir="again"), names=["base", "swr", "again"])
    assert (found.reference, found.others, found.n) == ("base", ["swr", "again"], 3)
    assert found.differences["swr"]["generation/f1"] == run.results.differences["generation/f1"]
    assert "swr" in found.verdict("swr") and "base" in found.verdict("swr")
    assert found.differences["again"]["generation/f1"] == found.differences["swr"]["generation/f1"]
    assert (run.folder / "comparison.html").exists() and (run.folder / "comparison.json").exists()
    assert main(["compare", str(base), str(run.folder), "--json", "-o", "other.html"]) == 0
    shown = json.loads(capsys.readouterr().out)
    again = groundtune.compare(base, run, output=None)
    assert again.to_dict() == {name: shown[name] for name in again.to_dict()} and len(list(Path().glob("*.html"))) == 2


def test_what_cannot_be_compared_is_named(run, tmp_path):
    assert problems(groundtune.compare, run)[0].startswith("compare: 1 system is given")
    said = problems(groundtune.compare, run, tmp_path, names=["a", "a"], output=tmp_path / "x.txt")
    assert [line.partition(":")[0] for line in said] == ["names", "output"]
    assert "no such file or folder" in problems(groundtune.compare, run, tmp_path / "none", output=None)[0]


# Retriever


def test_a_retriever_is_that_of_the_commands_and_ranks_many_questions_at_once(
    static_embedding_folder, data_folder, tmp_path
):
    retriever = groundtune.open_retriever(
        data_folder / "documents.jsonl", embedding_model=static_embedding_folder, quiet=True,
        full_dataset_index_path=tmp_path / "index",
    )  # fmt: skip
    assert isinstance(retriever, MixRetriever) and (tmp_path / "index").is_dir()
    questions = [example.question for example in tiny_examples()]
    found = retriever.search(questions, k=3)
    assert [len(hits) for hits in found] == [3] * 6
    assert all(hits[0].score >= hits[1].score >= hits[2].score for hits in found)
    assert all(hits[0].document in tiny_documents() and -1.001 < hits[0].score < 1.001 for hits in found)
    assert len(retriever.search(questions[:1], k=99)[0]) == 6 and retriever.search([], 3) == []
    for one in (retriever, BM25Retriever(tiny_documents())):
        with pytest.raises(TypeError, match="write \[question\]"):
            one.search("When?", 2)


def test_what_keeps_a_retriever_from_being_opened_is_named_at_once(data_folder, tmp_path):
    said = problems(groundtune.open_retriever, tmp_path / "none.jsonl", embedding_batch_size=0, contexts="gold")
    assert [line.partition(":")[0] for line in said] == ["contexts"]
    said = problems(groundtune.open_retriever, tmp_path / "none.jsonl", embedding_batch_size=0)
    assert [line.partition(":")[0] for line in said] == [
        "full_dataset_file_path", "embedding_model", "embedding_batch_size",
    ]  # fmt: skip
    with pytest.raises(ModelError, match="^embedding_model: no/such: not a folder here"):
        groundtune.open_retriever(data_folder / "documents.jsonl", embedding_model="no/such", quiet=True)


# Names


def test_every_function_says_what_it_takes_returns_and_raises():
    for function in (api.train, api.load, api.evaluate, api.compare, api.open_retriever, api.Run.ask):
        said = inspect.getdoc(function)
        assert all(word in said for word in ("Args:", "Raises:", "DataError")), function
        hints = dict(function.__annotations__)
        assert set(hints) == {*inspect.signature(function).parameters, "return"} - {"self"}
