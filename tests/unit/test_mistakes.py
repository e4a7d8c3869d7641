"""Mistakes that people make at a terminal: each is named in its own line, with the command or flag that helps."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest
from conftest import write_data
from fake_server import FakeServer, Refusal

import groundtune
from groundtune.cli import main
from groundtune.commands.terminal import Bars
from groundtune.errors import DataError, gathered
from groundtune.prepare.chunking import counter_file
from groundtune.system import progress
from groundtune.system.hub_access import HubError, from_hub
from groundtune.system.progress import bar

EXAMPLE = {"question": "Long?", "gold_docs": [{"page_content": "Two hours."}], "gold_answer": "Two."}
CHAT = {"messages": [{"role": "user", "content": "Long?"}, {"role": "assistant", "content": "Two."}]}
SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": []}]}]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the data of a run under its usual names."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def doctor(capsys, *words: str) -> list[str]:
    """The lines of the errors that the doctor prints for these changes to a good command."""
    good = ["--train_file", "train.jsonl", "--eval_file", "eval.jsonl", "--full_dataset_file_path", "documents.jsonl"]
    assert main(["doctor", "swr", *good, "--retriever", "bm25", *words]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return [line for line in said.out.splitlines() if line.startswith("error: ")]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ALPACA = [{"instruction": "a", "input": "", "output": "b"}]
OTHER_FILES = {
    "chats": ("in.jsonl", lines(CHAT, CHAT), "format messages; convert it: groundtune convert messages in.jsonl"),
    "ShareGPT": ("in.jsonl", lines({"conversations": []}), "groundtune convert sharegpt in.jsonl -o in"),
    "Alpaca in a list": ("in.json", json.dumps(ALPACA), "groundtune convert alpaca in.json -o in"),
    "prompts": ("in.jsonl", lines({"prompt": "a", "completion": "b"}), "groundtune convert prompt_completion in.jsonl"),
    "SQuAD": ("in.json", json.dumps(SQUAD), "groundtune convert squad in.json -o in"),
    "a table": ("my qa.csv", "question,answer\na,b\n", "groundtune convert csv 'my qa.csv' -o 'my qa'"),
    "one list": ("in.jsonl", json.dumps([EXAMPLE] * 2), "is one JSON list; write one object per line, such as by"),
    "documents": ("in.jsonl", lines({"page_content": "a"}), "holds documents, not examples; it may belong to --full_"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_as_examples_is_one_line_with_the_command_that_helps(folder, capsys, name):
    file, text, said = OTHER_FILES[name]
    (folder / file).write_text(text)
    (problem,) = doctor(capsys, "--train_file", file)
    assert problem.startswith(f"error: {file}: ") and said in problem


@pytest.mark.parametrize(
    "row, said",
    [
        (EXAMPLE, "in.jsonl: holds examples, not documents; it may belong to --train_file or --eval_file"),
        (
            {"text": "a"},
            "in.jsonl: its rows have no page_content but text; split them into passages: groundtune documents",
        ),
    ],
)
def test_a_file_of_another_kind_as_documents_is_one_line(folder, capsys, row, said):
    (folder / "in.jsonl").write_text(lines(*[row] * 9))
    (problem,) = doctor(capsys, "--full_dataset_file_path", "in.jsonl")
    assert said in problem


def test_two_files_that_are_swapped_are_two_lines(folder, capsys):
    problems = doctor(capsys, "--train_file", "documents.jsonl", "--full_dataset_file_path", "train.jsonl")
    assert len(problems) == 2


def test_many_problems_of_one_kind_are_one_line_with_their_number_and_a_few_are_a_line_each(folder, capsys):
    rows = [EXAMPLE] * 3 + [{**EXAMPLE, "question": n} for n in range(12)] + [{**EXAMPLE, "gold_answer": 5}]
    (folder / "in.jsonl").write_text(lines(*rows))
    many, one = doctor(capsys, "--train_file", "in.jsonl")
    assert many.startswith("error: in.jsonl:4: question: is 0, not text; ")
    assert many.endswith("(12 such problems, the last in in.jsonl:15)") and one.startswith(
        "error: in.jsonl:16: gold_answer"
    )
    few = [f"in.jsonl:{n}: question: is {n}, not text" for n in range(5)]
    assert gathered(few) == few and gathered(["one", "two"] * 4) == ["one", "two"] * 4


@pytest.mark.parametrize(
    "words, said",
    [
        ("swr --lr 1e-4", "--lr: no such argument; here it is --learning_rate"),
        ("sft --model m", "--model: no such argument; here it is --model_name_or_path"),
        ("swr --lora_rank 8", "--lora_rank: no such argument; here it is --lora_r"),
        ("swr --batch-size 8", "--batch-size: no such argument; here it is --per_device_train_batch_size"),
        ("swr --epochs=3", "--epochs: no such argument; here it is --num_train_epochs"),
        ("swr --cutoff_len 512", "--cutoff_len: no such argument; here it is --max_seq_length"),
        ("swr --device cuda", "--device: no such argument; devices are found by themselves; CUDA_VISIBLE_DEVICES"),
        ("ask m --temperature 0.7 Why?", "--temperature: no such argument; answers are greedy"),
        ("ask m --top_k 3 Why?", "--top_k: no such argument; here it is --eval_num_to_retrieve"),
        ("evaluate m --batch_size 8", "--batch_size: no such argument; here it is --per_device_eval_batch_size"),
        (
            "swr run.yaml",
            "run.yaml: not expected here; if it is a file of arguments, write: groundtune swr --config run.yaml",
        ),
        (
            "swr --train_file my.jsonl",
            "--eval_file: missing; to hold examples out of training: groundtune split my.jsonl -o my",
        ),
        ("evaluate runs/nope", "MODEL: no such folder: runs/nope; check the path"),
    ],
)
def test_what_is_called_otherwise_here_or_is_missing_is_said_first(folder, capsys, words, said):
    (folder / "run.yaml").write_text("max_seq_length: 300\n")
    assert main(words.split()) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(said)


@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "QUIT", "/quit"])
def test_a_dialogue_is_left_by_the_words_that_people_try(monkeypatch, word, capsys):
    from groundtune.commands import ask

    typed = iter([word, "never asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    ask._converse(None)
    assert next(typed) == "never asked"


# The hub


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that refuses connections, looked at anew."""
    from huggingface_hub import constants

    from groundtune.system import hub_access

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub_access._no_answer_from.cache_clear()
    yield
    hub_access._no_answer_from.cache_clear()


