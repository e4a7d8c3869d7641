"""SFT: train on gold passages. As `groundtune sft`, with the defaults of docs/localrqa.md."""

import sys

from groundtune.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command("sft", sys.argv[1:]))
