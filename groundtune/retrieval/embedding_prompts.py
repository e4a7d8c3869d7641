"""The prompts that embedding models expect before a question and before a document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Prompts of model families whose folders often lack them, by a part of the model's name; the first match is used.
# Each pair is from the model card: (before a question, before a document).
_BGE_EN = "Represent this sentence for searching relevant passages: "


KNOWN_PROMPTS: dict[str, tuple[str, str]] = {
    "e5-mistral": ("Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    "e5-large-instruct": ("Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    "e5-": ("query: ", "passage: "),
    "bge-m3": ("", ""),
    "bge-small-en": (_BGE_EN, ""),
    "bge-base-en": (_BGE_EN, ""),
    "bge-large-en": (_BGE_EN, ""),
    "bge-small-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "bge-base-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "bge-large-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "gte-qwen": ("Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    "gte-": ("", ""),
    "nomic-embed": ("search_query: ", "search_document: "),
    "arctic-embed-l-v2": ("query: ", ""),
    "arctic-embed-m-v2": ("query: ", ""),
    "arctic-embed": (_BGE_EN, ""),
    "mxbai-embed": (_BGE_EN, ""),
    "qwen3-embedding": ("Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    "embeddinggemma": ("task: search result | query: ", "title: none | text: "),
}


def prompts_for(name: str, own: Mapping[str, str | None]) -> tuple[str, str]:
    """The prompts before a question and before a document: the model's own, else from the table, else empty.

    `name` is a hub name or folder; `own` are the `prompts` of its sentence-transformers configuration.
    """
    query = own.get("query") or ""
    document = own.get("document") or own.get("passage") or ""
    if query or document:
        return query, document
    folder = Path(name).name.lower()
    return next((pair for part, pair in KNOWN_PROMPTS.items() if part in folder), ("", ""))
