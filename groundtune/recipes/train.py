"""The training recipe from top to bottom: arguments, documents, examples, retriever, model, trainer, test, report."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PrinterCallback, set_seed

from groundtune.aliases import Model
from groundtune.arguments import BLOCK, REWRITE, DataArguments
from groundtune.data.checks import counts, place
from groundtune.data.files import in_the_way, sha256_of
from groundtune.errors import DataError
from groundtune.evaluation.evaluator import EndToEndEvaluator, Evaluation, read_evaluation, spread
from groundtune.evaluation.folder import forget_earlier
from groundtune.evaluation.learning_curve import nested_share
from groundtune.evaluation.predictions import write_predictions
from groundtune.methods import Method, method_of
from groundtune.model.endpoint import endpoint_at
from groundtune.model.limits import check_positions, check_vocabulary
from groundtune.prompts.policies import reads_hits
from groundtune.prompts.prompt import Prompt
from groundtune.prompts.rows import EpochRows, left_out_note, shortening_note
from groundtune.reporting.report import write_results
from groundtune.reporting.results import Results
from groundtune.retrieval.opening import evaluation_model, index_folder, open_retriever_with
from groundtune.retrieval.queries import queries_of
from groundtune.retrieval.retrievers import Retriever
from groundtune.retrieval.rewriting import cannot_rewrite, open_rewriter
from groundtune.runs.checkpoints import Checkpoint
from groundtune.runs.hub import Hub
from groundtune.runs.record import run_record, timed
from groundtune.runs.remembered import base_not_followed, record_own_run
from groundtune.runs.resume import (
    check_same_run,
    checkpoint_to_resume,
    identity,
    locked,
    output_problems,
    rows_identity,
)
from groundtune.schema import Document, Example, Hit, Reply
from groundtune.system.outputs import inside
from groundtune.system.processes import is_main, run_on_main
from groundtune.system.servers import server_kind
from groundtune.training.adapter_server import AdapterServer
from groundtune.training.arguments import (
    GOLD_LOSS,
    QATrainingArguments,
    RunArguments,
    compile_problems,
    eval_endpoint_problems,
    loss_problems,
    metric_problems,
    sharding_problems,
    tracker_problems,
)
from groundtune.training.doctor import Diagnosis, diagnose, doctor_command, summary
from groundtune.training.trainer import QATrainer

logger = logging.getLogger(__name__)

_AT_ONE_TIME = 64  # requests to --eval_endpoint, whose server batches them


def train(arguments: RunArguments) -> Results:
    """Train `arguments.method`, compare the result with the base model, and write everything to `output_dir`.

    An interrupted run resumes from its last complete checkpoint and ends with the weights of an uninterrupted run.

    Raises `DataError` with every problem of arguments and data, and `ModelError`, before any model is loaded;
    `AlreadyFinished` for a finished run; and during training `Stopped`, `NonFiniteLoss` and `DiskError`.
    """
    _check(arguments)
    training = arguments.training
    with locked(Path(training.output_dir)) if is_main() else nullcontext():
        run = identity(arguments)
        with training.main_process_first(local=False, desc="looking for a checkpoint"):
            checkpoint = checkpoint_to_resume(training, run)
        return _train(arguments, run, checkpoint)


def _train(arguments: RunArguments, run: dict[str, Any], checkpoint: Checkpoint | None) -> Results:
    """The recipe; `run` is this run's identity, `checkpoint` the one to resume."""
    method, training = method_of(arguments.method), arguments.training
    durations: dict[str, float] = {}
    training.disable_tqdm = training.disable_tqdm or _is_quiet(arguments)
    set_seed(training.seed)

    with timed("read and check", durations):
        diagnosis = diagnose(arguments)
        diagnosis.raise_errors()
        # Now, so that a hub that cannot be used is reported before training.
        repository = Hub(training).create() if training.push_to_hub and is_main() else ""
        notes = _tell(diagnosis, arguments)
        examples, (tokenizer, prompt) = _splits(diagnosis, arguments), diagnosis.tokenizer_and_prompt()

    with timed("index and retrieve", durations):
        found = run_on_main(lambda: _retrieve(method, arguments, diagnosis.dataset.documents, examples))
        hits, seconds, told = found
        notes += told

    rows = _encoded(method, arguments, diagnosis.dataset.documents, examples, hits, prompt)
    notes += _shortened(rows)
    run = run | rows_identity(rows["train"])
    if checkpoint is not None:
        check_same_run(checkpoint, run, training.resume_anyway)
    evaluators = _evaluators(method, arguments, examples, hits, seconds, prompt)
    notes += filter(None, (evaluator.note for evaluator in evaluators.values()))
    _check_metric(training, evaluators["eval"])

    with timed("load model", durations):
        pad_id = tokenizer.pad_token_id
        model = method.load(arguments.model, bf16=training.bf16, stop_ids=prompt.stop_ids, pad_id=pad_id)
        notes += _check_tokens(model, arguments, rows, evaluators)

    trainer = _trainer(method, arguments, model, rows, evaluators["eval"], diagnosis.tokenizer, run)
    with timed("evaluate the base model on test", durations):
        base = _base_model(trainer, evaluators["test"], checkpoint)
    with timed("train and evaluate", durations):
        trainer.train(resume_from_checkpoint=checkpoint)
    _save(trainer)
    with timed("evaluate the tuned model on test", durations):
        tuned = trainer.run_evaluator(evaluators["test"])

    record = {
        **_record(arguments, durations, _row_counts(diagnosis)),
        "training_rows": len(rows["train"]),
        "prompt_style": prompt.style,
        **({"prompt_tail": list(prompt.tail)} if any(prompt.tail) else {}),
        **({"hub_repository": repository} if repository else {}),
        "identity": run,
        "resumed_from_step": checkpoint and checkpoint.step,
    }
    results = _results(arguments, trainer, base, tuned, notes, record)
    if is_main():
        write_results(Path(training.output_dir), results)
        record_own_run(Path(training.output_dir), arguments.data.full_dataset_index_path)
    return results


