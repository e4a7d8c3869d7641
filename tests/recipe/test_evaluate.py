"""`groundtune evaluate` and `ask` on the folder of a finished run must reproduce its numbers and answers."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import tiny_documents, tiny_examples
from documented import ROOT, run_script
from fake_server import FakeServer, Refusal
from test_recipes import flags, lines

from groundtune.cli import main
from groundtune.data.files import write_documents, write_jsonl
from groundtune.errors import ModelError
from groundtune.prompts.policies import CONTEXTS
from groundtune.recipes.evaluate import BASE, MODEL  # noqa: F401  what the files and the JSON call them
from groundtune.retrieval.embedder import Embedder
from groundtune.runs.remembered import record_own_run
from groundtune.schema import Document, Example


@pytest.fixture(scope="module")
def adapter_run(families, static_embedding_folder, data_folder, tmp_path_factory) -> Path:
    """A LoRA run by SwR; two steps, so that tuned and base differ."""
    folder = tmp_path_factory.mktemp("adapter")
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, folder, use_peft="true", lora_r=4, max_steps=4,
        learning_rate=5e-2, eval_strategy="no",
    )  # fmt: skip
    assert main(["swr", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def full_run(families, static_embedding_folder, data_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    arguments = flags(
        families["llama"], static_embedding_folder, data_folder, folder, embedding_model=...,
        eval_embedding_model=static_embedding_folder, max_steps=2, learning_rate=1e-2, eval_strategy="no",
    )  # fmt: skip
    assert main(["sft", *arguments]) == 0
    return folder


def run(capsys, *words) -> tuple[int, dict, str]:
    """Status, the JSON on standard output, and standard error."""
    capsys.readouterr()  # what a fixture printed
    status = main([*map(str, words), "--json"])
    shown = capsys.readouterr()
    return status, json.loads(shown.out) if shown.out else {}, shown.err


def keep(folder: Path, record: dict) -> None:
    """Write an edited record, as if this machine had made the run that way."""
    (folder / "run.json").write_text(json.dumps(record))
    record_own_run(folder)


# Evaluate


@pytest.mark.parametrize("name", ["adapter_run", "full_run"])
def test_a_runs_folder_alone_repeats_the_numbers_and_answers_of_its_training(request, capsys, name):
    folder = request.getfixturevalue(name)
    status, found, _ = run(capsys, "evaluate", folder, "--with_base", "--reuse_answers", "false")
    assert status == 0 and found["output_dir"] == str(folder / "evaluation")
    trained = json.loads((folder / "metrics.json").read_text("utf-8"))
    for system, then in ((MODEL, "tuned"), (BASE, "base")):
        for metric, interval in trained[then].items():
            if "latency" not in metric:
                assert found["evaluations"]["retrieved"][system][metric] == interval, (system, metric)
    for file, then in (("retrieved", "test_tuned"), ("retrieved_base", "test_base")):
        now = lines(folder / f"evaluation/predictions/{file}.jsonl")
        assert [r["answer"] for r in now] == [r["answer"] for r in lines(folder / f"predictions/{then}.jsonl")]
    (comparison,) = found["comparisons"]
    assert comparison["reference"] == f"{folder.name}, base"
    assert comparison["differences"][folder.name]["generation/f1"] == trained["difference"]["generation/f1"]


@pytest.mark.parametrize("name", ["adapter_run", "full_run"])
def test_known_answers_are_those_of_the_run_and_only_to_the_same_prompts(request, capsys, tmp_path, name):
    folder = request.getfixturevalue(name)
    words = ["evaluate", folder, "--with_base", "--output_dir"]
    _, first, _ = run(capsys, *words, tmp_path / "first")
    assert first["reused"][-1].startswith("3 of 3 answers of the base model are reused")  # from its training
    _, second, _ = run(capsys, *words, tmp_path / "second")
    assert [line[:14] for line in second["reused"]] == ["3 of 3 answers"] * 2
    _, without, _ = run(capsys, *words, tmp_path / "without", "--reuse_answers", "false")
    assert without["reused"] == []
    for file in ("retrieved", "retrieved_base"):
        rows = [lines(tmp_path / f"{one}/predictions/{file}.jsonl") for one in ("first", "second", "without")]
        assert [[(r["answer"], r["logprob"], r["new_tokens"]) for r in these] for these in rows] == [
            [(r["answer"], r["logprob"], r["new_tokens"]) for r in rows[2]]
        ] * 3
    seconds = second["evaluations"]["retrieved"][MODEL]["latency/generation_s"]["value"]
    assert seconds >= first["evaluations"]["retrieved"][MODEL]["latency/generation_s"]["value"] / 2
    for changed in (["--eval_num_to_retrieve", "1"], ["--instruction", "Say it."], ["--max_new_tokens", "2"]):
        _, other, _ = run(capsys, *words, tmp_path / changed[0], *changed)
        assert other["reused"] == [], changed


def test_four_contexts_are_answered_by_both_and_each_question_has_one_outcome(adapter_run, capsys, tmp_path):
    status, found, _ = run(
        capsys, "evaluate", adapter_run, "--contexts", "all", "--with_base", "--output_dir", tmp_path
    )
    assert status == 0 and list(found["evaluations"]) == list(CONTEXTS)
    for context, by_system in found["evaluations"].items():
        assert list(by_system) == [MODEL, BASE]
        for evaluation in by_system.values():
            assert sum(evaluation["outcomes"].values()) == evaluation["n"] == 3
        rows = lines(tmp_path / f"predictions/{context}.jsonl")
        assert all(row["context"] == context and row["outcome"] for row in rows)
    assert [row["passages_read"] for row in lines(tmp_path / "predictions/closed_book.jsonl")] == [0, 0, 0]
    gold = lines(tmp_path / "predictions/gold.jsonl")
    assert all(row["read_docs"] == row["gold_docs"] for row in gold)
    outcomes = found["evaluations"]["gold"][MODEL]["outcomes"]
    assert outcomes["retrieval missed"] == outcomes["right without evidence"] == 0
    titles = [comparison["title"] for comparison in found["comparisons"]]
    assert titles == [*(f"Context: {context}" for context in CONTEXTS), f"{adapter_run.name}: contexts"]
    assert found["comparisons"][-1]["reference"] == "retrieved"
    for comparison, by_system in zip(found["comparisons"], found["evaluations"].values()):  # one interval per number
        shown, measured = list(comparison["systems"].values())[-1], by_system[MODEL]
        assert {name: value for name, value in measured.items() if name in shown} == shown
    for file in ("metrics.json", "run.json", "evaluation.html", "evaluation.json"):
        assert (tmp_path / file).stat().st_size > 100


def test_a_mean_beyond_its_limit_ends_with_status_1_after_everything_is_written(adapter_run, capsys, tmp_path):
    words = ["evaluate", adapter_run, "--output_dir", tmp_path, "--eval_max_samples", "2", "--fail_over"]
    status, found, complaints = run(capsys, *words, "new_tokens=1000", "--fail_under", "recall@1=0")
    assert (status, complaints) == (0, "") and [one["passed"] for one in found["checked"]] == [True, True]
    status, found, complaints = run(capsys, *words, "new_tokens=0")
    assert status == 1 and complaints.startswith("Failed: --fail_over generation/new_tokens=0: generation/new_tokens")
    assert found["checked"][0]["reason"] in complaints and (tmp_path / "evaluation.html").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundtune.recipes.evaluate.open_questions", None)  # refused before anything is answered
        status, _, complaints = run(capsys, *words, "nonsense=1", "--fail_under", "judge/x=1")
    assert status == 2 and "nonsense is no metric" in complaints and len(complaints.splitlines()) == 1
    status, _, complaints = run(capsys, *words, "recall@9=0", "--fail_under", "judge/x=1")
    assert status == 2 and len(complaints.splitlines()) == 2


def test_one_screen_is_printed_outcomes_first_and_all_of_it_with_full(adapter_run, capsys, tmp_path):
    words = ["evaluate", str(adapter_run), "--contexts", "all", "--with_base", "--output_dir", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[0] == "outcome" and len(printed) < 45
    text = "\n".join(printed)
    assert "questions answered right" in text and f"Ask it: groundtune ask {adapter_run}" in text
    assert "Token F1" in text and "ROUGE-L" not in text and " difference" in text
    page = (tmp_path / "evaluation.html").read_text("utf-8")
    assert page.index("token F1") < page.index("What next") < page.index('aria-label="Contents"')
    assert page.index('aria-label="Contents"') < page.index("What became of each question") < page.index("ROUGE-L")
    answers = (tmp_path / "evaluation_answers.html").read_text("utf-8")
    assert all(f"{context} against {context}, base" in answers for context in CONTEXTS)
    assert main([*words, "--full"]) == 0
    full = capsys.readouterr().out
    assert "ROUGE-L" in full and full.count("outcome ") == 5


def test_contexts_without_search_need_no_documents(families, data_folder, capsys, tmp_path):
    status, found, _ = run(
        capsys, "evaluate", families["gemma"].folder, "--eval_file", data_folder / "test.jsonl", "--contexts",
        "closed_book,gold", "--max_seq_length", "300", "--max_new_tokens", "4", "--output_dir", tmp_path,
        "--full_dataset_file_path", tmp_path / "not_there.jsonl",
    )  # fmt: skip
    assert status == 0 and list(found["evaluations"]) == ["closed_book", "gold"]


def test_a_folder_that_was_moved_with_its_run_still_finds_its_documents(adapter_run, capsys, tmp_path, monkeypatch):
    """The run names its files relative to where it was started."""
    record = json.loads((adapter_run / "run.json").read_text("utf-8"))
    data = Path(record["arguments"]["data"]["full_dataset_file_path"])
    record["working_directory"] = str(data.parent)
    for name in ("full_dataset_file_path", "test_file"):
        record["arguments"]["data"][name] = Path(record["arguments"]["data"][name]).name
    moved = tmp_path / "moved"
    shutil.copytree(adapter_run, moved, ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
    keep(moved, record)
    monkeypatch.chdir(tmp_path)
    status, found, _ = run(capsys, "evaluate", "moved", "--eval_max_samples", "1")
    assert status == 0 and found["evaluations"]["retrieved"][MODEL]["n"] == 1
    # and where they have changed since, it says so
    documents = tmp_path / "documents.jsonl"
    documents.write_text(data.read_text("utf-8") + '{"page_content": "Another."}\n')
    record["arguments"]["data"]["full_dataset_file_path"] = str(documents)
    keep(moved, record)
    questions = tmp_path / "test.jsonl"
    questions.write_text("".join((data.parent / "test.jsonl").read_text("utf-8").splitlines(keepends=True)[:1]))
    record["arguments"]["data"]["test_file"] = str(questions)
    keep(moved, record)
    _, found, _ = run(capsys, "evaluate", "moved", "--eval_max_samples", "1")
    assert found["notes"] == [f"{path} has changed since the run of moved" for path in (documents, questions)]


def test_questions_that_chose_the_checkpoint_are_said_to_flatter(adapter_run, capsys, tmp_path):
    record = json.loads((adapter_run / "run.json").read_text("utf-8"))
    asked = record["arguments"]["data"]["eval_file"]
    record["arguments"]["data"]["test_file"] = ""
    record["arguments"]["training"]["load_best_model_at_end"] = True
    shutil.copytree(adapter_run, tmp_path / "r", ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
    keep(tmp_path / "r", record)
    words = ["evaluate", tmp_path / "r", "--eval_max_samples", "1"]
    _, found, _ = run(capsys, *words)
    assert found["notes"] == [
        f"{asked}: the checkpoint was selected on these questions, so these numbers are optimistic"
    ]
    _, found, _ = run(capsys, *words, "--eval_file", Path(asked).with_name("test.jsonl"))
    assert not found["notes"]


def test_results_go_into_no_folder_that_cannot_take_them_and_replace_no_training(adapter_run, capsys, monkeypatch):
    before = (adapter_run / "run.json").read_text("utf-8")
    status, _, err = run(capsys, "evaluate", adapter_run, "--output_dir", adapter_run)
    assert status == 2 and f"--output_dir: {adapter_run} holds a training run" in err
    assert (adapter_run / "run.json").read_text("utf-8") == before
    (adapter_run / "evaluation").mkdir(exist_ok=True)
    locked, access = str(adapter_run / "evaluation"), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != locked and access(path, mode))
    status, _, err = run(capsys, "evaluate", adapter_run)
    assert status == 2 and f"--output_dir: {locked} cannot be written" in err


# What a stranger's folder may do


@pytest.fixture
def foreign(adapter_run, tmp_path):
    """A run's folder that this machine did not make, with changes to its record."""

    def made(**changes) -> Path:
        record = json.loads((adapter_run / "run.json").read_text("utf-8"))
        for name, value in {"by": "a stranger", **changes}.items():
            group = next((g for g in record["arguments"].values() if isinstance(g, dict) and name in g), record)
            group[name] = value
        folder = tmp_path / "foreign"
        shutil.copytree(adapter_run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return made


def test_a_strangers_run_names_what_lies_outside_its_folder_in_a_command_that_then_works(
    foreign, adapter_run, capsys, monkeypatch
):
    folder = foreign()
    for read in ("groundtune.data.files.open", "groundtune.retrieval.embedder.Embedder.__init__"):
        monkeypatch.setattr(read, lambda *args, **options: pytest.fail("it was opened"), raising=False)
    status, found, err = run(capsys, "evaluate", folder, "--eval_max_samples", "1")
    monkeypatch.undo()
    assert status == 2 and not found and len(err.splitlines()) == 1
    assert "this machine has no record of creating the folder" in err and "Traceback" not in err
    command = shlex.split(err.partition("name them yourself: ")[2])
    assert command[:3] == ["groundtune", "evaluate", str(folder)]
    flags = {word for word in command if word.startswith("--")} - {"--json", "--eval_max_samples"}
    assert flags == {"--base_model", "--eval_file", "--full_dataset_file_path", "--embedding_model"}
    capsys.readouterr()
    assert main(command[1:]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evaluations"]["retrieved"][MODEL]["n"] == 1


def test_an_adapter_without_a_record_leads_to_no_base_outside_its_folder(adapter_run, data_folder, capsys, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter_run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index", "run.json"))
    words = ["evaluate", folder, "--eval_file", data_folder / "test.jsonl", "--contexts", "gold"]
    status, _, err = run(capsys, *words)
    assert status == 2 and "--base_model" in err.partition("name them yourself: ")[2]


def test_an_own_record_beside_another_adapter_still_leads_to_the_runs_own_base(adapter_run, capsys, tmp_path):
    """Only the record's own bytes are recognised: files beside it may be a stranger's."""
    folder = tmp_path / "mixed"
    shutil.copytree(adapter_run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index", "evaluation"))
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "stranger/model"}))
    status, found, _ = run(capsys, "evaluate", folder, "--eval_max_samples", "1", "--output_dir", tmp_path / "out")
    assert status == 0 and found["evaluations"]["retrieved"][MODEL]["n"] == 1


def test_a_folder_sends_nothing_to_a_server_that_it_names(foreign, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeServer(lambda request: "an answer") as server:
        address = f"openai:{server.url}"
        folder = foreign(generator=address, judge=address, embedding_model=address, eval_embedding_model=address,
                         judge_model="j", report_to="all")  # fmt: skip
        group = json.loads((folder / "run.json").read_text())
        group["arguments"]["generator"] = {"generator": address, "generator_model": "m", "generator_api": "chat"}
        group["arguments"]["judge"] = {"judge": address, "judge_model": "m"}
        (folder / "run.json").write_text(json.dumps(group))
        status, _, err = run(capsys, "evaluate", folder)
        assert status == 2 and not server.requests
        assert run(capsys, "ask", folder, "Where?")[0] == 2 and not server.requests


def test_a_folder_runs_no_code_though_its_record_says_that_it_may(full_run, capsys, tmp_path):
    folder, ran = tmp_path / "code", tmp_path / "ran"
    shutil.copytree(full_run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "index"))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    record = json.loads((folder / "run.json").read_text())
    record["arguments"]["model"] |= {"trust_remote_code": True, "model_revision": "a" * 40}
    keep(folder, record)  # not even where the record is this machine's own
    status, _, err = run(capsys, "evaluate", folder)
    assert status == 2 and "Traceback" not in err and not ran.exists()


def test_nothing_is_written_where_a_record_says(foreign, capsys, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder = foreign(full_dataset_index_path=str(elsewhere), output_dir=str(elsewhere))
    status, _, err = run(capsys, "evaluate", folder, "--eval_max_samples", "1")
    command = shlex.split(err.partition("name them yourself: ")[2])
    assert status == 2 and main(command[1:]) == 0 and not elsewhere.exists()


# What is missing


def test_an_adapter_that_lacks_weights_is_refused(adapter_run, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(adapter_run, broken, ignore=shutil.ignore_patterns("checkpoint-*", "index"))
    weights = load_file(broken / "adapter_model.safetensors")
    lost = sorted(weights)[0]
    save_file({name: w for name, w in weights.items() if name != lost}, broken / "adapter_model.safetensors")
    status, found, err = run(capsys, "evaluate", broken)
    assert status == 2 and not found
    (line,) = [line for line in err.splitlines() if line.startswith(str(broken))]
    assert "1 of the adapter's weights are missing" in line


def test_an_adapter_whose_weights_did_not_arrive_is_refused(adapter_run, capsys, monkeypatch):
    """All names are present, but the values are those of a new adapter."""
    import peft.peft_model

    nothing = SimpleNamespace(missing_keys=[], unexpected_keys=[])
    monkeypatch.setattr(peft.peft_model, "set_peft_model_state_dict", lambda *args, **kwargs: nothing)
    status, found, err = run(capsys, "evaluate", adapter_run)
    assert status == 2 and not found
    (line,) = [line for line in err.splitlines() if line.startswith(str(adapter_run))]
    assert "of the adapter's weights are not those of its file" in line


def test_a_model_folder_that_lacks_weights_is_refused(full_run, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(full_run, broken, ignore=shutil.ignore_patterns("checkpoint-*", "index"))
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    status, _, err = run(capsys, "evaluate", broken)
    assert status == 2 and "1 weights are missing and would be random: model.layers.1.mlp.down_proj.weight" in err


def test_an_adapter_whose_base_is_gone_is_one_line(adapter_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder for results is made first
    lost = tmp_path / "lost"
    shutil.copytree(adapter_run, lost, ignore=shutil.ignore_patterns("checkpoint-*", "index", "run.json"))
    config = json.loads((lost / "adapter_config.json").read_text("utf-8"))
    (lost / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nobody/nothing"}))
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(d.to_dict()) + "\n" for d in tiny_documents()))
    examples = tmp_path / "test.jsonl"
    rows = [{"question": e.question, "gold_answer": e.answer, "gold_docs": [d.to_dict() for d in e.gold_documents]}
            for e in tiny_examples()]  # fmt: skip
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = run(
        capsys, "evaluate", lost, "--base_model", "nobody/nothing", "--eval_file", examples,
        "--full_dataset_file_path", documents, "--retriever", "bm25",
    )  # fmt: skip
    assert status == 2 and "nobody/nothing: not a folder here, not in the cache" in err and "Traceback" not in err


def test_all_that_is_wrong_with_the_arguments_is_said_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    status = main(
        ["evaluate", "./nothing", "--eval_file", "none.jsonl", "--contexts", "retrieved,open_book", "--max_new_tokens",
         "0", "--judge", "openai:localhost", "--right_metric", "generation/f2", "--with_base", "--generator",
         "http://localhost/v1", "--generator_options", "[1]"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert status == 2 and not shown.out
    assert [line.split(":")[0] for line in shown.err.splitlines()] == [
        "--full_dataset_file_path", "--eval_file", "--contexts", "--embedding_model", "MODEL", "--generator",
        "--generator_options", "--with_base", "--right_metric", "--judge", "--judge_model", "--max_new_tokens",
    ]  # fmt: skip
    assert main(["evaluate"]) == 2
    assert "MODEL: missing" in capsys.readouterr().err
    assert main(["evaluate", "gpt2", "--right_metric", "loss"]) == 2
    assert "--right_metric: loss is unknown" in capsys.readouterr().err
    for flag in ("--train_share", "--max_train_samples", "--eval_endpoint"):  # of training
        for command in ("evaluate", "ask", "serve"):
            assert main([command, "gpt2", flag, "1"]) == 2
            assert f"{flag}: no such argument" in capsys.readouterr().err
    for threshold in ("nan", "4"):
        assert main(["evaluate", "gpt2", "--right_threshold", threshold]) == 2
        assert f"--right_threshold: {threshold}; give a number from 0 to 1" in capsys.readouterr().err
    assert main(["ask", "Can I return it?"]) == 2
    shown = capsys.readouterr().err
    assert "write --question before it" in shown and "--contexts" not in shown


# Servers and judges


def question_of(text: str) -> str:
    """The tiny question in a prompt."""
    return max((text.rfind(e.question), e.question) for e in tiny_examples())[1]


def answer_of(body: dict) -> str:
    asked = question_of(body["messages"][-1]["content"])
    return next(e.answer for e in tiny_examples() if e.question == asked)


def server_flags(server, data_folder, embedding, output) -> list:
    return [
        "--generator", f"openai:{server.url}", "--generator_model", "served", "--endpoint_retries", "1",
        "--eval_file", data_folder / "train.jsonl", "--full_dataset_file_path", data_folder / "documents.jsonl",
        "--embedding_model", embedding, "--full_dataset_index_path", output / "index", "--output_dir", output / "out",
    ]  # fmt: skip


def test_a_model_on_a_server_is_evaluated_and_what_it_saw_is_written(
    data_folder, static_embedding_folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("GROUNDTUNE_API_KEY", "sk-SECRET")
    with FakeServer(answer_of) as server:
        status, found, err = run(
            capsys, "evaluate", *server_flags(server, data_folder, static_embedding_folder, tmp_path)
        )
    assert status == 0, err
    assert found["evaluations"]["retrieved"][MODEL]["generation/exact_match"]["value"] == 1
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    page = (tmp_path / "out/evaluation.html").read_text("utf-8")
    assert "the server applied its template" in page
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or "SECRET" not in path.read_text("utf-8"), path


def test_no_secret_of_a_server_is_in_any_file_or_in_what_is_printed(
    data_folder, static_embedding_folder, capsys, tmp_path, monkeypatch, caplog
):
    """In the environment, in the addresses of model and judge, and in their options."""
    monkeypatch.setenv("GROUNDTUNE_API_KEY", "sk-SECRET-0")
    lost = tiny_examples()[3].question

    def answer(body):
        text = body["messages"][-1]["content"]
        return Refusal(400, "sk-SECRET-0 may not") if lost in text else "[[4]]"

    options = json.dumps({"api_key": "SECRET-1", "extra_body": {"Authorization": "Bearer SECRET-2"}})
    with FakeServer(answer) as server:
        words = server_flags(server, data_folder, static_embedding_folder, tmp_path)
        address = f"openai:{server.url.replace('://', '://me:SECRET-3@')}"
        words[1] = address
        words += ["--generator_options", options, "--judge", address, "--judge_model", "", "--judge_options", options]
        words[words.index("--judge_model") + 1] = "judge"
        with caplog.at_level("DEBUG", "groundtune"):
            status, found, err = run(capsys, "evaluate", *words)
        monkeypatch.setattr(sys, "argv", ["groundtune", "evaluate", *map(str, words)])
        printed = main(["evaluate", *map(str, words)])
    assert status == printed == 1 and server.bodies[-1]["api_key"] == "SECRET-1"
    shown = "".join(capsys.readouterr()) + json.dumps(found) + err + caplog.text
    assert "SECRET" not in shown and "answers failed" in shown
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "evaluation.html", "metrics.json"} <= {path.name for path in paths}
    assert [str(path) for path in paths if b"SECRET" in path.read_bytes()] == []
    # A server that is not there: the line names the address.
    assert main(["evaluate", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert "127.0.0.1" in err and "SECRET" not in err


def test_what_a_server_fails_to_answer_is_reported_and_the_status_says_so(
    data_folder, static_embedding_folder, capsys, tmp_path
):
    lost = tiny_examples()[3].question
    with FakeServer(lambda b: Refusal(500) if question_of(str(b["messages"])) == lost else answer_of(b)) as server:
        words = server_flags(server, data_folder, static_embedding_folder, tmp_path)
        status, found, _ = run(capsys, "evaluate", *words)
        assert status == 1
        assert found["failures"][0].startswith("retrieved: 1 of 6 answers failed and are excluded from the means")
        evaluation = found["evaluations"]["retrieved"][MODEL]
        assert (evaluation["n"], evaluation["failed"], evaluation["generation/f1"]["scored"]) == (6, 1, 5)
        assert main(["evaluate", *map(str, words)]) == 1
    assert "1 of 6 answers failed" in capsys.readouterr().out


def test_a_server_that_goes_away_halfway_loses_no_answer_and_is_reported(
    data_folder, static_embedding_folder, capsys, tmp_path
):
    with FakeServer(lambda b: answer_of(b) if len(server.requests) <= 6 else Refusal(401, "no more credit")) as server:
        words = server_flags(server, data_folder, static_embedding_folder, tmp_path)
        status, found, err = run(capsys, "evaluate", *words, "--contexts", "gold,closed_book")
    assert status == 1, err
    assert found["evaluations"]["gold"][MODEL]["generation/exact_match"]["value"] == 1
    assert found["evaluations"]["closed_book"][MODEL]["failed"] == 6
    (failure,) = found["failures"]
    assert failure.startswith("closed_book: 6 of 6 answers failed and are excluded from the means (first: ")
    assert "no more credit" in failure
    assert "6 of 6 answers failed" in (tmp_path / "out/evaluation.html").read_text("utf-8")


def test_a_judge_that_goes_away_loses_no_score_and_is_reported(adapter_run, capsys, tmp_path):
    with FakeServer(lambda b: "[[5]]" if len(server.requests) <= 1 else Refusal(401, "no more credit")) as server:
        status, found, err = run(
            capsys, "evaluate", adapter_run, "--judge", f"openai:{server.url}", "--judge_model", "j", "--output_dir",
            tmp_path,
        )  # fmt: skip
    assert status == 1, err
    assert found["failures"] == ["retrieved: judge correctness: 0 scored, 3 failed, 3 in total"]
    assert "generation/f1" in found["evaluations"]["retrieved"][MODEL] and (tmp_path / "evaluation.html").exists()
    judged = [row["judged"]["correctness"] for row in lines(tmp_path / "predictions/retrieved.jsonl")]
    assert all(said.startswith("failed: ") and "no more credit" in said for said in judged)


def test_completions_go_to_a_server_as_the_ids_that_the_model_here_reads(families, data_folder, capsys, tmp_path):
    family, settings = families["qwen"], ["--retriever", "bm25", "--max_seq_length", "300", "--max_new_tokens", "8"]
    with FakeServer(lambda body: "At nine.") as server:
        status, found, err = run(
            capsys, "evaluate", family.folder, "--generator", f"openai:{server.url}", "--generator_model", "served",
            "--eval_file", data_folder / "test.jsonl", "--full_dataset_file_path", data_folder / "documents.jsonl",
            *settings, "--output_dir", tmp_path,
        )  # fmt: skip
    assert status == 0, err
    rows = lines(tmp_path / "predictions/retrieved.jsonl")
    text = [family.tokenizer.decode(body["prompt"]) for body in server.bodies]
    assert all(any(row["question"] in t for t in text) for row in rows)
    assert all(t.startswith("<|im_start|>user\n") for t in text)
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert "sent as token ids" in (tmp_path / "evaluation.html").read_text("utf-8")


def test_a_judge_grades_every_answer_and_can_decide_what_is_right(adapter_run, capsys, tmp_path):
    prompt = tmp_path / "brevity.txt"
    prompt.write_text("Is it short? Answer [[1]] to [[5]]: $answer")
    with FakeServer(lambda b: "no rating" if tiny_examples()[4].question in str(b) else "[[5]]") as server:
        status, found, _ = run(
            capsys, "evaluate", adapter_run, "--judge", f"openai:{server.url}", "--judge_model", "j", "--judge_prompt",
            "correctness", prompt, "--right_metric", "judge/brevity", "--right_threshold", "0.75",
            "--output_dir", tmp_path / "out",
        )  # fmt: skip
    evaluation = found["evaluations"]["retrieved"][MODEL]
    assert evaluation["judge/brevity"]["value"] == evaluation["judge/correctness"]["value"] == 1
    assert status == 1 and evaluation["judge/correctness"]["scored"] == 2
    assert "scored" not in evaluation["judge/brevity"]  # this prompt does not show the question
    assert found["failures"] == ["retrieved: judge correctness: 2 scored, 1 failed, 3 in total"]
    assert sum(evaluation["outcomes"][o] for o in ("answered right", "right without evidence")) == 3
    assert (tmp_path / "out/judge_brevity.txt").read_text() == prompt.read_text()
    judged = [row["judged"] for row in lines(tmp_path / "out/predictions/retrieved.jsonl")]
    assert [row["correctness"] for row in judged] == ["[[5]]", "no rating", "[[5]]"]


def test_a_judge_that_is_not_there_is_said_before_anything_is_answered(adapter_run, capsys, tmp_path):
    with FakeServer(lambda body: "yes") as server:
        gone = server.url
    status, found, err = run(
        capsys, "evaluate", adapter_run, "--judge", f"openai:{gone}", "--judge_model", "j", "--endpoint_retries", "0",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2 and not found and "is the server running" in err and not (tmp_path / "out").exists()


def test_a_judge_here_that_is_no_model_is_said_before_anything_is_answered(adapter_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("groundtune.model.opening.AnsweringModel.open", lambda *args: pytest.fail("a model was loaded"))
    status, _, logged = run(capsys, "evaluate", adapter_run, "--judge", tmp_path / "none", "--output_dir", tmp_path)
    assert status == 2 and str(tmp_path / "none") in logged and len(logged.splitlines()) == 1


def test_a_judge_that_cannot_be_loaded_any_more_loses_no_score_and_is_reported(
    adapter_run, families, capsys, tmp_path, monkeypatch
):
    def fail(arguments):
        raise ModelError("judge: cannot load it")

    monkeypatch.setattr("groundtune.recipes.evaluate.open_judge", fail)
    words = ["--judge", families["gemma"].folder, "--output_dir", tmp_path]
    status, found, _ = run(capsys, "evaluate", adapter_run, *words)
    assert status == 1 and found["failures"] == ["retrieved: judge correctness: 0 scored, 3 failed, 3 in total"]
    assert "generation/f1" in found["evaluations"]["retrieved"][MODEL] and (tmp_path / "evaluation.html").exists()


def test_answers_are_on_disk_before_they_are_judged(adapter_run, capsys, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("the judge broke down")

    monkeypatch.setattr("groundtune.recipes.evaluate.judged", fail)
    with FakeServer(lambda body: "yes") as server, pytest.raises(RuntimeError):
        main(["evaluate", str(adapter_run), "--judge", f"openai:{server.url}", "--judge_model", "j", "--output_dir",
              str(tmp_path)])  # fmt: skip
    assert len(lines(tmp_path / "predictions/retrieved.jsonl")) == 3


def test_a_judge_may_be_a_model_here(adapter_run, families, capsys, tmp_path):
    status, found, _ = run(
        capsys, "evaluate", adapter_run, "--judge", families["gemma"].folder, "--judge_max_new_tokens", "4",
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert status == 1  # a tiny random model rates nothing, and that is counted
    assert found["failures"] == ["retrieved: judge correctness: 0 scored, 3 failed, 3 in total"]
    assert "judge/correctness" not in found["evaluations"]["retrieved"][MODEL]


def test_an_evaluation_leaves_nothing_of_an_earlier_one_to_be_taken_for_its_own(
    adapter_run, capsys, tmp_path, monkeypatch
):
    """Whatever reads the folder next would compare the earlier model's answers under the name of the new one."""
    words = ["evaluate", adapter_run, "--max_new_tokens", "2", "--output_dir", tmp_path]
    status, _, _ = run(capsys, *words, "--with_base", "--study", "rank")
    mine = [tmp_path / name for name in ("predictions/released.jsonl", "predictions/study.jsonl", "grades.jsonl")]
    for path in mine:
        path.write_text("mine")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert status == 0 and {"study_rank_4_base.jsonl", "study.json"} <= {path.name for path in files}

    def fail(*args, **options):
        raise RuntimeError("it broke down")

    status, _, complaints = run(capsys, *words, "--eval_file", tmp_path / "predictions/retrieved.jsonl")
    assert status == 2 and "would be replaced" in complaints
    gold = [*map(str, words), "--contexts", "gold"]
    for broken in ("open_questions", "answer_here"):  # refused or stopped before there are answers: nothing is lost
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(f"groundtune.recipes.evaluate.{broken}", fail)
            main(gold)
        assert all(path.read_bytes() == content for path, content in files.items())
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):  # stopped later: no number is the earlier one's
        patch.setattr("groundtune.recipes.evaluate._judge", fail)
        main(gold)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*mine, tmp_path / "predictions/gold.jsonl"}
    assert main(gold) == 0
    left = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert left == {"gold.jsonl", "released.jsonl", "study.jsonl"} and all(path.read_text() == "mine" for path in mine)
    assert not (tmp_path / "study.json").exists() and (tmp_path / "metrics.json").exists()
    assert main(["compare", str(adapter_run), str(tmp_path)]) == 2  # it has no answers end to end


# Compare


def test_runs_and_evaluations_compare_by_their_folders(adapter_run, full_run, capsys, tmp_path):
    base = adapter_run / "predictions/test_base.jsonl"
    page = tmp_path / "comparison.html"
    status, found, _ = run(
        capsys, "compare", base, adapter_run, full_run, "--names", "base", "lora", "full", "-o", page
    )
    assert status == 0 and list(found["systems"]) == ["base", "lora", "full"] and page.stat().st_size > 1000
    trained = json.loads((adapter_run / "metrics.json").read_text("utf-8"))
    assert found["differences"]["lora"]["generation/f1"] == trained["difference"]["generation/f1"]
    assert main(["compare", str(base), str(adapter_run), "-o", str(page)]) == 0
    assert "Token F1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, problem",
    [
        (["only_one"], "1 system is given"),
        (["a", "b", "--names", "x", "x"], "1 different names for 2 systems"),
        (["a", "b", "-o", "page.txt"], "does not end in .html"),
        (["a", "b"], "a: no such file or folder"),
    ],
)
def test_what_cannot_be_compared_is_refused(capsys, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert problem in capsys.readouterr().err and not list(tmp_path.iterdir())


# Ask


def test_the_example_for_github_actions_stops_another_model_and_not_the_released_one(adapter_run, tmp_path):
    job = yaml.safe_load((ROOT / "examples/github-actions.yml").read_text("utf-8"))
    steps = {step["name"]: step["run"] for step in job["jobs"]["answers"]["steps"] if "run" in step}
    assert "pip install" in steps.pop("Install")
    tested = json.loads((adapter_run / "run.json").read_text("utf-8"))["arguments"]["data"]["test_file"]
    shutil.copytree(adapter_run / "predictions", tmp_path / "released")
    names = {"MODEL": str(adapter_run), "QUESTIONS": tested, "LEAST": "f1=0 recall@1=0"}
    names = job["env"] | names | {"RELEASED": "released/test_tuned.jsonl"}
    evaluate, compare = steps.values()
    run_script(f"{evaluate}\n{compare}", tmp_path, names)
    names["RELEASED"] = "released/test_base.jsonl"
    assert "nothing can be concluded" in run_script(compare, tmp_path, names, status=1)


def test_asking_a_runs_folder_gives_the_answer_of_its_evaluation_and_its_sources(adapter_run, capsys):
    rows = lines(adapter_run / "predictions/test_tuned.jsonl")
    row = next(row for row in rows if not row["chat_history"])
    status, found, _ = run(capsys, "ask", adapter_run, row["question"])
    assert status == 0 and found["question"] == row["question"] and found["answer"] == row["answer"]
    assert [s["page_content"] for s in found["sources"]] == [
        d["page_content"] for d in row["retrieved_docs"][: row["passages_read"]]
    ]
    first = found["sources"][0]
    assert first["title"] in {d.metadata["title"] for d in tiny_documents()}
    assert main(["ask", str(adapter_run), row["question"]]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(row["answer"]) and f"[1] {first['score']:.3f}  {first['title']}\n" in shown
    assert main(["ask", str(adapter_run), row["question"], "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == row["answer"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dialogue_asks_each_question_with_what_was_said_before(
    data_folder, static_embedding_folder, capsys, tmp_path, monkeypatch
):
    first, second = (e.question for e in tiny_examples()[:2])
    said = ["", first, second, "/sources", "/what", "/new", second, "/quit", "never asked"]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(said) + "\n"))
    with FakeServer(lambda body: "Some words.") as server:
        words = server_flags(server, data_folder, static_embedding_folder, tmp_path)
        words = [str(w) for w in words[:6] + words[8:14]]
        assert main(["ask", *words]) == 0
    messages = [body["messages"] for body in server.bodies]
    assert [[m["role"] for m in these] for these in messages] == [["user"], ["user", "assistant", "user"], ["user"]]
    assert first in messages[1][0]["content"] and messages[1][1]["content"].strip() == "Some words."
    assert messages[1][2]["content"] == second and first not in str(messages[2])
    shown = capsys.readouterr().out
    assert shown.count("Some words.") == 3 and "[1] Title: " in shown and "/new" in shown


def test_questions_from_a_pipe_are_answered_line_by_line(adapter_run, capsys, monkeypatch):
    questions = [e.question for e in tiny_examples()[:2]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*questions, "", ""])))
    assert main(["ask", str(adapter_run), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in found] == questions


def test_a_dialogue_that_outgrows_the_prompt_forgets_its_oldest_turns(adapter_run, capsys, monkeypatch):
    questions = [f"{tiny_examples()[0].question} And number {i}, please, what about it?" for i in range(12)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(questions)))
    assert main(["ask", str(adapter_run), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 12 and all(row["sources"] for row in found)


# Index


def test_an_index_made_before_is_not_made_again(data_folder, static_embedding_folder, capsys, tmp_path, caplog):
    words = ["index", "--full_dataset_file_path", data_folder / "documents.jsonl", "--embedding_model",
             static_embedding_folder, "--full_dataset_index_path", tmp_path / "index"]  # fmt: skip
    status, found, _ = run(capsys, *words)
    assert status == 0 and (found["documents"], found["dimensions"]) == (len(tiny_documents()), 32)
    stamp = max(os.stat(path).st_mtime_ns for path in (tmp_path / "index").rglob("*"))
    assert main([*map(str, words)]) == 0
    assert "6 documents, 32 dimensions" in capsys.readouterr().out
    assert max(os.stat(path).st_mtime_ns for path in (tmp_path / "index").rglob("*")) == stamp
    assert main(["index", "--embedding_model", "x/y/z"]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "--full_dataset_file_path", "--embedding_model",
    ]  # fmt: skip


def test_questions_without_answers_measure_the_retriever_alone(data_folder, static_embedding_folder, capsys, tmp_path):
    rows = [
        {"question": e.question, "gold_answer": "", "gold_docs": [d.to_dict() for d in e.gold_documents]}
        for e in tiny_examples()[:4]
    ]
    rows[3] |= {"gold_answer": "The passages do not say.", "answerable": False}
    path = tmp_path / "beir.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["index", "--full_dataset_file_path", data_folder / "documents.jsonl", "--embedding_model",
             static_embedding_folder, "--full_dataset_index_path", tmp_path / "index", "--eval_file", path]  # fmt: skip
    status, found, _ = run(capsys, *words)
    measured = found["retrieval"]
    assert status == 0 and measured["n"] == 3 and measured["gold_not_among_documents"] == 0
    documents = tiny_documents()
    embedder = Embedder(str(static_embedding_folder))
    similar = (
        embedder.embed_questions([row["question"] for row in rows[:3]])
        @ embedder.embed_documents([d.text for d in documents]).T
    )
    ranks = [int((row > row[i]).sum()) + 1 for i, row in enumerate(similar)]
    assert measured["retrieval/recall@1"]["value"] == pytest.approx(sum(rank == 1 for rank in ranks) / 3)
    assert measured["retrieval/mrr"]["value"] == pytest.approx(sum(1 / rank for rank in ranks if rank <= 4) / 3)
    assert main([*map(str, words)]) == 0
    assert "recall@4" in (said := capsys.readouterr().out) and "on 3 questions" in said
    path.write_text(json.dumps(rows[3]) + "\n")
    assert main([*map(str, words)]) == 2
    assert "none of its questions has a gold passage" in capsys.readouterr().err


def test_an_answer_that_is_stopped_is_forgotten_and_the_dialogue_goes_on(
    data_folder, static_embedding_folder, capsys, tmp_path, monkeypatch
):
    from groundtune.evaluation.answering import Endpoint
    from groundtune.schema import Ended

    first, second = (e.question for e in tiny_examples()[:2])
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join([first, second, "/quit"]) + "\n"))
    asked = []

    def stream(self, messages, max_tokens, sampling=None):
        asked.append(messages)
        yield "Half "
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield "and whole."
        return Ended(True)

    monkeypatch.setattr(Endpoint, "stream", stream)
    words = server_flags(SimpleNamespace(url="http://localhost:1/v1"), data_folder, static_embedding_folder, tmp_path)
    assert main(["ask", *map(str, words[:6] + words[8:14])]) == 0
    assert [len(messages) for messages in asked] == [1, 1]  # nothing was said before the second
    shown = capsys.readouterr().out
    assert "stopped; this question and its answer are forgotten" in shown and "Half and whole." in shown


# The study


def test_a_study_asks_the_same_questions_everywhere_and_what_was_answered_is_not_asked_again(
    adapter_run, capsys, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))
    record_own_run(adapter_run)
    words = ["evaluate", adapter_run, "--eval_num_to_retrieve", "2", "--max_new_tokens", "4", "--study"]
    texts = tmp_path / "other.txt"
    texts.write_text("The sun rises in the east and sets in the west.\n\nWater boils at a hundred degrees.\n")
    status, found, _ = run(capsys, *words, "--forgetting", texts, "--output_dir", tmp_path / "a")
    assert status == 0 and list(found["evaluations"]) == list(CONTEXTS)
    study = json.loads((tmp_path / "a/study.json").read_text("utf-8"))
    assert study == found["study"] and list(study["parts"]) == ["contexts", "rank", "k", "distractors"]
    for name, part in study["parts"].items():
        for point in part["points"]:
            assert list(point["systems"]) == [BASE, MODEL], name
            assert all(system["n"] == part["n"] for system in point["systems"].values())
            f1 = [system["generation/f1"]["value"] for system in point["systems"].values()]
            assert point["gain"]["value"] == pytest.approx(f1[1] - f1[0])
            reference = next(p for p in part["points"] if p["label"] == part["reference"])
            if point is not reference:
                for system, there in point["systems"].items():
                    was = reference["systems"][system]["generation/f1"]["value"]
                    assert there["change"]["value"] == pytest.approx(there["generation/f1"]["value"] - was)
    k = study["parts"]["k"]
    assert [point["at"] for point in k["points"]] == [1, 2, 3, 4, 5, 6] and k["reference"] == "2 passages"
    recalls = [point["recall"]["value"] for point in k["points"]]
    assert recalls == sorted(recalls) and recalls[-1] == 1.0  # all six passages
    assert [point["passages_read"] for point in k["points"]] == [1, 2, 3, 4, 5, 6]
    rows = {place: lines(tmp_path / f"a/predictions/study_rank_{place}.jsonl") for place in (1, 4)}
    for first, last in zip(rows[1], rows[4], strict=True):
        ids = [[d["fmt_content"] for d in row["read_docs"]] for row in (first, last)]
        assert first["question"] == last["question"] and sorted(ids[0]) == sorted(ids[1]) and len(ids[0]) == 4
        assert ids[0][0] == ids[1][3] == first["gold_docs"][0]["fmt_content"] and ids[0][1:] == ids[1][:3]
    assert [point["at"] for point in study["parts"]["distractors"]["points"]] == [0, 1, 2, 4]  # of five others
    page = (tmp_path / "a/evaluation.html").read_text("utf-8")
    assert "Where answers are lost" in page and "On other text" in page

    forgetting = found["forgetting"]
    assert forgetting["texts"] == 2 and list(forgetting["loss"]) == [BASE, MODEL]
    assert forgetting["change"]["value"] == pytest.approx(
        forgetting["loss"][MODEL]["value"] - forgetting["loss"][BASE]["value"]
    )
    assert [set(one["answers"]) for one in forgetting["continued"]] == [{BASE, MODEL}] * 2

    # Again: nothing is generated.
    monkeypatch.setattr("groundtune.runs.known_answers.generate_greedy", None)
    caplog.clear()
    status = main([*map(str, words), "--forgetting", str(texts), "--output_dir", str(tmp_path / "b")])
    assert status == 0 and "study: 0 answers to generate" in caplog.text
    shown = " ".join(capsys.readouterr().out.split())
    assert "The gold passage first and fourth: 3 questions" in shown and "nats per token" in shown
    again = json.loads((tmp_path / "b/metrics.json").read_text("utf-8"))
    for name in ("study", "forgetting"):
        without = json.dumps(again[name]).split('"latency')[0]
        assert without == json.dumps(found[name]).split('"latency')[0]


@pytest.mark.parametrize("too_long", ["drop", "shorten"])
def test_a_question_whose_gold_passage_is_too_long_is_left_out_of_the_parts_that_read_it(
    adapter_run, capsys, tmp_path, too_long
):
    documents = [Document(f"The {name} door opens at nine.") for name in ("red", "blue", "green", "grey", "white")]
    documents.append(Document("Tales follow. " * 900))
    gold = documents[0], documents[1], documents[-1]
    examples = [Example(f"Which door is {i}?", "It opens at nine.", (document,)) for i, document in enumerate(gold)]
    write_jsonl(tmp_path / "e.jsonl", (example.to_dict() for example in examples))
    write_documents(tmp_path / "d.jsonl", documents)
    flags = {"eval_file": "e.jsonl", "full_dataset_file_path": "d.jsonl", "full_dataset_index_path": "index"}
    words = [word for name, file in flags.items() for word in (f"--{name}", tmp_path / file)]
    words += ["--output_dir", tmp_path / "out", "--max_new_tokens", "3", "--too_long", too_long, "--retriever", "bm25"]
    status, found, _ = run(capsys, "evaluate", adapter_run, *words, "--study", "rank,k")
    assert status == 0 and {name: part["n"] for name, part in found["study"]["parts"].items()} == {"rank": 2, "k": 3}
    assert "study, rank: 2 of 3 questions" in found["study"]["notes"][0]


def test_parts_of_a_study_are_chosen_and_wrong_ones_named(adapter_run, capsys, tmp_path):
    words = ["evaluate", adapter_run, "--output_dir", tmp_path, "--max_new_tokens", "2", "--study"]
    status, found, _ = run(capsys, *words, "rank,k")
    assert status == 0 and list(found["study"]["parts"]) == ["rank", "k"]
    assert list(found["evaluations"]) == ["retrieved"]
    status, _, complaints = run(capsys, *words, "rank,nonsense")
    assert status == 2 and "--study: unknown: nonsense; choose from contexts, rank, k" in complaints
    status, _, complaints = run(capsys, *words[:-1], "--forgetting", tmp_path / "none.txt")
    assert status == 2 and "--forgetting: no such file" in complaints
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a b", "prompt": "c"}\n{"prompt": 3}\n[]\n{}\n')
    status, _, complaints = run(capsys, *words[:-1], "--forgetting", bad)
    assert status == 2 and complaints.count("--forgetting") == 4, complaints
