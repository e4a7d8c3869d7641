"""`groundtune evaluate`: its flags, the settings that a run's folder adds, and the table."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import (
    add_output_flags,
    be_quiet,
    print_comparison,
    progress,
    say,
    say_json,
    say_table,
    tell,
)
from groundtune.errors import DataError
from groundtune.evaluation.arguments import GROUPS, InferenceArguments, with_flags
from groundtune.runs.remembered import BASE_MODEL, Remembered, remembered

if TYPE_CHECKING:
    from groundtune.recipes.evaluate import Evaluated

logger = logging.getLogger(__name__)

USAGE = """[MODEL] [--eval_file FILE] [--full_dataset_file_path FILE] [--embedding_model MODEL] [--FLAG VALUE ...]"""
DESCRIPTION = """Evaluate any model end to end, with the same code as training: a model folder, an adapter's folder
(its base model is loaded too), a hub name, or a model on an OpenAI-compatible server. A run folder stores its
retriever, prompt and test file, so MODEL alone is enough for a run; flags override the stored settings."""
EXAMPLES = """examples:
  groundtune evaluate runs/my_qa_model --contexts all --with_base
  groundtune evaluate Qwen/Qwen3-4B --eval_file test.jsonl --full_dataset_file_path documents.jsonl \\
      --embedding_model intfloat/e5-base-v2
  groundtune evaluate --generator openai:http://localhost:8000/v1 --generator_model my-model \\
      --eval_file test.jsonl --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2"""
# Flags of training only, and flags that have another name here.
_NOT_HERE = {
    "train_file", "test_file", "model_name_or_path", "use_peft", "embedding_max_num_to_retrieve", "share_prefix",
    "max_train_samples", "train_share", "eval_endpoint",
}  # fmt: skip
_HELPS = {
    "eval_file": "Examples (.jsonl) to answer and score. Default: the test file of MODEL's run.",
    "eval_max_samples": "Number of examples to answer, spread evenly over the file. (default: 0, all)",
    "dtype": "Data type of the weights. auto: the type used when training evaluated the model, else bfloat16 "
    "if the hardware supports it. (default: auto)",
    "load_in_4bit": "Store the weights of the linear layers in 4 bits (NF4); needs bitsandbytes. (default: false)",
    "embedding_model": "Embedding model (hub name or folder) for retrieval. Default: the one used in MODEL's run.",
    "gguf_file": "Name of a GGUF file in the model folder.",
}


def main(argv: Sequence[str]) -> int:
    """Evaluate and print the table; returns 1 if an answer, a judgement or a condition failed, else 0."""
    words = given(parser(), argv)
    typed = partial(with_flags, ["groundtune", "evaluate", *argv])
    arguments = inference_arguments(words, for_questions=True, again=typed)

    from groundtune.recipes.evaluate import evaluate

    if words["quiet"] or words["json"]:
        be_quiet()
    with progress(words["quiet"] or words["json"]) as bars:
        found = evaluate(arguments, bars.begin)
    _show(found, words)
    return tell(found.checked, words["json"] or words["quiet"]) or int(bool(found.failures))


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = inference_parser("evaluate", USAGE, DESCRIPTION, EXAMPLES)
    made.add_argument(
        "--full", action="store_true", default=False, help="Print every metric of every context, not one screen."
    )
    return made


def inference_parser(
    command: str,
    usage: str,
    description: str,
    examples: str,
    without: Collection[str] = (),
    helps: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """A parser for MODEL and the flags that `evaluate`, `ask` and `serve` share, except those in `without`.

    `helps` has help texts of flags whose meaning is another one in this command.
    """
    parser = light_parser(f"groundtune {command}", usage, description, examples)
    parser.add_argument(
        "model", nargs="?", default="", metavar="MODEL", help="Model folder, adapter folder or hub name."
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it.")
    for group in GROUPS:
        names = [field.name for field in fields(group) if not field.name.startswith("lora_")]
        if names := [name for name in names if name not in _NOT_HERE and name not in without]:
            add_group(parser, group, names, {**_HELPS, **(helps or {})})
    add_output_flags(parser)
    return parser


def inference_arguments(
    words: Mapping[str, Any], for_questions: bool, again: Callable[[Mapping[str, str]], str]
) -> InferenceArguments:
    """The user's arguments, else the settings stored in MODEL's run, else the defaults.

    `for_questions`: without --eval_file, use the run's test file, or else its eval file. `again` returns the user's
    command with additional flags.
    """
    run = remembered(words["model"])
    values = {**(_known(run, words, for_questions) if run else {}), **words, "model_name_or_path": words["model"]}
    if {"embedding_model", "eval_embedding_model"} & words.keys() == {"embedding_model"}:
        values["eval_embedding_model"] = ""  # the user's embedding model overrides the run's
    try:
        groups: list[Any] = [filled(group, values) for group in GROUPS]
    except TypeError as error:
        raise DataError([f"arguments: {error}"]) from error
    return replace(InferenceArguments(*groups), run=run, again=again)


def _known(run: Remembered, words: Mapping[str, Any], for_questions: bool) -> dict[str, Any]:
    """The settings that the run adds to the user's words, by flag name."""
    names = (
        "embedding_model", "eval_embedding_model", "full_dataset_file_path", "reranker", "rewriter", "rewrite_prompt",
    )  # fmt: skip
    known = {**run.settings, **{name: run.names[name] for name in names if name in run.names}}
    if known.get("bf16") and "bf16" not in words:
        known["bf16"] = _native_bf16()
    if for_questions and (questions := run.names.get("test_file") or run.names.get("eval_file")):
        known["eval_file"] = questions
    if run.index_path and "full_dataset_file_path" not in words:
        known["full_dataset_index_path"] = run.index_path
    if BASE_MODEL in run.names and words.get("base_model", run.names[BASE_MODEL]) == run.names[BASE_MODEL]:
        known |= {"model_revision": run.revision, "gguf_file": run.gguf_file}
    return known


