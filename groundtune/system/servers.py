"""Servers that are named where a model can be, `openai:URL`, `jina:URL`, `tei:URL`, or files: `milvus:URL`."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection

from groundtune.system.outputs import links_at
from groundtune.system.packages import pip_install
from groundtune.system.text import hide_secrets, one_line

MILVUS = "milvus:"
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


def milvus_address(store: str) -> tuple[str, str]:
    """The file or server in `milvus:ADDRESS#NAME`, and the name of the collection, which may be empty."""
    address, _, name = store.removeprefix(MILVUS).partition("#")
    return address, name


def milvus_problems(store: str) -> list[str]:
    """What is wrong with `--store milvus:...`; opens no connection."""
    address, name = milvus_address(store)
    shown = one_line(hide_secrets(address), 200)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,60}", name or "documents"):
        return [f"--store: {name!r} cannot be the name of a collection; use letters, digits and _"]
    for package in ("pymilvus",) if _is_server(address) else ("pymilvus", "milvus_lite"):
        if importlib.util.find_spec(package) is None:
            return [f"--store: Milvus needs the package {package.replace('_', '-')}; {pip_install('milvus')}"]
    if _is_server(address):
        return [] if name else [f"--store: name a collection after a #, such as {MILVUS}{shown}#handbook"]
    if not address.endswith(".db"):
        return [
            f"--store: {shown!r} is neither a file *.db nor a server; write milvus:vectors.db or milvus:http://HOST#NAME"
        ]
    folder = os.path.dirname(os.path.abspath(address))
    if not os.path.isdir(folder):
        return [f"--store: there is no folder {folder}; name a file in an existing one"]
    return links_at([address], "store")


def _is_server(address: str) -> bool:
    return address.startswith(("http://", "https://", "tcp://"))
