"""How many tokens of a text an embedding model reads, found without loading its weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundtune.aliases import Tokenizer
from groundtune.retrieval.embedding_prompts import prompts_for
from groundtune.system.hub_access import cache_if_no_hub
from groundtune.system.model_folders import loading, refuse_embedding_model
from groundtune.system.panics import TRIAL, panics_raised
from groundtune.system.servers import server_kind


@dataclass(frozen=True)
class ReadingLimit:
    """How many tokens of a document or query an embedding model reads, with its tokenizer and prompts."""

    name: str
    tokenizer: Tokenizer
    max_tokens: int
    document_prompt: str
    query_prompt: str

    def too_long(self, texts: Sequence[str]) -> dict[int, int]:
        """Position -> length in tokens, document prompt included, of the texts that are longer than the limit."""
        counts = token_counts(self.tokenizer, self.document_prompt, texts)
        return {i: n for i, n in enumerate(counts) if n > self.max_tokens}

    def length_of_query(self, text: str) -> int:
        """Length in tokens of a query, its prompt and the special tokens included."""
        return token_counts(self.tokenizer, self.query_prompt, [text])[0]


def reading_limit(
    name: str, document_prompt: str | None = None, query_prompt: str | None = None
) -> ReadingLimit | None:
    """The limit of the embedding model `name` (hub name or folder); None if it reads texts of any length, or if it is
    on a server, whose limit is not known here.

    Follows sentence-transformers: `max_seq_length` of sentence_bert_config.json, else the smaller of the tokenizer's
    and the transformer's limits. Raises the exception of transformers if there is no such tokenizer, and ValueError
    for a model that `Embedder` would refuse.
    """
    if server_kind(name):
        return None
    refuse_embedding_model(name)
    with loading(name), panics_raised():
        return _reading_limit(name, document_prompt, query_prompt)


def try_embedding_model(name: str) -> None:
    """Raise what the library raises if the model in a folder cannot be loaded.

    No weights are read: names and shapes are compared before memory is taken for what the settings claim.
    """
    from sentence_transformers import SentenceTransformer

    if not os.path.isdir(name):
        return
    options: dict[str, Any] = {"model_kwargs": {"use_safetensors": True, "device_map": "meta"}}
    with loading(name), panics_raised():
        SentenceTransformer(name, trust_remote_code=False, **options)


def _reading_limit(name: str, document_prompt: str | None, query_prompt: str | None) -> ReadingLimit | None:
    from transformers import AutoConfig, AutoTokenizer

    modules = _read_json(name, "modules.json") or [{"path": "", "type": "Transformer"}]
    if modules[0]["type"].rpartition(".")[2] != "Transformer":  # for example static vectors
        return None
    folder = modules[0]["path"]
    source = {"pretrained_model_name_or_path": name, "subfolder": folder, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer(TRIAL, verbose=False)  # some files are found to be damaged only now
    limit = _stated_limit(name, folder)
    if limit is None:
        positions = getattr(AutoConfig.from_pretrained(**source), "max_position_embeddings", -1)
        limit = min(tokenizer.model_max_length, positions if positions != -1 else math.inf)
    own = (_read_json(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    query, document = prompts_for(name, own)
    document = document if document_prompt is None else document_prompt
    query = query if query_prompt is None else query_prompt
    return ReadingLimit(name, tokenizer, int(limit), document, query) if limit < 1e9 else None


def longest_read(name: str) -> int | None:
    """The limit in tokens that an embedding model states; None if it states none or there is no such model."""
    try:
        return _stated_limit(name)
    except (OSError, ValueError):  # no such model, no network, or invalid JSON: loading the model reports it
        return None


def _stated_limit(name: str, folder: str = "") -> int | None:
    return (_read_json(name, f"{folder}/sentence_bert_config.json".lstrip("/")) or {}).get("max_seq_length")


def _read_json(name: str, filename: str) -> Any:
    """A JSON file of a model, from its folder or the hub; None if it has no such file."""
    path = Path(name) / filename
    if not os.path.isdir(name):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            with cache_if_no_hub():
                path = Path(hf_hub_download(name, filename))
        except EntryNotFoundError:
            return None
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


_COUNTED_AT_ONCE = 1000  # texts


def token_counts(tokenizer: Tokenizer, prompt: str, texts: Sequence[str]) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(texts), _COUNTED_AT_ONCE):  # ids of all texts would take more memory than all vectors
        these = [prompt + text for text in texts[start : start + _COUNTED_AT_ONCE]]
        rows = tokenizer(these, truncation=False, padding=False, verbose=False)["input_ids"]
        counts += [len(ids) for ids in rows]
    return counts
