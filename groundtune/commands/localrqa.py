"""The flags and defaults of LocalRQA's two scripts for retrievers, which run `groundtune retriever` and a search."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groundtune.arguments import DataArguments, RetrievalArguments
from groundtune.commands.flags import add_group, filled, true_or_false
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.retriever import FOLLOW, run_of, train_with, whole_parser
from groundtune.commands.terminal import add_output_flags, be_quiet, say, say_json, say_text
from groundtune.errors import DataError

logger = logging.getLogger(__name__)

# Defaults of LocalRQA's script, where `groundtune retriever` has others.
TRAINING_DEFAULTS: dict[str, Any] = {
    "embedding_model": "facebook/contriever-msmarco", "retriever": "dense", "query_history": "none", "folds": 0,
    "keep": "tuned", "pooling_type": "mean", "temperature": 0.05, "max_seq_length": 512, "learning_rate": 1e-5,
    "max_steps": 200, "per_device_train_batch_size": 256, "lr_scheduler_type": "cosine", "logging_steps": 10,
    "eval_steps": 100, "save_total_limit": 1,
}  # fmt: skip
_RECALL = re.compile(r"(?:eval_)?retr/document_recall/recall(\d+)")
_TRACKING = {"run_group": "WANDB_RUN_GROUP", "run_project": "WANDB_PROJECT", "run_entity": "WANDB_ENTITY"}
_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (  # name, type, help
    ("model_name_or_path", str, "Embedding model to train; here it is also called --embedding_model."),
    ("hard_neg_ratio", float, "0: no hard negatives; above: one for each question. (default: 0.05)"),
    ("write_predictions", true_or_false, "Has no effect: metrics.json has the scores."),
    *((name, str, f"Sets {variable}, for --report_to wandb.") for name, variable in _TRACKING.items()),
)


def train_retriever(argv: Sequence[str]) -> int:
    """As scripts/train/retriever/train_ctl_retriever.py."""
    if {"-h", "--help"} & set(argv):
        defaults = ", ".join(f"--{name} {value}" for name, value in TRAINING_DEFAULTS.items())
        say_text(f"{_training_parser().format_help()}\ndefaults of this script: {defaults}")
        return 0
    return train_with(lambda: run_of(_of_today(given(_training_parser(), _in_full(argv)))))


def _training_parser() -> argparse.ArgumentParser:
    made = whole_parser()
    section = made.add_argument_group("as in LocalRQA")
    for name, kind, text in _FLAGS:
        section.add_argument(f"--{name}", type=kind, help=text)
    return made


def _in_full(argv: Sequence[str]) -> list[str]:
    """LocalRQA's scripts also take one JSON file with all arguments."""
    alone = len(argv) == 1 and argv[0].endswith(".json") and not argv[0].startswith("-")
    return ["--config", *argv] if alone else list(argv)


