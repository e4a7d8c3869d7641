"""What a file is, if it is not the file of examples or documents that was asked for; and the command that helps."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Set
from pathlib import Path
from typing import Any

# A format of `groundtune convert` -> the fields that its rows have.
_FORMATS: dict[str, Set[str]] = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "prompt_completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
    "raft": {"question", "oracle_context"},
    "hotpotqa": {"question", "supporting_facts"},
    "ms_marco": {"query", "passages"},
    "natural_questions": {"question_text", "annotations"},
    "squad": {"context", "question", "answers"},
}
_TABLES = (".csv", ".tsv")


def not_examples(path: str | os.PathLike[str], beginning: bytes) -> str:
    """The problem with a file that holds no example; empty if it is not known what the file is."""
    if Path(path).suffix.lower() in _TABLES:
        return f"{path}: is a table; {_convert('csv', path)}"
    fields, in_a_list = _first_object(beginning)
    if {"page_content", "fmt_content"} & fields.keys() and "question" not in fields:
        return f"{path}: holds documents, not examples; it may belong to --full_dataset_file_path"
    for name, needed in _FORMATS.items():
        if needed <= fields.keys():
            return f"{path}: is in the format {name}; {_convert(name, path)}"
    if b'"paragraphs"' in beginning and b'"qas"' in beginning:  # one object, which may be longer than what was read
        return f"{path}: is in the format squad; {_convert('squad', path)}"
    return _list_of_objects(path) if in_a_list else ""


def not_documents(path: str | os.PathLike[str], beginning: bytes) -> str:
    """The problem with a file that holds no document; empty if it is not known what the file is."""
    fields, in_a_list = _first_object(beginning)
    if "question" in fields and {"gold_docs", "gold_answer"} & fields.keys():
        return f"{path}: holds examples, not documents; it may belong to --train_file or --eval_file"
    if text := next(
        (name for name in ("text", "content", "contents", "body") if isinstance(fields.get(name), str)), ""
    ):
        return (
            f"{path}: its rows have no page_content but {text}; split them into passages: groundtune documents "
            f"{shlex.quote(os.fspath(path))} -o documents.jsonl --text_field {text} --tokenizer EMBEDDING_MODEL"
        )
    return _list_of_objects(path) if in_a_list else ""


def _convert(name: str, path: str | os.PathLike[str]) -> str:
    folder = Path(path).with_suffix("")
    return f"convert it: groundtune convert {name} {shlex.quote(os.fspath(path))} -o {shlex.quote(os.fspath(folder))}"


def _list_of_objects(path: str | os.PathLike[str]) -> str:
    names = map(shlex.quote, map(str, (path, Path(path).with_name(f"{Path(path).stem}_lines.jsonl"))))
    return f"{path}: is one JSON list; write one object per line, such as by jq -c '.[]' {' > '.join(names)}"


def _first_object(beginning: bytes) -> tuple[dict[str, Any], bool]:
    """The first JSON object, empty if there is none in the beginning, and whether the file is a list of objects."""
    text = beginning.decode("utf-8-sig", "replace").lstrip()
    in_a_list = text.startswith("[")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[1:].lstrip() if in_a_list else text)
    except (ValueError, RecursionError):
        return {}, False
    return (value, in_a_list) if isinstance(value, dict) else ({}, False)
