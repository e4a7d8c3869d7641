"""The recipe, read top to bottom: arguments, documents, examples, retriever, model, trainer, test, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed

from groundtune.arguments import Arguments, RetrievalArguments
from groundtune.documents import examples_without_gold
from groundtune.embedding import Embedder
from groundtune.evaluation import Evaluation
from groundtune.files import DataError, read_documents, read_examples
from groundtune.index import load_or_build_index
from groundtune.methods import METHODS, Method
from groundtune.models import ModelError, flash_attention_problems, load_tokenizer
from groundtune.passages import Passages
from groundtune.prompt import Prompt, make_prompt
from groundtune.record import run_record
from groundtune.report import write_predictions, write_results
from groundtune.results import Results
from groundtune.retrieval import BM25Retriever, DenseRetriever, HybridRetriever, Retriever, retrieve
from groundtune.schema import Document, Example, Hit
from groundtune.trainer import GOLD_LOSS, QATrainer

logger = logging.getLogger(__name__)


def train(arguments: Arguments) -> Results:
    """Train `arguments.method`, compare the result with the untouched model, and write it all to `output_dir`.

    Raises `DataError` with every problem of arguments and data, and `ModelError`, before any model is loaded.
    """
    method, data, training = METHODS[arguments.method], arguments.data, arguments.training
    output_dir, durations, notes = Path(training.output_dir), {}, []
    _check(arguments)
    set_seed(training.seed)

    with _timed("read", durations):
        documents, examples = _read(arguments)
        notes += missing_gold(examples, documents)
        tokenizer = load_tokenizer(arguments.model)
        prompt = make_prompt(tokenizer, arguments.prompt)
        _check_lengths(method, arguments, examples, prompt)

    with _timed("index and retrieve", durations):
        hits, seconds = _retrieve(method, arguments, documents, examples)

    k = arguments.retrieval.embedding_max_num_to_retrieve
    rows = {
        split: method.encode(
            examples[split],
            [method.passages(example, found, k) for example, found in zip(examples[split], hits[f"{split} rows"])],
            prompt,
            data.max_seq_length,
        )
        for split in ("train", "eval")
    }
    notes += _dropped_passages(rows)
    evaluators = {
        split: method.evaluator(
            name=split,
            examples=examples[split],
            hits=hits[split],
            prompt=prompt,
            pad_id=tokenizer.pad_token_id,
            max_length=data.max_seq_length,
            max_new_tokens=arguments.evaluation.max_new_tokens,
            batch_size=training.per_device_eval_batch_size,
            retrieval_seconds=seconds[split],
            bootstrap_samples=arguments.evaluation.bootstrap_samples,
        )
        for split in ("eval", "test")
    }

    with _timed("load model", durations):
        model = method.load(
            arguments.model, bf16=training.bf16, stop_ids=prompt.stop_ids, pad_id=tokenizer.pad_token_id
        )

    def on_evaluation(step: int, evaluation: Evaluation) -> None:
        write_predictions(output_dir / "predictions" / f"eval_step_{step:06d}.jsonl", evaluation)

    trainer = QATrainer(
        model=model,
        args=training,
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        processing_class=tokenizer,
        method=method,
        evaluator=evaluators["eval"],
        pad_id=tokenizer.pad_token_id,
        on_evaluation=on_evaluation,
    )
    with _timed("evaluate the untouched model on test", durations):
        base = trainer.run_evaluator(evaluators["test"])
        _check_metric(training, base)
        write_predictions(output_dir / "predictions" / "test_base.jsonl", base)
    with _timed("train and evaluate", durations):
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    # An adapter is saved without them; whoever generates with it must stop where the evaluation did.
    model.generation_config.save_pretrained(output_dir)
    with _timed("evaluate the tuned model on test", durations):
        tuned = trainer.run_evaluator(evaluators["test"])

    results = Results(
        method=method.name,
        base=base,
        tuned=tuned,
        history=trainer.state.log_history,
        best_step=_best_step(trainer),
        selection_metric=training.metric_for_best_model,
        selected_on_test=not data.test_file and training.load_best_model_at_end,
        notes=notes,
        record=_record(arguments, durations),
    )
    write_results(output_dir, results)
    return results


def _check(arguments: Arguments) -> None:
    problems = [*arguments.check(), *flash_attention_problems(arguments.model)]
    if problems:
        raise DataError(problems)


def _check_metric(training: Any, evaluation: Evaluation) -> None:
    """The best checkpoint is chosen by a metric that this run measures; Trainer would notice halfway through."""
    measured = [GOLD_LOSS, *evaluation.metrics]
    if training.load_best_model_at_end and training.metric_for_best_model.removeprefix("eval_") not in measured:
        name = training.metric_for_best_model
        raise DataError([f"--metric_for_best_model: {name} is not measured here; choose one of {', '.join(measured)}"])


def _read(arguments: Arguments) -> tuple[list[Document], dict[str, list[Example]]]:
    """Documents, and the examples of train, eval and test; the problems of all files are reported together."""
    data = arguments.data
    readers = {
        "documents": (read_documents, data.full_dataset_file_path),
        "train": (read_examples, data.train_file),
        "eval": (read_examples, data.eval_file),
        "test": (read_examples, data.test_file or data.eval_file),
    }
    read, problems = {}, []
    for name, (reader, path) in readers.items():
        try:
            read[name] = reader(path)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    documents = read.pop("documents")
    read["eval"] = spread(read["eval"], arguments.evaluation.eval_max_samples)
    logger.info("%d documents; %s", len(documents), ", ".join(f"{len(e)} {split}" for split, e in read.items()))
    return documents, read


def spread(examples: list[Example], at_most: int) -> list[Example]:
    """At most so many examples, evenly over the file: neighbours in a file are often about one passage."""
    if not 0 < at_most < len(examples):
        return examples
    return [examples[i * len(examples) // at_most] for i in range(at_most)]


def missing_gold(examples: dict[str, list[Example]], documents: Sequence[Document]) -> list[str]:
    notes = []
    for split, these in examples.items():
        missing = examples_without_gold(these, documents)
        if missing:
            notes.append(
                f"{split}: the gold documents of {len(missing)} of {len(these)} examples are not in the document "
                f"database, so retrieval cannot find them (first: {missing[0]})"
            )
            logger.warning(notes[-1])
    return notes


def _check_lengths(method: Method, arguments: Arguments, examples: dict[str, list[Example]], prompt: Prompt) -> None:
    """Every training row must fit with its required passages alone; seen here, before anything slow."""
    k = arguments.retrieval.embedding_max_num_to_retrieve
    training = [*examples["train"], *examples["eval"]]
    required = [Passages(required=method.passages(example, [], k).required) for example in training]
    method.encode(training, required, prompt, arguments.data.max_seq_length)


def _retrieve(
    method: Method, arguments: Arguments, documents: list[Document], examples: dict[str, list[Example]]
) -> tuple[dict[str, list[tuple[Hit, ...]]], dict[str, float]]:
    """The hits of every split, and the seconds each took; `train rows` and `eval rows` are those that rows hold.

    The retriever is frozen, so each split is searched once for the whole run.
    """
    retrieval = arguments.retrieval
    for_evaluation = retrieval.eval_embedding_model or retrieval.embedding_model
    searches = {split: (for_evaluation, retrieval.eval_num_to_retrieve) for split in ("eval", "test")}
    if method.retrieves_for_training:
        model = retrieval.embedding_model or for_evaluation
        searches |= {f"{s} rows": (model, retrieval.embedding_max_num_to_retrieve) for s in ("train", "eval")}
    retrievers: dict[str, Retriever] = {}
    hits = {f"{split} rows": [()] * len(examples[split]) for split in ("train", "eval")}
    seconds = {}
    for name, (model, k) in searches.items():
        if model not in retrievers:
            retrievers[model] = make_retriever(model, retrieval, documents, _index_folder(arguments))
        begin = time.perf_counter()
        hits[name] = retrieve(retrievers[model], examples[name.split()[0]], k, retrieval.query_history)
        seconds[name] = time.perf_counter() - begin
    return hits, seconds


def make_retriever(
    embedding_model: str, retrieval: RetrievalArguments, documents: list[Document], index_folder: Path
) -> Retriever:
    """The retriever that `--retriever` names, over all documents."""
    if retrieval.retriever == "bm25":
        return BM25Retriever(documents)
    try:
        embedder = Embedder(
            embedding_model,
            query_prompt=retrieval.query_prompt,
            document_prompt=retrieval.document_prompt,
            batch_size=retrieval.embedding_batch_size,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"--embedding_model: cannot load {embedding_model}: {reason}") from error
    dense = DenseRetriever(embedder, load_or_build_index(index_folder, documents, embedder))
    return dense if retrieval.retriever == "dense" else HybridRetriever([dense, BM25Retriever(documents)])


def _index_folder(arguments: Arguments) -> Path:
    data = arguments.data
    return Path(data.full_dataset_index_path or Path(data.full_dataset_file_path).parent / "index")


def _dropped_passages(rows: dict[str, list]) -> list[str]:
    notes = []
    for split, these in rows.items():
        shortened = [row for row in these if row.passages_dropped]
        if shortened:
            dropped = sum(row.passages_dropped for row in shortened)
            notes.append(
                f"{split}: {len(shortened)} of {len(these)} rows lost {dropped} retrieved passages to fit "
                "--max_seq_length"
            )
            logger.warning(notes[-1])
    return notes


def _best_step(trainer: QATrainer) -> int | None:
    """The step whose checkpoint was loaded at the end, None if the last weights were kept."""
    checkpoint = trainer.state.best_model_checkpoint
    return int(checkpoint.rpartition("-")[2]) if trainer.args.load_best_model_at_end and checkpoint else None


def _record(arguments: Arguments, durations: dict[str, float]) -> dict[str, Any]:
    groups = {
        name: asdict(getattr(arguments, name))
        for name in ("data", "retrieval", "prompt", "model", "evaluation", "logger")
    }
    everything = {"method": arguments.method, **groups, "training": arguments.training.to_dict()}
    files = ("train_file", "eval_file", "test_file", "full_dataset_file_path")
    inputs = {name: path for name in files if (path := getattr(arguments.data, name))}
    return run_record(everything, inputs, durations, arguments.training.seed)


@contextmanager
def _timed(phase: str, durations: dict[str, float]) -> Iterator[None]:
    """Seconds of a phase, for run.json."""
    logger.info("%s ...", phase)
    begin = time.perf_counter()
    yield
    durations[phase] = round(time.perf_counter() - begin, 3)