def _of_today(words: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `groundtune retriever` that mean the same. Raises `DataError` for what has no such."""
    words = {**TRAINING_DEFAULTS, **words}
    words["embedding_model"] = words.pop("model_name_or_path", words["embedding_model"])
    words["hard_negatives"] = words.get("hard_negatives", int(words.pop("hard_neg_ratio", 0.05) > 0))
    for name, variable in _TRACKING.items():
        if value := words.pop(name, ""):
            os.environ.setdefault(variable, value)
    if words.pop("do_train", True) is False:
        raise DataError(["--do_train false: nothing to train; scripts/test/test_retriever.py measures a retriever"])
    metric = words.pop("metric_for_best_model", "")
    if found := _RECALL.fullmatch(metric):
        words["eval_num_to_retrieve"] = int(found[1])
    elif metric:
        logger.warning("--metric_for_best_model %s: recall chooses here, at --eval_num_to_retrieve passages", metric)
    if words.get("save_steps", words["eval_steps"]) != words["eval_steps"]:
        logger.warning("--save_steps has no effect: a checkpoint is saved at every evaluation")
    dropped = (*FOLLOW, "write_predictions", "do_eval", "remove_unused_columns")
    return {name: value for name, value in words.items() if name not in dropped}


# Testing

_TEST_FLAGS = (  # name, flag of today, default, help
    ("embedding_model_name_or_path", "embedding_model", "intfloat/e5-base", "Embedding model (hub name or folder)."),
    ("document_path", "full_dataset_file_path", "", "Document database."),
    ("index_path", "full_dataset_index_path", "", "Folder that caches the documents' vectors."),
    ("eval_data_path", "eval_file", "", "Questions (.jsonl): question or questions, and gold_docs."),
    ("retriever_type", "retriever", "faiss", "faiss (vectors), BM25 (words), or a --retriever of today."),
    ("test_bszv", "embedding_batch_size", 8, "Texts embedded per batch."),
    ("output_dir", "output_dir", "model_checkpoints/debug_test", "Folder for score.json and test-predictions.jsonl."),
)
_KINDS = {"faiss": "dense", "BM25": "bm25"}


def measure_retriever(argv: Sequence[str]) -> int:
    """As scripts/test/test_retriever.py."""
    words = given(test_parser(), _in_full(argv))
    old = {name: today for name, today, _, _ in _TEST_FLAGS}
    words = {old.get(name, name): value for name, value in words.items()}
    words["retriever"] = _KINDS.get(words["retriever"], words["retriever"])
    data, retrieval, folder = (
        filled(DataArguments, words), filled(RetrievalArguments, words), Path(words["output_dir"])
    )  # fmt: skip
    _check_test(data, retrieval, folder)
    if words["quiet"] or words["json"]:
        be_quiet()
    scores = _tested(data, retrieval, folder)
    if words["json"]:
        say_json(scores)
    else:
        for name, mean in scores.items():
            if isinstance(mean, dict):
                say("{:22} {value:.3f} [{low:.3f}, {high:.3f}]".format(name, **mean))
        say(f"{scores['n']} questions on {scores['passages']} passages; written to {folder}")
    return 0


def test_parser() -> argparse.ArgumentParser:
    made = light_parser("scripts/test/test_retriever.py", "[--FLAG VALUE ...]", measure_retriever.__doc__ or "")
    made.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it.")
    for name, _, default, text in _TEST_FLAGS:
        suffix = f" (default: {default})" if default != "" else ""
        made.add_argument(f"--{name}", type=type(default), default=default, help=text + suffix)
    add_group(made, RetrievalArguments, ["mix_weight", "query_history", "query_prompt", "document_prompt"])
    made.set_defaults(query_history="none")
    add_output_flags(made)
    return made


def _check_test(data: DataArguments, retrieval: RetrievalArguments, folder: Path) -> None:
    from groundtune.commands.index import retriever_problems
    from groundtune.data.files import in_the_way

    if retrieval.retriever not in ("dense", "bm25", "mix", "hybrid"):
        raise DataError([f"--retriever_type: {retrieval.retriever} is unknown; use faiss, BM25, mix or hybrid"])
    named = {today: name for name, today, _, _ in _TEST_FLAGS}
    problems = [*([] if data.eval_file else ["--eval_file: missing; name the questions"])]
    problems += retriever_problems(data, retrieval) + in_the_way("output_dir", folder, folder=True)
    if data.eval_file and not os.path.isfile(data.eval_file):
        problems.append(f"--eval_file: no such file: {data.eval_file}; give the path of an existing file")
    if problems:
        raise DataError([re.sub(r"^--(\w+)", lambda flag: f"--{named.get(flag[1], flag[1])}", one) for one in problems])


def _tested(data: DataArguments, retrieval: RetrievalArguments, folder: Path) -> dict[str, Any]:
    """The means with their intervals; writes them, and what was found for each question."""
    from groundtune.commands.index import searchable
    from groundtune.data.files import read_documents, write_jsonl, write_text
    from groundtune.evaluation.retrievers_compared import DEPTH, scores_of
    from groundtune.evaluation.statistics import aggregate, clusters_of
    from groundtune.retrieval.opening import index_folder, open_retriever
    from groundtune.retrieval.retrievers import retrieve
    from groundtune.system.locks import alone
    from groundtune.system.text import as_json

    documents, examples = read_documents(data.full_dataset_file_path), searchable(data.eval_file)
    retriever = open_retriever(retrieval, documents, index_folder(data))
    hits = retrieve(retriever, examples, DEPTH, retrieval.query_history)
    rows = [scores_of(example, found, retrieval.eval_num_to_retrieve) for example, found in zip(examples, hits)]
    clusters = clusters_of(examples)
    scores: dict[str, Any] = {"n": len(examples), "passages": len(set(clusters))}
    scores |= {name: mean.to_dict() for name, mean in aggregate(rows, clusters).items()}
    with alone(folder):
        write_jsonl(folder / "test-predictions.jsonl", (
            {
                "source": example.source, "question": example.question, "scores": row,
                "gold_docs": [document.to_dict() for document in example.gold_documents],
                "retrieved_docs": [{**hit.document.to_dict(), "score": hit.score} for hit in found],
            }
            for example, found, row in zip(examples, hits, rows)
        ))  # fmt: skip
        write_text(folder / "score.json", as_json(scores))
    return scores
