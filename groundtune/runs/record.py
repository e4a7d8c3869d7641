"""What is needed to repeat a run: its command, arguments and versions, without secrets, and hashes of its inputs."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from groundtune.data.files import sha256_of
from groundtune.system.text import counted, plain, without_secrets, words_without_secrets

logger = logging.getLogger(__name__)

_call: ContextVar[str] = ContextVar("the call in Python that began this", default="")
_PACKAGES = ("groundtune", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu")


def run_record(
    arguments: Mapping[str, Any],
    inputs: Mapping[str, str | os.PathLike[str]],
    durations: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """The record of a run: command, working folder, arguments, versions, device, hashes of the input files.

    The value of an argument whose name suggests a token, key, password or secret becomes "***". Inputs without a path
    are left out. Raises `DataError` if an input cannot be read.
    """
    return {
        **provenance(inputs),
        "arguments": plain(without_secrets(arguments)),
        "seed": seed,
        "device": device(),
        "durations": dict(durations),
    }


@contextmanager
def recorded_as(call: str) -> Iterator[None]:
    """Inside the block, record runs as this Python call instead of the command line of the surrounding program."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


@contextmanager
def timed(phase: str, durations: dict[str, float]) -> Iterator[None]:
    """Measure the seconds of a phase, for run.json."""
    logger.info("%s ...", phase)
    begin = time.perf_counter()
    yield
    durations[phase] = round(time.perf_counter() - begin, 3)


def provenance(inputs: Mapping[str, str | os.PathLike[str]]) -> dict[str, Any]:
    """When, where and with which versions a command ran, and hashes of its inputs; no secrets, no import of torch."""
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _call.get() or _command(sys.argv),
        "working_directory": os.getcwd(),
        "versions": versions(),
        "platform": platform.platform(),
        "inputs": {
            name: {"path": str(path), "sha256": sha256_of(path), "bytes": os.stat(path).st_size}
            for name, path in inputs.items()
            if str(path)
        },
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _command(argv: Sequence[str]) -> str:
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    return shlex.join(program + words_without_secrets(argv[1:]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def device() -> str:
    """What computes: the name of the GPU, or of the processor with its threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return f"Apple GPU, {platform.machine()}"
    cpu = platform.processor() or platform.machine()
    details = Path("/proc/cpuinfo")  # on Linux, `platform` only reports "x86_64"
    names = re.findall(r"model name\s*: (.+)", details.read_text(errors="replace")) if details.exists() else []
    cpu = names[0] if names else cpu
    return f"{cpu}, {counted(torch.get_num_threads(), 'thread')}"


def run_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Where, with which versions and for how long the run ran."""
    shown = {
        "Versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "Platform": record.get("platform"),
        "Device": record.get("device"),
        "Durations": ", ".join(f"{name} {_duration(s)}" for name, s in record.get("durations", {}).items()),
        "Finished": record.get("finished"),
    }
    return {name: str(value) for name, value in shown.items() if value}


def inputs(record: Mapping[str, Any]) -> dict[str, str]:
    """Path, size and hash of each input file."""
    shown = {}
    for name, about in record.get("inputs", {}).items():
        size = "".join(f"{about[unit]:,} {unit}, " for unit in ("rows", "bytes") if unit in about)
        shown[name] = f"{about.get('path', '')} ({size}SHA-256 {about.get('sha256', 'unknown')})"
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
