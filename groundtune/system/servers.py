"""Servers that are named where a model can be: `openai:URL`, `jina:URL`, `tei:URL`."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from groundtune.system.packages import pip_install
from groundtune.system.text import hide_secrets, one_line

KINDS = ("openai", "jina", "tei")


def server_kind(name: str) -> str:
    """The kind of server that `name` is the address of ("openai:http://localhost:8000/v1"); empty for a model."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in KINDS else ""


def address_of(name: str) -> str:
    """The URL in the name of a server."""
    return name.partition(":")[2]


def address_problems(flag: str, name: str, kinds: Collection[str]) -> list[str]:
    """What is wrong with the server `name`, given by `--flag`, which takes servers of these kinds; sends no request."""
    shown, kind = one_line(hide_secrets(name), 200), server_kind(name)
    if kind not in kinds:
        known = ", ".join(f"{kind}:URL" for kind in kinds)
        return [f"--{flag}: {shown!r} is not a server that can do this; write {known}"]
    problems = []
    if not address_of(name).startswith(("http://", "https://")):
        problems.append(f"--{flag}: {shown!r} has no address; write one such as {kind}:http://localhost:8000/v1")
    if importlib.util.find_spec("openai") is None:
        problems.append(f"--{flag}: a server needs the package openai; {pip_install('endpoint')}")
    return problems
