"""Recall of dialogues' search queries, by retriever and by the part of the chat history that joins the question.

Recall is the share of a question's gold passages that are found; "any" is the share of questions with at least one.

python -m benchmarks.queries --documents FILE --examples FILE [FILE ...] [--long_turn]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from groundtune.arguments import REWRITE, RetrievalArguments
from groundtune.data.files import read_documents, scan_examples
from groundtune.evaluation.metrics import recall_at_k
from groundtune.evaluation.statistics import aggregate, clusters_of
from groundtune.retrieval.opening import open_retriever_with
from groundtune.retrieval.retrievers import retrieve
from groundtune.schema import USER, Document, Example, Hit, Turn

_ABOUT = RetrievalArguments.__dataclass_fields__
_HISTORIES = [history for history in _ABOUT["query_history"].metadata["choices"] if history != REWRITE]
# A turn that says nothing about any question, but whose words stand in many documents; 15 times, 450 words.
_SMALL_TALK = (
    "We walked along the beach and ate fish every evening with our friends from the village before the bank opened and "
    "the service department of the government changed its account policy for the new year. "
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", required=True, help="Document database")
    parser.add_argument("--examples", required=True, nargs="+", help="Files of examples with gold passages")
    parser.add_argument("--embedding_model", help="Folder or hub name; default: the demo's all-MiniLM-L6-v2")
    parser.add_argument("--index", help="Index folder to keep; default: a temporary one")
    parser.add_argument("--retrievers", nargs="+", default=_ABOUT["retriever"].metadata["choices"])
    parser.add_argument("--histories", nargs="+", default=_HISTORIES)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--long_turn", action="store_true", help="Begin each history with a long turn of small talk")
    options = parser.parse_args()
    documents = read_documents(options.documents)
    examples = _with_gold([example for path in options.examples for example in _examples(path)], documents)
    if options.long_turn:
        turn = Turn(USER, _SMALL_TALK * 15)
        examples = [replace(example, chat_history=(turn, *example.chat_history)) for example in examples]
    found = _measured(documents, examples, options)
    print(json.dumps({"questions": len(examples), "passages": len(documents), **found}))
    for measure, values in found.items():
        Console(stderr=True).print(_table(measure, values, options.histories))
    return 0


def _examples(path: str) -> list[Example]:
    return [example for _, example in scan_examples(path).entries]


def _with_gold(examples: list[Example], documents: Sequence[Document]) -> list[Example]:
    known = {document.id for document in documents}
    return [example for example in examples if known & {document.id for document in example.gold_documents}]


def _measured(
    documents: Sequence[Document], examples: list[Example], options: argparse.Namespace
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Measure -> retriever -> history -> the mean with the ends of its 95 % interval."""
    from groundtune.demo import embedding_model

    recall, hit = f"recall@{options.k}", f"any@{options.k}"
    found: dict[str, dict[str, dict[str, list[float]]]] = {recall: {}, hit: {}}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.retrievers:
            arguments = RetrievalArguments(retriever=kind)
            name = "" if kind == "bm25" else str(options.embedding_model or embedding_model())
            retriever = open_retriever_with(name, arguments, documents, Path(options.index or folder))
            for history in options.histories:
                hits = retrieve(retriever, examples, options.k, history)
                shares = [_share(example, those, options.k) for example, those in zip(examples, hits, strict=True)]
                scores = [{recall: share, hit: float(share > 0)} for share in shares]
                for name, mean in aggregate(scores, clusters_of(examples)).items():
                    ends = [round(value, 3) for value in (mean.value, mean.low, mean.high)]
                    found[name].setdefault(kind, {})[history] = ends
    return found


def _share(example: Example, hits: Sequence[Hit], k: int) -> float:
    return recall_at_k([hit.document.id for hit in hits], {d.id for d in example.gold_documents}, k)


def _table(measure: str, found: dict[str, dict[str, list[float]]], histories: list[str]) -> Table:
    table = Table(measure, *histories)
    for kind, by_history in found.items():
        table.add_row(kind, *("{:.3f} [{:.3f}, {:.3f}]".format(*by_history[history]) for history in histories))
    return table


if __name__ == "__main__":
    sys.exit(main())
