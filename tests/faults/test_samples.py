"""A few dozen cases of these scripts; `make test-slow` adds those that fork runs, `make faults` runs all cases."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import damages
import fuzz_parsers
import hostile_files
import hostile_inputs
import hostile_pickles
import malformed_inputs
import pytest
import silent_failures
from conftest import make_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


PICKLES = hostile_pickles.cases()


def test_there_are_as_many_cases_as_the_scripts_promise():
    assert len(PICKLES) >= 120
    assert len({case.name for case in malformed_inputs.cases("model")}) >= 150
    assert len({(case.kind, case.name) for case in damages.cases()}) >= 700


@pytest.mark.parametrize("what", list(PICKLES)[::4])
def test_hostile_pickles_are_refused_and_nothing_happens(folder, what):
    (folder / "precious").mkdir()
    assert hostile_pickles.is_harmless(hostile_pickles.attempt(PICKLES[what], folder))


def test_the_watch_sees_what_a_pickle_does(folder, monkeypatch):
    """With the ordinary unpickler, the same pickles do call, import and write."""
    import pickle

    (folder / "precious").mkdir()
    unpickled = lambda path: pickle.loads(path.read_bytes())  # noqa: E731, S301  it is watched doing so
    monkeypatch.setattr(hostile_pickles, "read_documents", unpickled)
    ways = ("reduce", "global and reduce", "inst", "obj")
    calls = [PICKLES[f"calls: builtins.exec by {how}"] for how in ways]
    seen = [hostile_pickles.attempt(data, folder) for data in calls]
    assert not any(hostile_pickles.is_harmless(result) for result in seen)
    assert (folder / "executed").exists() and {"exec"} <= {event[0] for result in seen for event in result["happened"]}


def test_the_watch_records_nothing_once_it_is_over():
    """Its hook stays in the process: recording every event of the tests after it once filled the machine's memory."""
    with hostile_pickles.audit_events() as events:
        compile("1", "seen", "eval")
    seen = len(events)
    compile("1", "not seen", "eval")
    assert seen and len(events) == seen


@pytest.mark.skipif(not hostile_pickles.FAIRE.exists(), reason=f"needs the Faire documents at {hostile_pickles.FAIRE}")
def test_the_real_pickle_is_read():
    assert len(hostile_pickles.read_documents(hostile_pickles.FAIRE)) == 1757  # one of its 1,758 repeats another


@pytest.mark.parametrize("command", [("sft",), ("doctor", "sft")], ids=" ".join)
def test_malformed_inputs_are_one_line_that_names_file_line_and_field(folder, families, command):
    logging.disable(logging.CRITICAL)
    try:
        model, cases = families["llama"].folder, list(malformed_inputs.cases("model"))
        chosen = random.Random(len(command)).sample(range(len(cases)), 20)
        cases = [case for i, case in enumerate(malformed_inputs.cases(model)) if i in chosen]
        assert [malformed_inputs.complaint(case, folder, model, command) for case in cases] == [""] * 20
    finally:
        logging.disable(logging.NOTSET)


def test_a_wrong_answer_to_a_malformed_input_would_be_noticed(folder, families):
    model = families["llama"].folder
    case = next(case for case in malformed_inputs.cases(model) if case.name == "train.jsonl: a number as question")
    elsewhere = malformed_inputs.Case(case.name, case.file, case.content, case.line + 1, case.field)
    assert "not 'train.jsonl:4: question: '" in malformed_inputs.complaint(elsewhere, folder, model)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer("qwen").save_pretrained(folder)
    return folder


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="as the script, for POSIX")
@pytest.mark.parametrize(
    "name, why",
    [
        ("docx: empty paragraphs", "m.docx: is not read after 5 seconds; raise --file_timeout, or leave the file out"),
        ("docx: an image of 300 MB", "m.docx: unpacks to 286 MB, more than --max_file_mb"),
        ("a pipe", "m.txt: leads to a pipe, not to a file"),
        ("a link to /dev/zero", "m.txt: leads to a device, not to a file"),
        ("a loop of links", "m.txt: is a link whose target is missing, or a loop of links"),
        ("names that are not UTF-8", r"bro\xe9ken.pdf: is not a readable PDF"),
    ],
)
def test_a_hostile_file_is_named_and_those_around_it_are_read(tmp_path, tokenizer, name, why):
    outcome = hostile_files.attempt(name, tmp_path, tokenizer, locale="C")
    assert outcome.wrong == [] and why in outcome.said, outcome.said


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile_files.CASES)
def test_every_hostile_file_is_named_and_those_around_it_are_read(tmp_path, tokenizer, name):
    assert hostile_files.attempt(name, tmp_path, tokenizer).wrong == []


