"""The recipe of retriever training: data, negatives, cross-validation, training, comparison, report.

The tuned model must find more than the untrained one inside the retriever that will be used, on questions about
articles that it was not trained on. If it does not, the untrained model is kept, and the results say so.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from groundtune.data.files import read_documents, scan_questions, write_text
from groundtune.errors import DataError
from groundtune.evaluation.retriever_verdicts import Compared, RetrieverResults
from groundtune.prepare.split import groups_of
from groundtune.reporting.retriever_report import write_retriever_results
from groundtune.retrieval.queries import queries_of, texts_within
from groundtune.runs.checkpoints import Checkpoint, checkpoint_folders, newest_checkpoint
from groundtune.runs.record import run_record, timed
from groundtune.runs.resume import FOLDS, check_same_run, checkpoint_to_resume, identity_of, locked, output_problems
from groundtune.schema import Document, Example
from groundtune.system.durable import discard
from groundtune.system.outputs import inside
from groundtune.system.text import as_json, few
from groundtune.training.negatives import WORDS, Pair, found_negatives, pairs_of
from groundtune.training.retriever import KINDS, Kind, Scores, mean_of, refused_arguments, scores_with, tuned_scores
from groundtune.training.retriever_arguments import RetrieverRun, output_of

logger = logging.getLogger(__name__)


def train_retriever(run: RetrieverRun) -> RetrieverResults:
    """Train what `run.retriever.kind` names, compare it with the untrained model, and write all to `output_dir`.

    Raises `DataError` with every problem of arguments and data before any model is loaded, and `ModelError`;
    `AlreadyFinished` for a finished run; during training `Stopped`, `NonFiniteLoss` and `DiskError`.
    """
    if problems := run.check() + refused_arguments(run) + output_problems(output_of(run)):
        raise DataError(problems)
    with locked(output_of(run)):
        identity = identity_of(
            (run.data, run.retrieval, run.retriever, run.training), {"command": "retriever", **run.more}
        )
        return _train(run, identity, checkpoint_to_resume(run.training, identity))


def _train(run: RetrieverRun, identity: dict[str, Any], checkpoint: Checkpoint | None) -> RetrieverResults:
    """The recipe; `identity` is this run's, `checkpoint` the one to resume."""
    durations: dict[str, float] = {}
    with timed("read and check", durations):
        data = _read(run)
        parts = _parts(run, data.train)
        notes = list(data.notes)

    with timed("index and search", durations):
        kind = KINDS[run.retriever.kind](run, data.documents)
        pairs, counts = _pairs(run, kind, data.train)
        notes += _told(counts)
        untrained = {
            name: kind.against(scores_with(kind.searches(kind.untrained), these, run))
            for name, these in data.all().items()
        }

    notes += kind.notes()
    comparisons = []
    if parts.folds:
        with timed("cross-validate", durations):
            tuned = _cross_validated(run, identity, kind, data.train, pairs, parts.folds)
            what = f"cross-validation, {len(parts.folds)} parts by {parts.by}"
            comparisons.append(Compared(what, tuple(data.train), untrained["train"], tuned, run.recall))

    history: list[dict[str, Any]] = []
    best_step, model = None, kind.untrained
    if run.retriever.keep == "tuned" or not comparisons or comparisons[0].better:
        with timed("train", durations):
            model, history, best_step = _trained(run, identity, kind, data, parts, pairs, untrained, checkpoint)
        if model is not kind.untrained:
            comparisons += _compared(run, kind, model, data, untrained)
    kept = run.retriever.keep == "tuned" or (model is not kind.untrained and comparisons[0].better)
    what_is_kept = kind.save(model if kept else kind.untrained, output_of(run))
    results = RetrieverResults(
        run.retriever.kind, kept and model is not kind.untrained, what_is_kept, comparisons, history, best_step, notes,
        _record(run, identity, durations, checkpoint),
    )  # fmt: skip
    write_retriever_results(output_of(run), results)
    return results


# Data


@dataclass(frozen=True)
class _Data:
    documents: Sequence[Document]
    train: list[Example]
    eval: list[Example]
    test: list[Example]
    notes: list[str]

    def all(self) -> dict[str, list[Example]]:
        return {name: these for name in ("train", "eval", "test") if (these := getattr(self, name))}


@dataclass(frozen=True)
class _Parts:
    """The positions of the questions of each part, which share no article; `held_out` chooses the best checkpoint."""

    folds: list[list[int]]
    held_out: list[int]
    by: str


