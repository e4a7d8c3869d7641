"""A whole run on data with unanswerable questions: trained, evaluated, compared, and counted as such."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_examples, write_data
from test_recipes import flags

from groundtune.cli import main
from groundtune.data.files import write_jsonl
from groundtune.schema import UNANSWERABLE

WITHOUT = {0, 3}  # unanswerable questions; the test file starts with the fourth


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("data"))
    rows = [e.to_dict() for e in tiny_examples()]
    for i in WITHOUT:
        rows[i] |= {"gold_answer": UNANSWERABLE, "answerable": False}
    for name, part in {"train": rows, "eval": rows[:4], "test": rows[3:]}.items():
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


@pytest.mark.parametrize("method", ["sft", "swr"])
def test_questions_without_gold_passages_and_rows_that_are_too_long_stop_no_run(
    families, static_embedding_folder, data, tmp_path, method, capsys
):
    rows = [e.to_dict() for e in tiny_examples()]
    rows[0] |= {"gold_answer": UNANSWERABLE, "answerable": False, "gold_docs": []}
    rows[1]["chat_history"] = [{"speaker": s, "message": "Long ago. " * 60} for s in ("user", "assistant")]
    rows[2]["question"] = "Why? " * 400
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    for too_long, left_out in (("error", ()), ("drop", (2, 3)), ("shorten", (3,))):
        folder = tmp_path / f"{method} {too_long}"
        words = flags(families["mistral"], static_embedding_folder, data, folder, max_steps=1, train_file=path,
                      eval_file=path, test_file=path, max_seq_length=300, too_long=too_long,
                      max_train_samples=4)  # fmt: skip
        status = main([method, *words, "--json"])
        said = capsys.readouterr()
        if too_long == "error":
            assert status == 2 and "rows.jsonl:2: row: too long: " in said.err and "--too_long" in said.err
            continue
        assert status == 0, said.err
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        for system in ("base", "tuned"):
            assert metrics[system]["n"] == len(rows) - len(left_out)
            assert metrics[system]["retrieval/recall@1"]["scored"] == len(rows) - len(left_out) - 1
        log = json.loads((folder / "run.json").read_text("utf-8"))
        assert log["arguments"]["data"]["max_train_samples"] == 4
        notes = (folder / "report.md").read_text("utf-8")
        assert all(f"rows.jsonl:{line}" in notes for line in (2, 3))
        assert ("2 chat turns" in notes) == (too_long == "shorten")
        assert main(["evaluate", str(folder), "--contexts", "all", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["evaluations"]["gold"]["model"]["n"] == len(rows) - len(left_out)
        assert any("do not fit into --max_seq_length and are left out" in note for note in found["notes"])


def test_a_run_measures_retrieval_on_what_has_an_answer_and_says_how_the_rest_was_met(
    families, static_embedding_folder, data, tmp_path, capsys
):
    folder = tmp_path / "run"
    words = flags(families["mistral"], static_embedding_folder, data, folder, max_steps=2, eval_steps=1,
                  use_peft="true", lora_r=2)  # fmt: skip
    assert main(["swr", *words]) == 0
    capsys.readouterr()
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    for system in ("base", "tuned"):
        assert metrics[system]["n"] == 3 and metrics[system]["retrieval/recall@1"]["scored"] == 2
        assert metrics[system]["errors/unanswerable_answered"]["scored"] == 1
        assert metrics[system]["errors/answerable_refused"]["scored"] == 2
    assert metrics["difference"]["retrieval/mrr"]["n"] == 2
    during = [row for row in metrics["history"] if "eval_errors/unanswerable_answered" in row]
    assert [row["step"] for row in during] == [0, 1, 2]
    for name in ("report.md", "report.html", "README.md"):
        assert "1 of 3 questions are unanswerable" in (folder / name).read_text("utf-8")

    assert main(["evaluate", str(folder), "--contexts", "all", "--with_base", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(note.startswith("1 of 3 questions are unanswerable") for note in found["notes"])
    for by_system in found["evaluations"].values():
        for evaluation in by_system.values():
            outcomes = evaluation["outcomes"]
            assert sum(outcomes.values()) == 3
            assert outcomes["unanswerable, abstained"] + outcomes["unanswerable, but answered"] == 1

    page = tmp_path / "page.html"
    runs = [str(folder / "predictions" / f"test_{name}.jsonl") for name in ("base", "tuned")]
    assert main(["compare", *runs, "-o", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"]["test_tuned"]["retrieval/recall@1"]["n"] == 2
    assert found["notes"][0].startswith("1 of 3 questions are unanswerable")
    assert "1 of 3 questions are unanswerable" in page.read_text("utf-8")
