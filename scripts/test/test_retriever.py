"""Measure how well a retriever finds gold passages, with LocalRQA's flags; `groundtune index` measures more."""

import sys

from groundtune.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("index", sys.argv[1:], "commands.localrqa:measure_retriever"))
