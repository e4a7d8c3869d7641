"""`groundtune doctor`: find the problems in a command's data before it runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from groundtune.commands.parsing import at_their_lines, parse_arguments
from groundtune.commands.terminal import say, say_json, say_text
from groundtune.errors import DataError
from groundtune.methods import METHODS, method_named_first
from groundtune.system.text import one_line

if TYPE_CHECKING:
    from groundtune.training.arguments import RunArguments
    from groundtune.training.cost import RunCost
    from groundtune.training.doctor import Diagnosis

logger = logging.getLogger(__name__)

USAGE = """usage: groundtune doctor [METHOD] [--quiet] [--json] FLAGS
       groundtune doctor --changed OLD NEW --train_file FILE [--eval_file FILE] [--test_file FILE] [--json]

List everything that is wrong or suspicious in the data, before any slow step. METHOD is {methods}; FLAGS are the flags
of that method: put `doctor` before the method in the command you are about to run. The text of all files given is
checked. With --model_name_or_path the tokens are checked too, and with --embedding_model whether documents are longer
than it reads. Tokenizers are loaded, weights are not. Time and memory of training are estimated.

Every error and warning is one line. Many warnings of one kind in one file are summarised on one line: how many, what
share of the file, the longest or first three, and what to do.

--quiet  print only the findings, without the token table and the row
--json   print one JSON object instead of text: errors, warnings, findings (every single one), token_table, row,
         cost (operations, seconds, bytes)

--changed OLD NEW  compare two versions of the document database instead: name every example whose gold passage is
                   gone, moved under another title or source, reworded, or cut elsewhere

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
    if "--changed" in argv:
        return _changed(list(argv))
    method, flags = method_named_first(argv)
    try:
        arguments = parse_arguments(method.name, flags)
        if problems := arguments.check(complete=False, for_training=method.title if method.retrieves else ""):
            raise DataError(problems)
    except DataError as error:
        raise DataError(at_their_lines(error.problems, flags)) from error

    from groundtune.training.doctor import diagnose, shown

    diagnosis = diagnose(arguments)
    cost = None if diagnosis.errors or arguments.output.quiet else cost_of(arguments, diagnosis)
    if arguments.output.json:
        say_json({**diagnosis.to_dict(), "cost": cost and cost.to_dict()})
    else:
        say_text(shown(diagnosis, "\n".join(cost.lines()) if cost else "", brief=arguments.output.quiet))
    return 2 if diagnosis.errors else 0


def cost_of(arguments: RunArguments, diagnosis: Diagnosis) -> RunCost | None:
    """The cost of training; None without a model or rows, or if the model cannot be run without its weights.

    With `--train_share` or `--max_train_samples` its tokens are that share of all, as if rows were of equal length.
    """
    rows = diagnosis.table.get("train")
    if rows is None:
        return None
    from groundtune.training.cost import run_cost

    trained = max(1, round(rows.rows * arguments.data.train_share))
    trained = min(trained, arguments.data.max_train_samples or trained)
    tokens, answers = (round(count * trained / rows.rows) for count in (rows.all_tokens, rows.all_answer_tokens))
    try:
        return run_cost(arguments, trained, tokens, answers, rows.row_tokens["longest"])
    except Exception as error:  # models may do anything with tensors that have no data
        logger.info("no estimate of time and memory: %s: %s", type(error).__name__, one_line(error))
        return None


def _changed(argv: list[str]) -> int:
    """Print what became of the gold passages in a new version of the documents; returns 2 if any is gone, else 0."""
    at = argv.index("--changed")
    databases, flags = argv[at + 1 : at + 3], argv[:at] + argv[at + 3 :]
    if len(databases) < 2 or any(name.startswith("--") for name in databases):
        raise DataError(["--changed: takes two document databases, the old one and the new one"])
    method, flags = method_named_first(flags)
    arguments = parse_arguments(method.name, [*flags, "--full_dataset_file_path", databases[1]])
    if problems := arguments.check(complete=False):
        raise DataError(problems)

    from groundtune.data.changed import changed_gold
    from groundtune.data.checks import ERROR, condensed, in_order, read_dataset
    from groundtune.data.files import read_documents

    dataset = read_dataset(arguments.data)
    if errors := [str(finding) for finding in dataset.findings if finding.severity == ERROR]:
        raise DataError(errors)
    examples = [example for these in dataset.examples.values() for example in these]
    if not examples:
        raise DataError(["--train_file: missing; name the files of examples to check against the new documents"])
    old = read_documents(databases[0])
    findings = in_order(changed_gold(examples, old, dataset.documents, dataset.document_places), dataset)
    told = f"{len({f.where for f in findings})} of {len(examples)} examples have a gold passage that changed"
    if arguments.output.json:
        say_json({"findings": [finding.to_dict() for finding in findings], "summary": told})
    else:
        say(*condensed(findings, dataset), told)
    return 2 if any(finding.severity == ERROR for finding in findings) else 0