def _read(run: RetrieverRun) -> _Data:
    """Raises `DataError` with the problems of all files."""
    problems: list[str] = []
    notes: list[str] = []
    documents: Sequence[Document] = []
    try:
        documents = read_documents(run.data.full_dataset_file_path)
    except DataError as error:
        problems += error.problems
    known = {document.id for document in documents}
    splits = {}
    for name in ("train", "eval", "test"):
        path = getattr(run.data, f"{name}_file")
        splits[name] = _questions(path, known, problems, notes) if path else []
    if problems:
        raise DataError(problems)
    asked = {example.question for example in splits["train"]}
    for name in ("eval", "test"):
        if leaked := [example.source for example in splits[name] if example.question in asked]:
            notes.append(f"{len(leaked)} questions of --{name}_file are also in --train_file: {few(leaked)}")
    for note in notes:
        logger.warning(note)
    return _Data(documents, **splits, notes=notes)


def _questions(path: str, known: set[str], problems: list[str], notes: list[str]) -> list[Example]:
    """The questions of a file that have a gold passage in the database."""
    contents = scan_questions(path)
    problems += contents.problems
    asked = [example for _, example in contents.entries if example.has_evidence and example.question.strip()]
    found = [
        replace(example, gold_documents=gold)
        for example in asked
        if (gold := tuple(document for document in example.gold_documents if document.id in known))
    ]
    if known and contents.entries and not found:
        problems.append(f"{path}: no question has a gold passage among the documents; name the database they are from")
    for number, why in (
        (len(contents.entries) - len(asked), "have no question or no gold passage"),
        (len(asked) - len(found), "have a gold passage that is not among the documents"),
    ):
        if number:
            notes.append(f"{path}: {number} of {len(contents.entries)} questions {why} and are left out")
    return found


def _parts(run: RetrieverRun, examples: Sequence[Example]) -> _Parts:
    """Raises `DataError` if there are fewer articles than parts."""
    by = "article"
    try:
        groups = groups_of(examples, by)
    except DataError:  # no metadata that names one
        by = "passage"
        groups = groups_of(examples, by)
    number = run.retriever.folds or 5
    needs_parts = run.retriever.folds or not run.data.eval_file
    if needs_parts and len(groups) < number:
        raise DataError([
            f"--folds: {number}, but the questions of {run.data.train_file} are about {len(groups)} {by}s; give fewer, "
            "or 0 with --eval_file"
        ])  # fmt: skip
    random.Random(run.training.seed).shuffle(groups)  # noqa: S311  is to be repeatable, unlike a secret
    parts: list[list[int]] = [[] for _ in range(number)]
    for group in sorted(groups, key=len, reverse=True):
        min(parts, key=len).extend(group)
    folds = [sorted(part) for part in parts] if run.retriever.folds else []
    return _Parts(folds, [] if run.data.eval_file else sorted(parts[0]), by)


def _pairs(run: RetrieverRun, kind: Kind, examples: Sequence[Example]) -> tuple[list[list[Pair]], Counter[str]]:
    """The rows of each example, and how many negatives were what."""
    history = run.retrieval.query_history
    negatives, counts = found_negatives(examples, kind.mix, history, run.negatives)
    queries = queries_of(examples, history)
    asked = [texts_within(query.parts, kind.mix.limit) for query in queries]
    return [
        pairs_of([example], [texts], [its]) for example, texts, its in zip(examples, asked, negatives, strict=True)
    ], counts


