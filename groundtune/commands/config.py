"""Arguments from a YAML or JSON file, or from a Python call, as flags, each with its origin."""

from __future__ import annotations

import json
import numbers
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import yaml

from groundtune.errors import DataError
from groundtune.system.inputs import open_file
from groundtune.system.text import HALF_A_CHARACTER, encodable, to_json

_SCALARS = (str, int, float, bool)


@dataclass(frozen=True)
class Entry:
    """One argument; `where` is "run.yaml:7", or empty if it was given in a call."""

    name: str
    value: Any
    where: str = ""

    @property
    def label(self) -> str:
        """The beginning of a message about this argument."""
        return f"{self.where}: {self.name}" if self.where else self.name

    def flag(self) -> list[str]:
        """The equivalent words on a command line; none for null, which means the default."""
        if self.value is None:
            return []
        if isinstance(self.value, list):
            return [f"--{self.name}", *map(str, self.value)]
        # One word, so that a value may begin with a dash; YAML 1.1 reads some numbers, such as "1e-4", as strings.
        value = to_json(self.value) if isinstance(self.value, dict | bool) else self.value
        return [f"--{self.name}={value}"]


def split_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The argument files that a command line names with `--config`, and its other words.

    Raises `DataError` if no file follows `--config`.
    """
    words = list(argv)
    paths = []
    while (i := next((i for i, word in enumerate(words) if re.match(r"--config(=|$)", word)), None)) is not None:
        if "=" in words[i]:
            paths.append(words.pop(i).partition("=")[2])
        elif i + 1 < len(words):
            paths.append(words.pop(i + 1))
            del words[i]
        else:
            raise DataError(["--config: missing; name a YAML or JSON file"])
    return paths, words


def read_config(path: str) -> list[Entry]:
    """The arguments in a file, in file order.

    Raises `DataError` that lists all problems with their lines: no such file, no mapping, an argument given twice,
    a value that is not text, a number or a list of them (a mapping may contain any JSON value).
    """
    text = _text_of(path)
    read = _json_entries if path.endswith(".json") else _yaml_entries
    entries = list(read(path, text))
    problems: list[str] = []
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in first and encodable([entry.name, entry.value]):
            earlier = first[entry.name].where.rpartition(":")[2]
            problems.append(f"{entry.label}: is also given in line {earlier}; keep one")
        else:
            problems += _no_flag(entry)
        first.setdefault(entry.name, entry)
    if problems:
        raise DataError(problems)
    return entries


def entries_of(keywords: Mapping[str, Any]) -> list[Entry]:
    """The keyword arguments of a call as entries, like those of a file; None means the default.

    Raises `DataError` with all values that no flag can represent.
    """
    entries = [Entry(name, as_in_a_file(value)) for name, value in keywords.items()]
    if problems := [problem for entry in entries for problem in _no_flag(entry)]:
        raise DataError(problems)
    return entries


def as_in_a_file(value: Any) -> Any:
    """A Python value as it would be in a file: a path becomes text, a NumPy number a plain number."""
    if isinstance(value, Enum):
        return as_in_a_file(value.value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {str(name): as_in_a_file(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_in_a_file(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _no_flag(entry: Entry) -> list[str]:
    """Why an argument cannot be given as a flag; empty if it can."""
    value = entry.value
    if not encodable([entry.name, value]):
        return [f"{replace(entry, name=ascii(entry.name)).label}: {HALF_A_CHARACTER}"]
    if isinstance(value, dict):
        try:
            to_json(value)
        except (TypeError, ValueError) as error:
            return [f"{entry.label}: cannot be JSON ({error}); write plain values"]
    elif isinstance(value, list):
        if not all(isinstance(item, _SCALARS) for item in value):
            return [f"{entry.label}: contains nested lists; write one list of plain values"]
        if dashed := [item for item in map(str, value) if item.startswith("--")]:
            return [f"{entry.label}: holds {dashed[0]!r}, which is another flag; write it by itself"]
    elif not entry.where and not (value is None or isinstance(value, _SCALARS)):
        kinds = "a text, a number, True, False, None, a path, a list of these or a dictionary"
        return [f"{entry.label}: is of type {type(value).__name__}; give {kinds}"]
    return []


def _text_of(path: str) -> str:
    try:
        with open_file(path, pipe=True) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError([f"{path}: {reason}; name a YAML or JSON file of arguments"]) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError([f"{path}:{line}: line: not UTF-8; save the file as UTF-8"]) from error


def _json_entries(path: str, text: str) -> Iterator[Entry]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError([f"{path}:{error.lineno}: line: not valid JSON: {error.msg}; correct it"]) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, a thousand brackets
        raise DataError([f"{path}:1: line: the file cannot be read ({error}); write plain values"]) from error
    if not isinstance(whole, dict):
        raise _no_mapping(path, whole)
    # Read again, one argument at a time: the file is known to be valid, and the line of each argument is needed.
    decode, position = json.JSONDecoder().raw_decode, text.index("{") + 1
    for _ in range(len(text)):
        position = _behind(r"[\s,]*", text, position)
        if text[position] == "}":
            return
        where = f"{path}:{text.count(chr(10), 0, position) + 1}"
        name, position = decode(text, position)
        value, position = decode(text, _behind(r"[\s:]*", text, position))
        yield Entry(name, value, where)


def _behind(pattern: str, text: str, position: int) -> int:
    found = re.compile(pattern).match(text, position)
    return found.end() if found else position


_BOOLEAN, _TEXT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "str", "null"))
_OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken,
            yaml.BlockMappingStartToken)  # fmt: skip
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def _yaml_entries(path: str, text: str) -> Iterator[Entry]:
    with _yaml_errors(path, text):
        loader = yaml.SafeLoader("")
        for name, value, where in _items(_composed(path, text), path):
            yield Entry(name, _constructed(loader, _as_written(value), f"{where}: {name}"), where)


@contextmanager
def _yaml_errors(path: str, text: str) -> Iterator[None]:
    """Inside, what is wrong with the YAML of a file becomes a `DataError` with its line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # The end of the file, for want of a bracket above.
        if error.context_mark and (mark is None or mark.index >= len(text.rstrip())):
            mark = error.context_mark
        where = f"{path}:{mark.line + 1 if mark else 1}: line"
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise DataError([f"{where}: not valid YAML: {what}; correct it"]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DataError([f"{path}:{line}: line: contains the character {error.character:#x}; remove it"]) from error


def _composed(path: str, text: str) -> yaml.MappingNode:
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        where = f"{path}:{token.start_mark.line + 1}: line"
        if isinstance(token, yaml.AliasToken):  # a few lines of aliases can expand to gigabytes
            raise DataError([f"{where}: *{token.value} is an alias; write the value out"])
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > 50:  # reading time grows with the square of the depth
            raise DataError([f"{where}: is nested too deeply to be read; write plain values"])
    node = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise _no_mapping(path, yaml.safe_load(text))
    return node


def _items(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node, str]]:
    """Name, value and place of each item of a mapping."""
    for key, value in node.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise DataError([f"{where}: line: has a list or mapping before the colon; write the name of an argument"])
        yield key.value, value, where


