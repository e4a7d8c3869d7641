"""Conversion between argument groups and argparse flags, and the format of help texts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from groundtune.arguments import Group

G = TypeVar("G", bound=Group)
HELP_WIDTH = 110  # whatever the terminal's: the help of training is generated once


_SHORT = {"output_dir": ["-o"]}


class FlagFormatter(argparse.HelpFormatter):
    """Shows one spelling of each flag (two with -o), its type of value, and its default unless empty."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        spellings = [s for s in action.option_strings if "-" not in s.lstrip("-")] or action.option_strings[-1:]
        spelling = ", ".join(sorted(spellings, key=len))
        if action.choices or action.nargs == 0:
            value = "" if action.nargs == 0 else "{" + ",".join(map(str, action.choices or ())) + "}"
        else:
            value = (
                "[true|false]"
                if action.const is True
                else "[VALUE]"
                if action.nargs == "?"
                else "VALUE ..."
                if action.nargs == "+"
                else "VALUE"
            )
        return f"{spelling} {value}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        speaks_of_it = "efault" in (action.help or "") or action.default in (None, "", argparse.SUPPRESS, [])
        return action.help if speaks_of_it or not action.option_strings else f"{action.help} (default: %(default)s)"


def add_group(
    parser: argparse.ArgumentParser, group: type[Group], names: Sequence[str], helps: Mapping[str, str] | None = None
) -> None:
    """Add the fields `names` of an argument group as flags; flags that are not given are absent from the result.

    `helps` has the help texts of flags whose meaning here differs from training.
    """
    section = parser.add_argument_group(group._argument_group_name)
    for field in fields(group):
        if field.name in names:
            text = (helps or {}).get(field.name) or _help_with_default(field)
            spellings = [*_SHORT.get(field.name, []), f"--{field.name}"]
            section.add_argument(*spellings, help=text, **_argparse_options(group, field))


def filled(group: type[G], values: Mapping[str, Any]) -> G:
    """An argument group with its fields taken from `values`; missing fields keep their defaults."""
    return group(**{field.name: values[field.name] for field in fields(group) if field.name in values})


def _argparse_options(group: type[Group], field: Field[Any]) -> dict[str, Any]:
    """The argparse options of a field, as HfArgumentParser would choose them for the few types that we use."""
    # Not `field.type`: HfArgumentParser puts classes there, for those groups that it has seen.
    kind = group.__annotations__[field.name].removesuffix(" | None")
    if kind == "bool":
        return {"type": true_or_false, "nargs": "?", "const": True, "metavar": "true|false"}
    if kind == "list[str]":
        return {"nargs": "+", "metavar": "NAME"}
    choices = field.metadata.get("choices")
    convert, metavar = {"str": (str, "TEXT"), "int": (int, "N"), "float": (float, "X")}[kind]
    alone = {"nargs": "?", "const": field.metadata["alone"]} if "alone" in field.metadata else {}
    return {"type": convert, **alone, **({"choices": choices} if choices else {"metavar": metavar})}


def _help_with_default(field: Field[Any]) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default in (None, ""):
        return field.metadata["help"]
    shown = " ".join(default) if isinstance(default, list) else default
    return f"{field.metadata['help']} (default: {str(shown).lower() if isinstance(shown, bool) else shown})"


def true_or_false(text: str) -> bool:
    """The value of a boolean flag: all spellings that transformers accepts, and `on` and `off`, as in YAML."""
    if text.lower() in ("true", "yes", "on", "1", "t", "y"):
        return True
    if text.lower() in ("false", "no", "off", "0", "f", "n"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
