"""Results of a run: before, after and paired differences, as rows that terminal, Markdown and HTML render."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.arguments import BLOCK, PassageArguments, reranked_by
from groundtune.evaluation.abstention import ANSWERED, note
from groundtune.evaluation.metrics import token_f1
from groundtune.evaluation.statistics import Interval, PairedDifference
from groundtune.evaluation.verdicts import (
    ERRORS,
    F1,
    HOW_MEASURED,
    MOST,
    OF_ANSWERS,
    Change,
    _is_time,
    alike,
    differences,
    most_changed,
    shown,
    verdict,
)
from groundtune.methods import METHODS
from groundtune.system.text import counted

if TYPE_CHECKING:
    from groundtune.evaluation.predictions import Evaluation

GOLD_LOSS = "eval_loss_with_gold_passage"
_COST = {
    "generation/unfinished": "Unfinished",
    "generation/new_tokens": "New tokens",
    "latency/generation_s": "Seconds/answer",
}
HOW_TO_READ = (
    f"{HOW_MEASURED} The verdict depends on token F1 alone; the other rows are not corrected for multiple comparisons. "
    "The retriever is frozen (not trained), so its scores are the same for both models. Seconds are a single timing "
    "and have no interval."
)


@dataclass(frozen=True)
class Results:
    """The results of one run. `base` and `tuned` answer the same examples in the same order."""

    method: str  # its name
    base: Evaluation  # of the base model
    tuned: Evaluation  # of the chosen checkpoint
    # transformers' TrainerState.log_history; step 0 is the base model
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    best_step: int | None  # step of the chosen checkpoint; None if the last weights were kept
    selection_metric: str | None  # the metric that chose it, such as "generation/f1"
    selected_on_test: bool  # no test file: the same questions chose the checkpoint and give the numbers
    notes: Sequence[str]  # warnings for readers of the numbers
    record: Mapping[str, Any] = field(repr=False)  # of `run_record`: the content of run.json

    @cached_property
    def differences(self) -> dict[str, PairedDifference]:
        samples = flat(self.record.get("arguments", {})).get("bootstrap_samples", 10_000)
        return differences(self.base, self.tuned, samples=samples)

    @cached_property
    def without_a_model(self) -> dict[str, float]:
        """Mean token F1 of trivial answers: the question itself, and the first retrieved passage."""
        known = [p for p in self.base.predictions if p.example.answerable and p.hits]
        answers = {
            "question": [(p.example.question, p.example) for p in known],
            "first_passage": [(p.hits[0].document.page_content, p.example) for p in known],
        }
        return {
            name: sum(max(token_f1(answer, gold) for gold in e.acceptable_answers) for answer, e in pairs) / len(pairs)
            for name, pairs in answers.items()
            if pairs
        }

    @cached_property
    def verdict(self) -> str:
        return verdict(self.differences, self.base, self.tuned)


def merged_history(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, in order: Trainer logs the loss and the evaluation of a step separately."""
    steps: dict[int, dict[str, Any]] = {}
    for row in history:
        if row.get("step") is not None:
            steps.setdefault(row["step"], {"step": row["step"]}).update(row)
    return [steps[step] for step in sorted(steps)]


def gained_and_lost(results: Results, most: int = MOST) -> tuple[list[Change], list[Change]]:
    """The answers whose token F1 rose most and fell most, largest change first; ties are in neither list."""
    return most_changed(zip(results.base.predictions, results.tuned.predictions, strict=True), most)


@dataclass(frozen=True)
class MetricRow:
    """One metric for display: a cell is a value and its interval, either of which may be empty."""

    group: str
    label: str
    base: tuple[str, str]
    tuned: tuple[str, str]
    difference: tuple[str, str]
    verdict: str