def test_a_name_that_is_nowhere_without_network_is_one_line_at_once(folder, capfd, no_hub):
    begin = time.monotonic()
    for flag in ("--model_name_or_path", "--embedding_model"):
        retriever = "dense" if flag == "--embedding_model" else "bm25"
        (problem,) = doctor(capfd, flag, "nobody/nothing", "--retriever", retriever)
        assert problem.startswith(f"error: {flag}: nobody/nothing: not a folder here, not in the cache, and the hub ")
        assert "cannot be reached ([Errno " in problem and problem.endswith("; check the name or the network")
    assert time.monotonic() - begin < 5


def test_a_model_to_ask_that_is_nowhere_is_one_line_and_nothing_is_tried_again(folder, capfd, no_hub):
    words = ["ask", "nobody/nothing", "Why?", "--full_dataset_file_path", "documents.jsonl", "--retriever", "bm25"]
    begin = time.monotonic()
    assert main(words) == 2
    (problem,) = capfd.readouterr().err.splitlines()
    assert time.monotonic() - begin < 5
    assert problem.startswith("--model_name_or_path: nobody/nothing: not a folder here")


def test_every_call_that_may_ask_the_hub_for_a_file_looks_first_whether_it_answers():
    """`from_pretrained` of a hub name is inside `loading`, which does so."""
    asks = re.compile(r"= (?:Path\()?(?:snapshot_download|hf_hub_download|cached_file|find_adapter_config_file)\(")
    calls = 0
    for path in Path(groundtune.__file__).parent.rglob("*.py"):
        rows = path.read_text("utf-8").splitlines()
        for i, row in enumerate(rows):
            if asks.search(row):
                calls += 1
                looks = r" +with (.* if os.path.isdir\(.*\) else )?(cache_if_no_hub\(\)|from_hub\(name\)):"
                assert re.fullmatch(looks, rows[i - 1]), f"{path}:{i + 1}"
    assert calls >= 5


