"""Results: differences question by question, one honest verdict, and rows that claim no more than that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from groundtune.evaluation.evaluator import Evaluation
from groundtune.evaluation.metrics import generation_scores, greater_is_better, retrieval_scores
from groundtune.evaluation.predictions import evaluation_of
from groundtune.evaluation.statistics import Interval, paired_difference
from groundtune.evaluation.verdicts import Change, alike, differences, verdict
from groundtune.reporting.results import Results, comparison, for_scale, gained_and_lost, merged_history
from groundtune.schema import Document, Example, Hit, Prediction

F1 = "generation/f1"
# As many as a verdict needs, and some more.
COLOURS = [
    "red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "amber", "coral", "ivory",
    "teal", "lilac", "cyan", "olive", "beige", "khaki", "azure", "mauve", "plum", "rust", "ochre", "navy",
]  # fmt: skip


def evaluation(
    answers: list[str], golds: list[str], questions: list[str] | None = None, rank: int | None = 1
) -> Evaluation:
    """Every question has one gold document, at `rank` of 3 hits, of which the prompt holds the first two."""
    predictions = []
    for number, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        document = Document(f"the document of question {number}")
        hits = [Hit(Document(f"other {number} {other}"), 1.0 - other / 10) for other in range(3)]
        if rank:
            hits[rank - 1] = Hit(document, 0.9)
        example = Example(questions[number] if questions else f"question {number}?", gold, (document,))
        scores = {
            **generation_scores(answer, gold),
            "generation/unfinished": 0.0,
            "generation/new_tokens": float(len(answer.split())),
            **retrieval_scores([hit.document.id for hit in hits], {document.id}, ks=(1, 3)),
            "latency/generation_s": 0.5,
        }
        predictions.append(Prediction(example, tuple(hits), answer, True, 2, 90, len(answer.split()), scores))
    return evaluation_of(predictions, samples=200)


def results(base: list[str], tuned: list[str], golds: list[str] = COLOURS, **changes) -> Results:
    questions = changes.pop("questions", None)
    made = Results(
        method="swr",
        base=evaluation(base, golds, questions),
        tuned=evaluation(tuned, golds, questions),
        history=[
            {"step": 0, "eval_loss_with_gold_passage": 3.0, **eval_row(0.1)},
            {"step": 2, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4},
            {"step": 4, "epoch": 1.0, "loss": 1.0, "grad_norm": float("nan")},
            {"step": 4, "epoch": 1.0, "eval_loss_with_gold_passage": 1.5, **eval_row(0.4)},
        ],
        best_step=4,
        selection_metric=F1,
        selected_on_test=False,
        notes=[],
        record={
            "command": "groundtune swr --model_name_or_path tiny",
            "arguments": {"model": {"model_name_or_path": "owner/tiny"}, "data": {"test_file": "test.jsonl"}},
            "inputs": {"test_file": {"path": "test.jsonl", "sha256": "ab" * 32, "bytes": 1234, "rows": 24}},
            "versions": {"python": "3.12.0"},
            "durations": {"training": 75.0},
        },
    )
    return replace(made, **changes)


def eval_row(value: float) -> dict[str, float]:
    row = {}
    for name in (F1, "generation/rougeL"):
        row |= {f"eval_{name}": value, f"eval_{name}_low": value - 0.05, f"eval_{name}_high": value + 0.05}
    return row


def wrong(count: int = 24) -> list[str]:
    return ["no idea"] * count


# Differences and the verdict
def test_differences_are_those_of_the_metrics_module():
    base, tuned = evaluation(wrong(), COLOURS), evaluation(COLOURS[:6] + wrong(18), COLOURS)
    found = differences(base, tuned, samples=300)
    assert set(found) == set(base.metrics) - {"latency/generation_s"}  # of a batch: its interval would look certain
    for metric, difference in found.items():
        assert difference == paired_difference(
            base.values(metric), tuned.values(metric), samples=300, greater_is_better=greater_is_better(metric)
        )
    assert found[F1].wins == 6 and not found["generation/new_tokens"].greater_is_better


def test_differences_of_other_examples_are_refused():
    base = evaluation(wrong(), COLOURS)
    with pytest.raises(ValueError, match="different examples"):
        differences(base, Evaluation(base.metrics, base.predictions[::-1]))


def test_verdict_better_says_both_means_the_interval_and_the_counts():
    made = results(wrong(), COLOURS[:18] + wrong(6))
    f1 = made.differences[F1]
    assert made.verdict == (
        f"Tuned answers better: token F1 0.75 against 0.00, +0.75 [{f1.low:.2f}, {f1.high:.2f}] "
        "on 24 questions (18 better, 0 worse, 6 the same); "
        f"a test of this size finds a difference of {f1.detectable:.2f} in 80 % of cases"
    )
    assert verdict(made.differences) == made.verdict.replace(" 0.75 against 0.00,", "")


def test_verdict_worse_is_said_as_plainly():
    made = results(COLOURS, COLOURS[:6] + wrong(18))
    assert made.verdict.startswith("Tuned answers worse: token F1 0.25 against 1.00, -0.75 [-")
    assert "(0 better, 18 worse, 6 the same)" in made.verdict


def test_unclear_verdict_says_what_could_not_have_been_seen():
    made = results(COLOURS[:12] + wrong(12), wrong(10) + COLOURS[10:])
    f1 = made.differences[F1]
    assert made.verdict.startswith("No clear difference: token F1 0.58 against 0.50, +0.08 [")
    assert made.verdict.endswith(f"a test of this size finds a difference of {f1.detectable:.2f} in 80 % of cases")
    assert f1.detectable > (f1.high - f1.low) / 2  # which would be found in half of the cases


def test_verdict_on_few_or_equal_answers_claims_nothing():
    few = results(wrong(19), COLOURS[:19], COLOURS[:19])
    assert few.verdict.startswith("No clear difference: token F1 1.00 against 0.00")
    assert few.verdict.endswith("nothing can be concluded from questions on fewer than 20 passages (here 19)")
    same = results(COLOURS, COLOURS)
    assert same.verdict == "No difference: both models have the same token F1 on every one of 24 questions"


def test_verdict_never_rounds_an_interval_end_to_the_other_side_of_zero():
    difference = paired_difference([0.0] * 400, [0.004] * 399 + [0.0])
    assert "+0.004 [0.004, 0.004]" in verdict({F1: difference})


# Display
def test_gained_and_lost_hold_only_real_changes_largest_first_and_never_overlap():
    golds = ["one two three four"] * 30
    base = ["zero"] * 10 + ["one two three four"] * 15 + ["one"] * 5
    tuned = ["one two three four"] * 4 + ["one"] * 6 + ["one"] * 11 + ["zero"] * 4 + ["one"] * 5
    gained, lost = gained_and_lost(results(base, tuned, golds))
    assert len(gained) == len(lost) == 10
    assert [change.value for change in gained] == sorted((change.value for change in gained), reverse=True)
    assert [change.value for change in lost] == sorted(change.value for change in lost)
    assert gained[0].value == 1.0 and lost[0].value == -1.0
    assert all(change.value > 0 for change in gained) and all(change.value < 0 for change in lost)
    assert not {c.base.example.question for c in gained} & {c.base.example.question for c in lost}


def test_answers_that_take_no_model_are_scored_beside_the_models():
    made = results(wrong(), COLOURS, questions=["Is it red?", *(f"What is {n}?" for n in range(23))])
    assert made.without_a_model["question"] == pytest.approx(0.5 / 24)  # one of three words, and the gold answer's only
    assert made.without_a_model["first_passage"] == 0.0
    golds = [f"the document of question {n}" for n in range(24)]
    found = results(wrong(), golds, golds).without_a_model
    assert found["first_passage"] == 1.0 and found["question"] > 0
    assert for_scale(results(wrong(), golds, golds)).endswith("and 1.00 if the first retrieved passage is.")
    unsearched = replace(
        made, base=replace(made.base, predictions=tuple(replace(p, hits=()) for p in made.base.predictions))
    )
    assert for_scale(unsearched) == "" and unsearched.without_a_model == {}


def test_fewer_changes_give_shorter_lists():
    gained, lost = gained_and_lost(results(wrong(), [COLOURS[0], *wrong(23)]))
    assert ([change.tuned.answer for change in gained], lost) == (["red"], [])


@pytest.mark.parametrize(
    ("rank", "said"), [(1, "rank 1"), (3, "rank 3, cut from the prompt"), (None, "not among the 3 retrieved")]
)
def test_the_rank_of_the_gold_document_is_said(rank, said):
    found = evaluation(wrong(1), COLOURS[:1], rank=rank).predictions[0]
    assert Change(found, found).gold_rank == said


def test_history_is_merged_per_step_and_sorted():
    rows = [{"step": 4, "loss": 1.0}, {"step": 0, "eval_x": 0.1}, {"step": 4, "eval_x": 0.3}, {"no": "step"}]
    assert merged_history(rows) == [{"step": 0, "eval_x": 0.1}, {"step": 4, "loss": 1.0, "eval_x": 0.3}]


def test_a_difference_in_time_has_no_interval_and_no_verdict():
    made = results(wrong(), COLOURS)
    slow = [replace(p, scores={**p.scores, "latency/generation_s": 0.9}) for p in made.tuned.predictions]
    made = replace(made, tuned=evaluation_of(slow, samples=200))
    row = next(row for row in comparison(made) if row.label == "Seconds/answer")
    assert (row.base, row.tuned, row.difference, row.verdict) == (("0.50", ""), ("0.90", ""), ("+0.40", ""), "")


def test_correlations_are_listed_so_that_a_name_with_a_comma_stays_whole():
    known, unknown = Interval(0.5, 0.4, 0.6, icc=0.25), Interval(0.5, 0.4, 0.6)
    found = alike({"a, base": known, "a": unknown, "a - a, base": known})
    assert found == "Intraclass correlation of token F1 within a passage: a, base 0.25; a - a, base 0.25."
