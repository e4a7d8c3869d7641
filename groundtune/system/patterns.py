"""Regular expressions from files, tried in a process of their own: some take longer than the age of the universe.

Python cannot stop a match in its own process, and no simple rule tells which expressions are slow.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

_SECONDS = 10.0
_TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, (how, pattern) in enumerate(patterns):
    print(number, flush=True)
    for name in names:
        getattr(re, how)(pattern, name)
"""


def pattern_problem(patterns: Sequence[tuple[str, str]], names: Sequence[str], seconds: float = _SECONDS) -> str:
    """Why one of the patterns cannot be used on these names, in words; empty if all can.

    Each is given with the function of `re` that will be called, `match` or `fullmatch`.
    """
    tried = [(how, pattern) for how, pattern in patterns if re.search(r"[^\w.$^]", pattern)]  # others take no time
    if not tried:
        return ""
    asked = json.dumps([tried, list(names)])
    command = [sys.executable, "-I", "-S", "-c", _TRIAL]
    try:
        ended = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=seconds)  # noqa: S603  our own program
        said, status = ended.stdout, ended.returncode
    except subprocess.TimeoutExpired as error:
        said, status = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or "", -1
    if status == 0:
        return ""
    pattern = ascii(tried[int((said.split() or ["0"])[-1])][1])
    shown = pattern if len(pattern) <= 60 else f"{pattern[:57]}..."
    why = f"takes more than {seconds:.0f} seconds" if status < 0 else "cannot be read"
    return f"the regular expression {shown} {why}; list the modules by their names instead"