def _native_bf16() -> bool:
    """Whether a run that computed in bfloat16 does so here as well: without instructions for it, float32 is faster."""
    from groundtune.model.loading import computes_bf16  # here, because it imports torch

    native = computes_bf16()
    if not native:
        logger.warning(
            "this machine has no bfloat16 instructions, so the run is asked in float32; --bf16 true emulates"
        )
    return native


def _show(found: Evaluated, words: Mapping[str, Any]) -> None:
    if words["json"]:
        say_json(found.to_dict())
        return
    if words["full"]:
        for comparison in found.comparisons:
            print_comparison(comparison)
    else:
        _print_one_screen(found)
    if found.study:
        from groundtune.reporting.comparison_page import thresholds_chosen
        from groundtune.reporting.study_page import study_tables

        for table in study_tables(found.study):
            say_table(table)
        say(*thresholds_chosen(found.study.abstention), *found.study.notes)
    if found.forgetting:
        from groundtune.reporting.study_page import forgetting_lines

        say(*forgetting_lines(found.forgetting))
    if not words["quiet"]:
        say(*found.notes, *found.reused, *found.steps, f"Report: {found.output_dir / 'evaluation.html'}")


def _print_one_screen(found: Evaluated) -> None:
    """The outcomes, the essential metrics end to end, token F1 of the other contexts, the verdict, and failures."""
    from groundtune.evaluation.outcomes import outcome_counts
    from groundtune.evaluation.verdicts import F1, SCORES
    from groundtune.reporting.comparison_page import comparison_table, essential, table_of_outcomes

    counts = {context: outcome_counts(predictions) for context, predictions in found.of_model.items()}
    say_table(table_of_outcomes(counts))
    *_, contexts = found.comparisons
    several, verdict = len(counts) > 1, found.verdict
    if verdict or not several:
        say_table(comparison_table(verdict or contexts, essential(verdict or contexts)))
    if several:
        say_table(comparison_table(contexts, [SCORES[F1]]))
    say(*map(verdict.verdict, verdict.others) if verdict else (), *found.failures)
