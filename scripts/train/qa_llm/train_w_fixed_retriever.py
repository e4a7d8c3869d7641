"""SwR: train on gold and retrieved passages (frozen retriever). Same as `groundtune swr`; -h lists every argument."""

import sys

from groundtune.cli import train_command

if __name__ == "__main__":
    sys.exit(train_command("swr", sys.argv[1:]))
