"""`groundtune index`: create or update the folder that caches the documents' vectors."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from groundtune.arguments import (
    MAXSIM,
    NO_RERANKER,
    NO_WRITER,
    REWRITE,
    DataArguments,
    RetrievalArguments,
    check_model_name,
    check_retrieval,
    no_such_file,
    too_small,
)
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, be_quiet, say, say_json
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.system.model_folders import embedding_problems

if TYPE_CHECKING:
    from groundtune.evaluation.retrievers_compared import Measured
    from groundtune.evaluation.statistics import PairedDifference
    from groundtune.retrieval.reranking import Reranker
    from groundtune.retrieval.retrievers import DenseRetriever, MixRetriever, Retriever
    from groundtune.retrieval.rewriting import Rewriter
    from groundtune.schema import Document, Example

    Retrievers = dict[str, tuple[str, Retriever]]  # name -> the flags that select it, and the retriever

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
REFERENCE = "mix, weight 0.6"  # the default, with which every other retriever is compared
_DATA = ["full_dataset_file_path", "full_dataset_index_path", "eval_file", "test_file"]
_RETRIEVAL = [
    "embedding_model", "embedding_server_model", "embedding_batch_size", "embedding_dtype", "query_prompt",
    "document_prompt", "query_history", "rewriter", "rewriter_model", "rewriter_options", "rewrite_prompt",
    "eval_num_to_retrieve", "reranker", "reranker_model", "rerank_depth", "rerank_weight", "filter", "store",
    "vector_dtype",
]  # fmt: skip
_HELPS = {
    "embedding_model": "Embedding model (hub name or folder).",
    "eval_file": "Examples (.jsonl) whose questions are used as queries; they need no answers.",
    "test_file": "Examples (.jsonl) to report on, with --retriever all. Empty: those of --eval_file.",
    "rewriter": "With --query_history rewrite: what writes the question, openai:URL of a server, or a model folder or "
    "hub name to load locally.",
    "reranker": "With --retriever all, also measure this reranker of the mix: a cross-encoder (hub name or folder), or "
    "jina:URL or tei:URL of a server. maxsim, the embedding model's vectors of single tokens, is always measured; "
    "none: not even that.",
    "rerank_weight": "Weight of the reranker's score, from 0 to 1. Default: 0.5 for maxsim, 0.5 and 1 for others.",
    "eval_num_to_retrieve": "Passages retrieved per question. (default: 4)",
}


def main(argv: Sequence[str]) -> int:
    """Embed the documents, and print what the index contains."""
    words = given(parser(), argv)
    every = words.pop("retriever") == "all"
    data = filled(DataArguments, words)
    tuned = words.pop("tuned_embedding_model")
    retrieval = filled(RetrievalArguments, {**words, "retriever": "mix" if every else "dense"})
    _check(data, retrieval, every, tuned)
    shard = _shard(words.pop("shard"), data, retrieval)

    from groundtune.data.files import read_documents
    from groundtune.retrieval.opening import index_folder, open_retriever_with
    from groundtune.retrieval.reranking import open_reranker
    from groundtune.retrieval.retrievers import MixRetriever
    from groundtune.retrieval.rewriting import open_rewriter

    quiet = words["quiet"] or words["json"]
    if quiet:
        be_quiet()
    begin = time.perf_counter()
    documents = read_documents(data.full_dataset_file_path)
    folder = index_folder(data)
    if shard:
        _embed(shard, documents, folder, retrieval, words["json"])
        return 0
    examples = searchable(data.eval_file) if data.eval_file else []
    reported = searchable(data.test_file) if data.test_file else []
    rewriter = open_rewriter(retrieval, folder) if examples else None
    by_model = open_reranker(retrieval) if retrieval.reranker != MAXSIM else None
    plain = replace(retrieval, reranker=NO_RERANKER)
    retriever = open_retriever_with(retrieval.embedding_model, plain, documents, folder)
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
        retrievers = _retrievers(retriever, retrieval, by_model)
        if tuned:
            again = cast("MixRetriever", open_retriever_with(tuned, plain, documents, folder))
            retrievers |= _tuned(_retrievers(again, retrieval, by_model), tuned)
        compared = _compared(retrievers, examples, reported, _k(retrieval, index.documents), retrieval, rewriter)
        found["retrievers"] = compared.to_dict()
        if not words["json"]:
            _show_compared(compared)
    elif examples:
        found["retrieval"] = _measured(retriever, examples, retrieval, rewriter)
    if rewriter:
        found["notes"] = rewriter.note
    if words["json"]:
        say_json(found)
    else:
        say("{documents:,} documents, {dimensions} dimensions, in {folder} after {seconds} s".format(**found))
        _show(found.get("retrieval"))
        say(*found.get("notes", ()))
    return 0


def _embed(
    shard: tuple[int, int], documents: Sequence[Document], folder: Path, retrieval: RetrievalArguments, as_json: bool
) -> None:
    from groundtune.retrieval.opening import open_embedder
    from groundtune.retrieval.stores.local import Shard, embed_shard

    embedder = open_embedder(retrieval.embedding_model, retrieval)
    its_own, missing = embed_shard(folder, documents, embedder, retrieval.vector_dtype, Shard(*shard))
    found = {"folder": str(folder), "shard": "{}/{}".format(*shard), "documents": its_own, "embedded": missing}
    if as_json:
        say_json(found)
    else:
        say(
            f"shard {found['shard']}: {its_own:,} documents, of which {missing:,} were embedded now, in {folder}",
            "When every shard is done, the same command without --shard makes the index of them",
        )


def _shard(text: str, data: DataArguments, retrieval: RetrievalArguments) -> tuple[int, int] | None:
    """Number and count in `--shard 2/4`; None without one. Raises `DataError` if it is no such thing."""
    if not text:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text)
    if not match or int(match[1]) > int(match[2]):
        raise DataError([f"--shard: {text!r} is no shard; write 2/4 for the second of four"])
    store = "" if retrieval.store == "local" else retrieval.store
    beside = {"eval_file": data.eval_file, "store": store, "filter": retrieval.filter}
    if problems := [
        f"--{name}: has no effect with --shard, which only embeds; give it without --shard afterwards"
        for name, given in beside.items()
        if given
    ]:
        raise DataError(problems)
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Compared:
    """Retrievers as measured on some examples: `rows`, how much the recall at k of each differs from that of the
    default, and the best on `chosen_on` questions; `reported` is the number of questions of --test_file."""

    rows: list[Measured]
    differences: dict[str, PairedDifference]
    best: Measured
    k: int
    chosen_on: int
    reported: int
    query_history: str

    def to_dict(self) -> dict[str, Any]:
        table = [{**one.to_dict(), "recall_difference": self.differences[one.name].to_dict()} for one in self.rows]
        about = {"best": self.best.flags, "chosen_on": self.chosen_on, "difference_from": REFERENCE}
        return {**about, "table": table}


def _retrievers(mix: MixRetriever, retrieval: RetrievalArguments, by_model: Reranker | None) -> Retrievers:
    """Name -> flags and retriever: all that share the vectors and words of `mix`, and the mix reranked."""
    from groundtune.evaluation.retrievers_compared import all_retrievers, reranked_retrievers
    from groundtune.retrieval.reranking import has_token_vectors, open_reranker

    found, depth = all_retrievers(mix), retrieval.rerank_depth
    if retrieval.reranker == NO_RERANKER:
        return found
    given = [] if retrieval.rerank_weight is None else [retrieval.rerank_weight]
    embedder, documents = mix.dense.embedder, mix.dense.index.documents
    if has_token_vectors(embedder) or retrieval.reranker == MAXSIM:
        by_tokens = cast("Reranker", open_reranker(replace(retrieval, reranker=MAXSIM), embedder, documents))
        found |= reranked_retrievers(mix, MAXSIM, by_tokens, depth, given or [0.5])
    if by_model:
        found |= reranked_retrievers(mix, retrieval.reranker, by_model, depth, given or [0.5, 1.0])
    return found


def _tuned(found: Retrievers, name: str) -> Retrievers:
    """The retrievers of another embedding model, with the flag that selects it; words alone are the same."""
    return {
        f"{kind}, tuned": (f"--embedding_model {shlex.quote(name)} {flags}", retriever)
        for kind, (flags, retriever) in found.items()
        if kind != "bm25"
    }


def _compared(
    retrievers: Retrievers,
    examples: list[Example],
    reported: list[Example],
    k: int,
    retrieval: RetrievalArguments,
    rewriter: Rewriter | None,
) -> Compared:
    """Every retriever as measured on `reported`, and the best on `examples`."""
    from groundtune.evaluation.retrievers_compared import best_of, difference, measured

    history, rewrite = retrieval.query_history, rewriter.queries if rewriter else None
    if rewriter:
        rewriter.queries([*examples, *reported])  # first, so that no search waits for it
        rewriter.close()

    def measure(asked: list[Example]) -> list[Measured]:
        found = retrievers.items()
        return [measured(name, flags, retriever, asked, k, history, rewrite) for name, (flags, retriever) in found]

    chosen = measure(examples)
    rows = measure(reported) if reported else chosen
    reference = next(row for row in rows if row.name == REFERENCE)
    differences = {row.name: difference(row, reference, reported or examples) for row in rows}
    return Compared(rows, differences, best_of(chosen, k), k, len(examples), len(reported), history)


def _k(retrieval: RetrievalArguments, documents: Sequence[Document]) -> int:
    return min(retrieval.eval_num_to_retrieve, len(documents))


def _show_compared(found: Compared) -> None:
    from groundtune.commands.terminal import say_table
    from groundtune.system.tables import TextTable

    names = [name.partition("/")[2] for name in found.rows[0].scores]
    table = TextTable("retriever", *names, "difference", "ms", box=None, padding=(0, 1, 0, 0))
    for one in found.rows:
        cells = [f"{mean.value:.3f}" for mean in one.scores.values()]
        recall, gain = one.scores[f"retrieval/recall@{found.k}"], found.differences[one.name]
        cells[1] += f" [{recall.low:.2f}, {recall.high:.2f}]"
        cells.append("" if one.name == REFERENCE else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        chosen = " *" if one.name == found.best.name else ""
        table.add_row(one.name + chosen, *cells, f"{1000 * one.seconds:.1f}")
    say_table(table)
    say(
        f"* chosen by recall@{found.k} on {found.chosen_on} questions of --eval_file; the table is of "
        f"{found.reported or found.chosen_on} questions, with 95 % intervals by passage; text_recall counts a passage "
        f"with at least 60 % of the gold text; difference: of recall@{found.k} from {REFERENCE}, question by question; "
        "ms per question"
        + ("" if found.reported else ". Chosen and measured on the same questions, the best looks a little too good"),
        f"Flags of the best: {found.best.flags} --query_history {found.query_history}",
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


def _measured(
    retriever: Any, examples: list[Example], retrieval: RetrievalArguments, rewriter: Rewriter | None
) -> dict[str, Any]:
    """How well the questions find their gold passages: the number of questions, and each metric with its interval."""
    from groundtune.evaluation.metrics import retrieval_scores
    from groundtune.evaluation.statistics import aggregate, clusters_of
    from groundtune.retrieval.retrievers import retrieve
    from groundtune.retrieval.stores.store import findable

    k = _k(retrieval, retriever.index.documents)
    rewrite = rewriter.queries if rewriter else None
    hits = retrieve(retriever, examples, k, retrieval.query_history, rewrite)
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
    made.add_argument(
        "--tuned_embedding_model", default="", metavar="TEXT",
        help="With --retriever all: a second embedding model, such as one trained by groundtune retriever, to compare.",
    )  # fmt: skip
    made.add_argument(
        "--shard", default="", metavar="N/OF",
        help="Embed only this part of the documents, such as 2/4, for several processes or machines with one folder; "
        "the same command without --shard then makes the index of all parts.",
    )  # fmt: skip
    add_output_flags(made)
    return made


def _check(data: DataArguments, retrieval: RetrievalArguments, every: bool, tuned: str) -> None:
    problems = (
        []
        if every
        else [
            f"--{name}: has no effect without --retriever all; add it, or remove the flag"
            for name, given in {"reranker": retrieval.reranker, "tuned_embedding_model": tuned}.items()
            if given
        ]
    )
    if retrieval.query_history == REWRITE and not retrieval.rewriter:
        problems.append(NO_WRITER)
    if tuned:
        unknown = check_model_name("tuned_embedding_model", tuned)
        problems += unknown or [f"--tuned_embedding_model: {problem}" for problem in embedding_problems(tuned)]
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
