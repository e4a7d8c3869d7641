"""JSON that every program reads: no NaN or infinity in any file or output, wherever the number came from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from groundtune.cli import main
from groundtune.data.files import read_documents, read_examples, write_documents, write_jsonl
from groundtune.evaluation.predictions import evaluation_of, write_predictions
from groundtune.runs.checkpoints import load_state, save_state
from groundtune.schema import Document, Example, Hit, Prediction
from groundtune.system.durable import read_manifest, write_manifest
from groundtune.system.text import as_json, is_finite, json_to_print, to_json

PACKAGE = Path(__file__).parents[2] / "groundtune"
NUMBERS = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5}
AS_NULL = {"a": None, "b": [None, {"c": None}], "d": 1.5}


def strict(text: str | bytes) -> object:
    """JSON as other programs read it."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_all_json_of_the_package_is_written_in_one_place():
    between_processes = {"system/patterns.py", "system/workers.py"}  # read by our own code alone
    writes = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text("utf-8") for word in ("json.dump", "JSONEncoder"))
    ]
    assert set(writes) - between_processes == {"system/text.py"}


@pytest.mark.parametrize("write", [to_json, as_json, json_to_print])
def test_what_json_has_no_number_for_is_null(write):
    assert strict(write(NUMBERS)) == AS_NULL and strict(write({"d": 1e308})) == {"d": 1e308}


def test_a_value_is_a_finite_number_if_a_float_can_hold_it():
    assert all(map(is_finite, [0, -3, 2.5, 10**300]))
    assert not any(map(is_finite, [True, None, "1", [1], math.nan, math.inf, 10**400]))


def test_what_is_no_json_is_still_an_error_where_rows_are_written():
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_what_is_printed_is_json_that_writes_nothing_on_a_terminal():
    nasty = {"\x1b[2J\x7f\x9b\u202e": 'é 日本 "quoted" \\ \xa0\u3000\u200d \U000e0001 \ud800\n\t'}
    printed = json_to_print(nasty, indent=2)
    assert json.loads(printed) == nasty
    assert (
        not set("\x1b\x7f\x9b\u202e\U000e0001\ud800\t") & set(printed) and "é 日本" in printed and "\u3000" in printed
    )


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_of_a_jsonl_file_that_are_none_are_null_in_every_file_made_from_it(tmp_path, literal, capsys):
    row = f'{{"page_content": "A passage.", "metadata": {{"score": {literal}, "deep": [{literal}]}}}}\n'
    (tmp_path / "documents.jsonl").write_text(row)
    example = f'{{"question": "Q?", "gold_answer": "A", "gold_docs": [{row.strip()}]}}\n'
    (tmp_path / "examples.jsonl").write_text(example)
    for suffix in ("jsonl", "parquet"):
        if suffix == "parquet":
            pytest.importorskip("pyarrow")
        write_documents(tmp_path / f"again.{suffix}", read_documents(tmp_path / "documents.jsonl"))
        (document,) = read_documents(tmp_path / f"again.{suffix}")
        assert document.metadata == {"score": None, "deep": [None]}
    strict((tmp_path / "again.jsonl").read_text())
    write_jsonl(tmp_path / "e.jsonl", (one.to_dict() for one in read_examples(tmp_path / "examples.jsonl")))
    strict((tmp_path / "e.jsonl").read_text())
    for form in ("to_messages", "to_prompt_completion", "to_beir"):
        out = tmp_path / form
        assert main(["convert", form, str(tmp_path / "examples.jsonl"), "-o", str(out), "--json"]) == 0
        strict(capsys.readouterr().out)
        for path in out.rglob("*.jsonl"):
            assert all(strict(line) for line in path.read_text().splitlines())


def test_numbers_of_a_parquet_column_that_are_none_are_null(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"page_content": ["A"], "score": [math.nan], "metadata": [{"x": math.inf}]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    (document,) = read_documents(tmp_path / "d.parquet")
    assert document.metadata == {"score": None, "x": None}


def test_predictions_with_such_numbers_are_json(tmp_path):
    document = Document("A", metadata={"score": math.nan})
    example = Example("Q?", "A", (document,), source="a:1")
    predictions = [
        Prediction(
            example=example, hits=(Hit(document, math.inf),), answer="A", finished=True, passages_read=1,
            prompt_tokens=1, new_tokens=1, scores={"generation/f1": 1.0}, read=(document,),
        )
    ]  # fmt: skip
    write_predictions(tmp_path / "p.jsonl", evaluation_of(predictions))
    row = strict((tmp_path / "p.jsonl").read_text())
    assert row["gold_docs"][0]["metadata"] == {"score": None} and row["retrieved_docs"][0]["score"] is None


def test_a_manifest_is_json_and_a_saved_state_keeps_its_numbers(tmp_path):
    write_manifest(tmp_path, {"about": NUMBERS})
    strict((tmp_path / "manifest.json").read_bytes())
    assert read_manifest(tmp_path)["about"] == AS_NULL
    state = {"best": math.inf, "worst": (-math.inf, 1.0), "$float": "inf", "none": [math.nan]}
    save_state(tmp_path, "scheduler", state)
    strict((tmp_path / "scheduler.json").read_bytes())
    read = load_state(tmp_path, "scheduler")
    assert repr(read) == repr(state)
