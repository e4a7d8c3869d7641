"""Runs the tutorial and writes what its commands print into docs/tutorial.md: `python scripts/tutorial.py FOLDER`.

FOLDER becomes the tutorial's working folder, and a run that was stopped continues there. It takes about half an hour on
two cores. Sentences that quote numbers are not written: read them again afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
# A block of commands with the block right after it that shows what they print.
_PRINTED = re.compile(
    r"(?P<mark><!-- not run: [^\n]*\n)?```bash\n(?P<commands>.*?)```\n(?:\n```text\n(?P<old>.*?)```\n)?", re.DOTALL
)
_ELSEWHERE = "localhost:8000"  # a server that the reader may have
_MOST_LINES, _WIDTH = 45, 100


def main(folder: str) -> int:
    """Run every block in order."""
    work = Path(folder).resolve()
    work.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(filled(PAGE.read_text("utf-8"), lambda commands: printed(commands, work)), "utf-8")
    return 0


def filled(page: str, run: Callable[[str], str]) -> str:
    """The page with what `run` returns for each block of commands in place of what is shown after it."""

    def block(found: re.Match[str]) -> str:
        if found["mark"] or _ELSEWHERE in found["commands"]:
            return found[0]
        output = run(found["commands"])
        if found["old"] is None:
            return found[0]
        return f"```bash\n{found['commands']}```\n\n```text\n{shortened(output)}```\n"

    return _PRINTED.sub(block, page)


def shortened(output: str) -> str:
    """As much of an output as a page should show."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "\n".join([*lines[:_MOST_LINES], *["..."] * (len(lines) > _MOST_LINES)]) + "\n"


def printed(commands: str, folder: Path) -> str:
    """What the first Groundtune command of a block prints, or all of it where there is none."""
    first, rest = commands, ""
    if found := re.search(r"^groundtune (?:.*\\\n)*.*\n", commands, re.MULTILINE):
        first, rest = commands[: found.end()], commands[found.end() :]
    output = _shell(first, folder)
    if rest.strip():
        _shell(rest, folder)
    return output


def _shell(script: str, folder: Path) -> str:
    variables = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": str(_WIDTH)}
    words = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(words, cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, text=True)  # noqa: S603
    if done.returncode:
        sys.exit(f"{script}\nended with status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