def test_every_input_that_may_come_from_a_stranger_is_attacked_at_least_four_times():
    attacks = Counter(case.group for case in hostile_inputs.cases())
    assert set(attacks) == set(hostile_inputs.GROUPS) and min(attacks.values()) >= 4
    rows = (Path(__file__).parents[2] / "docs/security.md").read_text("utf-8").partition("|---|")[2].split("\n\n")[0]
    assert {line.split(" | ")[0].strip("| ") for line in rows.splitlines()[1:]} <= set(hostile_inputs.GROUPS)


SAMPLE = (
    "code of its own", "documents elsewhere", "vectors that are a pickle", "an alias", "a redirect to another",
    "forty-six bytes", "a template's complaint", "os.system by reduce",
)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measured only where the system tells the memory of a process")
def test_attacks_are_withstood_and_what_they_would_do_is_seen():
    """In a process of its own: one that has computed cannot be forked safely."""
    done = subprocess.run([sys.executable, hostile_inputs.__file__, *SAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 cases, 0 not withstood" in done.stdout and "6 of 6 controls seen" in done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> silent_failures.World:
    return silent_failures.World(tmp_path_factory.mktemp("world"))


FAILURES = {failure.number: failure for failure in silent_failures.FAILURES}


def test_every_silent_failure_that_is_known_is_planted():
    assert {int(number.rstrip("abc")) for number in FAILURES} == set(range(1, 21))
    assert len(silent_failures.clean_runs()) == 20


@pytest.mark.parametrize("number", ["1", "3", "4", "6", "10", "16a", "18b", "19"])
def test_a_silent_failure_is_caught_and_the_code_as_it_is_raises_no_alarm(world, number):
    right, found = silent_failures.caught(FAILURES[number], world)
    assert right, found


def test_a_run_with_nothing_wrong_is_silent_and_one_with_a_failure_is_not(world, monkeypatch):
    method, flags = silent_failures.clean_runs()[-3]
    assert silent_failures.alarm_of(world, method, **flags) == ""
    silent_failures.two_beginnings(monkeypatch, world)
    assert "begin with two BOS tokens" in silent_failures.alarm_of(world, method, **flags)


def test_a_failure_that_nothing_finds_is_not_counted_as_caught(world):
    failure = replace(FAILURES["1"], plant=lambda patch, world: None)
    assert silent_failures.caught(failure, world) == (False, "MISSED")


def test_three_seconds_of_random_damage_find_nothing(folder):
    outcomes, failures = fuzz_parsers.fuzz(3.0, 7, folder)
    assert failures == []
    kinds = Counter(name for name, outcome in outcomes if outcome == "refused")
    assert set(kinds) >= {"train.jsonl", "documents.jsonl", "documents.pkl", "run.yaml", "run.json"}


def test_the_fuzzer_sees_what_is_no_data_error(folder, monkeypatch):
    def fail(path):
        raise KeyError("x")

    monkeypatch.setitem(fuzz_parsers.PARSERS, "run.yaml", fail)
    _, failures = fuzz_parsers.fuzz(0.05, 7, folder)
    assert failures and all("run.yaml" in failure and "KeyError" in failure for failure in failures)