def read_tree(path: str) -> dict[str, Entry]:
    """The mapping in a YAML file, and those inside it: text as it is written, None, lists, or again dictionaries of
    entries, each with its line.

    Raises `DataError` as `read_config` does, and for a name that is given twice.
    """
    text = _text_of(path)
    with _yaml_errors(path, text):
        return _tree(_composed(path, text), path)


def _tree(node: yaml.Node, path: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, path) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return None if node.tag == _NULL else node.value
    found: dict[str, Entry] = {}
    for name, value, where in _items(node, path):
        if name in found:
            earlier = found[name].where.rpartition(":")[2]
            raise DataError([f"{where}: {name}: is also given in line {earlier}; keep one"])
        found[name] = Entry(name, _tree(value, path), where)
    return found


def _as_written(node: yaml.Node) -> yaml.Node:
    """Keep booleans as written: YAML reads `off` and `no` as false, but they are words to some flags, and flags that
    take a boolean accept these spellings."""
    for scalar in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if scalar.tag == _BOOLEAN:
            scalar.tag = _TEXT
    return node


def _constructed(loader: yaml.SafeLoader, node: yaml.Node, where: str) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, OverflowError) as error:  # a date with 13 months, an integer of thousands of digits
        raise DataError([f"{where}: cannot be read ({error}); write it in quotes"]) from error


def _no_mapping(path: str, whole: object) -> DataError:
    kind = "nothing" if whole is None else "a list" if isinstance(whole, list) else "one value"
    return DataError([f"{path}:1: line: the file contains {kind}; it must map argument names to values"])
