"""SwR: train on gold and retrieved passages. As `groundtune swr`, with the defaults of docs/localrqa.md."""

import sys

from groundtune.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command("swr", sys.argv[1:]))
