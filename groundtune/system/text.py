"""Text that is safe to print and to write: no secrets, no control characters, JSON without NaN."""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, TypeGuard

_NO_TEXT = re.compile("[\ud800-\udfff]")  # how Python keeps the bytes of a file's name that are not UTF-8
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_encode_anything = json.JSONEncoder(ensure_ascii=False, default=str).encode
# Not `str.isprintable`, but they only take up space, or join letters: part of ordinary text in many languages.
_SPACES = frozenset("\xa0\u1680\u202f\u205f\u3000\u200c\u200d" + "".join(map(chr, range(0x2000, 0x200B))))
_SECRETS = (
    (re.compile(r"://[^/\s]*@"), "://***@"),  # user and password, which may contain an @
    (re.compile(r"([?&;][^=&\s]*(?:token|key|secret|passw|sig|auth)[^=&\s]*=)[^&\s#]+", re.IGNORECASE), r"\1***"),
    # Token formats of known services, recognised anywhere.
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[\w-]{16,}"), "***"),
)


def without_secrets(value: Any, name: str = "") -> Any:
    """`value` with "***" for every entry whose name suggests a secret, at any depth, and for secrets in URLs."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, name) for item in value]
    # --max_new_tokens is a count, not a secret
    count = "tokens" in name and re.fullmatch(r"[\d.]+|true|false|no", str(value), re.IGNORECASE)
    if re.search("token|key|passw|secret|credential|authori", name, re.I) and value not in (None, "") and not count:
        return "***"
    return _without_secrets_in_text(value) if isinstance(value, str) else value


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line; what follows a secret without another flag between them may be one, too."""
    hidden, flag = [], ""
    for word in words:
        named, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        flag = named or flag
        shown = str(without_secrets(value, flag))
        hidden.append(named + equals + shown)
        flag = flag if shown != value or not value else ""
    return hidden


def _without_secrets_in_text(text: str) -> str:
    """The text without secrets; it may be JSON, as request options on a command line are."""
    if text.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            told, hidden = json.loads(text), without_secrets(json.loads(text))
            return text if told == hidden else to_json(hidden, ensure_ascii=True)
    return hide_secrets(text)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"


def hide_secrets(text: str) -> str:
    """A text with "***" for passwords and tokens in URLs, and for tokens in the format of known services."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def readable(name: str | os.PathLike[str]) -> str:
    """A file's name as text that can be written: bytes that are not UTF-8 appear as `\\xe9`."""
    return _NO_TEXT.sub(_as_byte, os.fspath(name))


def _as_byte(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def harmless(text: str) -> str:
    """A text with control characters escaped: files may contain escape sequences that rewrite a terminal's screen, and
    characters that reverse the direction of what follows. Line feeds are kept."""
    return _escaped(readable(text), lambda c: repr(c)[1:-1])


def harmless_line(text: str) -> str:
    """`harmless` on one line."""
    return harmless(text).replace("\n", "\\n")


def one_line(text: object, at_most: int = 0) -> str:
    """A text or an error on one line, cut to `at_most` characters if that is not 0. An error without a message gives
    its class name."""
    line = " ".join(str(text).split()) or (type(text).__name__ if isinstance(text, BaseException) else "")
    return line if not at_most or len(line) <= at_most else f"{line[: at_most - 3]}..."


def few(names: Sequence[str], at_most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - at_most:,} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


HALF_A_CHARACTER = "contains half of a surrogate pair, which UTF-8 cannot encode; write the complete character"


def encodable(value: object) -> bool:
    """Whether UTF-8 can encode it: JSON can contain half of a surrogate pair, which cannot be written or printed."""
    try:
        _encode_anything(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def harmless_code(text: str) -> str:
    """`harmless`, but keeping tabs, which indent code."""
    return "\t".join(map(harmless, text.split("\t")))


class HarmlessRecord(logging.LogRecord):
    """A log record without colours or control characters: libraries quote text from files."""

    def getMessage(self) -> str:
        return harmless_code(re.sub(r"\x1b\[[\d;]*m", "", super().getMessage()))


class HarmlessFormatter(logging.Formatter):
    """The same for the whole of a record, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless_code(super().format(record))


def plain(value: Any) -> Any:
    """`value` in JSON types: NaN and infinity become null, other objects become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value of a JSON text is a number, and neither NaN nor infinite nor too large for a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def to_json(content: object, **layout: Any) -> str:
    """JSON, on one line unless `layout`, the arguments of `json.dumps`, says otherwise.

    NaN and infinity become null: JSON has no such numbers, and other programs refuse a file that contains them. All
    JSON of the package is written here. Raises TypeError for what is not JSON.
    """
    try:
        return json.dumps(content, **{"ensure_ascii": False, **layout}, allow_nan=False) if layout else _encode(content)
    except ValueError:  # such a number
        return json.dumps(plain(content), **{"ensure_ascii": False, **layout}, allow_nan=False)


def as_json(content: object) -> str:
    """Indented JSON, ending in a line feed; what JSON cannot hold becomes text."""
    return to_json(plain(content), indent=2) + "\n"


def json_to_print(content: object, **layout: Any) -> str:
    """JSON in which control characters are escaped as JSON escapes them; `harmless` would make it invalid."""
    return _escaped(to_json(plain(content), **layout), lambda c: json.dumps(c)[1:-1] if c != "\x7f" else r"\u007f")


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" or c in _SPACES else escape(c) for c in text)
