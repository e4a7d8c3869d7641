"""Each benchmark runs to its table on a tiny model, and refuses to time two sides that do different work."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import make_family

from benchmarks import (
    block_attention,
    corpus,
    evaluation,
    human_grades,
    measure,
    million,
    queries,
    retrieval,
    serving,
    train_step,
)
from groundtune.data.files import read_documents, write_jsonl
from groundtune.prompts.rows import Row
from groundtune.schema import Document, Example

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make_family("gemma", tmp_path_factory.mktemp("decoder")).folder


@pytest.fixture
def quick(monkeypatch, capsys, decoder, static_embedding_folder):
    """Run a benchmark's command; its JSON lines."""
    monkeypatch.setattr(measure, "matmul_peak", lambda: 100.0)

    def run(module, *words: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--pairs", "2", *words])
        assert module.main() == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    return run


def check(case: dict) -> None:
    assert case["ratio"] > 0 and case["ours_s"] > 0 and case["theirs_s"] > 0
    assert case["lowest"] <= case["ratio"] <= case["highest"]


def test_training_against_padding_and_sharing(quick, decoder):
    *cases, versions = quick(train_step, "--model", str(decoder), "--against", "padded", "sharing")
    assert [case["against"] for case in cases] == ["padded"] + ["packed rows"] * 5
    for case in cases:
        check(case)
    assert cases[0]["share_of_peak"] > 0 and cases[0]["ours_tokens_s"] > 0
    assert [round(case["token_ratio"], 2) > 1 for case in cases[1:]] == [True, True, True, True, False]
    assert "torch" in versions["versions"]


def test_block_attention_against_full_attention(quick, decoder):
    step, warm, new, _ = quick(block_attention, "--model", str(decoder))
    for case in (step, warm, new):
        check(case)
    assert step["token_bound"] > 1 and warm["mb_a_passage"] > 0


@pytest.mark.slow
def test_random_weights_in_the_shape_of_a_real_model(quick):
    *cases, _ = quick(train_step, "--shape", "0.6B", "--against", "padded", "sharing")
    assert [case["token_ratio"] > 1.01 for case in cases[1:]] == [True, True, True, False]
    for case in cases:
        check(case)


@pytest.mark.skipif("trl" not in measure.versions() or measure.versions()["trl"] == "not installed", reason="no trl")
@pytest.mark.parametrize("against", ["trl", "trl-tuned"])
def test_training_against_trl(quick, decoder, against):
    case, _ = quick(train_step, "--model", str(decoder), "--against", against)
    check(case)


def test_evaluation_against_the_historical_procedure(quick, decoder, static_embedding_folder):
    words = ["--model", str(decoder), "--embedding_model", str(static_embedding_folder)]
    case, _ = quick(evaluation, *words)
    check(case)
    assert case["ours_questions_s"] > 0


def test_retrieval_against_one_at_a_time(quick, static_embedding_folder):
    case, _ = quick(retrieval, "--embedding_model", str(static_embedding_folder))
    check(case)
    assert case["same_passages"] >= 0.99


def test_sides_with_different_losses_are_not_timed():
    class Side:
        def __init__(self, value):
            self.value = value

        def loss(self, rows):
            return self.value

    rows = [Row([1], [2], "")]
    train_step.check_same_loss(Side(1.0), Side(1.001), rows, tolerance=1e-2)
    with pytest.raises(AssertionError, match=r"1.0 and 1.1"):
        train_step.check_same_loss(Side(1.0), Side(1.1), rows, tolerance=1e-2)


def test_pairs_are_interleaved_and_the_ratio_is_that_of_the_sums(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "matmul_peak", lambda: 1.0)
    monkeypatch.setattr(measure, "_seconds", lambda work, i: work(i))

    def ours(i):
        calls.append("A")
        return 1.0 + i

    def theirs(i):
        calls.append("B")
        return 4.0 + 2 * i

    case = measure.compare("c", "a", ours, theirs, pairs=3)
    assert "".join(calls) == "AB" + "ABBAAB"
    assert case.ratio == pytest.approx((4 + 6 + 8) / (1 + 2 + 3))
    assert (case.lowest, case.highest) == (pytest.approx(8 / 3), pytest.approx(4))


@pytest.mark.slow
def test_memory_is_measured_in_a_process_for_each_side(decoder):
    words = ["--quick", "--model", str(decoder), "--against", "padded"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *words], cwd=ROOT, capture_output=True, text=True)
    case = json.loads(done.stdout.splitlines()[0])
    assert 0 < case["ours_loaded_mb"] <= case["ours_peak_mb"] and 0 < case["theirs_loaded_mb"] <= case["theirs_peak_mb"]
    # The memory of a padded row of 2,048 tokens must show, or nothing was measured.
    assert case["ratio_above_model"] < 1