def _check(arguments: RunArguments) -> None:
    method = method_of(arguments.method)
    problems = arguments.check(for_training=method.title if method.retrieves else "")
    problems += compile_problems(arguments.training)
    problems += metric_problems(arguments.training) + loss_problems(arguments.training)
    problems += sharding_problems(arguments.training, arguments.model)
    problems += eval_endpoint_problems(arguments.evaluation.eval_endpoint, arguments.model, arguments.training)
    problems += _rewriter_problems(arguments)
    problems += tracker_problems(cast("list[str]", arguments.training.report_to))
    problems += output_problems(Path(arguments.training.output_dir))
    if arguments.data.full_dataset_index_path:
        problems += in_the_way("full_dataset_index_path", arguments.data.full_dataset_index_path, folder=True)
    if arguments.output.push_report and not arguments.training.push_to_hub:
        problems.append("--push_report: nothing is pushed without --push_to_hub; add it")
    if problems:
        raise DataError(problems)


def _rewriter_problems(arguments: RunArguments) -> list[str]:
    """Why the question of a dialogue cannot be rewritten, if it is to be."""
    retrieval, model = arguments.retrieval, arguments.model
    if retrieval.query_history != REWRITE:
        return []
    if retrieval.rewriter:
        return [] if server_kind(retrieval.rewriter) else base_not_followed("rewriter", retrieval.rewriter)
    return cannot_rewrite(model)


