"""Read LocalRQA's pickle of documents as plain data, without executing anything in it.

A pickle is a program. Three barriers protect this process: only opcodes that build plain data are accepted, the only
name that a pickle can use is a stub, and the result is measured before any code traverses it.
Standard library only; knows nothing of files.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from itertools import chain
from typing import Any, NoReturn

_NAMES = frozenset({("local_rqa.schema.document", "Document"), ("open_rqa.schema.document", "Document")})

# The opcodes that pickle protocols 2 to 5 write for a list of plain objects. Excluded on purpose, besides all opcodes
# that can call something: non-empty tuples (hashing nested tuples with shared parts as a dict key takes exponential
# time) and integers of unlimited length.
_OPCODES = frozenset([
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD",
])  # fmt: skip
_MAX_OPCODES = 50_000_000  # about 1.5 million documents; one opcode may take 72 bytes of memory
_MAX_DEPTH = 32
_SCALARS = frozenset({int, float, bool, type(None)})


class RefusedPickle(Exception):
    """The pickle is not clearly a list of documents of plain data; the message says what was found."""


def load_fields(data: bytes, max_size: int) -> list[dict[str, Any]]:
    """Return the fields of every `Document` in a pickled list of them.

    They are dicts with string keys; values are strings, numbers, booleans, None, lists and such dicts, without cycles,
    at most 32 levels deep, at most `max_size` characters if written out. The caller checks the names of the fields.

    Raises:
        RefusedPickle: the data is anything else, damaged or hostile; nothing in it was executed.
    """
    try:
        _scan(data)
        return _plain_fields(_unpickle(data), max_size)
    except RefusedPickle:
        raise
    except Exception as error:  # pickletools and pickle raise almost any type on damaged data
        raise RefusedPickle(f"not a readable pickle ({type(error).__name__}: {error})") from error


def _scan(data: bytes) -> None:
    """Refuse data that must not reach the unpickler: other opcodes, and numbers that would exhaust its memory."""
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(data)
    for count, (opcode, argument, position) in enumerate(opcodes):
        name = opcode.name
        if count == 0 and name != "PROTO":
            raise RefusedPickle("not a pickle of protocol 2 to 5")
        if count > _MAX_OPCODES:
            raise RefusedPickle(f"more than {_MAX_OPCODES:,} opcodes")
        if name not in _OPCODES:
            raise RefusedPickle(f"opcode {name} at byte {position} does not build plain data")
        # The memo is an array, so a large index takes memory even if unused; a real pickler counts upwards.
        if name in ("BINPUT", "LONG_BINPUT") and argument > count:
            raise RefusedPickle(f"memo index {argument} at byte {position}, after {count} opcodes")
        if name == "FRAME" and argument > len(data) - position - 9:
            raise RefusedPickle(f"a frame of {argument} bytes at byte {position} of {len(data)}")
        # Longer integers can be chosen to share one hash, which makes a dict of them take quadratic time.
        if name == "LONG1" and argument.bit_length() > 64:
            raise RefusedPickle(f"an integer of more than 64 bits at byte {position}")
        if name == "STOP" and position + 1 != len(data):
            raise RefusedPickle(f"{len(data) - position - 1} bytes after the end of the pickle")


def _unpickle(data: bytes) -> list[Any]:
    """Unpickle data that `_scan` accepted; returns the documents' states, whose content is not checked yet."""

    class Document:
        """Stub for the real class. Created for every pickle, so that no pickle can affect the next."""

        __slots__ = ("state",)

        def __setstate__(self, state: Any) -> None:
            if type(state) is not dict:
                raise RefusedPickle(f"the state of a document is a {type(state).__name__}, not a dict")
            if hasattr(self, "state"):
                raise RefusedPickle("the state of a document is set twice")
            self.state = state

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            # Compare whole pairs, never the module alone: a dotted name could reach anything the module imported.
            if (module, name) not in _NAMES:
                raise RefusedPickle(f"it names {module!r} {name!r}")
            return Document

        def persistent_load(self, pid: Any) -> NoReturn:
            raise RefusedPickle("it refers to an object outside the pickle")

    documents = Reader(io.BytesIO(data)).load()
    if type(documents) is not list:
        raise RefusedPickle(f"it holds a {type(documents).__name__}, not a list")
    for number, document in enumerate(documents, 1):
        if type(document) is not Document or not hasattr(document, "state"):
            raise RefusedPickle(f"item {number} of the list is not a document")
    return [document.state for document in documents]


def _plain_fields(states: list[Any], max_size: int) -> list[dict[str, Any]]:
    """Check type, depth and size of every state, now that no later opcode can change it."""
    measured: dict[int, tuple[int, int]] = {}
    total = 0
    for number, state in enumerate(states, 1):
        try:
            total += _measure(state, _MAX_DEPTH, measured)[0]
        except RefusedPickle as error:
            raise RefusedPickle(f"document {number} {error}") from None
        if total > max_size:
            raise RefusedPickle(f"its documents take more than {max_size:,} characters when written out")
    return states


def _measure(value: Any, room: int, measured: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Size of `value` when written out, and its depth, which may not exceed `room`.

    A container is visited once, however often it is referenced: ten lists that each contain the previous one ten
    times take ten visits, but ten billion characters. A container that contains itself exceeds the depth.
    """
    if type(value) is str:
        return len(value) + 3, 0
    if type(value) in _SCALARS:
        return 5, 0
    if type(value) not in (list, dict):
        raise RefusedPickle(f"holds a {type(value).__name__}, which is not plain data")
    known = measured.get(id(value))
    if room < (known[1] if known else 1):
        raise RefusedPickle(f"nests more than {_MAX_DEPTH} levels deep")
    if known:
        return known
    if type(value) is dict and any(type(key) is not str for key in value):
        raise RefusedPickle("has a dict with a key that is not a string")
    parts = chain(value, value.values()) if type(value) is dict else value
    size, depth = 2, 0
    for part in parts:
        part_size, part_depth = _measure(part, room - 1, measured)
        size, depth = size + part_size, max(depth, part_depth)
    measured[id(value)] = size, depth + 1
    return size, depth + 1
