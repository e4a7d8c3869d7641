"""Conditions on the metadata of passages: `lang == "en" and date >= "2025"`, read by a parser of their own.

    filter     = and-terms joined by "or"; "not", parentheses
    comparison = FIELD == != < <= > >= VALUE | FIELD [not] in [VALUE, ...] | VALUE [not] in FIELD | FIELD
    FIELD      = name, name.inner or `any name`         VALUE = "text", 'text', number, true, false

A comparison with a field that a passage lacks is false, whatever the comparison; so is one of a text with a number.
Texts are compared by their characters, which orders ISO dates. A field alone is true if it is `true`.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from groundtune.errors import DataError
from groundtune.schema import Document, nfc
from groundtune.system.text import few, one_line, to_json

Value = str | float | bool
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}  # 3 < pages is pages > 3
_WORDS = {"and", "or", "not", "in", "true", "false"}
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    |(?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    |(?P<name>[^\W\d][\w-]*(?:\.[\w-]+)*|`[^`]+`)""",
    re.VERBOSE,
)
_DEEPEST = 50  # parentheses and "not" inside each other
_LONGEST = 10_000  # characters


@dataclass(frozen=True)
class Comparison:
    """`field sign values`; `sign` is one of `_ORDERED`, "in" (the field is one of the values) or "holds" (the field is
    a list with the value)."""

    field: tuple[str, ...]
    sign: str
    values: tuple[Value, ...]

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        found: Any = metadata
        for name in self.field:
            if not isinstance(found, Mapping) or name not in found:
                return False
            found = found[name]
        if self.sign == "holds":
            return isinstance(found, (list, tuple)) and any(_equal(one, self.values[0]) for one in found)
        if self.sign == "in":
            return any(_equal(found, value) for value in self.values)
        if self.sign in ("==", "!="):
            return found is not None and _equal(found, self.values[0]) == (self.sign == "==")
        comparable = _kind(found) == _kind(self.values[0]) in ("text", "number")
        return comparable and _ORDERED[self.sign](_composed(found), self.values[0])


@dataclass(frozen=True)
class Joined:
    """Several conditions with the same word between them, `and` or `or`."""

    word: str
    parts: tuple[Condition, ...]

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        return (all if self.word == "and" else any)(part(metadata) for part in self.parts)


@dataclass(frozen=True)
class Not:
    inner: Condition

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        return not self.inner(metadata)


Condition = Comparison | Joined | Not


def parsed(text: str) -> Condition:
    """The condition in `text`. Raises `DataError` with the position of what is wrong."""
    if len(text) > _LONGEST:
        raise DataError([f"--filter: has {len(text):,} characters; the most are {_LONGEST:,}"])
    return _Parser(nfc(text)).whole()


def filter_problems(text: str) -> list[str]:
    """What is wrong with the text of a filter; empty if it can be read, or if there is none."""
    try:
        if text:
            parsed(text)
    except DataError as error:
        return error.problems
    return []


def kept(text: str, documents: Sequence[Document]) -> list[int] | None:
    """Positions of the documents that the filter leaves, in order; None without a filter.

    Raises `DataError` if none is left, with the fields that there are.
    """
    if not text:
        return None
    condition = parsed(text)
    positions = [i for i, document in enumerate(documents) if condition(document.metadata)]
    if not positions:
        raise DataError([f"--filter: {one_line(text, 200)} leaves none of the {len(documents):,} passages; "
                         f"{_fields_there(condition, documents)}"])  # fmt: skip
    return positions


def in_milvus(condition: Condition, field: str) -> str:
    """The same condition as an expression of Milvus on its JSON field `field`."""
    if isinstance(condition, Joined):
        return f"({f' {condition.word} '.join(in_milvus(part, field) for part in condition.parts)})"
    if isinstance(condition, Not):
        return f"(not {in_milvus(condition.inner, field)})"
    path = field + "".join(f"[{to_json(name, ensure_ascii=False)}]" for name in condition.field)
    values = [to_json(value, ensure_ascii=False) for value in condition.values]
    if condition.sign == "holds":
        met = f"json_contains({path}, {values[0]})"
    elif condition.sign == "in":  # Milvus Lite knows no `in` inside JSON
        met = "(" + " or ".join(f"{path} == {value}" for value in values) + ")"
    else:
        met = f"{path} {condition.sign} {values[0]}"
    return f"(exists {path} and {met})"  # or `not` would leave out what lacks the field


def _fields_there(condition: Condition, documents: Sequence[Document]) -> str:
    """What a filter that leaves nothing asks for, and what there is."""
    names = Counter(name for document in _some(documents) for name in document.metadata)
    there = few([name if name.isidentifier() else f"`{name}`" for name, _ in names.most_common()]) or "none"
    lacking = [name for name in _fields(condition) if name not in names]
    return (f"no passage has a field {lacking[0]!r}; " if lacking else "") + f"the fields of the passages: {there}"