@pytest.mark.slow
def test_a_corpus_is_made_indexed_and_searched_in_processes_of_their_own(static_embedding_folder, tmp_path):
    pytest.importorskip("markdown_it", reason="needs the extra [documents]")
    words = ["--quick", "--embedding_model", str(static_embedding_folder), "--folder", str(tmp_path / "made")]
    done = subprocess.run([sys.executable, "-m", "benchmarks.corpus", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row.get("case") for row in rows] == ["documents", "index", "search, 100 questions"]
    made, indexed, searched = rows
    assert made["passages"] == indexed["passages"] == searched["passages"] > 150
    assert made["passages_s"] > 0 and indexed["passages_s"] > 0 and searched["search_s"] > 0
    assert all(row["peak_mb"] > 20 for row in rows)


def test_the_steps_of_a_million_passages_on_a_few_hundred(bert_embedding_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("groundtune.data.files._IN_MEMORY", 0)
    for module in ("stores.local", "retrievers"):
        monkeypatch.setattr(f"groundtune.retrieval.{module}.LARGE", 50)
    pieces = [" ".join(corpus.sentences()[i : i + 3]) for i in range(0, 90, 3)]
    monkeypatch.setattr(million, "pieces", lambda: iter([*pieces, *pieces]))
    options = argparse.Namespace(
        folder=tmp_path / "million", passages=400, originals=20, documents=[], questions=[], queries=10,
        embedding_model=str(bert_embedding_folder), embedding_dtype="auto", vector_dtype="float16",
    )  # fmt: skip
    rows = {name: step(options) for name, step in million.STEPS.items() if name != "ask"}
    assert rows["read"] == {"passages": 400} and rows["search"]["lists"] > 0
    assert rows["search"]["recall@10"] > 0.9 and rows["search"]["mix_per_s"] > 0
    assert rows["collect"] == {"originals": 20, "queries": 10}
    texts = [document.text for document in read_documents(tmp_path / "million" / "originals.jsonl")]
    asked = json.loads((tmp_path / "million" / "queries.json").read_text())
    assert set(texts) < set(pieces) and not any(text.startswith(query) for text in texts for query in asked)
    assert len({document.text for document in read_documents(tmp_path / "million" / "documents.jsonl")}) == 400


def test_search_and_fusion_are_timed_without_embedding(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["retrieval", "--quick", "--without_embedding"])
    assert retrieval.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["case"] for row in rows] == ["dense", "bm25", "mix", "hybrid"] and all(
        row["seconds"] > 0 for row in rows
    )


def test_a_question_of_two_passages_with_one_found_counts_half_in_recall_and_whole_in_any(
    tmp_path, capsys, monkeypatch
):
    documents = [Document(text) for text in ("red apples", "green apples", "blue boats", "old boats", "a far hill")]
    write_jsonl(tmp_path / "documents.jsonl", (document.to_dict() for document in documents))
    asked = {"red apples": documents[:2], "boats": documents[2:4], "rivers": documents[4:]}
    examples = [Example(question, "an answer", tuple(gold)) for question, gold in asked.items()]
    write_jsonl(tmp_path / "examples.jsonl", (example.to_dict() for example in examples))
    files = ["--documents", str(tmp_path / "documents.jsonl"), "--examples", str(tmp_path / "examples.jsonl")]
    monkeypatch.setattr(
        sys, "argv", ["queries", *files, "--retrievers", "bm25", "--histories", "none", "last", "--k", "1"]
    )
    assert queries.main() == 0
    found = json.loads(capsys.readouterr().out)
    for history in ("none", "last"):
        assert found["recall@1"]["bm25"][history][0] == pytest.approx((0.5 + 0.5 + 0) / 3, abs=0.001)
        assert found["any@1"]["bm25"][history][0] == pytest.approx(2 / 3, abs=0.001)


def test_the_passages_of_the_corpus_are_all_different_and_about_as_long_as_real_ones():
    made = list(islice(corpus.paragraphs(random.Random(0)), 5000))
    assert len({*made}) == 5000 and len(corpus.sentences()) > 1000
    lengths = sorted(map(len, made))
    assert lengths[0] >= corpus._CHARACTERS and lengths[-1] < 1.5 * corpus._CHARACTERS


def test_rank_correlation_equals_scipy_with_ties_and_is_undefined_for_a_constant():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.integers(5, size=(2, 30)).astype(float)
        assert human_grades.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(human_grades.spearman(np.ones(5), np.arange(5.0)))


def test_scores_are_compared_with_the_grades_of_people(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(human_grades, "RESAMPLES", 50)
    answers = {"Ten euros.": 4, "Ten dollars.": 2, "No idea at all.": 1}
    rows = [
        {
            "task": f"t{i}", "question": "How much?", "chat_history": [], "passages": ["It costs ten euros."],
            "gold_answer": "Ten euros.", "answer": answer, "model": "m",
            "grades": {"faithfulness": [grade, grade, grade]},
        }
        for i in range(8) for answer, grade in answers.items()
    ]  # fmt: skip
    path = tmp_path / "grades.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "model": "reference"}]), "utf-8")
    monkeypatch.setattr(sys, "argv", ["human_grades", "--grades", str(path)])
    assert human_grades.main() == 0
    said = capsys.readouterr().out
    assert "24 answers to 8 questions" in said and "| generation/f1 | 24 | 1.00 [1.00, 1.00] |" in said


@pytest.mark.slow  # it starts two servers
def test_serving_beside_one_at_a_time(quick, decoder, static_embedding_folder):
    lines = quick(serving, "--model", str(decoder), "--embedding_model", str(static_embedding_folder))
    sides = ("groundtune serve", "one at a time")
    rounds, measured = ([one for one in lines if (name in one) == found] for name, found in (("lost", 1), ("lost", 0)))
    turns = [sides, sides[::-1]]  # so that neither has always the warmer machine
    assert [one["side"] for one in rounds] == [side for turn in turns for _ in (1, 5) for side in turn]
    assert all(one["lost"] == 0 and one["answers"] == one["users"] for one in rounds)
    assert [(one["side"], one["users"]) for one in measured] == [(side, users) for users in (1, 5) for side in sides]
    for one in measured:
        assert one["answers_per_s"] > 0 and one["first_token_s"] > 0 and one["rounds"] == 2
        assert one["equal"] == one["compared"]  # in float32
    assert any(one["compared"] for one in measured) and [one["times"] for one in measured[1::2]] == [1, 1]
