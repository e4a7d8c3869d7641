"""GGUF by the converter of an installed llama.cpp, which knows the architectures; none of that is repeated here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from groundtune.errors import DataError
from groundtune.system.outputs import inside
from groundtune.system.text import one_line

SCRIPT = "convert_hf_to_gguf.py"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_HOW = "git clone https://github.com/ggml-org/llama.cpp, and pass that folder as --llama_cpp"


def converter(folder: str) -> str:
    """The path of llama.cpp's converter: in `folder`, else on the PATH. Raises `DataError` if there is none."""
    found = os.path.join(folder, SCRIPT) if folder else shutil.which(SCRIPT) or ""
    if os.path.isfile(found):
        return found
    where = f"--llama_cpp: {folder} has no {SCRIPT}" if folder else f"--to gguf: {SCRIPT} of llama.cpp is not installed"
    raise DataError([f"{where}; {_HOW}, or export with --to merged and convert it where llama.cpp is"])


def convert(script: str, model: Path, target: Path, kind: str) -> None:
    """Write `target` (GGUF of the type `kind`) from the model folder. Raises `DataError` with what the script says."""
    target = inside(target.parent, target.name)
    part = inside(target.parent, f".{target.name}.part")
    part.unlink(missing_ok=True)
    command = [sys.executable, script, str(model), "--outfile", str(part), "--outtype", kind]
    try:
        # The script and its folder were named by the user, or are on the user's PATH.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603
        if done.returncode or not part.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it wrote nothing"]
            problem = f"--to gguf: {script} failed ({one_line(said[-1], 200)})"
            raise DataError([f"{problem}; does it know this architecture, and are its requirements.txt installed?"])
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
