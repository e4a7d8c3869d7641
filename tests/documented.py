"""The fenced code blocks of README, docs and configs: which are commands, and which test runs them.

A block in a language of `COMMANDS` is run by the test that `RUN_BY` names for its page, or has the reason why not in a
comment right before it: `<!-- not run: needs a GPU -->`. Blocks in other languages only show something.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("", "bash", "python", "yaml")
RUN_BY = {
    "README.md": "tests/recipe/test_howto_pages.py",
    "docs/tutorial.md": "tests/recipe/test_tutorial.py",
    "docs/python.md": "tests/recipe/test_python_page.py",
    "docs/prepare.md": "tests/unit/test_prepare_page.py",
    "docs/howto/": "tests/recipe/test_howto_pages.py",
    "configs/faire/": "tests/unit/test_use_cases.py",
    "configs/databricks/": "tests/unit/test_use_cases.py",
}
_BLOCK = re.compile(r"^(?:<!-- not run: (.*?) -->\n\n?)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SCRIPTS = {
    "train_w_gt.py": "sft", "train_w_fixed_retriever.py": "swr", "train_ctl_retriever.py": "retriever"
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One fenced block; `reason` says why no test runs it; empty if one does or if it is not a command."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def is_command(self) -> bool:
        return self.language in COMMANDS

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Paths in the repository of README and every page of docs and configs."""
    found = [path for folder in ("docs", "configs") for path in (ROOT / folder).rglob("*.md")]
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1] or "")
        for found in _BLOCK.finditer(text)
    ]


def run_by(test: str, page: str = "") -> dict[str, list[Block]]:
    """The blocks that a test file must run, by page: those without a reason not to."""
    name = Path(test).resolve().relative_to(ROOT).as_posix()
    mine = [p for p in pages() if who_runs(p) == name and p.startswith(page)]
    found = {page: [block for block in blocks(page) if block.is_command and not block.reason] for page in mine}
    return {page: these for page, these in found.items() if these}


def who_runs(page: str) -> str:
    """The test file that runs the commands of a page; empty if none does."""
    return next((test for start, test in RUN_BY.items() if page.startswith(start)), "")


def steps(text: str) -> Iterator[list[str] | str]:
    """The steps of a shell block: the words of each Groundtune command, and the lines in between as scripts.

    A historical script counts as the command that replaces it; a here-document is kept in one piece.
    """
    script: list[str] = []
    end = ""  # terminator of the open here-document
    for line in text.replace("\\\n", " ").splitlines():
        opened = re.search(r"<<-?\s*'?(\w+)'?", line)
        ours = not end and re.match(r"groundtune |python scripts/train/", line)
        if ours and script:
            yield "\n".join(script)
            script = []
        if ours:
            words = shlex.split(line, comments=True)
            yield words[1:] if words[0] == "groundtune" else [_SCRIPTS[Path(words[1]).name], *words[2:]]
        elif end or line.strip():
            script.append(line)
        end = "" if line == end else opened[1] if opened and not end else end
    if script:
        yield "\n".join(script)


def commands(text: str) -> list[list[str]]:
    """The words of each Groundtune command in a block."""
    return [step for step in steps(text) if not isinstance(step, str)]


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """The text with every name replaced, longest names first."""
    pattern = "|".join(re.escape(name) for name in sorted(replacements, key=len, reverse=True))
    return re.sub(pattern, lambda found: replacements[found[0]], text) if replacements else text


def run_python(text: str, where: str, namespace: dict[str, Any]) -> None:
    """Run Python code in this process; `namespace` keeps the variables of earlier code."""
    exec(compile(text, where, "exec"), namespace)  # noqa: S102  from our own pages


def with_defaults(function: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
    """The function with other defaults for its keywords."""
    return lambda *args, **given: function(*args, **{**defaults, **given})


def run_script(script: str, folder: Path, variables: Mapping[str, str] = {}, status: int = 0) -> str:  # noqa: B006
    """Run shell lines in a folder with the Python that runs the tests; returns standard error. Skips without bash."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, f"{script}\n{done.stderr[-3000:]}"
    return done.stderr
