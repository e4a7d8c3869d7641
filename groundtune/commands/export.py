"""`groundtune export`: its flags, and what it prints."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.arguments import BLOCK, ModelArguments, too_small
from groundtune.commands.evaluate import inference_arguments
from groundtune.commands.flags import add_group
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, be_quiet, progress, say, say_json
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.evaluation.arguments import SERVER, AnswerArguments, GeneratorArguments, InferenceArguments, with_flags
from groundtune.export.about import TARGETS, About, read_about, write_about
from groundtune.export.gguf import TYPES
from groundtune.model.endpoint import Endpoint, endpoint_at, server_problems
from groundtune.runs.remembered import remembered
from groundtune.system.locks import alone
from groundtune.system.outputs import links_in

if TYPE_CHECKING:
    from groundtune.export.verifying import Verified

USAGE = "RUN -o DIR [--to merged|ollama|gguf|vllm] [--verify] [--FLAG VALUE ...]"
DESCRIPTION = """Write the model of a run for use elsewhere: merged weights, a tokenizer whose chat template is the
trained prompt, every stop token, and a card. --verify proves that the export is the model that was measured: it
compares prompt, stop tokens, settings and weights with the run's, and then the answers to the run's test questions,
one by one. A folder that already holds an export is only verified. docs/howto/export.md says more."""
EXAMPLES = """examples:
  groundtune export runs/swr -o exported --verify
  groundtune export runs/swr -o exported --verify --endpoint openai:http://localhost:8000/v1 \\
      --endpoint_model exported"""
_OF_MODEL = ["model_revision", "gguf_file", "dtype"]
_OF_ANSWERS = ["base_model", "bf16", "per_device_eval_batch_size"]
_HELPS = {
    "gguf_file": "Name of a GGUF file in the base model's folder.",
    "dtype": "Data type of the merged weights. auto: the type used when training evaluated the model. (default: auto)",
    "base_model": "Base model (hub name or folder) of RUN's adapter. Default: the one named in RUN, if this machine "
    "created it.",
}


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = light_parser("groundtune export", USAGE, DESCRIPTION, EXAMPLES)
    made.add_argument("model", metavar="RUN", help="Folder of a run.")
    made.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it.")
    made.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="New folder for the export.")
    made.add_argument(
        "--to", choices=TARGETS,
        help="merged: a folder for transformers and servers. vllm: the same, with the line that serves it. gguf: also "
        "model.gguf, by an installed llama.cpp. ollama: also a Modelfile. (default: merged)",
    )  # fmt: skip
    made.add_argument("--llama_cpp", default="", metavar="DIR", help="Folder of llama.cpp. Default: on the PATH.")
    made.add_argument(
        "--gguf_type", choices=TYPES, default="auto", help="Type of the weights in model.gguf. (default: auto)"
    )
    add_group(made, ModelArguments, _OF_MODEL, _HELPS)
    add_group(made, AnswerArguments, _OF_ANSWERS, _HELPS)
    proof = made.add_argument_group("verification")
    proof.add_argument(
        "--verify", action="store_true", default=False,
        help="Compare the export with the run. Exit status 1 if it is not verified.",
    )  # fmt: skip
    proof.add_argument(
        "--margin", type=float, default=0.02, metavar="X",
        help="If some answers differ: the loss of token F1 that is acceptable. (default: 0.02)",
    )  # fmt: skip
    proof.add_argument(
        "--max_questions", type=int, default=0, metavar="N",
        help="Number of test questions, spread evenly over the file. (default: 0, all)",
    )  # fmt: skip
    proof.add_argument(
        "--endpoint", default="", metavar="openai:URL",
        help="OpenAI-compatible server that serves the export; it is asked in place of the weights in DIR.",
    )  # fmt: skip
    proof.add_argument("--endpoint_model", default="", metavar="NAME", help="Name of the export on that server.")
    proof.add_argument(
        "--endpoint_options", default="", metavar="JSON", help="Extra fields for every request, as JSON."
    )
    add_group(made, GeneratorArguments, SERVER)
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Export, and verify if asked to; returns 1 if the export is not verified, else 0."""
    words = given(parser(), argv)
    arguments = _arguments(words, argv)
    folder = Path(words["output_dir"])

    from groundtune.export.writing import Wanted, notes, write_export

    if words["quiet"] or words["json"]:
        be_quiet()
    with alone(folder):
        about = read_about(folder)
        if about is None or not about.complete or not words["verify"]:
            wanted = Wanted(folder, words.get("to", "merged"), words["llama_cpp"], words["gguf_type"])
            about = write_export(arguments, wanted)
        elif words.get("to", about.to) != about.to:
            raise DataError([f"--to: {folder} holds an export for {about.to}; name another folder"])
        told = notes(about, arguments)
        found = _verified(arguments, folder, about, words) if words["verify"] else None
    _show(about, folder, told, found, words)
    return 0 if found is None or found.status == "verified" else 1


