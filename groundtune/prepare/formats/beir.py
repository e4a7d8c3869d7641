"""BEIR folders (Thakur et al. 2021): corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from groundtune.data.entries import Record, turns_of
from groundtune.data.files import in_folder
from groundtune.data.passages import format_passage
from groundtune.errors import DataError
from groundtune.prepare.formats.format import Converted, Format, Options, opened, records
from groundtune.schema import Document, Example
from groundtune.system.outputs import inside
from groundtune.system.text import to_json

_CORPUS = 'a line of corpus.jsonl is {"_id", "title", "text"}'
_QUERY = 'a line of queries.jsonl is {"_id", "text"}'
_QRELS = "a line is query-id, corpus-id and score, with tabs between them"

Judgements = dict[str, dict[str, float]]  # query id -> document id -> score


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """One file of examples for each file in qrels/. Judged documents with a score above 0 are gold, others are hard
    negatives.

    BEIR has no answers, but some queries have them in their metadata (`answer`, `answers`); the others get an empty
    answer, which is enough for measuring retrieval but not for training.
    """
    judged_in = [in_folder(path, "qrels", file.name) for file in sorted((path / "qrels").glob("*.tsv*"))]
    qrels = {file.name.split(".")[0]: _judgements(file, problems) for file in judged_in}
    if not qrels:
        raise DataError([f"{path}: has no qrels/*.tsv; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/"])
    judged = {id for judgements in qrels.values() for scores in judgements.values() for id in scores}
    documents: dict[str, Document] = {}
    for record in records(_file(path, "corpus.jsonl"), problems):
        title = record.text("title", _CORPUS, required=False)
        document = format_passage(record.text("text", _CORPUS, may_be_blank=True), title=title)
        if not document.text:
            continue
        if (id := _id(record)) in judged:
            documents[id] = document
        yield Converted(documents=(document,))
    queries = {_id(record): record for record in records(_file(path, "queries.jsonl"), problems)}
    for split, judgements in qrels.items():
        for id, scores in judgements.items():
            yield _query(split, queries.get(id), scores, documents)


def write(
    folder: Path,
    splits: dict[str, list[Example]],
    documents: Iterable[Document],
    write_lines: Callable[[Path, Iterable[str]], None],
) -> None:
    """Write a BEIR folder. Answers and chat histories go into the queries' metadata; `_id` is `Document.id`."""
    everything = {d.id: d for d in documents}
    everything |= {d.id: d for examples in splits.values() for e in examples for d in e.gold_documents}
    write_lines(
        folder / "corpus.jsonl",
        (to_json({"_id": d.id, "title": d.metadata.get("title", ""), "text": _text(d)}) for d in everything.values()),
    )
    numbered = {split: [(f"{split}-{n}", e) for n, e in enumerate(these, 1)] for split, these in splits.items()}
    write_lines(
        folder / "queries.jsonl", (to_json(_query_row(id, e)) for these in numbered.values() for id, e in these)
    )
    for split, these in numbered.items():
        rows = (f"{id}\t{gold}\t1" for id, e in these for gold in dict.fromkeys(d.id for d in e.gold_documents))
        write_lines(inside(folder, "qrels", f"{split}.tsv"), ["query-id\tcorpus-id\tscore", *rows])


def _query_row(id: str, example: Example) -> dict[str, Any]:
    metadata: dict[str, Any] = {"answer": example.answer, "answers": list(example.acceptable_answers)}
    metadata |= {} if example.answerable else {"answerable": False}
    metadata |= {"chat_history": example.to_dict()["chat_history"]} if example.chat_history else {}
    return {"_id": id, "text": example.question, "metadata": metadata}


def _text(document: Document) -> str:
    """The text without the title, as BEIR keeps them apart; `fmt_content` if a document has no `page_content`."""
    return document.page_content if document.page_content.strip() else document.fmt_content


def _query(split: str, query: Record | None, scores: dict[str, float], documents: dict[str, Document]) -> Converted:
    gold = [documents[id] for id, score in scores.items() if score > 0 and id in documents]
    if query is None or not gold:
        return Converted(left_out="without a query" if query is None else "without a passage", split=split)
    metadata = query.fields.get("metadata")
    about = Record(
        query.where, metadata if isinstance(metadata, dict) else {}, query.problems, query.suspicions, "metadata."
    )
    answers = [a for a in (about.text("answer", _QUERY, required=False), *about.texts("answers", _QUERY)) if a.strip()]
    answers = list(dict.fromkeys(answers))
    example = Example(
        question=query.text("text", _QUERY),
        answer=answers[0] if answers else "",
        gold_documents=tuple(gold),
        chat_history=tuple(turns_of(about)),
        hard_negatives=tuple(documents[id] for id, score in scores.items() if score <= 0 and id in documents),
        gold_answers=tuple(answers) if len(answers) > 1 else (),
        answerable=about.flag("answerable", default=True),
        source=query.where,
    )
    return Converted(example, split=split)


def _id(record: Record) -> str:
    value = record.fields.get("_id")
    return str(value) if isinstance(value, int) else record.text("_id", _QUERY)


def _file(folder: Path, name: str) -> Path:
    return in_folder(folder, next((known for known in (name, f"{name}.gz") if (folder / known).exists()), name))


def _judgements(path: Path, problems: list[str]) -> Judgements:
    judgements: Judgements = {}
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            cells = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
            try:
                query, document, score = cells[0], cells[1], float(cells[2])
            except (IndexError, ValueError):
                if number > 1 and line.strip():  # the first line names the columns
                    problems.append(f"{path}:{number}: is {'|'.join(cells)[:60]!r}; {_QRELS}")
                continue
            judgements.setdefault(query, {})[document] = score
    return judgements


BEIR = Format("BEIR folders: corpus.jsonl, queries.jsonl, qrels/*.tsv", read)
