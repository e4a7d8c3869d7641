"""A file of arguments becomes flags, each with its line; its problems are named by line, and it runs no code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import IntervalStrategy

from groundtune.commands.config import Entry, entries_of, read_config, split_files
from groundtune.commands.parsing import given, light_parser
from groundtune.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def entries(name: str, content: str | bytes) -> list[Entry]:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_config(name)


def problem(name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        entries(name, content)
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize(
    "words, files, others",
    [
        (["run.json"], [], ["run.json"]),
        (["--config", "a.yaml", "--seed", "5", "--config=b.json"], ["a.yaml", "b.json"], ["--seed", "5"]),
        (["--seed", "run.json"], [], ["--seed", "run.json"]),
        (["--configs", "a"], [], ["--configs", "a"]),
        ([], [], []),
    ],
)
def test_files_of_arguments_are_told_from_flags(words, files, others):
    assert split_files(words) == (files, others)


YAML = "seed: 3\n\n# why\nlora_target_modules:\n  - q\n  - v\nsep_user: ' '\nkwargs: {a: 1}\nrun_name:\n"


def test_yaml_entries_have_their_values_and_lines():
    assert entries("run.yaml", YAML) == [
        Entry("seed", 3, "run.yaml:1"),
        Entry("lora_target_modules", ["q", "v"], "run.yaml:4"),
        Entry("sep_user", " ", "run.yaml:7"),
        Entry("kwargs", {"a": 1}, "run.yaml:8"),
        Entry("run_name", None, "run.yaml:9"),
    ]


def test_what_yaml_takes_for_a_boolean_is_the_word_that_was_written_but_in_a_mapping():
    found = entries("run.yaml", "a: off\nb: no\nc: On\nd: [yes, x, false]\ne: {k: no}\nf: 'off'\ng: true\n")
    assert [entry.value for entry in found] == ["off", "no", "On", ["yes", "x", "false"], {"k": False}, "off", "true"]


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_json_entries_have_their_values_and_lines(start):
    values = {"kwargs": {"seed": 1, "k": [{}]}, "seed": 3, 'a"b': "}", "none": None, "many": ["x", 1.5]}
    text = start + json.dumps(values, indent=2)
    found = entries("run.json", text)
    assert {entry.name: entry.value for entry in found} == values
    lines = text.splitlines()
    for entry in found:
        line = lines[int(entry.where.removeprefix("run.json:")) - 1]
        assert line.startswith(f"  {json.dumps(entry.name)}: ")
    assert entries("run.json", "{}") == [] and entries("run.json", '{"a":1,"b":2}')[1] == Entry("b", 2, "run.json:1")


def test_entries_become_words_of_a_command_line():
    flags = [
        Entry(*given, "").flag() for given in (("a", None), ("b", [1, "x"]), ("c", True), ("d", {"k": 1}), ("e", "-1"))
    ]
    assert flags == [[], ["--b", "1", "x"], ["--c=true"], ['--d={"k": 1}'], ["--e=-1"]]


YAML_PROBLEMS = {
    "seed: 1\nseed: 2": "run.yaml:2: seed: is also given in line 1",
    "modules: [[a]]": "run.yaml:1: modules: contains nested lists",
    "a: 1\nb: [1, 2": "run.yaml:2: line: not valid YAML: ",
    "a: 1\n\tb: 2": "run.yaml:2: line: not valid YAML: ",
    "a: 1\nb: 'x": "run.yaml:2: line: not valid YAML: ",
    "a: &x 1\nb: *x": "run.yaml:2: line: *x is an alias",
    "a: 1\nb: !!python/name:os.system": "run.yaml:2: line: not valid YAML: could not determine a constructor",
    "a: 1\n---\nb: 1": "run.yaml:2: line: not valid YAML: expected a single document",
    "a: 2024-13-45": "run.yaml:1: a: cannot be read (month must be in 1..12)",
    "a: 1\n? [b]\n: 1": "run.yaml:2: line: has a list or mapping before the colon",
    "a: 1\nb: \x00": "run.yaml:2: line: contains the character 0x0",
    "- a": "run.yaml:1: line: the file contains a list; it must map",
    "": "run.yaml:1: line: the file contains nothing; it must map",
    b"a: 1\nb: \xff": "run.yaml:2: line: not UTF-8",
    "[" * 2000: "run.yaml:1: line: is nested too deeply",
}
JSON_PROBLEMS = {
    '{"a": 1,\n "a": 2}': "run.json:2: a: is also given in line 1",
    '{"a": 1,\n "b": }': "run.json:2: line: not valid JSON: ",
    "{'a': 1}": "run.json:1: line: not valid JSON: ",
    "[1]": "run.json:1: line: the file contains a list; it must map",
    "[" * 100_000: "run.json:1: line: the file cannot be read",
    '{"a": ' + "9" * 5000 + "}": "run.json:1: line: the file cannot be read",
}


@pytest.mark.parametrize("content, start", YAML_PROBLEMS.items(), ids=YAML_PROBLEMS.values())
def test_a_wrong_yaml_file_is_one_line_that_names_its_own(content, start):
    found = problem("run.yaml", content)
    assert found.startswith(start) and "; " in found and "\n" not in found


@pytest.mark.parametrize("content, start", JSON_PROBLEMS.items(), ids=JSON_PROBLEMS.values())
def test_a_wrong_json_file_is_one_line_that_names_its_own(content, start):
    found = problem("run.json", content)
    assert found.startswith(start) and "; " in found and "\n" not in found


def test_all_that_is_given_twice_is_said_at_once():
    with pytest.raises(DataError) as caught:
        entries("run.yaml", "a: 1\nb: 1\na: 2\nb: 2\nc: [[1]]")
    assert [line.split(": ")[0] for line in caught.value.problems] == ["run.yaml:3", "run.yaml:4", "run.yaml:5"]


def test_yaml_tags_and_aliases_run_and_grow_nothing(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert "is an alias" in problem("run.yaml", bomb)
    problem("run.yaml", "a: !!python/object/apply:os.mkdir [made]")
    assert not Path("made").exists()


@pytest.mark.parametrize("name", ["none.yaml", ".", "a\0.yaml"])
def test_a_file_that_cannot_be_opened_is_a_problem(name):
    with pytest.raises(DataError) as caught:
        read_config(name)
    assert caught.value.problems[0].startswith(f"{name}: ")


@pytest.mark.parametrize("text", ['{"l\\ud800r": 1}', '{"run_name": "a\\ud800"}', '{"x": ["\\udc00"]}'])
def test_half_a_character_is_refused_with_its_line(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_config(str(path))
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}:1: ") and "half of a surrogate pair" in problem
    problem.encode("utf-8")


# Keywords


def test_what_python_calls_a_value_becomes_what_a_file_would_hold():
    given = {
        "a": None, "b": True, "c": Path("x/y"), "d": np.float32(0.5), "e": np.int64(3), "f": ("q", Path("v")),
        "g": {"k": np.int64(1), "l": [Path("z")]}, "h": IntervalStrategy.STEPS, "i": "--x",
    }  # fmt: skip
    words = [entry.flag() for entry in entries_of(given)]
    where = str(Path("x/y"))
    assert words == [
        [], ["--b=true"], [f"--c={where}"], ["--d=0.5"], ["--e=3"], ["--f", "q", "v"], ['--g={"k": 1, "l": ["z"]}'],
        ["--h=steps"], ["--i=--x"],
    ]  # fmt: skip


def test_all_that_no_flag_can_hold_is_said_at_once_by_its_name():
    with pytest.raises(DataError) as caught:
        entries_of({"a": object(), "b": [["x"]], "c": {"k": object()}, "d": "\ud800", "e": [object()], "ok": 1})
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == ["a", "b", "c", "'d'", "e"]


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_no_item_of_a_list_becomes_a_flag_of_its_own(name):
    said = problem(name, '{"lora_target_modules": ["q", "--overwrite_output_dir"]}')
    assert said.startswith(f"{name}:1: lora_target_modules: holds '--overwrite_output_dir'")


def test_help_in_a_file_is_a_problem_and_no_way_to_end_the_program(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("help: true\n")
    parser = light_parser("groundtune x", "", "")
    for argv, keywords in ((["--config", str(path)], {}), ([], {"help": True})):
        with pytest.raises(DataError, match="help: prints help on the command line"):
            given(parser, argv, keywords)