def comparison(results: Results) -> list[MetricRow]:
    """A row per metric, in display order."""
    ks = sorted(int(name.split("@")[1]) for name in results.base.metrics if name.startswith("retrieval/recall@"))
    retrieval = {f"retrieval/recall@{k}": f"Recall@{k}" for k in ks[:1] + ks[-1:]} | {"retrieval/mrr": "MRR"}
    return [
        _row(results, group, label, metric)
        for group, labels in (("Answers", OF_ANSWERS), ("Retrieval", retrieval), ("Cost", _COST))
        for metric, label in shown(labels, results.base, results.tuned).items()
        if metric in results.base.metrics
    ]


def _row(results: Results, group: str, label: str, metric: str) -> MetricRow:
    base, tuned, n = results.base.metrics[metric], results.tuned.metrics[metric], results.base.n
    if (scored := results.base.scored(metric)) < n:
        label = f"{label} (n = {scored})"
    if _is_time(metric):
        digits = _digits(n, metric)
        before, after = f"{base.value:.{digits}f}", f"{tuned.value:.{digits}f}"
        change = f"{tuned.value - base.value:+.{digits}f}"
        return MetricRow(group, label, (before, ""), (after, ""), (change, ""), "")
    found = results.differences[metric]
    word = verdict_word(found, metric)
    if group == "Retrieval" and word == "same":
        return MetricRow(group, label, cells(base, n, metric), ("", ""), ("same", ""), "")
    shown = (cells(base, n, metric), cells(tuned, n, metric), cells(found, n, metric, "+"))
    return MetricRow(group, label, *shown, word)


def cells(interval: Interval, n: int, metric: str, sign: str = "") -> tuple[str, str]:
    """A mean or a difference over n questions, and its interval, formatted for display."""
    digits = _digits(n, metric)
    return f"{interval.value:{sign}.{digits}f}", interval.ends(digits)


def _digits(n: int, metric: str) -> int:
    """Number of decimals to show: more than n questions justify would only be noise."""
    return 1 if metric == "generation/new_tokens" else 2 if n < 1000 else 3


def verdict_word(found: PairedDifference, metric: str) -> str:
    """`better`, `worse`, `unclear` or `same`; for token counts `fewer` or `more`: short answers are cheap, not good."""
    if found.wins == found.losses == 0:
        return "same"
    word = "unclear" if found.verdict == "no clear difference" else found.verdict
    return {"better": "fewer", "worse": "more"}.get(word, word) if metric == "generation/new_tokens" else word


def evaluations(results: Results) -> tuple[list[str], list[list[str]]]:
    """The column names, and a row per evaluation during training; its training loss is the mean of those logged since
    the previous row."""
    rows: list[list[str]] = []
    losses: list[float] = []
    columns = {GOLD_LOSS: "Loss with gold passage", f"eval_{F1}": "Token F1"}
    if any(f"eval_{ANSWERED}" in row for row in results.history):
        columns |= {f"eval_{name}": label for name, label in ERRORS.items()}
    columns["eval_generation/rougeL"] = "ROUGE-L"
    for row in merged_history(results.history):
        losses += [row["loss"]] if finite(row.get("loss")) else []
        if f"eval_{F1}" in row or GOLD_LOSS in row:
            values = [sum(losses) / len(losses) if losses else None]
            values += map(row.get, columns)
            shown = ["" if value is None else f"{value:.3f}" for value in values]
            step = f"{row['step']} (chosen)" if row["step"] == results.best_step else str(row["step"])
            rows.append([step, *shown])
            losses = []
    return ["Step", "Training loss", *columns.values()], rows


