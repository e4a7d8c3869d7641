"""A run's folder is trusted for an allow-list of settings, and for names that do not point outside it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from groundtune.errors import DataError
from groundtune.runs.remembered import base_not_followed, record_own_run, remembered
from groundtune.system.durable import cache_folder

NAMES = {
    "model_name_or_path": "owner/base", "embedding_model": "owner/embedder", "full_dataset_file_path": "/data/d.jsonl",
    "test_file": "/data/test.jsonl",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))


def record(**changes) -> dict:
    """Part of run.json; changes are given by argument name."""
    arguments = {
        "method": "swr",
        "data": {"max_seq_length": 512, "full_dataset_file_path": NAMES["full_dataset_file_path"],
                 "test_file": NAMES["test_file"], "full_dataset_index_path": "/data/index"},
        "retrieval": {"embedding_model": NAMES["embedding_model"], "retriever": "dense", "eval_num_to_retrieve": 3},
        "passages": {"gold_dropout": 0.4, "distractors": ["random"]},
        "prompt": {"user_prefix": None, "instruction": "Answer."},
        "model": {"model_name_or_path": NAMES["model_name_or_path"], "model_revision": "b" * 40, "use_peft": True,
                  "trust_remote_code": True, "gguf_file": None},
        "evaluation": {"max_new_tokens": 8},
        "generator": {"generator": "openai:http://evil.example/v1"},
        "judge": {"judge": "openai:http://evil.example/v1"},
        "training": {"bf16": True, "report_to": ["wandb"], "hub_token": "***", "output_dir": "/data/out"},
    }  # fmt: skip
    for name, value in changes.items():
        group = next((g for g in arguments.values() if isinstance(g, dict) and name in g), arguments)
        group[name] = value
    return {"arguments": arguments, "working_directory": "/data", "inputs": {"test_file": {"sha256": "ab"}}}


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize("own", [True, False])
def test_only_what_is_on_the_list_is_remembered_whoever_made_the_run(tmp_path, own):
    folder = write(tmp_path / "run", record())
    if own:
        record_own_run(folder)
    run = remembered(str(folder))
    assert run.method == "swr" and run.own is own
    assert run.settings == {
        "max_seq_length": 512, "retriever": "dense", "eval_num_to_retrieve": 3, "gold_dropout": 0.4,
        "instruction": "Answer.", "use_peft": True, "max_new_tokens": 8, "bf16": True,
    }  # fmt: skip
    assert run.names | run.outside == NAMES and (run.outside if own else run.names) == {}
    assert run.inputs == {"test_file": "ab"} and run.revision == "b" * 40


def test_names_that_lie_in_the_folder_are_followed_and_no_link_or_dots_lead_out_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.jsonl").write_text("{}")
    folder = write(tmp_path / "run", record())
    (folder / "documents.jsonl").write_text("{}")
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for name, inside in {
        "run/documents.jsonl": True, str(folder / "documents.jsonl"): True, "run/link.jsonl": False,
        "run/../secret.jsonl": False, "secret.jsonl": False, "run/absent.jsonl": False, "run": True,
    }.items():  # fmt: skip
        run = remembered(str(write(folder, record(full_dataset_file_path=name))))
        assert ("full_dataset_file_path" in run.names) is inside, name
        assert ("full_dataset_file_path" in run.outside) is not inside, name


def test_rerankers_and_rewriters_are_remembered_and_servers_only_of_a_run_made_here(tmp_path):
    settings = {"rerank_depth": 30, "rerank_weight": 0.3, "reranker_model": "m", "rewriter_model": "w"}
    servers = {"reranker": "jina:http://evil.example/v1", "rewriter": "openai:http://evil.example/v1"}
    folder = write(tmp_path / "run", record())
    told = record()
    told["arguments"]["retrieval"] |= settings | servers | {"rewrite_prompt": "/data/prompt.txt"}
    run = remembered(str(write(folder, told)))
    assert settings.items() <= run.settings.items()
    assert run.names.keys() & servers.keys() == set() and servers.items() <= run.outside.items()
    record_own_run(folder)
    assert servers.items() <= remembered(str(folder)).names.items()
    told["arguments"]["retrieval"] |= {"reranker": "maxsim"}
    assert remembered(str(write(folder, told))).names["reranker"] == "maxsim"  # it leads nowhere, whoever made the run


def test_a_run_is_known_by_its_record_wherever_it_lies_and_no_longer_when_that_changes(tmp_path):
    folder = write(tmp_path / "run", record())
    record_own_run(folder, "index")
    assert remembered(str(write(tmp_path / "moved", record()))).own
    assert remembered(str(folder)).index_path == str(Path("index").absolute())
    assert not remembered(str(write(folder, record(embedding_model="evil/model")))).own
    assert stat.S_IMODE((cache_folder() / "runs").stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff", b""])
def test_a_record_in_the_cache_that_is_damaged_makes_a_run_a_strangers(tmp_path, content):
    record_own_run(folder := write(tmp_path / "run", record()))
    (found,) = (cache_folder() / "runs").iterdir()
    found.write_bytes(content)
    assert not remembered(str(folder)).own


def test_a_cache_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "file"))
    folder = write(tmp_path / "run", record())
    record_own_run(folder)
    assert "cannot write to" in caplog.text and not remembered(str(folder)).own


@pytest.mark.parametrize(
    "changes",
    [
        {"max_seq_length": "512"}, {"max_seq_length": True}, {"retriever": "other"}, {"retriever": ["dense"]},
        {"use_peft": 1}, {"instruction": {"a": 1}}, {"embedding_model": 3}, {"full_dataset_file_path": ["a"]},
        {"method": {}}, {"model_revision": 7}, {"gguf_file": "../model.gguf"}, {"gguf_file": "a\\b"}, {"bf16": "yes"},
        {"test_file": "a" * 5000}, {"embedding_model": "a\0b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_one_line_that_names_file_and_argument(tmp_path, changes):
    folder = write(tmp_path / "run", record(**changes))
    with pytest.raises(DataError) as raised:
        remembered(str(folder))
    (line,) = raised.value.problems
    (name,) = changes
    assert line.startswith(str(folder / "run.json")) and name in line and len(line) < 300


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "null", "{", '"text"', "[" * 200_000, '{"arguments": 3}', '{"arguments": null}', "{}", "9" * 5000,
     '{"arguments": {"data": [], "model": 3}, "inputs": [1], "working_directory": 5}'],
)  # fmt: skip
def test_a_file_that_is_no_record_is_one_line_or_remembers_nothing(tmp_path, content):
    folder = write(tmp_path / "run", content)
    try:
        run = remembered(str(folder))
    except DataError as error:
        (line,) = error.problems
        assert str(folder / "run.json") in line
    else:
        assert not run.names and not run.settings


def test_a_record_of_gigabytes_is_not_read(tmp_path):
    folder = write(tmp_path / "run", record())
    with open(folder / "run.json", "r+b") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match="over 16,777,216 bytes"):
        remembered(str(folder))


def test_the_base_of_an_adapter_that_nobody_can_confirm_is_followed_if_it_lies_inside_or_this_machine_trained_on_it(
    tmp_path,
):
    folder, base = write(tmp_path / "run", record(model_name_or_path="owner/base")), "owner/base"

    def problems(base: str) -> list[str]:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        return base_not_followed("judge", str(folder))

    assert f"--judge: {folder} is an adapter of {base}, outside its folder" in problems(base)[0]
    (folder / "base").mkdir()
    assert problems(str(folder / "base")) == []
    record_own_run(folder)
    assert problems(base) == [] and problems("owner/other") != []  # the record is of another one
    assert base_not_followed("judge", "owner/model") == base_not_followed("judge", str(tmp_path)) == []


def test_a_folder_without_a_record_is_no_run(tmp_path):
    assert remembered(str(tmp_path)) is None and remembered("") is None and remembered("owner/model") is None


@pytest.mark.parametrize("name", ["max_seq_length", "eval_num_to_retrieve", "max_new_tokens", "bootstrap_samples"])
@pytest.mark.parametrize("number", [10**8, 10**12, 10**30, 0, -1, -(10**30)])
def test_a_number_that_would_take_all_time_or_memory_is_not_believed(tmp_path, name, number):
    content = record()
    group = {"max_seq_length": "data", "eval_num_to_retrieve": "retrieval"}.get(name, "evaluation")
    content["arguments"][group][name] = number
    folder = write(tmp_path / "run", content)
    with pytest.raises(DataError, match=rf"run\.json: {name}: -?\d+ is not from \d+ to 1\d*,000"):
        remembered(str(folder))


@pytest.mark.parametrize("group", ["data", "retrieval", "prompt", "model", "evaluation", "training"])
def test_a_group_of_settings_that_is_no_object_is_one_line(tmp_path, group):
    content = record()
    content["arguments"][group] = [17]
    with pytest.raises(DataError, match=rf"^.*run\.json: arguments: {group} must be an object; [^\n]*$"):
        remembered(str(write(tmp_path / "run", content)))
