"""`groundtune index`: make or refresh the folder that caches the documents' vectors."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundtune.arguments import DataArguments, RetrievalArguments, check_retrieval
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, be_quiet
from groundtune.files import DataError, in_the_way

DESCRIPTION = """Embed the documents into a folder that training, evaluate and ask then read. Only documents that are
new or changed are embedded. Each embedding model and prompt has a subfolder of its own, so none evicts another."""
EXAMPLES = """example:
  groundtune index --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2"""
_DATA = ["full_dataset_file_path", "full_dataset_index_path"]
_RETRIEVAL = ["embedding_model", "embedding_batch_size", "embedding_dtype", "document_prompt"]


def main(argv: Sequence[str]) -> int:
    """Embed, and say what there is now."""
    words = given(parser(), argv)
    data, retrieval = filled(DataArguments, words), filled(RetrievalArguments, words)
    _check(data, retrieval)

    from groundtune.files import read_documents
    from groundtune.train import make_retriever

    quiet = words["quiet"] or words["json"]
    if quiet:
        be_quiet()
    begin = time.perf_counter()
    documents = read_documents(data.full_dataset_file_path)
    folder = Path(data.full_dataset_index_path or Path(data.full_dataset_file_path).parent / "index")
    index = make_retriever(retrieval.embedding_model, retrieval, documents, folder).index
    found: dict[str, Any] = {
        "folder": str(folder),
        "documents": len(index.documents),
        "dimensions": int(index.vectors.shape[1]),
        "embedding_model": retrieval.embedding_model,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if words["json"]:
        from groundtune.inference.comparison_page import as_json

        print(as_json(found), end="")
    else:
        print("{documents:,} documents, {dimensions} dimensions, in {folder} after {seconds} s".format(**found))
    return 0


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    usage = "--full_dataset_file_path FILE --embedding_model MODEL [--FLAG VALUE ...]"
    made = light_parser("groundtune index", usage, DESCRIPTION, EXAMPLES)
    made.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it win.")
    add_group(made, DataArguments, _DATA)
    add_group(made, RetrievalArguments, _RETRIEVAL, {"embedding_model": "Embedding model (hub name or folder)."})
    add_output_flags(made)
    return made


def _check(data: DataArguments, retrieval: RetrievalArguments) -> None:
    problems = check_retrieval(retrieval, "swr")
    path, folder = data.full_dataset_file_path, data.full_dataset_index_path
    if not path:
        problems.insert(0, "--full_dataset_file_path: missing; name the document database")
    elif not Path(path).is_file():
        problems.insert(0, f"--full_dataset_file_path: no such file: {path}; give the path of an existing file")
    if folder:
        problems += in_the_way("full_dataset_index_path", folder, folder=True)
    if retrieval.embedding_batch_size < 1:
        problems.append(f"--embedding_batch_size: {retrieval.embedding_batch_size} is too small; the least is 1")
    if problems:
        raise DataError(problems)
