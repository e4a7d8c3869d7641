"""`groundtune doctor`: find the problems in a command's data before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from groundtune.commands.parsing import at_their_lines, parse_arguments
from groundtune.commands.terminal import say_json, say_text
from groundtune.errors import DataError
from groundtune.methods import METHODS, method_named_first

USAGE = """usage: groundtune doctor [METHOD] [--quiet] [--json] FLAGS

List everything that is wrong or suspicious in the data, before any slow step. METHOD is {methods}; FLAGS are the flags
of that method: put `doctor` before the method in the command you are about to run. The text of all files given is
checked. With --model_name_or_path the tokens are checked too, and with --embedding_model whether documents are longer
than it reads. Tokenizers are loaded, weights are not.

Every error and warning is one line. Many warnings of one kind in one file are summarised on one line: how many, what
share of the file, the longest or first three, and what to do.

--quiet  print only the findings, without the token table and the row
--json   print one JSON object instead of text: errors, warnings, findings (every single one), token_table, row

All of this goes to standard output. Problems with the flags, or with an argument file, go to standard error, and
nothing else is checked in that case.

Exit status: 0 without errors (there may be warnings), 2 with errors.

example:
  groundtune doctor swr --train_file qa/train.jsonl --eval_file qa/eval.jsonl --test_file qa/test.jsonl \\
      --full_dataset_file_path documents.jsonl --model_name_or_path Qwen/Qwen3-4B"""


def main(argv: Sequence[str]) -> int:
    """Print the token table, one row and every finding; returns 2 if there are errors, else 0."""
    if {"-h", "--help"} & set(argv):
        say_text(USAGE.format(methods=" or ".join(METHODS)))
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
        say_json(diagnosis.to_dict())
    else:
        say_text(shown(diagnosis, brief=arguments.output.quiet))
    return 2 if diagnosis.errors else 0
