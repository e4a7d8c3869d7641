"""The historical scripts keep LocalRQA's defaults: the tables of docs/localrqa.md, row by row."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_documents

import groundtune.recipes.train
from groundtune.arguments import RetrievalArguments
from groundtune.commands.localrqa import TRAINING_DEFAULTS
from groundtune.commands.parsing import parse_arguments
from groundtune.methods import METHODS
from groundtune.prompts.policies import draw
from groundtune.retrieval.queries import query_of
from groundtune.schema import USER, Example, Hit, Turn
from groundtune.training.retriever_arguments import RetrieverArguments, TrainingFlags

ROOT = Path(__file__).parents[2]
SCRIPTS = {"sft": "train_w_gt.py", "swr": "train_w_fixed_retriever.py"}
PAGE = (ROOT / "docs/localrqa.md").read_text("utf-8")
ROWS = {
    cells[0].strip(): tuple(cell.strip().strip("`") for cell in cells[1:])
    for line in re.findall(r"^\|(.*)\|$", PAGE, re.MULTILINE)[2:]
    if len(cells := line.split("|")) == 3
}


class Parsed(Exception):
    """Raised in place of a training."""


def parsed_by_script(method: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments with which a script would train."""
    found = []

    def train(arguments: Any) -> None:
        found.append(arguments)
        raise Parsed

    monkeypatch.setattr(groundtune.recipes.train, "train", train)
    monkeypatch.setattr(sys, "argv", [SCRIPTS[method], *words])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / "scripts/train/qa_llm" / SCRIPTS[method]), run_name="__main__")
    return found[0]


@pytest.mark.parametrize("method", SCRIPTS)
def test_the_scripts_and_the_commands_have_the_defaults_of_the_table(method, monkeypatch):
    script = parsed_by_script(method, ["--output_dir", "out"], monkeypatch).retrieval
    command = parse_arguments(method, ["--output_dir", "out"]).retrieval
    assert ROWS["retriever"] == (f"--retriever {script.retriever}", f"--retriever {command.retriever}")
    assert ROWS["search query"] == tuple(f"--query_history {r.query_history}" for r in (script, command))
    assert (script.retriever, script.query_history) == ("dense", "none")


def test_the_query_of_the_scripts_is_the_question_alone():
    assert query_of("And now?", (Turn(USER, "How?"),), "none").text == "And now?"


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_row_of_swr_has_at_most_k_and_one_passages_and_gold_first_in_the_script_and_anywhere_in_the_command(
    k, monkeypatch
):
    assert ROWS["passages of a SwR row"] == ("at most k + 1",) * 2
    script = parsed_by_script("swr", ["--output_dir", "out"], monkeypatch).passages
    command = parse_arguments("swr", ["--output_dir", "out"]).passages
    assert ROWS["order of a SwR row"] == tuple(f"--passage_order {p.passage_order}" for p in (script, command))
    documents = tiny_documents()
    for gold in (documents[:1], documents[3:5]):
        example = Example("Q?", "A.", tuple(gold), ())
        hits = [Hit(document, 1.0) for document in documents[:k]]
        places = {}
        for flags in (script, command):
            draws = METHODS["swr"].draws(flags, k, documents)
            rows = [[p.document for p in draws(example, hits, draw(0, 0, n))[1]] for n in range(20)]
            assert all(len(row) <= k + 1 and row.index(gold[0]) >= 0 for row in rows)
            places[flags.passage_order] = {row.index(gold[0]) for row in rows}
        assert places["gold_first"] == {0}
        assert len(places["shuffled"]) > 1 or k + 1 <= len(gold)


def test_every_row_of_the_table_is_checked_here():
    assert set(ROWS) == {"retriever", "search query", "passages of a SwR row", "order of a SwR row"}


@pytest.mark.parametrize("form", ["flags", "yaml", "json"])
def test_flags_and_files_override_the_defaults_of_the_scripts(form, monkeypatch, tmp_path):
    chosen = {"output_dir": str(tmp_path / "out"), "query_history": "all", "retriever": "bm25"}
    (tmp_path / "run.json").write_text(json.dumps(chosen))
    (tmp_path / "run.yaml").write_text("".join(f"{name}: {value}\n" for name, value in chosen.items()))
    words = {
        "flags": [word for name, value in chosen.items() for word in (f"--{name}", value)],
        "yaml": ["--config", str(tmp_path / "run.yaml")],
        "json": [str(tmp_path / "run.json")],
    }[form]
    retrieval = parsed_by_script("swr", words, monkeypatch).retrieval
    assert (retrieval.retriever, retrieval.query_history) == ("bm25", "all")


def test_the_help_of_a_script_shows_its_own_defaults(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPTS["sft"], "-h"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/train/qa_llm" / SCRIPTS["sft"]), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith(
        "defaults of this script: --retriever dense, --query_history none, --passage_order gold_first\n"
    )


def test_the_defaults_of_the_retriever_script_are_those_of_the_table():
    values = vars(RetrievalArguments()) | vars(RetrieverArguments()) | vars(TrainingFlags())
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")] for line in re.findall(r"^\|(.*)\|$", PAGE, re.MULTILINE)
    ]
    found = {row[0]: row[1:3] for row in rows if len(row) == 4 and re.match(r"--\w", row[0])}
    today = {f"--{name}": str(values[name]) or "none" for name in TRAINING_DEFAULTS}
    assert found == {f"--{name}": [str(value), today[f"--{name}"]] for name, value in TRAINING_DEFAULTS.items()}