def _verified(arguments: InferenceArguments, folder: Path, about: About, words: Mapping[str, Any]) -> Verified:
    """The outcome of the verification, which is also written into export.json."""
    from groundtune.export.verifying import verify
    from groundtune.export.writing import hashes

    with progress(words["quiet"] or words["json"]) as bars:
        found = verify(
            arguments, folder, about, _endpoint(words), words["margin"], words["max_questions"], bars.begin
        )  # fmt: skip
    write_about(folder, replace(about, files=hashes(folder), verified=found.to_dict()))
    return found


def _arguments(words: Mapping[str, Any], argv: Sequence[str]) -> InferenceArguments:
    """The run's arguments. Raises `DataError` with every problem that shows before a model is read."""
    run = words["model"]
    if (made := remembered(run)) is None:
        missing = "holds no run.json" if os.path.isdir(run) else "no such folder"
        raise DataError([f"RUN: {run}: {missing}; name the folder of a finished run"])
    # Emulated or not: answers are compared with those that the run gave. The context "gold" needs neither documents nor
    # retriever: the run's own passages are read.
    as_run = {"bf16": made.settings["bf16"]} if "bf16" in made.settings else {}
    settings = {**as_run, **words, "contexts": "gold", "load_in_4bit": False, "output_dir": ""}
    typed = partial(with_flags, ["groundtune", "export", *argv])
    arguments = inference_arguments(settings, for_questions=False, again=typed)
    problems = [*arguments.check(has_examples=False), *_problems(words)]
    if arguments.prompt.passage_attention == BLOCK:
        problems.append(
            f"RUN: {run} was trained with --passage_attention block, but where exports are served passages attend to "
            "each other: its answers would not be those that were measured; use groundtune serve, or train with full"
        )
    if problems:
        raise DataError(problems)
    return arguments


def _problems(words: Mapping[str, Any]) -> list[str]:
    folder = Path(words["output_dir"])
    problems = in_the_way("output_dir", folder, folder=True) or links_in(folder, flag="output_dir")
    if not words["margin"] >= 0:  # NaN, too
        problems.append(f"--margin: is {words['margin']:g}; give a loss of token F1 from 0 up")
    if words["max_questions"] < 0:
        problems.append(f"--max_questions: is {words['max_questions']}; give a number from 0 up")
    if words["endpoint"]:
        named = (words["endpoint"], words["endpoint_model"], words["endpoint_options"])
        problems += server_problems("endpoint", *named)
        problems += [] if words["verify"] else ["--endpoint: is only asked with --verify; add it"]
    return problems + too_small(_limits(words).least)


def _limits(words: Mapping[str, Any]) -> GeneratorArguments:
    return GeneratorArguments(**{name: words[name] for name in SERVER if name in words})


def _endpoint(words: Mapping[str, Any]) -> Endpoint | None:
    if not words["endpoint"]:
        return None
    limits = _limits(words).limits
    return endpoint_at(words["endpoint"], words["endpoint_model"], words["endpoint_options"], **limits)


def _show(about: About, folder: Path, told: list[str], found: Verified | None, words: Mapping[str, Any]) -> None:
    if words["json"]:
        verified = found.to_dict() if found else None
        say_json({"output_dir": str(folder), **asdict(about), "notes": told, "verified": verified})
        return
    if not words["quiet"]:
        say(f"Export: {folder} ({about.to}, {about.dtype}; {len(about.files)} files)", *told)
    if about.serve and not words["quiet"]:
        say(f"To serve it: {about.serve}")
    say(*(found.lines if found else []))
