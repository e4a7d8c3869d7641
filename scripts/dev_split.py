"""Splits a training file into train and dev by article, so that choices are made on questions that serve nothing else.

python scripts/dev_split.py train_w_qa.jsonl eval_w_qa.jsonl --output_dir runs/faire

writes train.jsonl and dev.jsonl, with the lines of the training file as they are. dev has 15 % of the articles (the
`source` in the metadata of gold passages); train has no question about them. Only the articles' names decide, by their
hash: not their order, nor a seed. Articles that an example connects stay together. The eval file is only counted, to
show how far it is from train: it is to be read once, after all choices were made on dev.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from groundtune.data.files import read_examples, write_text
from groundtune.data.groups import connected
from groundtune.data.overlap import Hashes, grams, share_of
from groundtune.errors import DataError
from groundtune.schema import Example

SHARE = 0.15  # of the articles
_TWIN = 0.7  # of a passage's 5-grams that a twin has, too


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_file")
    parser.add_argument("eval_file", nargs="?")
    parser.add_argument("-o", "--output_dir", required=True)
    given = parser.parse_args(argv)
    try:
        splits = split(read_examples(given.train_file))
        others = {"eval": read_examples(given.eval_file)} if given.eval_file else {}
        lines = Path(given.train_file).read_text("utf-8").split("\n")
        for name, examples in splits.items():
            kept = [lines[int(example.source.rpartition(":")[2]) - 1] for example in examples]
            write_text(Path(given.output_dir) / f"{name}.jsonl", "\n".join(kept) + "\n")
    except DataError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    found = {name: counts(examples, splits["train"]) for name, examples in (splits | others).items()}
    print(json.dumps(found, indent=1))
    return 0


def split(examples: Sequence[Example], share: float = SHARE) -> dict[str, list[Example]]:
    """`train` and `dev`. Raises `DataError` if an example's articles are not known, or if there are too few."""
    if unknown := [example.source for example in examples if not articles(example)]:
        raise DataError([f"{unknown[0]}: no gold passage with a source in its metadata; articles cannot be told apart"])
    groups: dict[int, set[str]] = {}
    for number, example in zip(connected([sorted(articles(e)) for e in examples]), examples, strict=True):
        groups.setdefault(number, set()).update(articles(example))
    wanted, dev = round(share * sum(map(len, groups.values()))), set[str]()
    for names in sorted(groups.values(), key=lambda names: min(map(_hash, names))):
        if len(dev) + len(names) <= wanted:
            dev |= names
    if not dev:
        raise DataError([f"too few articles to keep {share:.0%} of them for dev; give more examples"])
    return {
        "train": [example for example in examples if not articles(example) & dev],
        "dev": [example for example in examples if articles(example) & dev],
    }


def articles(example: Example) -> set[str]:
    return {str(document.metadata["source"]) for document in example.gold_documents if document.metadata.get("source")}


def counts(examples: Sequence[Example], train: Sequence[Example]) -> Mapping[str, int]:
    """How much there is, and how many of the questions train knows something about."""
    found = {"questions": len(examples), "passages": len(_passages(examples)), "articles": len(_articles(examples))}
    if examples is train:
        return found
    known, sequences = _passages(train), [grams(text) for text in _passages(train)]
    asked = {example.question for example in train}
    return found | {
        "questions that train asks, too": sum(example.question in asked for example in examples),
        "questions on passages of train": sum(bool(_passages([e]) & known) for e in examples),
        "questions on twins of passages of train": sum(
            any(_is_twin(text, sequences) for text in _passages([e]) - known) for e in examples
        ),
        "questions on articles of train": sum(bool(articles(e) & _articles(train)) for e in examples),
    }


def _passages(examples: Sequence[Example]) -> set[str]:
    return {document.page_content.strip() for example in examples for document in example.gold_documents}


def _articles(examples: Sequence[Example]) -> set[str]:
    return set().union(*map(articles, examples))


def _is_twin(text: str, others: Sequence[Hashes]) -> bool:
    """Whether another passage says most of the same."""
    own = grams(text)
    return any(share_of(own, other) >= _TWIN for other in others)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
