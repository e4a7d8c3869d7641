"""Writes an export: merged weights, tokenizer with the trained prompt as its chat template, stop tokens, card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from groundtune.aliases import Tokenizer
from groundtune.data.files import sha256_of, write_text
from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.export.about import FILE, About, read_about, write_about
from groundtune.export.chat_template import with_trained_template
from groundtune.export.gguf import convert, converter
from groundtune.export.merging import merged
from groundtune.export.ollama import frame_of, modelfile
from groundtune.prompts.prompt import Prompt, make_prompt
from groundtune.reporting.card import model_card, without_folders
from groundtune.reporting.markdown import md_fence, md_list
from groundtune.reporting.report import read_results
from groundtune.system.durable import disk_errors
from groundtune.system.outputs import inside, refuse_links, usual_modes
from groundtune.system.text import few

GGUF, MODELFILE = "model.gguf", "Modelfile"
_LEAST_KEPT = 0.9  # of the adapter; below, a note says which dtype keeps more


@dataclass(frozen=True)
class Wanted:
    """What is to be written, where."""

    folder: Path
    to: str
    llama_cpp: str = ""
    gguf_type: str = "auto"


def write_export(arguments: InferenceArguments, wanted: Wanted) -> About:
    """Write the export of the run in `arguments`; what the folder then says about itself.

    Raises `DataError` and `ModelError` before any weight is read if the export cannot be made.
    """
    folder, run = wanted.folder, Path(arguments.model.model_name_or_path)
    _check_folder(folder)
    script = converter(wanted.llama_cpp) if wanted.to == "gguf" or wanted.llama_cpp else ""
    results = read_results(run)
    opening = arguments.answering_model()
    tokenizer = opening.open_tokenizer()
    prompt = make_prompt(tokenizer, arguments.prompt)
    asked = with_trained_template(tokenizer, prompt)
    about = _about(arguments, wanted, prompt, opening.weights_dtype)
    of_ollama = _modelfile(asked, prompt, about, bool(script)) if wanted.to == "ollama" else ""
    # Now that nothing stands in the way.
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        write_about(folder, about)  # not complete: what a killed process left may be written again
        model, kept = merged(opening.open_to_merge(prompt, tokenizer.pad_token_id))
        with usual_modes(folder):
            model.save_pretrained(str(folder))
            asked.save_pretrained(folder)
        if script:
            convert(script, folder, folder / GGUF, wanted.gguf_type)
        if of_ollama:
            write_text(inside(folder, MODELFILE), of_ollama)
        write_text(inside(folder, "README.md"), _card(results, replace(about, kept=kept)))
        about = replace(about, kept=kept, complete=True, files=hashes(folder))
        write_about(folder, about)
    return about


def notes(about: About, arguments: InferenceArguments) -> list[str]:
    """What whoever uses the export should know."""
    found = []
    if about.kept < _LEAST_KEPT:
        found.append(
            f"{about.dtype} keeps {about.kept:.0%} of what training changed in the weights, and rounds the rest away; "
            "--dtype float32 keeps all of it"
        )
    if arguments.run and arguments.run.settings.get("load_in_4bit"):
        found.append(
            "the run was measured on a base model in 4 bits, and the export has its full weights; use --verify"
        )
    return found


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the export, except of its own description."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return {path.name: sha256_of(path) for path in files if path.name != FILE}


def _check_folder(folder: Path) -> None:
    """Raise `DataError` if the folder holds anything but what an interrupted export left."""
    if not folder.is_dir():
        return
    about = read_about(folder)
    others = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if about is not None and about.complete:
        raise DataError([f"--output_dir: {folder} holds a complete export; name another folder, or add --verify"])
    if about is None and others:
        raise DataError([f"--output_dir: {folder} is not empty ({few(others)}); name a new folder"])


def _about(arguments: InferenceArguments, wanted: Wanted, prompt: Prompt, dtype: str) -> About:
    run, context = Path(arguments.model.model_name_or_path), arguments.data.max_seq_length
    folder = str(wanted.folder)
    serve = {
        "merged": "",
        "vllm": shlex.join(["vllm", "serve", folder, "--max-model-len", str(context), "--dtype", dtype]),
        "gguf": shlex.join(["llama-server", "-m", str(wanted.folder / GGUF), "-c", str(context), "--jinja"]),
        "ollama": shlex.join(["ollama", "create", wanted.folder.name, "-f", str(wanted.folder / MODELFILE)]),
    }[wanted.to]
    return About(
        run=run.resolve().name,
        run_sha256=sha256_of(run / "run.json"),
        to=wanted.to,
        dtype=dtype,
        style=prompt.style,
        instruction=prompt.instruction,
        context=context,
        max_new_tokens=arguments.evaluation.max_new_tokens,
        stop_tokens=list(prompt.stop_texts),
        serve=serve,
    )


def _modelfile(tokenizer: Tokenizer, prompt: Prompt, about: About, gguf: bool) -> str:
    frame = frame_of(tokenizer, prompt)
    weights = f"./{GGUF}" if gguf else "."  # a folder: Ollama converts the architectures that it knows
    return modelfile(frame, weights, about.stop_tokens, about.context, about.max_new_tokens)


def _card(results: Any, about: About) -> str:
    """The card of the run, as one of a model that is complete, and how a server is asked."""
    record = _as_merged(results.record)
    where = "a system message" if about.style == "prefix" else "the beginning of the first user message"
    how = {
        "Exported from": f"the run {about.run}, in {about.dtype}",
        "Instruction and passages": f"{where}, separated by blank lines, the best passage first",
        "Instruction": about.instruction,
        "Most tokens, answer included": f"{about.context:,}",
        "An answer ends at": ", ".join(about.stop_tokens),
    }
    blocks = ["## Serve it", md_list(how)]
    blocks += [md_fence(without_folders(about.serve), "shell")] if about.serve else []
    return model_card(replace(results, record=record)) + "\n" + "\n\n".join(blocks) + "\n"


def _as_merged(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the run with the arguments that would have made a complete model."""
    groups = dict(record.get("arguments", {}))
    groups["model"] = {**groups.get("model", {}), "use_peft": False, "load_in_4bit": False, "gguf_file": None}
    return {**record, "arguments": groups, "prompt_tail": ("", "")}
