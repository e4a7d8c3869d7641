"""JSONL and JSON: each line, or each object of a list, is a text. Also what rows of all kinds have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundtune.data.entries import shown
from groundtune.data.files import json_rows
from groundtune.errors import DataError
from groundtune.prepare.readers.page import Page, ReadOptions, contents, decoded, unreadable
from groundtune.schema import nfc
from groundtune.system.text import encodable


def jsonl_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    problems: list[str] = []
    for number, row in json_rows(path, problems):
        if problems:
            break
        yield page_of(row, f"{path}:{number}", f"{source}#{number}", options, text_field="text")
    if problems:
        raise DataError(problems)


def json_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    """One page per object of the list that the file holds, or one for the whole file if it holds no list."""
    text, notes = decoded(path, contents(path), options.encoding)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"is not valid JSON ({error})", "write it again, or name JSON lines .jsonl") from error
    for number, row in enumerate(_objects(content), 1):
        where = f"{path}: object {number}"
        yield page_of(row if isinstance(row, dict) else {"": row}, where, f"{source}#{number}", options, notes)
        notes = ()


def _objects(content: Any) -> list[Any]:
    """The list of a file, also if it is the only list of objects in an object ({"count": 2, "items": [...]})."""
    if isinstance(content, list):
        return content
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    lists = [value for value in lists if value and all(isinstance(item, dict) for item in value)]
    alone = len(lists) == 1 and not any(isinstance(value, dict) for value in content.values())
    return lists[0] if alone else [content]


def page_of(
    row: dict[str, Any],
    where: str,
    source: str,
    options: ReadOptions,
    notes: tuple[str, ...] = (),
    text_field: str = "",
) -> Page:
    """The page of a row: its text field or, if it has none, all of its fields as `name: value` lines."""
    text_field = options.text_field or text_field or ("text" if isinstance(row.get("text"), str) else "")
    title_field, source_field = options.title_field or "title", options.source_field or "source"
    text = field(row, text_field, where, required=True) if text_field else "\n".join(_lines(row))
    title = field(row, title_field, where, required=bool(options.title_field))
    place = field(row, source_field, where, required=bool(options.source_field))
    others = [str(name) for name in row if name not in (text_field, title_field, source_field)] if text_field else []
    others = [name for name in others if row[name] not in (None, "", [], {})]
    left_out = (f"the fields {', '.join(others)}",) if others else ()
    return Page(text, title.strip(), place.strip() or source, left_out=(*notes, *left_out))


def _lines(value: Any, name: str = "") -> Iterator[str]:
    """`name: value` for each value in an object, those of objects within it as `name.inner: value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for item in value:
            yield from _lines(item, name)
    elif isinstance(value, list):
        yield from _lines(", ".join(map(str, value)), name)
    elif value is not None and (text := str(value)).strip():
        yield f"{name}: {text}" if name else text


def field(row: dict[str, Any], name: str, where: str, required: bool) -> str:
    value = row.get(name)
    if value is None and required:
        flag = "" if name != "text" else " with --text_field"
        raise DataError([f"{where}: {name}: missing; it has {', '.join(map(str, row)) or 'nothing'}: name one{flag}"])
    if isinstance(value, str) and not encodable(value):
        raise DataError([f"{where}: {name}: contains half of a surrogate pair; write the complete character"])
    if value is not None and not isinstance(value, str):
        raise DataError([f"{where}: {name}: is {shown(value)}, not text; name a field that holds text"])
    return nfc(value or "")
