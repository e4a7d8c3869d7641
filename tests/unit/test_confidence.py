"""Unlikely answers are withheld: thresholds are chosen where questions lack an answer, and used on other questions."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_documents, tiny_examples

from groundtune.data.files import sha256_of
from groundtune.errors import DataError
from groundtune.evaluation.abstention import ANSWERED, REFUSED
from groundtune.evaluation.confidence import Chosen, Thresholds, abstaining, curve, read_thresholds, signals
from groundtune.evaluation.evaluator import score_replies
from groundtune.evaluation.predictions import evaluation_of, read_predictions, write_predictions
from groundtune.evaluation.study import Study
from groundtune.evaluation.verdicts import F1, UNFINISHED
from groundtune.model.generation import generate_greedy
from groundtune.recipes.evaluate import _withheld
from groundtune.reporting.comparison_page import write_comparisons
from groundtune.reporting.next_steps import Known, next_steps
from groundtune.schema import UNANSWERABLE, Hit, Reply


def predictions(likely=(-0.1, -0.2, -0.3, -0.4, -0.9, -0.8), best=(0.9, 0.8, 0.7, 0.6, 0.5, 0.9)):
    """Four right answers, and two to questions that nothing answers, with these signals."""
    examples = tiny_examples()
    examples = examples[:4] + [replace(e, answer=UNANSWERABLE, answerable=False) for e in examples[4:]]
    answers = [e.answer for e in tiny_examples()]
    hits = [(Hit(tiny_documents()[0], score),) for score in best]
    replies = [Reply(answer, True, 9, 3, logprob=value) for answer, value in zip(answers, likely, strict=True)]
    read = [[hit.document for hit in found] for found in hits]
    return score_replies(examples, hits, read, replies, "retrieved", 0.6, 0.6)


def test_the_best_threshold_parts_right_answers_from_invented_ones_and_refuses_nothing():
    found = curve(predictions())
    assert found["chosen"]["f1"] == 1 and found["chosen"]["withheld"] == pytest.approx(2 / 6)
    assert found["chosen"]["unanswerable_answered"] == found["chosen"]["answerable_refused"] == 0
    for name in ("logprob", "score"):
        first, *_, last = found[name]
        assert first[name] is None and first["withheld"] == 0 and first["unanswerable_answered"] == 1
        assert last["withheld"] > 0.5 and len(found[name]) > 4
        assert [point["withheld"] for point in found[name]] == sorted(point["withheld"] for point in found[name])


def test_both_signals_together_find_what_neither_finds_alone():
    mixed = predictions((-0.1, -0.2, -0.3, -0.4, -0.9, -0.15), (0.9, 0.8, 0.7, 0.6, 0.95, 0.1))
    found = curve(mixed)
    assert found["chosen"]["f1"] == 1 > max(point["f1"] for name in ("logprob", "score") for point in found[name])


def test_nothing_is_chosen_where_every_question_has_an_answer():
    assert "chosen" not in curve(predictions()[:4]) and "chosen" not in curve([])


def test_a_withheld_answer_becomes_an_abstention_and_is_scored_as_one(tmp_path):
    made = evaluation_of(predictions(), 100)
    assert made.metrics[ANSWERED].value == 1 and made.metrics[REFUSED].value == 0
    least = Thresholds(logprob=-0.35)
    found = abstaining(made, least, 100)
    assert [p.answer == UNANSWERABLE for p in found.predictions] == [False] * 3 + [True] * 3
    assert found.predictions[3].withheld == made.predictions[3].answer and str(least) == "log-probability below -0.35"
    assert found.metrics[ANSWERED].value == 0 and found.metrics[REFUSED].value == 0.25
    assert found.metrics[F1].value == pytest.approx(sum(p.scores[F1] for p in found.predictions) / 6)
    assert [p.scores[F1] for p in found.predictions[4:]] == [1, 1]
    write_predictions(tmp_path / "p.jsonl", found)
    read = read_predictions(tmp_path / "p.jsonl")
    assert [(p.logprob, p.withheld) for p in read] == [(p.logprob, p.withheld) for p in found.predictions]


def test_a_withheld_answer_was_neither_cut_nor_is_it_for_training_to_prevent(tmp_path):
    cut = [replace(p, finished=False, answer="", scores={**p.scores, UNFINISHED: 1.0}) for p in predictions()]
    assert evaluation_of(cut, 100).metrics[UNFINISHED].value == 1
    found = abstaining(evaluation_of(cut, 100), Thresholds(logprob=0.0), 100)
    assert found.metrics[UNFINISHED].value == 0 and all(p.finished and p.withheld == "" for p in found.predictions)
    write_predictions(tmp_path / "p.jsonl", found)
    assert all(p.withheld == "" for p in read_predictions(tmp_path / "p.jsonl"))
    steps = "\n".join(map(str, next_steps(Known("runs/a", found, {"max_new_tokens": 8}))))
    assert "cut" not in steps and "it said that it does not know" not in steps


def test_thresholds_come_from_a_folder_for_each_system_or_from_numbers_for_all(tmp_path):
    chosen = {"logprob": -0.5, "score": None, "f1": 1.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"abstention": {"retrieved": {"base": {"chosen": chosen}}}}))
    assert read_thresholds(str(tmp_path)).by == {("retrieved", "base"): Thresholds(-0.5)}
    assert read_thresholds(str(tmp_path)).of("gold", "base") is None
    assert read_thresholds("-0.7").of("gold", "model") == Thresholds(-0.7)
    assert read_thresholds("-0.7,0.4").of("retrieved", "base") == Thresholds(-0.7, 0.4)


def test_thresholds_on_the_scores_of_another_retriever_are_not_used_from_a_folder_either(tmp_path, caplog):
    chosen = {"logprob": -0.5, "score": 0.4, "f1": 1.0}
    content = {"abstention": {"retrieved": {"model": {"chosen": chosen}}}, "scored_by": "bm25", "questions": "ab"}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_thresholds(str(tmp_path), scored_by="bm25").of("retrieved", "model") == Thresholds(-0.5, 0.4)
    found = read_thresholds(str(tmp_path), scored_by="mix")
    assert found.of("retrieved", "model") == Thresholds(-0.5) and found.questions == "ab"
    assert "another retriever" in caplog.text


def test_a_model_that_withholds_is_compared_only_with_one_that_may_withhold_too(tmp_path):
    (tmp_path / "eval.jsonl").write_text("{}")
    made = {"retrieved": {"base": evaluation_of(predictions(), 100), "model": evaluation_of(predictions(), 100)}}
    settings = SimpleNamespace(bootstrap_samples=100, abstentions="")
    data = SimpleNamespace(eval_file=str(tmp_path / "eval.jsonl"))

    def withheld(by, questions="", **default):
        notes = []
        chosen = Chosen({("retrieved", name): least for name, least in by.items()}, questions=questions, **default)
        arguments = SimpleNamespace(thresholds=lambda: chosen, evaluation=settings, data=data)
        found = _withheld(arguments, made, notes)["retrieved"]
        return [sum(p.withheld is not None for p in found[name].predictions) for name in ("base", "model")], "\n".join(
            notes
        )

    least = Thresholds(logprob=-0.35)
    number, notes = withheld({"model": least})
    assert number == [0, 0] and "chosen for base, and to compare alike nothing is withheld" in notes
    number, notes = withheld({"model": least, "base": Thresholds()})
    assert number == [0, 3] and "optimistic" not in notes
    number, notes = withheld({}, default=least, questions=sha256_of(data.eval_file))
    assert number == [3, 3] and "were chosen on these questions, so these numbers are optimistic" in notes


def test_where_no_passage_was_found_every_threshold_on_scores_withholds():
    (nothing,) = [replace(p, hits=(), logprob=-0.1) for p in predictions()[:1]]
    assert signals(nothing) == (-0.1, -math.inf) and Thresholds(score=-1e9).withhold(*signals(nothing))
    assert not Thresholds(logprob=-1).withhold(*signals(nothing))
    found = curve([*predictions(), nothing])
    assert all(point["score"] is None or point["withheld"] > 0 for point in found["score"])
    assert signals(replace(nothing, context="gold")) == (-0.1, None)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "no", '{"abstention": {"retrieved": {"model": {"chosen": {"logprob": "x", "score": 1}}}}}',
                '{"abstention": {"retrieved": {"model": {}}}}', '{"abstention": 3}', None],
)  # fmt: skip
def test_a_folder_without_thresholds_is_one_line_with_the_ways_out(content, tmp_path):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError) as raised:
        read_thresholds(str(tmp_path))
    (problem,) = raised.value.problems
    assert problem.startswith(f"--abstain_below: {tmp_path}: ") and "\n" not in problem and "give numbers" in problem


def test_the_page_shows_the_curve_where_questions_lack_an_answer(tmp_path):
    from groundtune.evaluation.comparison import compare

    made = predictions()
    compared = compare("one", {"one": made})
    unanswerable = [one for one in made if not one.example.answerable]
    for name, some in (("with", made), ("without", made[:4]), ("only", unanswerable)):
        write_comparisons(
            tmp_path / f"{name}.html", "evaluation", "one", [compared], {}, [], {},
            abstention={"retrieved": {"model": curve(some), "base": curve(some)}},
        )  # fmt: skip
    page = (tmp_path / "with.html").read_text("utf-8")
    assert "If unlikely answers were withheld" in page and page.count("unanswerable, answered</text>") == 2
    assert '<a href="#withheld">If unlikely answers were withheld</a>' in page and '<section id="withheld">' in page
    for name in ("without", "only"):  # one of both rates is unknown
        assert "If unlikely answers" not in (tmp_path / f"{name}.html").read_text("utf-8")


def test_the_terminal_says_which_thresholds_a_study_chose_and_what_they_do(monkeypatch, tmp_path, capsys):
    from groundtune.commands import evaluate

    monkeypatch.setattr(evaluate, "_print_one_screen", lambda found: None)
    study = Study(abstention={"retrieved": {"base": curve(predictions()), "model": curve(predictions()[:4])}})
    found = SimpleNamespace(study=study, forgetting=None)
    evaluate._show(found, {"json": False, "full": False, "quiet": True})
    (line,) = capsys.readouterr().out.splitlines()
    best, usual = (curve(predictions())[name] for name in ("chosen", "logprob"))
    assert line.startswith("retrieved, base: answers withheld: ")
    assert f"; token F1 {best['f1']:.2f}, unanswerable answered {best['unanswerable_answered']:.2f}, " in line
    assert f"; without thresholds token F1 {usual[0]['f1']:.2f}, unanswerable answered " in line


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_log_probability_is_that_of_one_forward_pass_whatever_the_batch(family, batch_size):
    rng = random.Random(0)
    prompts = [[rng.randrange(50, len(family.tokenizer)) for _ in range(n)] for n in (9, 14, 5, 11)]
    model, stop = family.model(), [family.tokenizer.eos_token_id]
    found = generate_greedy(model, prompts, stop_ids=stop, pad_id=0, max_new_tokens=6, batch_size=batch_size)
    for prompt, generated in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + generated.ids])).logits[0].float()
        likely = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(generated.ids)[:, None])
        assert generated.logprob == pytest.approx(float(likely.mean()), abs=2e-3)
