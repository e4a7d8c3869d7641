"""Train an embedding model on in-batch negatives. As `groundtune retriever`, with the defaults of docs/localrqa.md."""

import sys

from groundtune.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("retriever", sys.argv[1:], "commands.localrqa:train_retriever"))
