"""`groundtune retriever`: train an embedding model or a reranker, and compare it with the untrained one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from groundtune.arguments import DataArguments, OutputArguments, RetrievalArguments
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, say, say_json, say_table
from groundtune.commands.train import trained, until_stopped
from groundtune.errors import DataError
from groundtune.training.retriever_arguments import RetrieverArguments, RetrieverRun, TrainingFlags

if TYPE_CHECKING:
    from groundtune.evaluation.retriever_verdicts import RetrieverResults

DESCRIPTION = """Train the embedding model of a retriever (or, with --kind cross_encoder, a reranker) on questions and
their gold passages. The passages of other questions, those in hard_neg_docs, and what a search finds are its negatives.
The tuned model is compared with the untrained one inside the retriever that will be used (--retriever, by default a mix
of vectors and words), by cross-validation: each question is asked of a model that saw nothing of its article. If the
tuned model does not find more, the untrained one is kept, and the report says so. Lines of the files need no answer,
and may have a list of "questions". All other arguments of transformers.TrainingArguments are accepted, too
(groundtune sft -h lists them)."""
EXAMPLES = """examples:
  groundtune retriever --train_file train.jsonl --full_dataset_file_path documents.jsonl \\
      --embedding_model intfloat/e5-base-v2 --output_dir models/retriever
  groundtune retriever --train_file train.jsonl --eval_file eval.jsonl --full_dataset_file_path documents.jsonl \\
      --embedding_model intfloat/e5-base-v2 --retriever dense --output_dir models/retriever"""
_DATA = ["train_file", "eval_file", "test_file", "full_dataset_file_path", "full_dataset_index_path"]
_RETRIEVAL = [
    "embedding_model", "eval_num_to_retrieve", "retriever", "mix_weight", "query_history", "embedding_batch_size",
    "embedding_dtype", "query_prompt", "document_prompt", "reranker", "reranker_model", "rerank_depth", "rerank_weight",
]  # fmt: skip
_HELPS = {
    "train_file": "Questions to train on (.jsonl): question or questions, gold_docs, optionally hard_neg_docs.",
    "eval_file": "Questions on which recall is measured during training; the best checkpoint is chosen on them. Empty: "
    "a fifth of the articles of --train_file, which is then not trained on.",
    "test_file": "Questions on which the tuned and the untrained model are compared at the end.",
    "embedding_model": "Embedding model (hub name or folder): the one to train, except with --kind cross_encoder.",
    "eval_num_to_retrieve": "Passages that count: recall at this number decides. (default: 4)",
    "reranker": "With --kind cross_encoder, the model to train: a cross-encoder, or an encoder, which gets a new layer "
    "that rates. Otherwise the reranker inside which embedding models are compared.",
    "retriever": "The retriever that will be used, inside which the models are compared. (default: mix)",
}
# Arguments of `TrainingArguments` that follow from others here.
FOLLOW = {
    "save_strategy": "--eval_strategy", "save_steps": "--eval_steps", "load_best_model_at_end": "--eval_strategy",
    "metric_for_best_model": "--eval_num_to_retrieve", "greater_is_better": "--eval_num_to_retrieve",
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Train and print the tables; returns 0, 1 if the training diverged, 143 after SIGTERM, or 130 after SIGINT."""
    if {"-h", "--help"} & set(argv):
        parser().parse_args(["-h"])
    return train_with(lambda: run_of(given(whole_parser(), argv)))


def train_with(arguments: Callable[[], RetrieverRun]) -> int:
    """`main` with these arguments; reading them imports torch, which takes seconds."""
    return until_stopped(lambda: _run(arguments()))


def parser() -> argparse.ArgumentParser:
    """The flags that the help shows."""
    usage = "--train_file FILE --full_dataset_file_path FILE --embedding_model MODEL -o FOLDER [--FLAG VALUE ...]"
    made = light_parser("groundtune retriever", usage, DESCRIPTION, EXAMPLES)
    made.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it.")
    add_group(made, DataArguments, _DATA, _HELPS)
    add_group(made, RetrievalArguments, _RETRIEVAL, _HELPS)
    for group in (RetrieverArguments, TrainingFlags):
        add_group(made, group, [field.name for field in fields(group)])
    add_output_flags(made)
    return made


def run_of(words: Mapping[str, Any]) -> RetrieverRun:
    """The arguments of a run, from the words of `whole_parser`. Raises `DataError`."""
    if problems := [
        f"--{name}: follows from {other} here; remove it" for name, other in FOLLOW.items() if name in words
    ]:
        raise DataError(problems)
    groups: Any = [
        filled(group, words) for group in (DataArguments, RetrievalArguments, RetrieverArguments, TrainingFlags)
    ]
    known = {field.name for group in groups for field in fields(group)} | {"quiet", "json", "config"}
    output = OutputArguments(quiet=words["quiet"], json=words["json"])
    more = {name: value for name, value in words.items() if name not in known}
    data, retrieval, retriever, training = groups
    return RetrieverRun(data, retrieval, retriever, training, output, more)


def whole_parser() -> argparse.ArgumentParser:
    """The flags that the help shows, and all others of `TrainingArguments`, absent from the result if not given."""
    from transformers import HfArgumentParser, TrainingArguments

    made, of_transformers = parser(), HfArgumentParser(cast(Any, TrainingArguments))
    shown = {action.dest for action in made._actions}
    for action in of_transformers._actions:
        if action.dest not in shown:
            action.default = argparse.SUPPRESS
            made._add_action(action)
    return made


def _run(run: RetrieverRun) -> int:
    if problems := run.check():
        raise DataError(problems)

    from groundtune.recipes.train_retriever import train_retriever

    return trained(
        lambda: train_retriever(run), lambda results: _shown(run, results), run.output, run.training.output_dir
    )


def _shown(run: RetrieverRun, results: RetrieverResults | None) -> int:
    folder = Path(run.training.output_dir)
    if run.output.json:
        _say_metrics(folder)
    elif results is not None:
        _show(results, folder, run.output.quiet)
    return 0


def _say_metrics(folder: Path) -> None:
    import json

    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    del metrics["history"]
    say_json({**metrics, "output_dir": str(folder), "report": str(folder / "report.html")})


def _show(results: RetrieverResults, folder: Path, quiet: bool) -> None:
    from groundtune.reporting.retriever_report import retriever_table

    for compared in results.compared:
        say_table(retriever_table(compared))
    say(results.verdict)
    if not quiet:
        say(f"Report: {folder / 'report.html'}")
