"""`groundtune doctor`: what is wrong with the data of a command, before it is run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from groundtune.commands.parsing import at_their_lines, parse_arguments
from groundtune.errors import DataError
from groundtune.methods import METHODS, method_named_first

USAGE = """usage: groundtune doctor [METHOD] [--quiet] [--json] FLAGS

Everything that is wrong or suspicious in the data, at once, before anything slow. METHOD is {methods}; FLAGS are any of
its flags: put `doctor` before the method in the command that you are about to run. Text is
checked in whichever files are named; tokens too if --model_name_or_path is, and what retrieval cannot read if
--embedding_model is. Tokenizers are loaded, weights are not.

Every error is a line, and every warning, but of a kind that a file is full of: that is one line with the number, the
share, the longest or first three, and what to do.

--quiet  the findings alone, without the token table and the row
--json   one JSON object instead of text: errors, warnings, findings (each of them), token_table, row

All of this goes to standard output. What is wrong with the flags themselves, or with a file of them, goes to standard
error, and nothing else is done then.

Exit status: 0 if nothing is wrong (there may be warnings), 2 if something is.

example:
  groundtune doctor swr --train_file qa/train.jsonl --eval_file qa/eval.jsonl --test_file qa/test.jsonl \\
      --full_dataset_file_path documents.jsonl --model_name_or_path Qwen/Qwen3-4B"""


def main(argv: Sequence[str]) -> int:
    """Print the token table, one row and every finding; returns 2 if an error is among them, else 0."""
    if {"-h", "--help"} & set(argv):
        print(USAGE.format(methods=" or ".join(METHODS)))
        return 0
    method, flags = method_named_first(argv)
    try:
        arguments = parse_arguments(method.name, flags)
        if problems := arguments.check(complete=False, for_training=method.title if method.retrieves else ""):
            raise DataError(problems)
    except DataError as error:
        raise DataError(at_their_lines(error.problems, flags)) from error

    from groundtune.training.doctor import diagnose, shown

    diagnosis = diagnose(arguments)
    if arguments.output.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        print(shown(diagnosis, brief=arguments.output.quiet))
    return 2 if diagnosis.errors else 0
