"""The recipe of `groundtune evaluate`: examples, documents, retriever, prompts, answers, judges, outcomes, page.

Training and this recipe share the retriever, prompts, generation and scores, so a run's adapter gets the same numbers
here as its training reported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os.path import realpath
from pathlib import Path
from typing import Any

from groundtune.aliases import Model
from groundtune.arguments import DataArguments, reranked_by
from groundtune.data.checks import ERROR, WARNING, check_texts, counts, read_dataset
from groundtune.data.files import sha256_of, write_text
from groundtune.errors import DataError, ModelError
from groundtune.evaluation.abstention import note
from groundtune.evaluation.answering import (
    Answer,
    Asked,
    Reads,
    answer_by_chat,
    answer_by_completions,
    answer_here,
    open_questions,
    read_here,
)
from groundtune.evaluation.arguments import BASE, MODEL, InferenceArguments
from groundtune.evaluation.comparison import Comparison, compare
from groundtune.evaluation.confidence import KEPT, Thresholds, abstaining, curve, keep
from groundtune.evaluation.evaluator import spread
from groundtune.evaluation.folder import check_replaces, made, remove_earlier, write_answers
from groundtune.evaluation.forgetting import Forgetting, Measured, UnrelatedText, read_texts
from groundtune.evaluation.judge import JudgePrompt, judged, open_judge, probe_judge, read_judge_prompts
from groundtune.evaluation.outcomes import Rightness, outcome_counts, with_outcomes
from groundtune.evaluation.predictions import Evaluation, evaluation_of
from groundtune.evaluation.requirements import Checked, check_limits
from groundtune.evaluation.study import DEPTH, Cell, Study, cells_of, studied
from groundtune.evaluation.verdicts import F1
from groundtune.model.endpoint import failing, lasting
from groundtune.model.generators import computing
from groundtune.model.limits import check_positions
from groundtune.prompts.rows import left_out_note
from groundtune.reporting.comparison_page import failures, write_comparisons
from groundtune.reporting.next_steps import Known, Step, next_steps
from groundtune.reporting.study_page import html_forgetting, html_study
from groundtune.runs.known_answers import KnownAnswers, fingerprint
from groundtune.runs.record import run_record
from groundtune.runs.remembered import changed_inputs
from groundtune.schema import Document, Example, Prediction
from groundtune.system.durable import disk_errors
from groundtune.system.locks import alone
from groundtune.system.text import as_json, counted, hide_secrets

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> a function called with the number done


@dataclass(frozen=True)
class Evaluated:
    """The results of `evaluate`: the evaluations by context and system, and their comparisons."""

    evaluations: dict[str, dict[str, Evaluation]]
    comparisons: list[Comparison]
    right: Rightness
    notes: list[str]
    output_dir: Path
    checked: list[Checked] = field(default_factory=list)  # the conditions of --fail_under and --fail_over
    steps: list[Step] = field(default_factory=list)  # what the numbers mean, and which command comes next
    abstention: dict[str, dict[str, Any]] = field(default_factory=dict)  # `confidence.curve` by context and system
    study: Study | None = None
    forgetting: Forgetting | None = None
    reused: list[str] = field(default_factory=list)  # a line for each model some of whose answers were known
    scored_by: str = ""  # what gave passages their scores
    questions: str = ""  # the SHA-256 of the file of questions

    @property
    def context(self) -> str:
        """The context to judge the model by: end to end, if that was evaluated."""
        return "retrieved" if "retrieved" in self.evaluations else next(iter(self.evaluations))

    @property
    def of_model(self) -> dict[str, tuple[Prediction, ...]]:
        """The model's answers by context."""
        return {context: by_system[MODEL].predictions for context, by_system in self.evaluations.items()}

    @property
    def end_to_end(self) -> dict[str, Evaluation]:
        return self.evaluations[self.context]

    @property
    def verdict(self) -> Comparison | None:
        """The comparison with the base model in that context; None if it was not evaluated."""
        if BASE not in self.end_to_end:
            return None
        return self.comparisons[list(self.evaluations).index(self.context)]

    @property
    def failures(self) -> list[str]:
        """The number of failed answers and judgements, in words; empty if none failed."""
        return list(dict.fromkeys(line for comparison in self.comparisons for line in failures(comparison)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "output_dir": str(self.output_dir),
            "right": str(self.right),
            "notes": self.notes,
            "reused": self.reused,
            "failures": self.failures,
            "next": list(map(str, self.steps)),
            **({"checked": [one.to_dict() for one in self.checked]} if self.checked else {}),
            "evaluations": {
                context: {
                    name: {**evaluation.to_dict(), "outcomes": outcome_counts(evaluation.predictions)}
                    for name, evaluation in by_system.items()
                }
                for context, by_system in self.evaluations.items()
            },
            "abstention": self.abstention,
            "scored_by": self.scored_by,
            "questions": self.questions,
            **({"study": self.study.to_dict()} if self.study else {}),
            **({"forgetting": self.forgetting.to_dict()} if self.forgetting else {}),
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def evaluate(arguments: InferenceArguments, on_progress: OnProgress) -> Evaluated:
    """Answer the examples in every context, score and judge the answers, and write everything to `output_dir`.

    Raises `DataError` with every problem of arguments and data before any model is loaded, `ModelError` if a model
    cannot be loaded, and `EndpointError` if a server cannot be used.
    """
    if problems := arguments.check():
        raise DataError(problems)
    judges = read_judge_prompts(arguments.judge.judge_prompt) if arguments.judge.judge else []
    right = Rightness(arguments.answers.right_metric, arguments.answers.right_threshold)
    _check_right(right, judges)
    arguments.thresholds()  # before hours of work, if there is a problem
    check_replaces(arguments.output_dir, Path(arguments.data.eval_file))
    with alone(arguments.output_dir):
        return _evaluate(arguments, judges, right, on_progress)


def _evaluate(
    arguments: InferenceArguments, judges: Sequence[JudgePrompt], right: Rightness, on_progress: OnProgress
) -> Evaluated:
    durations: dict[str, float] = {}
    examples, documents, notes = _read(arguments)
    notes += _questions_seen(arguments) + _changed(arguments)
    parts = arguments.study
    asked, questions = open_questions(arguments, examples, documents, notes, DEPTH if parts else 0)
    notes += _too_long(examples, asked)
    texts = _texts(arguments, asked)
    told: list[str] = []
    cells = cells_of(
        parts, questions.examples, questions.hits, questions.ask, told, arguments.retrieval.eval_num_to_retrieve,
        questions.fits,
    )  # fmt: skip
    probe_judge(arguments)
    output_dir = made(arguments.output_dir)

    evaluations: dict[str, dict[str, Evaluation]] = {one.context: {} for one in asked}
    reused: list[str] = []
    answered: dict[str, dict[str, Evaluation]] = {cell.name: {} for cell in cells}
    measured: dict[str, Measured] = {}
    for name, answer, read in _answerers(arguments, [*asked, *(cell.asked for cell in cells)], notes, reused):
        named = [(one.context, one, evaluations[one.context]) for one in asked]
        named += [(f"study, {cell.part}, {cell.label}", cell.asked, answered[cell.name]) for cell in cells]
        for what, one, by_system in named:
            begin = time.perf_counter()
            by_system[name] = answer(one, on_progress(f"{name} answers, {what}", len(one.examples)))
            durations[f"{name}, {what}"] = round(time.perf_counter() - begin, 3)
        if texts:
            measured[name] = read(texts, on_progress(f"{name} reads {arguments.answers.forgetting}", len(texts)))
        del answer, read  # frees the model before the next one is loaded
    curves = {
        context: {name: curve(evaluation.predictions) for name, evaluation in by_system.items()}
        for context, by_system in evaluations.items()
    }
    digest = sha256_of(arguments.data.eval_file)
    evaluations = _withheld(arguments, evaluations, notes)
    if arguments.answers.keep_thresholds and arguments.run:
        kept = keep(arguments.run.folder, curves, arguments.scored_by, digest)
        why = "nothing is kept: a threshold is chosen where some questions are unanswerable"
        notes.append(f"the thresholds are in {arguments.run.folder / KEPT}" if kept else f"--keep_thresholds: {why}")
    to_write = evaluations | {f"study_{name}": by_system for name, by_system in answered.items()}
    with disk_errors(output_dir):  # before judging, so that no answer is lost if the judge fails
        remove_earlier(output_dir, to_write)
        write_answers(output_dir, to_write)
    evaluations = _judge(arguments, judges, evaluations, on_progress, durations)
    evaluations = {context: _with_outcomes(by_system, right) for context, by_system in evaluations.items()}

    comparisons = _comparisons(evaluations, arguments.name, arguments.evaluation.bootstrap_samples)
    found = Evaluated(
        evaluations, comparisons, right, notes, output_dir, abstention=curves, reused=reused,
        scored_by=arguments.scored_by, questions=digest,
    )  # fmt: skip
    checked = check_limits(found.end_to_end[MODEL], arguments.limits(), arguments.name)
    found = replace(found, checked=checked, steps=_steps(arguments, found))
    if parts:
        found = replace(found, study=_study(arguments, found, cells, answered, told))
    if texts:
        base_first = {name: measured[name] for name in (BASE, MODEL) if name in measured}
        found = replace(found, forgetting=Forgetting(arguments.answers.forgetting, texts, base_first))
    with disk_errors(output_dir):
        _write(found, arguments, judges, durations)
    return found


def _study(
    arguments: InferenceArguments,
    found: Evaluated,
    cells: Sequence[Cell],
    answered: Mapping[str, Mapping[str, Evaluation]],
    notes: list[str],
) -> Study:
    """What the study found, with the base model first."""
    asked = arguments.study
    answered, in_contexts = (
        {at: {name: by_system[name] for name in (BASE, MODEL) if name in by_system} for at, by_system in these.items()}
        for these in (answered, found.evaluations)
    )
    k = arguments.retrieval.eval_num_to_retrieve
    parts = studied(cells, answered, in_contexts, asked, k)
    curves = found.abstention if "abstention" in asked else {}
    if "abstention" in asked and not any("chosen" in c for by_system in curves.values() for c in by_system.values()):
        notes.append("study, abstention: every question has an answer, so no threshold is chosen")
    outcomes = {
        context: {name: outcome_counts(evaluation.predictions) for name, evaluation in by_system.items()}
        for context, by_system in in_contexts.items()
    }
    return Study(parts, notes, curves, outcomes if "contexts" in asked else {})


def _texts(arguments: InferenceArguments, asked: Sequence[Asked]) -> list[UnrelatedText]:
    """The texts of --forgetting as the models read them."""
    if not arguments.answers.forgetting:
        return []
    tokenizer = asked[0].prompted.prompt.tokens.tokenizer
    return read_texts(arguments.answers.forgetting, tokenizer, arguments.data.max_seq_length)


def _answerers(
    arguments: InferenceArguments, asked: Sequence[Asked], notes: list[str], reused: list[str]
) -> Iterator[tuple[str, Answer, Reads]]:
    """Each system's name, answering function, and function that reads other texts; a model is loaded when its turn
    comes, and its `notes` are added, and to `reused` how many of its answers were known."""
    if arguments.api != "here":
        by = answer_by_chat if arguments.api == "chat" else answer_by_completions
        yield MODEL, by(arguments.generator_endpoint()), lambda texts, on_done: Measured([], [])  # `check` refuses it
        return
    opening, with_base = arguments.answering_model(), arguments.with_base
    if with_base and not opening.base and not arguments.base:
        name = arguments.model.model_name_or_path
        raise DataError([f"--with_base: {name} does not name the model it was trained from; name it with --base_model"])
    prompt = asked[0].prompted.prompt
    pad_id = prompt.tokens.tokenizer.pad_token_id
    model = opening.open(prompt, pad_id)
    longest = max(len(question.prompt_ids) for one in asked for question in one.prompted.questions)
    notes += check_positions(longest + arguments.evaluation.max_new_tokens, model, arguments.model.model_name_or_path)
    known = _known(arguments, model)
    # Each reads every weight.
    bases = [_known(arguments, model, without_adapter=True)] if with_base and opening.base else []
    if arguments.study:
        _estimate(asked, model, opening.bf16, [known, *bases], unknown=with_base and not opening.base)
    batch_size = arguments.answers.per_device_eval_batch_size
    yield (
        MODEL,
        answer_here(model, opening.bf16, known=known),
        read_here(model, opening.bf16, prompt.tokens.tokenizer, batch_size, known=known),
    )
    reused += _reused(known, arguments.name)
    if not with_base:
        return
    if not opening.base:
        del model
        model = arguments.base_model().open(prompt, pad_id)
        bases = [_known(arguments, model)]
    (known,) = bases
    yield (
        BASE,
        answer_here(model, opening.bf16, bool(opening.base), known),
        read_here(model, opening.bf16, prompt.tokens.tokenizer, batch_size, bool(opening.base), known),
    )
    reused += _reused(known, "the base model")


def _known(arguments: InferenceArguments, model: Model, without_adapter: bool = False) -> KnownAnswers | None:
    """The kept answers of a model, if answers may be reused."""
    found = fingerprint(model, without_adapter) if arguments.evaluation.reuse_answers else ""
    return KnownAnswers(found) if found else None


def _estimate(
    asked: Sequence[Asked], model: Model, bf16: bool, several: Sequence[KnownAnswers | None], unknown: bool
) -> None:
    """Log how many answers there are to generate; `unknown`: a base model that is loaded later answers, too."""
    questions = sum(len(one.examples) for one in asked)
    with computing(model, bf16):
        to_ask = [
            sum({key: n for one in asked for key, n in one.prompted.missing(model, known).items()}.values())
            if known
            else questions
            for known in several
        ]
    both = " The base model answers as many, less what is known of it." if unknown else ""
    logger.info(
        "study: %d answers to generate, of %d in %s of questions; the others are known.%s",
        sum(to_ask), questions * len(several), counted(len(asked), "set"), both,
    )  # fmt: skip


def _reused(known: KnownAnswers | None, name: str) -> list[str]:
    return [known.note(name)] if known and known.reused else []


def _withheld(
    arguments: InferenceArguments, evaluations: dict[str, dict[str, Evaluation]], notes: list[str]
) -> dict[str, dict[str, Evaluation]]:
    """The evaluations with unlikely answers withheld, and `notes` on how many, if that is asked for."""
    if (thresholds := arguments.thresholds()) is None:
        return evaluations
    samples, wordings = arguments.evaluation.bootstrap_samples, arguments.evaluation.abstentions
    if thresholds.questions == sha256_of(arguments.data.eval_file):
        told = "the thresholds of --abstain_below were chosen on these questions, so these numbers are optimistic"
        notes.append(f"{arguments.data.eval_file}: {told}")
    found: dict[str, dict[str, Evaluation]] = {}
    for context, by_system in evaluations.items():
        by_name = {name: thresholds.of(context, name) for name in by_system}
        if without := [name for name, least in by_name.items() if least is None]:
            others = ", and to compare alike nothing is withheld" if len(without) < len(by_name) else ""
            notes.append(f"{context}: no threshold was chosen for {', '.join(without)}{others}")
            found[context] = by_system
            continue
        for name, evaluation in by_system.items():
            least = by_name[name] or Thresholds()
            found.setdefault(context, {})[name] = abstained = abstaining(evaluation, least, samples, wordings)
            number = sum(prediction.withheld is not None for prediction in abstained.predictions)
            notes.append(f"{context}: {number} of {evaluation.n} answers of {name} are withheld ({least})")
            if least.logprob is not None and all(p.logprob is None for p in evaluation.predictions):
                notes.append(f"{context}: the server gave no log-probabilities, so only the retrieval score counts")
    return found


def _judge(
    arguments: InferenceArguments,
    prompts: Sequence[JudgePrompt],
    evaluations: dict[str, dict[str, Evaluation]],
    on_progress: OnProgress,
    durations: dict[str, float],
) -> dict[str, dict[str, Evaluation]]:
    """Every evaluation with the scores of every judge prompt; the judge is loaded once.

    The judge was available when answering began: if it is not any more, its judgements count as failed.
    """
    if not prompts:
        return evaluations
    begin = time.perf_counter()
    try:
        complete = lasting(open_judge(arguments), met=True)
    except ModelError as error:
        complete = failing(str(error))
    found: dict[str, dict[str, Evaluation]] = {}
    for context, by_system in evaluations.items():
        for name, evaluation in by_system.items():
            predictions: Sequence[Prediction] = evaluation.predictions
            for prompt in prompts:
                on_done = on_progress(f"judge: {prompt.name} of {name}, {context}", len(predictions))
                predictions = judged(predictions, prompt, complete, arguments.judge.judge_max_new_tokens, on_done)
            found.setdefault(context, {})[name] = evaluation_of(predictions, arguments.evaluation.bootstrap_samples)
    durations["judge"] = round(time.perf_counter() - begin, 3)
    return found


def _check_right(right: Rightness, judges: Sequence[JudgePrompt]) -> None:
    names = [f"judge/{prompt.name}" for prompt in judges]
    if right.metric.startswith("judge/") and right.metric not in names:
        raise DataError([f"--right_metric: {right.metric} is not judged; --judge_prompt gives {', '.join(names)}"])


def _read(arguments: InferenceArguments) -> tuple[list[Example], list[Document], list[str]]:
    """Examples, documents if a context needs them, and the counted warnings about both.

    Raises `DataError` with every problem of both files.
    """
    documents = arguments.data.full_dataset_file_path if arguments.searches else ""
    dataset = read_dataset(DataArguments(eval_file=arguments.data.eval_file, full_dataset_file_path=documents))
    findings = check_texts(dataset)
    if errors := [str(finding) for finding in findings if finding.severity == ERROR]:
        raise DataError(errors)
    notes = counts(finding for finding in findings if finding.severity == WARNING)
    examples = spread(dataset.examples["eval"], arguments.evaluation.eval_max_samples)
    return examples, dataset.documents, notes + ([unanswerable] if (unanswerable := note(examples)) else [])


def _too_long(examples: Sequence[Example], asked: Sequence[Asked]) -> list[str]:
    """Notes about questions that are left out because they are too long, and about shortened prompts."""
    answered = {example.source for example in asked[0].examples}
    dropped = left_out_note([e.source for e in examples if e.source not in answered], len(examples))
    return [note for note in (dropped, *(one.evaluator.note for one in asked if one.evaluator)) if note]


def _changed(arguments: InferenceArguments) -> list[str]:
    """Warnings about files named by the run that have changed since the run read them."""
    data, run = arguments.data, arguments.run
    read = {data.eval_file} | ({data.full_dataset_file_path} if arguments.searches else set())
    return changed_inputs(run, {name: path for name, path in run.names.items() if path in read}) if run else []


def _questions_seen(arguments: InferenceArguments) -> list[str]:
    """A warning if the run chose its checkpoint by these same questions."""
    asked, run = Path(arguments.data.eval_file), arguments.run
    if run is None or not run.settings.get("load_best_model_at_end"):
        return []
    same_file = "eval_file" in run.names and realpath(asked) == realpath(run.names["eval_file"])
    if not same_file and sha256_of(asked) != run.inputs.get("eval_file"):
        return []
    return [f"{asked}: the checkpoint was selected on these questions, so these numbers are optimistic"]


def _with_outcomes(by_system: dict[str, Evaluation], right: Rightness) -> dict[str, Evaluation]:
    return {
        name: replace(evaluation, predictions=tuple(with_outcomes(evaluation.predictions, right)))
        for name, evaluation in by_system.items()
    }


def _comparisons(evaluations: dict[str, dict[str, Evaluation]], name: str, samples: int) -> list[Comparison]:
    """Compare the model with the base model, if evaluated, in each context; and several contexts with each other."""
    comparisons = []
    for context, by_system in evaluations.items():
        if BASE in by_system:
            systems = {f"{name}, base": by_system[BASE], name: by_system[MODEL]}
            comparisons.append(compare(f"Context: {context}", {n: e.predictions for n, e in systems.items()}, samples))
    if len(evaluations) > 1 or not comparisons:
        first = sorted(evaluations, key=lambda context: context != "retrieved")  # the reference
        title = f"{name}: contexts" if len(evaluations) > 1 else f"{name}: {first[0]}"
        of_model = {context: evaluations[context][MODEL].predictions for context in first}
        comparisons.append(compare(title, of_model, samples))
    return comparisons


def _steps(arguments: InferenceArguments, found: Evaluated) -> list[Step]:
    """What the numbers mean, and which command comes next."""
    run = arguments.run
    settings = {name: value for group in ("data", "retrieval", "evaluation")
                for name, value in asdict(getattr(arguments, group)).items()}  # fmt: skip
    if run:
        settings |= {name: run.names[name] for name in ("test_file", "eval_file") if name in run.names}
        settings |= {name: run.settings[name] for name in ("gold_dropout",) if name in run.settings}
    difference = found.verdict.differences[arguments.name].get(F1) if found.verdict else None
    model = arguments.model.model_name_or_path if arguments.api == "here" else ""
    method, again = run.method if run else "", arguments.again
    return next_steps(Known(model, found.end_to_end[MODEL], settings, found.right, difference, method, again))


def _write(
    found: Evaluated, arguments: InferenceArguments, judges: Sequence[JudgePrompt], durations: dict[str, float]
) -> None:
    """Write predictions/CONTEXT.jsonl, the judge prompts, metrics.json, run.json, and the HTML page."""
    folder = found.output_dir
    write_answers(folder, found.evaluations)
    for prompt in judges:
        write_text(folder / f"judge_{prompt.name}.txt", prompt.text)
    groups = ("data", "retrieval", "prompt", "model", "evaluation", "generator", "judge", "answers")
    read = ["eval_file"] + ["full_dataset_file_path"] * arguments.searches
    files = {name: path for name in read if (path := getattr(arguments.data, name))}
    more = {
        "rewrite_prompt": arguments.retrieval.rewrite_prompt,
        "abstentions": arguments.evaluation.abstentions,
        "forgetting": arguments.answers.forgetting,
        **{f"judge_prompt_{i}": name for i, name in enumerate(arguments.judge.judge_prompt, 1)},
    }
    files |= {name: path for name, path in more.items() if os.path.isfile(path)}
    record = run_record({name: asdict(getattr(arguments, name)) for name in groups}, files, durations, seed=0)
    write_text(folder / "run.json", as_json(record))
    write_text(folder / "metrics.json", as_json(found.to_dict()))
    if found.study:
        write_text(folder / "study.json", as_json(found.study.to_dict()))
    write_comparisons(
        folder / "evaluation.html",
        "evaluation",
        arguments.name,
        found.comparisons,
        facts(arguments, found.right),
        [*found.notes, *found.failures, *found.reused],
        record,
        steps=found.steps,
        verdict=found.verdict,
        answers={_system(*at): e.predictions for at, e in _all(found)},
        references={
            _system(context, MODEL): _system(context, BASE) for (context, name), _ in _all(found) if name == BASE
        },
        abstention=found.abstention,
        more=(html_study(found.study) if found.study else "")
        + (html_forgetting(found.forgetting) if found.forgetting else ""),
    )


def _all(found: Evaluated) -> list[tuple[tuple[str, str], Evaluation]]:
    """Every evaluation with its context and system; a base model comes before what was trained from it."""
    return [
        ((context, name), by_system[name])
        for context, by_system in found.evaluations.items()
        for name in sorted(by_system, key=lambda name: name != BASE)
    ]


def _system(context: str, name: str) -> str:
    return f"{context}, base" if name == BASE else context


def facts(arguments: InferenceArguments, right: Rightness) -> dict[str, str]:
    """Facts about the evaluation for the page: what answered which questions, a few words each."""
    retrieval, generator = arguments.retrieval, arguments.generator
    server = hide_secrets(generator.generator)
    how = {
        "here": "written and read locally",
        "completions": f"written locally, sent as token ids to {server}/completions",
        "chat": f"messages sent to {server}/chat/completions; the server applied its template, not --thinking",
    }
    embedding = retrieval.eval_embedding_model or retrieval.embedding_model
    found_by = f"{retrieval.retriever} {embedding}{reranked_by(retrieval.reranker)}"
    shown = {
        "Model": generator.generator_model or arguments.model.model_name_or_path,
        "Prompt": how[arguments.api],
        "Questions": arguments.data.eval_file,
        "Documents": arguments.data.full_dataset_file_path,
        "Retriever": f"{found_by}, {retrieval.eval_num_to_retrieve} passages per question",
        "Contexts": ", ".join(arguments.contexts),
        "An answer is right if": str(right),
        "Judge": arguments.judge.judge_model or hide_secrets(arguments.judge.judge),
    }
    return {name: value for name, value in shown.items() if value}