def _evaluators(
    method: Method,
    arguments: RunArguments,
    examples: dict[str, list[Example]],
    hits: dict[str, list[tuple[Hit, ...]]],
    seconds: dict[str, float],
    prompt: Prompt,
) -> dict[str, EndToEndEvaluator]:
    return {
        split: method.evaluator(
            name=split,
            examples=examples[split],
            hits=hits[split],
            prompt=prompt,
            pad_id=prompt.tokens.tokenizer.pad_token_id,
            max_length=arguments.data.max_seq_length,
            max_new_tokens=arguments.evaluation.max_new_tokens,
            batch_size=arguments.training.per_device_eval_batch_size,
            retrieval_seconds=seconds[split],
            bootstrap_samples=arguments.evaluation.bootstrap_samples,
            abstentions=arguments.evaluation.abstentions,
            shorten=arguments.data.too_long == "shorten",
            passage_cache=arguments.evaluation.passage_cache,
            citations=arguments.prompt.citations,
        )
        for split in ("eval", "test")
    }


def _check_tokens(
    model: Model, arguments: RunArguments, rows: dict[str, EpochRows], evaluators: dict[str, EndToEndEvaluator]
) -> list[str]:
    """Check that the model has embeddings and positions for all tokens; notes for the report."""
    name, new = arguments.model.model_name_or_path, arguments.evaluation.max_new_tokens
    read = [row.prompt_ids + row.answer_ids for these in rows.values() for row in these]
    asked = [question.prompt_ids for evaluator in evaluators.values() for question in evaluator.questions]
    check_vocabulary(read + asked, model, name)
    return check_positions(max([len(ids) for ids in read] + [len(ids) + new for ids in asked]), model, name)


def _is_quiet(arguments: RunArguments) -> bool:
    return arguments.output.quiet or arguments.output.json


def _encoded(
    method: Method,
    arguments: RunArguments,
    documents: list[Document],
    examples: dict[str, list[Example]],
    hits: dict[str, list[tuple[Hit, ...]]],
    prompt: Prompt,
) -> dict[str, EpochRows]:
    """The training and evaluation rows; the latter keep their gold, as the name of their loss says."""
    max_length, seed = arguments.data.max_seq_length, arguments.training.seed
    encode = partial(method.encode, shorten=arguments.data.too_long == "shorten")
    flags, k = arguments.passages, arguments.retrieval.embedding_max_num_to_retrieve
    draws = {"train": method.draws(flags, k, documents), "eval": method.draws(flags, k, documents, keep_gold=True)}
    return {
        split: EpochRows(
            encode, method.policy, examples[split], hits[f"{split} rows"], prompt, max_length, seed, draws[split]
        )
        for split in ("train", "eval")
    }


def _trainer(
    method: Method,
    arguments: RunArguments,
    model: Any,
    rows: dict[str, EpochRows],
    evaluator: EndToEndEvaluator,
    tokenizer: Any,
    run: dict[str, Any],
) -> QATrainer:
    """The trainer; it writes the answers of each evaluation to a file named after the step."""
    folder = arguments.training.output_dir

    def on_evaluation(step: int, evaluation: Evaluation) -> None:
        if is_main():
            write_predictions(inside(Path(folder), "predictions", f"eval_step_{step:06d}.jsonl"), evaluation)

    trainer = QATrainer(
        model=model,
        args=arguments.training,
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        processing_class=tokenizer,
        method=method,
        evaluator=evaluator,
        pad_id=tokenizer.pad_token_id,
        share_prefix=arguments.data.share_prefix,
        blocks=arguments.prompt.passage_attention == BLOCK,
        on_evaluation=on_evaluation,
        reuse_answers=arguments.evaluation.reuse_answers,
        server=_adapter_server(arguments),
        run=run,
    )
    if _is_quiet(arguments):
        trainer.remove_callback(PrinterCallback)  # Trainer adds it when the progress bar is off
    return trainer


def _adapter_server(arguments: RunArguments) -> AdapterServer | None:
    """What answers evaluations while training goes on, if --eval_endpoint names a server."""
    if not (name := arguments.evaluation.eval_endpoint):
        return None
    endpoint = endpoint_at(name, "", concurrency=_AT_ONE_TIME)
    return AdapterServer(endpoint, Path(arguments.training.output_dir), arguments.model.lora_r)


