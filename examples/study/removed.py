"""Questions that the documents no longer answer: those of a file, and the documents without every passage that does.

python examples/study/removed.py data/faire/eval_w_qa.jsonl data/faire/documents.pkl --output_dir runs/faire

writes removed.jsonl and documents_left.jsonl, as `groundtune questions --unanswerable_share` does, but by the rule of
when the first cells were measured, so that all answer the same questions. A question whose passages another one needs
keeps them, and is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from groundtune.data.evidence import SUPPORTED, support
from groundtune.data.files import read_documents, read_examples, write_documents, write_jsonl
from groundtune.errors import DataError
from groundtune.prepare.unanswerable import Evidence, take_answers_away
from groundtune.schema import Example


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions")
    parser.add_argument("documents")
    parser.add_argument("-o", "--output_dir", required=True)
    given = parser.parse_args(argv)
    try:
        splits = {"removed": read_examples(given.questions)}
        documents = read_documents(given.documents)
        found = take_answers_away(splits, documents, share=1.0, seed=0, evidence=_Before(documents))
        unanswerable = [example.to_dict() for example in found.splits["removed"] if not example.answerable]
        write_jsonl(Path(given.output_dir) / "removed.jsonl", unanswerable)
        write_documents(Path(given.output_dir) / "documents_left.jsonl", found.documents)
    except DataError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    print(found.note)
    return 0


class _Before(Evidence):
    """Without numbers by their value, and without answers such as "Yes."."""

    def of(self, example: Example) -> set[int]:
        return self.repeating(example) | {
            i
            for i, document in enumerate(self.documents)
            for answer in example.acceptable_answers
            if support(answer, example.question, document.text) >= SUPPORTED
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
