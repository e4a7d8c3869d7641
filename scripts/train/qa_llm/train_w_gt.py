"""SFT: train on gold passages. Same as `groundtune sft`; -h lists every argument."""

import sys

from groundtune.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command("sft", sys.argv[1:]))
