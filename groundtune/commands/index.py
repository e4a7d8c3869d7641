"""`groundtune index`: create or update the folder that caches the documents' vectors."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from groundtune.arguments import DataArguments, RetrievalArguments, check_retrieval, no_such_file, too_small
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, be_quiet, say, say_json
from groundtune.data.files import in_the_way
from groundtune.errors import DataError

if TYPE_CHECKING:
    from groundtune.evaluation.retrievers_compared import Measured
    from groundtune.retrieval.retrievers import DenseRetriever, MixRetriever
    from groundtune.schema import Document, Example

DESCRIPTION = """Embed the documents into a folder that training, evaluate and ask read. Only new or changed documents
are embedded. Each embedding model and prompt has its own subfolder, so they do not replace each other. With examples,
the command also measures how well their questions find their gold passages (those that contain the answer), by
vectors alone, which compares embedding models without an LLM. --retriever all measures every retriever on them: it
chooses the best on --eval_file, reports all on --test_file, and prints the flags of the best."""
EXAMPLES = """examples:
  groundtune index --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2
  groundtune index --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2 \\
      --eval_file test.jsonl --eval_num_to_retrieve 10
  groundtune index --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2 \\
      --retriever all --eval_file eval.jsonl --test_file test.jsonl"""
_DATA = ["full_dataset_file_path", "full_dataset_index_path", "eval_file", "test_file"]
_RETRIEVAL = [
    "embedding_model", "embedding_server_model",
    "embedding_batch_size", "embedding_dtype", "query_prompt", "document_prompt", "query_history",
    "eval_num_to_retrieve", "filter", "store", "vector_dtype",
]  # fmt: skip
_HELPS = {
    "embedding_model": "Embedding model (hub name or folder).",
    "eval_file": "Examples (.jsonl) whose questions are used as queries; they need no answers.",
    "test_file": "Examples (.jsonl) to report on, with --retriever all. Empty: those of --eval_file.",
    "eval_num_to_retrieve": "Passages retrieved per question. (default: 4)",
}


def main(argv: Sequence[str]) -> int:
    """Embed the documents, and print what the index contains."""
    words = given(parser(), argv)
    every = words.pop("retriever") == "all"
    data = filled(DataArguments, words)
    retrieval = filled(RetrievalArguments, {**words, "retriever": "mix" if every else "dense"})
    _check(data, retrieval, every)

    from groundtune.data.files import read_documents
    from groundtune.retrieval.opening import index_folder, open_retriever_with
    from groundtune.retrieval.retrievers import MixRetriever

    quiet = words["quiet"] or words["json"]
    if quiet:
        be_quiet()
    begin = time.perf_counter()
    documents = read_documents(data.full_dataset_file_path)
    folder = index_folder(data)
    examples = searchable(data.eval_file) if data.eval_file else []
    reported = searchable(data.test_file) if data.test_file else []
    retriever = open_retriever_with(retrieval.embedding_model, retrieval, documents, folder)
    dense = retriever.dense if isinstance(retriever, MixRetriever) else cast("DenseRetriever", retriever)
    index = dense.index
    found: dict[str, Any] = {
        "folder": str(folder),
        "documents": len(index.documents),
        "dimensions": index.dimensions,
        "embedding_model": retrieval.embedding_model,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if isinstance(retriever, MixRetriever):
        rows, best = _compared(retriever, examples, reported, retrieval)
        found["retrievers"] = {
            "best": best.flags, "chosen_on": len(examples), "table": [one.to_dict() for one in rows]
        }  # fmt: skip
        if not words["json"]:
            k = _k(retrieval, index.documents)
            _show_compared(rows, best, k, len(examples), len(reported), retrieval.query_history)
    elif examples:
        found["retrieval"] = _measured(retriever, examples, retrieval)
    if words["json"]:
        say_json(found)
    else:
        say("{documents:,} documents, {dimensions} dimensions, in {folder} after {seconds} s".format(**found))
        _show(found.get("retrieval"))
    return 0


def _compared(
    mix: MixRetriever, chosen_on: list[Example], reported: list[Example], retrieval: RetrievalArguments
) -> tuple[list[Measured], Measured]:
    """Every retriever as measured on `reported`, and the best on `chosen_on`."""
    from groundtune.evaluation.retrievers_compared import all_retrievers, best_of, measured

    k, history = _k(retrieval, mix.dense.index.documents), retrieval.query_history

    def measure(examples: list[Example]) -> list[Measured]:
        found = all_retrievers(mix).items()
        return [measured(name, flags, retriever, examples, k, history) for name, (flags, retriever) in found]

    found = measure(chosen_on)
    return (measure(reported) if reported else found), best_of(found, k)


def _k(retrieval: RetrievalArguments, documents: Sequence[Document]) -> int:
    return min(retrieval.eval_num_to_retrieve, len(documents))


def _show_compared(found: list[Measured], best: Measured, k: int, chosen_on: int, reported: int, history: str) -> None:
    from groundtune.commands.terminal import say_table
    from groundtune.system.tables import TextTable

    names = [name.partition("/")[2] for name in found[0].scores]
    table = TextTable("retriever", *names, "ms", box=None, padding=(0, 1, 0, 0))
    for one in found:
        cells = [f"{mean.value:.3f}" for mean in one.scores.values()]
        recall = one.scores[f"retrieval/recall@{k}"]
        cells[1] += f" [{recall.low:.2f}, {recall.high:.2f}]"
        table.add_row(one.name + (" *" if one.name == best.name else ""), *cells, f"{1000 * one.seconds:.1f}")
    say_table(table)
    say(
        f"* chosen by recall@{k} on {chosen_on} questions of --eval_file; the table is of {reported or chosen_on} "
        "questions, with 95 % intervals by passage; text_recall counts a passage with at least 60 % of the gold text; "
        "ms per question"
        + ("" if reported else ". Chosen and measured on the same questions, the best looks a little too good"),
        f"Flags of the best: {best.flags} --query_history {history}",
    )


def searchable(path: str) -> list[Example]:
    """The answerable examples with a question; raises `DataError` if there are none."""
    from groundtune.data.files import scan_questions

    contents = scan_questions(path)
    if contents.problems:
        raise DataError(contents.problems)
    examples = [example for _, example in contents.entries if example.has_evidence and example.question.strip()]
    if not examples:
        raise DataError([f"{path}: none of its questions has a gold passage with the answer; name another --eval_file"])
    return examples


def _measured(retriever: Any, examples: list[Example], retrieval: RetrievalArguments) -> dict[str, Any]:
    """How well the questions find their gold passages: the number of questions, and each metric with its interval."""
    from groundtune.evaluation.metrics import retrieval_scores
    from groundtune.evaluation.statistics import aggregate, clusters_of
    from groundtune.retrieval.retrievers import retrieve
    from groundtune.retrieval.stores.store import findable

    k = _k(retrieval, retriever.index.documents)
    hits = retrieve(retriever, examples, k, retrieval.query_history)
    scores = [
        retrieval_scores([hit.document.id for hit in found], {d.id for d in example.gold_documents}, ks=(1, k))
        for example, found in zip(examples, hits, strict=True)
    ]
    known = findable(retriever.index)
    absent = sum(not known & {d.id for d in example.gold_documents} for example in examples)
    clusters = clusters_of(examples)
    means = {name: interval.to_dict() for name, interval in aggregate(scores, clusters).items()}
    return {"n": len(examples), "passages": len(set(clusters)), "gold_not_among_documents": absent, **means}


def _show(measured: dict[str, Any] | None) -> None:
    if measured is None:
        return
    for name, mean in measured.items():
        if isinstance(mean, dict):
            label, values = name.partition("/")[2], (mean["value"], mean["low"], mean["high"])
            say(f"  {label:10} {{:.2f}} [{{:.2f}}, {{:.2f}}]".format(*values))
    say(f"  on {measured['n']} questions on {measured['passages']} passages, with 95 % intervals")
    if absent := measured["gold_not_among_documents"]:
        say(f"  {absent} of them have no gold passage among the documents and count as misses")


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    usage = "--full_dataset_file_path FILE --embedding_model MODEL [--FLAG VALUE ...]"
    made = light_parser("groundtune index", usage, DESCRIPTION, EXAMPLES)
    made.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it.")
    add_group(made, DataArguments, _DATA, _HELPS)
    add_group(made, RetrievalArguments, _RETRIEVAL, _HELPS)
    made.add_argument(
        "--retriever", choices=["dense", "all"], default="dense",
        help="What to measure with --eval_file: dense, the vectors alone; all, every retriever. (default: dense)",
    )  # fmt: skip
    add_output_flags(made)
    return made


def _check(data: DataArguments, retrieval: RetrievalArguments, every: bool) -> None:
    problems = []
    if every and not data.eval_file:
        problems.append("--eval_file: missing; --retriever all measures on its questions")
    if data.test_file and not every:
        problems.append("--test_file: has no effect without --retriever all; add it, or remove the file")
    if not retrieval.embedding_model:
        problems.append("--embedding_model: missing; name an embedding model such as intfloat/e5-base-v2")
    problems += retriever_problems(data, retrieval, complete=False)
    problems += no_such_file(data, ["eval_file", "test_file"]) + too_small([(retrieval, "eval_num_to_retrieve", 1)])
    if problems:
        raise DataError(problems)


def retriever_problems(data: DataArguments, retrieval: RetrievalArguments, complete: bool = True) -> list[str]:
    """Problems that prevent opening the retriever over the documents, one line each."""
    folder = data.full_dataset_index_path
    return [
        *([] if data.full_dataset_file_path else ["--full_dataset_file_path: missing; name the document database"]),
        *no_such_file(data, ["full_dataset_file_path"]),
        *check_retrieval(retrieval, complete),
        *(in_the_way("full_dataset_index_path", folder, folder=True) if folder else []),
        *too_small([(retrieval, "embedding_batch_size", 1)]),
    ]