def facts(results: Results) -> dict[str, str]:
    """Facts about the comparison, a few words each."""
    arguments = flat(results.record.get("arguments", {}))
    test = arguments.get("test_file") or arguments.get("eval_file")
    model = _short(arguments.get("model_name_or_path"))
    embedding = _short(arguments.get("eval_embedding_model") or arguments.get("embedding_model"))
    retriever = arguments.get("retriever") or "dense"
    found_by = retriever if retriever == "bm25" or not embedding else f"{embedding} ({retriever})"
    passages = arguments.get("eval_num_to_retrieve") or len(results.base.predictions[0].hits)
    method = METHODS.get(results.method)
    trained_by = f"{method.title}: {method.reads}" if method else results.method
    step = "last weights" if results.best_step is None else f"step {results.best_step}, best {results.selection_metric}"
    shown = {
        "Model": model,
        "Trained by": trained_by + (", LoRA" if arguments.get("use_peft") else ""),
        "Passages of a row": passages_of_rows(arguments),
        "Passage attention": passages_apart(arguments),
        "Checkpoint": step,
        "Questions": questions(results.base) + (f", from {test}" if test else ""),
        "Training file": arguments.get("train_file"),
        "Documents": arguments.get("full_dataset_file_path"),
        "Retriever": f"{found_by}{reranked_by(arguments.get('reranker') or '')}, {passages} passages per question",
        "Seed": results.record.get("seed"),
    }
    return {name: str(value) for name, value in shown.items() if value not in (None, "")}


def passages_of_rows(arguments: Mapping[str, Any]) -> str:
    """How flags chose the passages of training rows, in words; empty if the method did."""
    flags = PassageArguments(**{one.name: arguments[one.name] for one in fields(PassageArguments)
                                if one.name in arguments})  # fmt: skip
    if not flags.given:
        return ""
    number = flags.num_distractors
    distractors = f"{'' if number is None else f'{number} '}distractor{'' if number == 1 else 's'}"
    dropped = f"; without gold in {100 * flags.gold_dropout:.0f} % of the rows" if flags.gold_dropout else ""
    return f"{flags.passage_order.replace('_', ' ')}; {distractors}: {', '.join(flags.distractors)}{dropped}"


def passages_apart(arguments: Mapping[str, Any]) -> str:
    """That passages do not read each other, in words; empty if they do."""
    apart = arguments.get("passage_attention") == BLOCK
    return "block: a passage reads the instruction and itself, base and tuned model alike" if apart else ""


def _short(path: str | None) -> str:
    """The last two parts of a path, or the name on the hub; the command shows all of it."""
    return os.path.join(*Path(path).parts[-2:]) if path else ""


def questions(evaluation: Evaluation) -> str:
    """How many questions an evaluation has, and on how many passages."""
    n, passages = evaluation.n, evaluation.passages
    return f"{counted(n, 'question')} on {counted(passages, 'passage')}"


def warning(results: Results) -> str:
    """A warning if no separate questions were kept for the test; else empty."""
    if not results.selected_on_test:
        return ""
    chosen = "these questions were also used for evaluation during training"
    if results.best_step is not None:
        chosen = "the checkpoint was selected on the questions reported here, so these numbers are optimistic"
    return f"No separate test: {chosen}. Give --test_file for an unbiased verdict."


def for_scale(results: Results) -> str:
    """A sentence with the scores of answers without a model, for scale: a base model may be worse than both."""
    found = results.without_a_model
    if not found:
        return ""
    return (
        f"For comparison, token F1 is {found['question']:.2f} if the question itself is the answer, and "
        f"{found['first_passage']:.2f} if the first retrieved passage is."
    )


def notes(results: Results) -> list[str]:
    """Further notes for readers of the numbers."""
    bad = [row["step"] for row in results.history if "loss" in row and not finite(row["loss"])]
    infinite = [f"The training loss was not finite at step {bad[0]}."] if bad else []
    unanswerable = note([prediction.example for prediction in results.base.predictions])
    f1 = {"base": results.base.metrics.get(F1), "tuned": results.tuned.metrics.get(F1)}
    correlation = alike({**f1, "difference": results.differences.get(F1)})
    return [*filter(None, [unanswerable]), *results.notes, *infinite, *filter(None, [correlation])]


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments flattened, without their groups."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found.update(flat(value) if isinstance(value, Mapping) else {name: value})
    return found


def finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