def test_a_hub_name_as_tokenizer_of_passages_without_network_is_one_line(no_hub):
    with pytest.raises(DataError, match=r"^--tokenizer: nobody/nothing: not a folder here, not in the cache, and the"):
        counter_file("nobody/nothing")


def test_a_path_that_is_no_name_of_the_hub_is_said_to_be_no_folder():
    with (
        pytest.raises(HubError, match=r"^runs/my/model: no such folder, and not a name on the hub"),
        from_hub("runs/my/model"),
    ):
        pytest.fail("a library was asked")


def test_a_hub_that_does_not_answer_is_waited_for_once_and_not_long(monkeypatch):
    from groundtune.system import hub_access

    monkeypatch.setattr(hub_access, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        said = {hub_access._no_answer_from(address) for _ in range(5)}
    assert len(said) == 1 and said != {""} and time.monotonic() - begin < 1


@pytest.mark.parametrize(
    "status, code, line",
    [
        (404, "RepoNotFound", "a/b: not a folder here, and not a model that the hub shows you (404); check the name"),
        (403, "GatedRepo", "a/b: gated on the hub (403); ask for access at "),
        (401, "", "a/b: the hub refuses it (401); log in: hf auth login"),
        (404, "RevisionNotFound", "a/b: the hub has no such revision of it; check the revision"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_way_in(status, code, line, no_hub, monkeypatch):
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    with FakeServer(lambda body: Refusal(status, headers={"X-Error-Code": code})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with pytest.raises(HubError) as caught, from_hub("a/b"):
            try:
                hf_raise_for_status(get_session().get(hub.url))
            except Exception as error:
                raise OSError("what a library says of it") from error
    assert str(caught.value).startswith(line) and ("hf auth login" in str(caught.value)) == (code != "RevisionNotFound")


def test_a_model_in_the_cache_is_loaded_at_once_without_network(no_hub):
    from huggingface_hub import constants

    with from_hub("a/b"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


# Progress in log files


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves, in place of the one that progress looks at."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_every_30_seconds_with_the_time_left_and_none_for_short_work(clock, capsys):
    bars = Bars(True)
    short, long = bars.begin("short", 10), bars.begin("answers", 500)
    for second in range(1, 121):
        clock[0] = float(second)
        if second < 30:
            short(1 if second < 10 else 0)
        long(1)
    assert capsys.readouterr().err.splitlines() == [
        "answers: 30 of 500, about 8 min left", "answers: 60 of 500, about 7 min left",
        "answers: 90 of 500, about 7 min left", "answers: 120 of 500, about 6 min left",
    ]  # fmt: skip


def test_bars_of_every_kind_are_lines_in_a_log_file_and_what_is_quiet_writes_none(clock, capsys):
    files, hidden = Bars(True), Bars(False)
    files.at("files", 0, None), hidden.at("files", 0, None)
    with bar("embedding", 9000) as embedding, bar("quiet", 9000, hidden=True) as quiet:
        clock[0] = 31.0
        embedding.update(10), quiet.update(10), files.at("files", 1200, None), hidden.at("files", 1200, None)
    assert capsys.readouterr().err.splitlines() == ["embedding: 10 of 9,000, about 8 h left", "files: 1,200"]


def test_work_that_goes_on_where_it_was_estimates_from_its_own_speed(clock, capsys):
    with bar("training steps", 1000, initial=900) as steps:
        clock[0] = 60.0
        steps.update(50)
    assert capsys.readouterr().err == "training steps: 950 of 1,000, about 60 s left\n"
