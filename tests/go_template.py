"""A renderer of the part of Go's text/template that our Modelfiles use: constants, range, if, eq, variables, fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ACTION = re.compile(r"\{\{(-?)((?:\"(?:\\.|[^\"\\])*\"|[^\"])*?)(-?)\}\}")


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama writes for messages: it joins neighbours of one role, and gives `.Messages` with Role and Content."""
    collated: list[dict[str, str]] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message["role"]:
            collated[-1]["Content"] += f"\n\n{message['content']}"
        else:
            collated.append({"Role": message["role"], "Content": message["content"]})
    tokens = list(_tokens(template))
    written, rest = _block(tokens, {"": {"Messages": collated}})
    assert rest == []
    return written


def _tokens(template: str) -> Iterator[tuple[str, str]]:
    at = 0
    for found in _ACTION.finditer(template):
        assert not found[1] and not found[3], "trimming is not part of this renderer"
        if found.start() > at:
            yield "text", template[at : found.start()]
        yield "action", found[2].strip()
        at = found.end()
    if at < len(template):
        yield "text", template[at:]


def _block(tokens: list[tuple[str, str]], names: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The text up to the `end` or `else` of this block, and the tokens from there."""
    written = ""
    while tokens:
        kind, text = tokens[0]
        if kind == "text":
            written, tokens = written + text, tokens[1:]
        elif text == "end" or text.startswith("else"):
            return written, tokens
        elif text.startswith("range "):
            each, tokens = _range(text, tokens[1:], names)
            written += each
        elif text.startswith("if "):
            chosen, tokens = _if(text.removeprefix("if "), tokens[1:], names)
            written += chosen
        else:
            written, tokens = written + str(_value(text, names)), tokens[1:]
    return written, tokens


def _range(text: str, body: list[tuple[str, str]], names: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    index, item, values = re.fullmatch(r"range (\$\w+), (\$\w+) := (\S+)", text).groups()
    written = ""
    for i, value in enumerate(_value(values, names)):
        each, rest = _block(body, {**names, index: i, item: value})
        written += each
    if not _value(values, names):
        _, rest = _block(body, {**names, index: 0, item: {"Role": "", "Content": ""}})
    assert rest[0] == ("action", "end")
    return written, rest[1:]


def _if(condition: str, body: list[tuple[str, str]], names: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    written, rest = _block(body, names)
    chosen = written if _value(condition, names) else None
    while rest[0][1] != "end":
        other = rest[0][1].removeprefix("else").strip()
        written, after = _block(rest[1:], names)
        if chosen is None and (not other or _value(other.removeprefix("if "), names)):
            chosen = written
        rest = after
    return chosen or "", rest[1:]


def _value(expression: str, names: dict[str, Any]) -> Any:
    if expression.startswith('"'):
        return json.loads(expression)
    if expression.startswith("eq "):
        left, right = re.fullmatch(r"eq (\S+) (.+)", expression).groups()
        return _value(left, names) == _value(right, names)
    name, _, field = expression.partition(".")
    return names[name][field] if field else names[name]