def _base_model(trainer: QATrainer, evaluator: EndToEndEvaluator, checkpoint: Checkpoint | None) -> Evaluation:
    """Evaluate the base model end to end on test; a resumed run reads the answers from its first start."""
    path = inside(Path(trainer.args.output_dir), "predictions", "test_base.jsonl")
    run, key = trainer.run, "answers of the base model"

    def answered_before() -> Evaluation | None:
        if checkpoint is None or not path.exists():
            return None
        same = checkpoint.about["run"] == {**run, key: sha256_of(path)}
        return read_evaluation(path, evaluator) if same else None

    base = run_on_main(answered_before)
    if base is None:
        base = trainer.run_evaluator(evaluator, trainer.known_answers())
        if is_main():
            write_predictions(path, base)
    trainer.run = {**run, key: run_on_main(lambda: sha256_of(path))}
    return base


def _save(trainer: QATrainer) -> None:
    """Save the tuned model, ready to be used, and the trainer's state with its log history."""
    folder = Path(trainer.args.output_dir)
    if problems := output_problems(folder):  # again, because the first check was long ago
        raise DataError(problems)
    trainer.save_model(_internal_call=True)  # so that nothing is pushed before there are results
    trainer.save_state()
    if is_main():
        # Adapters are saved without them, but generation must stop where the evaluation did.
        trainer.model.generation_config.save_pretrained(folder)
        forget_earlier(folder)


def _results(
    arguments: RunArguments,
    trainer: QATrainer,
    base: Evaluation,
    tuned: Evaluation,
    notes: list[str],
    record: dict[str, Any],
) -> Results:
    training = arguments.training
    return Results(
        method=arguments.method,
        base=base,
        tuned=tuned,
        history=trainer.state.log_history,
        best_step=_best_step(trainer),
        selection_metric=training.metric_for_best_model,
        selected_on_test=_tested_on_eval(arguments.data) and training.load_best_model_at_end,
        notes=[
            *notes,
            *(note for micro_batch in trainer.micro_batch.values() for note in micro_batch.notes),
            *trainer.tracker_failures,
        ],
        record=record,
    )


def _check_metric(training: QATrainingArguments, evaluator: EndToEndEvaluator) -> None:
    """Check that these examples have the metric that chooses the best checkpoint; Trainer would only fail halfway."""
    name = training.metric_for_best_model
    if not training.load_best_model_at_end or name.removeprefix("eval_") == GOLD_LOSS:
        return
    some_answer = Reply('"One of its kind."', new_tokens=1)  # a quotation, so that quote metrics are included
    answered = evaluator.predictions([some_answer] * len(evaluator.questions), seconds=0.0)
    measured = dict.fromkeys([GOLD_LOSS, *(metric for prediction in answered for metric in prediction.scores)])
    if name.removeprefix("eval_") not in measured:
        raise DataError([f"--metric_for_best_model: {name} is not measured here; choose one of {', '.join(measured)}"])


def _tell(diagnosis: Diagnosis, arguments: RunArguments) -> list[str]:
    """Log warnings, counted by kind and file, and return them for the report."""
    logger.info("checked: %s", summary(diagnosis))
    notes = counts(diagnosis.warnings)
    total = sum(map(len, diagnosis.dataset.examples.values()))
    notes += filter(None, [left_out_note(sorted(diagnosis.left_out, key=place), total)])
    for note in notes:
        logger.warning(note)
    if notes:
        logger.warning("to see where and what to do, run: %s", doctor_command(arguments))
    return notes


def _splits(diagnosis: Diagnosis, arguments: RunArguments) -> dict[str, list[Example]]:
    """The usable examples of train, eval and test. Test is never a sample; without its own file it is all of eval."""
    examples = {
        split: [example for example in these if example.source not in diagnosis.left_out]
        for split, these in diagnosis.dataset.examples.items()
    }
    if empty := [split for split, these in examples.items() if not these]:
        raise DataError([f"--{split}_file: every example is too long; raise --max_seq_length" for split in empty])
    examples.setdefault("test", examples["eval"])
    share = nested_share(examples["train"], arguments.data.train_share, arguments.training.seed)
    examples["train"] = spread(share, arguments.data.max_train_samples)
    examples["eval"] = spread(examples["eval"], arguments.evaluation.eval_max_samples)
    return examples