def _told(counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    note = "negatives: " + ", ".join(f"{counts[name]:,} {words}" for name, words in WORDS.items() if counts[name])
    logger.info(note)
    return [note]


# Training


def _cross_validated(
    run: RetrieverRun, identity: dict[str, Any], kind: Kind, examples: Sequence[Example], pairs: list[list[Pair]],
    folds: list[list[int]],
) -> Scores:  # fmt: skip
    """The scores of each question by a model that was trained without its article."""
    found: Scores = {}
    for number, held_out in enumerate(folds, start=1):
        scores = _fold(run, {**identity, "part": number}, kind, examples, pairs, held_out, number, len(folds))
        for name, rows in scores.items():
            all_rows = found.setdefault(name, [{} for _ in examples])
            for position, row in zip(held_out, rows, strict=True):
                all_rows[position] = row
    return found


def _fold(
    run: RetrieverRun, identity: dict[str, Any], kind: Kind, examples: Sequence[Example], pairs: list[list[Pair]],
    held_out: list[int], number: int, total: int,
) -> Scores:  # fmt: skip
    """The scores of one part; a resumed run reads those that it has."""
    folder, file = (inside(output_of(run), FOLDS, name) for name in (f"part-{number}", f"part-{number}.json"))
    if file.is_file():
        return _known_scores(run, identity, file, len(held_out))
    logger.info("part %d of %d: training without %d questions", number, total, len(held_out))
    model, without = kind.open(), set(held_out)
    set_seed(run.training.seed)
    rows = [pair for i, these in enumerate(pairs) if i not in without for pair in these]
    trainer = kind.trainer(model, rows, folder, None, identity)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        check_same_run(checkpoint, identity, run.training.resume_anyway)
    trainer.train(resume_from_checkpoint=checkpoint)
    scores = tuned_scores(kind, model, [examples[i] for i in held_out], run)
    write_text(file, as_json({"run": identity, "scores": scores}))
    for old in checkpoint_folders(folder):
        discard(old)
    return scores


def _known_scores(run: RetrieverRun, identity: dict[str, Any], file: Path, questions: int) -> Scores:
    try:
        known = json.loads(file.read_text("utf-8"))
        scores: Scores = known["scores"]
        if any(len(rows) != questions for rows in scores.values()):
            raise ValueError("it is of other questions")
        before = Checkpoint(file, 0, {"run": dict(known["run"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError([f"{file}: was not written by this run ({error}); remove it"]) from error
    check_same_run(before, identity, run.training.resume_anyway)
    return scores


def _trained(
    run: RetrieverRun, identity: dict[str, Any], kind: Kind, data: _Data, parts: _Parts, pairs: list[list[Pair]],
    untrained: dict[str, Scores], checkpoint: Checkpoint | None,
) -> tuple[Any, list[dict[str, Any]], int | None]:  # fmt: skip
    """The best model of a training on everything, its history and step; the untrained one if no step finds more."""
    held_out = set(parts.held_out)
    examples = data.eval or [data.train[i] for i in parts.held_out]
    before = untrained["eval"] if data.eval else _at(untrained["train"], parts.held_out)
    model = kind.open()
    set_seed(run.training.seed)

    def measure(step: int) -> dict[str, float]:
        return mean_of(before if step == 0 else tuned_scores(kind, model, examples, run))

    rows = [pair for i, these in enumerate(pairs) if i not in held_out for pair in these]
    evaluates = run.training.eval_strategy != "no"
    trainer = kind.trainer(model, rows, output_of(run), measure if evaluates else None, identity)
    trainer.train(resume_from_checkpoint=checkpoint)
    history, best = trainer.state.log_history, trainer.state.best_metric
    step = trainer.state.best_global_step if evaluates else trainer.state.global_step
    if evaluates and run.retriever.keep == "better" and (best is None or best < mean_of(before)[run.recall]):
        return kind.untrained, history, 0
    return model, history, step


def _at(scores: Scores, positions: Sequence[int]) -> Scores:
    return {name: [rows[i] for i in positions] for name, rows in scores.items()}


def _compared(run: RetrieverRun, kind: Kind, model: Any, data: _Data, untrained: dict[str, Scores]) -> list[Compared]:
    """The model and the untrained one on --test_file, and on --eval_file, which chose the checkpoint."""
    found = []
    for name, examples in (("test", data.test), ("eval", data.eval)):
        if examples:
            tuned = tuned_scores(kind, model, examples, run)
            also = ", which also chose the checkpoint" if name == "eval" else ""
            found.append(Compared(f"--{name}_file{also}", tuple(examples), untrained[name], tuned, run.recall))
    return found


def _record(
    run: RetrieverRun, identity: dict[str, Any], durations: dict[str, float], checkpoint: Checkpoint | None
) -> dict[str, Any]:
    groups = {name: asdict(getattr(run, name)) for name in ("data", "retrieval", "retriever", "training", "output")}
    files = ("train_file", "eval_file", "test_file", "full_dataset_file_path")
    inputs = {name: path for name in files if (path := getattr(run.data, name))}
    record = run_record({**groups, "more": dict(run.more)}, inputs, durations, run.training.seed)
    return {**record, "identity": identity, "resumed_from_step": checkpoint and checkpoint.step}