def _some(documents: Sequence[Document]) -> Iterable[Document]:
    return (documents[i] for i in range(0, len(documents), 1 + len(documents) // 1000))


def _fields(condition: Condition) -> list[str]:
    if isinstance(condition, Joined):
        return [name for part in condition.parts for name in _fields(part)]
    return _fields(condition.inner) if isinstance(condition, Not) else [condition.field[0]]


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number" if isinstance(value, (int, float)) else "other"


def _composed(value: Any) -> Any:
    return nfc(value) if isinstance(value, str) else value


def _equal(found: Any, value: Value) -> bool:
    return _kind(found) == _kind(value) and bool(_composed(found) == value)


class _Parser:
    """Reads a filter from left to right; a token is its kind, its text and its position."""

    def __init__(self, text: str) -> None:
        self.text, self.next, self.depth = text, 0, 0
        self.tokens = list(self._cut())

    def whole(self) -> Condition:
        found = self._either()
        if self._kind != "end":
            self._fail('"and", "or" or the end of the filter')
        return found

    def _cut(self) -> Iterable[tuple[str, str, int]]:
        at = 0
        while at < len(self.text):
            token = _TOKEN.match(self.text, at)
            if token is None:
                raise _wrong(at, "a field, a value or a comparison", self.text[at:])
            kind = str(token.lastgroup)
            if kind == "name" and token[0].lower() in _WORDS:
                yield token[0].lower(), token[0], at
            elif kind != "space":
                yield token[0] if kind == "sign" else kind, token[0], at
            at = token.end()
        yield "end", "", at

    @property
    def _kind(self) -> str:
        return self.tokens[self.next][0]

    def _take(self, *kinds: str) -> str:
        """The text of the next token if it is of one of these kinds, which it then passes; else ""."""
        if self._kind not in kinds:
            return ""
        self.next += 1
        return self.tokens[self.next - 1][1]

    def _either(self) -> Condition:
        return self._joined("or", self._all)

    def _all(self) -> Condition:
        return self._joined("and", self._one)

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return Joined(word, tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self) -> Condition:
        self.depth += 1
        if self.depth > _DEEPEST:
            self._fail(f'no more than {_DEEPEST} "(" and "not" inside each other')
        if self._take("not"):
            found: Condition = Not(self._one())
        elif self._take("("):
            found = self._either()
            if not self._take(")"):
                self._fail('")"')
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> Condition:
        if self._kind != "name":
            return self._of_value(self._value('a field, a value, "not" or "("'))
        field = self._field()
        negated = bool(self._take("not"))
        if self._take("in"):
            return _negated(Comparison(field, "in", self._list()), negated)
        if negated:
            self._fail('"in"')
        if sign := self._take(*_ORDERED):
            return Comparison(field, sign, (self._value("a value"),))
        if self._kind in ("end", "and", "or", ")"):
            return Comparison(field, "==", (True,))
        self._fail("a comparison (==, !=, <, <=, >, >=, in)")

    def _of_value(self, value: Value) -> Condition:
        negated = bool(self._take("not"))
        if self._take("in"):
            return _negated(Comparison(self._field(), "holds", (value,)), negated)
        sign = "" if negated else self._take(*_ORDERED)
        if not sign:
            self._fail('"in"' if negated else "a comparison with a field")
        return Comparison(self._field(), _TURNED.get(sign, sign), (value,))

    def _field(self) -> tuple[str, ...]:
        name = self._take("name")
        if not name:
            self._fail("a field")
        return (name[1:-1],) if name.startswith("`") else tuple(name.split("."))

    def _list(self) -> tuple[Value, ...]:
        if not self._take("["):
            self._fail('"[" and the values')
        values = [self._value("a value")]
        while self._take(","):
            values.append(self._value("a value"))
        if not self._take("]"):
            self._fail('"," or "]"')
        return tuple(values)

    def _value(self, expected: str) -> Value:
        kind = self._kind
        text = self._take("text", "number", "true", "false")
        if not text:
            self._fail(expected + ("; a text stands in quotes" if kind == "name" else ""))
        if kind == "text":
            return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        if kind == "number":
            number = float(text) if re.search(r"[.eE]", text) or len(text) > 18 else int(text)
            if not math.isfinite(number):
                raise _wrong(self.tokens[self.next - 1][2], "a number that is not too large", text)
            return number
        return kind == "true"

    def _fail(self, expected: str) -> NoReturn:
        _, text, at = self.tokens[self.next]
        raise _wrong(at, expected, text)


def _wrong(at: int, expected: str, seen: str) -> DataError:
    what = one_line(repr(seen), 40) if seen else "the end"
    example = 'write a filter such as lang == "en" and date >= "2025"'
    return DataError([f"--filter: at character {at + 1}: expected {expected}, and found {what}; {example}"])


def _negated(condition: Condition, negated: bool) -> Condition:
    return Not(condition) if negated else condition