def _retrieve(
    method: Method, arguments: RunArguments, documents: list[Document], examples: dict[str, list[Example]]
) -> tuple[dict[str, list[tuple[Hit, ...]]], dict[str, float], list[str]]:
    """The hits of every split, the seconds each search took, and notes; `train rows` and `eval rows` go into training
    rows.

    The retriever is frozen, so each split is searched once for the whole run.
    """
    retrieval, folder = arguments.retrieval, index_folder(arguments.data)
    for_evaluation = evaluation_model(retrieval)
    searches = {split: (for_evaluation, retrieval.eval_num_to_retrieve) for split in ("eval", "test")}
    if method.searches(arguments.passages):
        model = retrieval.embedding_model or for_evaluation
        depth = arguments.passages.searched(retrieval.embedding_max_num_to_retrieve)
        searches |= {f"{s} rows": (model, depth) for s in ("train", "eval")}
    elif any(reads_hits(example) for split in ("train", "eval") for example in examples[split]):
        searches |= {f"{s} rows": searches["eval"] for s in ("train", "eval")}
    splits = dict.fromkeys(name.split()[0] for name in searches)
    rewriter = open_rewriter(arguments.searching, folder)
    make = rewriter.queries if rewriter else partial(queries_of, history=retrieval.query_history)
    queries = {split: make(examples[split]) for split in splits}
    if rewriter:
        rewriter.close()
        set_seed(arguments.training.seed)  # loading a model draws numbers, and a resumed run has no need to load it
    retrievers: dict[str, Retriever] = {}
    hits: dict[str, list[tuple[Hit, ...]]] = {
        f"{split} rows": [()] * len(examples[split]) for split in ("train", "eval")
    }
    seconds = {}
    for name, (model, k) in searches.items():
        if model not in retrievers:
            retrievers[model] = open_retriever_with(model, retrieval, documents, folder)
        begin = time.perf_counter()
        hits[name] = retrievers[model].search(queries[name.split()[0]], k)
        seconds[name] = time.perf_counter() - begin
    return hits, seconds, rewriter.note if rewriter else []


def _shortened(rows: dict[str, EpochRows]) -> list[str]:
    """Notes about what the rows leave out to fit."""
    notes = [note for split, these in rows.items() if (note := shortening_note(f"{split} rows", these))]
    for note in notes:
        logger.warning(note)
    return notes


def _tested_on_eval(data: DataArguments) -> bool:
    return not data.test_file or Path(data.test_file).resolve() == Path(data.eval_file).resolve()


def _best_step(trainer: QATrainer) -> int | None:
    """The step of the checkpoint loaded at the end; None if the last weights were kept."""
    checkpoint = trainer.state.best_model_checkpoint
    return int(checkpoint.rpartition("-")[2]) if trainer.args.load_best_model_at_end and checkpoint else None


def _row_counts(diagnosis: Diagnosis) -> dict[str, int]:
    """Number of examples or documents in each file, by the name of its argument."""
    examples = {f"{split}_file": len(these) for split, these in diagnosis.dataset.examples.items()}
    return {**examples, "full_dataset_file_path": len(diagnosis.dataset.documents)}


def _record(arguments: RunArguments, durations: dict[str, float], rows: dict[str, int]) -> dict[str, Any]:
    groups = {
        name: asdict(getattr(arguments, name))
        for name in ("data", "retrieval", "passages", "prompt", "model", "evaluation", "logger", "output")
    }
    everything = {"method": arguments.method, **groups, "training": arguments.training.to_dict()}
    files = ("train_file", "eval_file", "test_file", "full_dataset_file_path")
    inputs = {name: path for name in files if (path := getattr(arguments.data, name))}
    record = run_record(everything, inputs, durations, arguments.training.seed)
    record["inputs"] = {name: {**about, "rows": rows[name]} for name, about in record["inputs"].items()}
    return record
