"""`groundtune split`: examples -> train.jsonl, eval.jsonl and test.jsonl without a common passage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path

from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, show
from groundtune.errors import DataError
from groundtune.system.locks import alone


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = data_parser(
        "split",
        "EXAMPLES -o DIR [--FLAG VALUE ...]",
        "Split a file of examples into train.jsonl, eval.jsonl and test.jsonl. Examples with a common gold passage\n"
        "stay together: otherwise a model could answer test questions from memory.",
        "groundtune split examples.jsonl -o data/ --by article",
    )
    made.add_argument("examples", type=Path, metavar="EXAMPLES", help="file of examples (.jsonl)")
    made.add_argument("-o", "--output_dir", type=Path, required=True, metavar="DIR", help="output folder")
    made.add_argument(
        "--by",
        choices=["passage", "article"],
        default="passage",
        help="what no two files share: a passage (default), or an article (metadata source, url or title)",
    )
    made.add_argument("--eval_share", type=float, default=0.1, help="share for eval.jsonl; 0: none (default: 0.1)")
    made.add_argument("--test_share", type=float, default=0.1, help="share for test.jsonl; 0: none (default: 0.1)")
    made.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` for problems that the user can fix."""
    arguments = argparse.Namespace(**given(parser(), argv))

    from groundtune.data.files import read_examples, write_jsonl
    from groundtune.prepare.split import groups_of, split_examples
    from groundtune.system.tables import TextTable

    if problems := _problems(arguments):
        raise DataError(problems)
    examples = read_examples(arguments.examples)
    shares = {"eval": arguments.eval_share, "test": arguments.test_share}
    splits = split_examples(examples, arguments.by, shares, arguments.seed)
    counts = {}
    table = TextTable("file", "examples", f"{arguments.by}s")
    with alone(arguments.output_dir):
        for name, these in splits.items():
            write_jsonl(arguments.output_dir / f"{name}.jsonl", (example.to_dict() for example in these))
            counts[name] = {"examples": len(these), "groups": len(groups_of(these, arguments.by))}
            table.add_row(f"{name}.jsonl", *(f"{n:,}" for n in counts[name].values()))
    show({"splits": counts}, table, [f"Wrote {len(splits)} files to {arguments.output_dir}"], arguments)
    return 0


def _problems(arguments: argparse.Namespace) -> list[str]:
    from groundtune.data.files import in_the_way
    from groundtune.prepare.split import share_problems
    from groundtune.system.outputs import links_at

    written = [arguments.output_dir / f"{name}.jsonl" for name in ("train", "eval", "test")]
    problems = in_the_way("output_dir", arguments.output_dir, folder=True) + links_at(written, "output_dir")
    problems += [
        f"--output_dir: {path} would be overwritten; choose another folder"
        for path in written
        if realpath(path) == realpath(arguments.examples)
    ]
    for flag, share in (("eval_share", arguments.eval_share), ("test_share", arguments.test_share)):
        if not 0 <= share < 1:
            problems.append(f"--{flag}: is {share}; give a share from 0 to below 1")
    return problems + share_problems(arguments.eval_share, arguments.test_share)
