"""TriviaQA (Joshi et al. 2017): trivia questions with evidence pages that may contain the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundtune.data.entries import Record
from groundtune.data.passages import format_passage, split_into_passages
from groundtune.errors import DataError
from groundtune.prepare.formats.format import Converted, Format, Options, child, children, converted, records
from groundtune.schema import Document

PASSAGE_WORDS = 200
_NEED = 'a TriviaQA file is {"Data": [{"Question", "Answer": {"Value", "Aliases"}, "EntityPages", "SearchResults"}]}'
_ROW = 'a row is {"question", "answer": {"value", "aliases"}, "entity_pages", "search_results"}'


@dataclass(frozen=True)
class _Names:
    """The field names of the two published formats: the JSON files, and the hub's rows, which include the evidence."""

    question: str
    answer: str
    value: str
    aliases: str
    title: str
    pages: dict[str, tuple[str, str]]  # list of pages -> (evidence folder, evidence field), one of them ""
    need: str


_FILES = _Names(
    "Question", "Answer", "Value", "Aliases", "Title",
    {"EntityPages": ("wikipedia", ""), "SearchResults": ("web", "")}, _NEED,
)  # fmt: skip
_ROWS = _Names(
    "question", "answer", "value", "aliases", "title",
    {"entity_pages": ("", "wiki_context"), "search_results": ("", "search_context")}, _ROW,
)  # fmt: skip


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """The evidence is cut into passages of 200 words, all of which become documents.

    Of the passages that contain the answer or an alias, the one that shares most words with the question is gold.
    Whether it really answers the question is unknown: the data has distant supervision only. Aliases are acceptable
    answers.
    """
    for record in records(path, problems):
        if "Data" in record.fields:
            if options.evidence is None:
                raise DataError([f"{path}: refers to evidence files; give their folder as --evidence"])
            for question in children(record, "Data", _NEED):
                yield _question(question, _FILES, options)
        else:
            yield _question(record, _ROWS, options)


def _question(record: Record, names: _Names, options: Options) -> Converted:
    text = record.text(names.question, names.need)
    answer = child(record, names.answer, names.need)
    answers = [answer.text(names.value, names.need), *answer.texts(names.aliases, names.need)]
    passages = list(_evidence(record, names, options))
    return converted(text, answers, _most_likely(passages, text, answers), documents=passages, source=record.where)


def _evidence(record: Record, names: _Names, options: Options) -> Iterator[Document]:
    for key, (folder, field) in names.pages.items():
        if record.fields.get(key) is None:  # half of the data has only one of the two lists
            continue
        for page in children(record, key, names.need):
            if field:
                url, file = (page.text(name, _ROW, required=False) for name in ("url", "filename"))
                source = url or file
                text = page.text(field, names.need, required=False)
            else:
                source = page.text("Filename", names.need)
                text = _file(options.evidence / folder / source) if options.evidence and source else ""
            title = page.text(names.title, names.need, required=False)
            for passage in split_into_passages(text, PASSAGE_WORDS):
                yield format_passage(passage, source=source, title=title)


def _file(path: Path) -> str:
    """The text of a page, empty if the published archive lacks it, as it does for some."""
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def _most_likely(passages: Sequence[Document], question: str, answers: Sequence[str]) -> list[Document]:
    named = re.compile("|".join(rf"\b{re.escape(a.strip())}(?!\w)" for a in answers if a.strip()) or r"(?!)", re.I)
    asked = _words(question)
    holding = [passage for passage in passages if named.search(passage.page_content)]
    return [max(holding, key=lambda passage: len(asked & _words(passage.text)))] if holding else []


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.lower()))


TRIVIAQA = Format("TriviaQA: qa/wikipedia-train.json with --evidence evidence/, or rows of the hub's copy", read)
