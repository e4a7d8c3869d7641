"""Natural Questions (Kwiatkowski et al. 2019): the simplified format, and the original one of the development set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from groundtune.data.entries import Record
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, child, children, converted, records
from groundtune.schema import Document

_NEED = (
    'a question is {"question_text", "document_text", "long_answer_candidates": [{"start_token", "end_token", '
    '"top_level"}], "annotations": [{"long_answer", "short_answers", "yes_no_answer"}]}'
)
_TAG = re.compile(r"<[^ >]+>")
_NEW_LINE = {"<P>", "<Tr>", "<Li>", "<Dd>", "<Dt>", "<Ul>", "<Ol>", "<Dl>", "<Table>"}


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Every top-level candidate of a page becomes a document; the one that contains the long answer is gold.

    The answers are the short answers, one for each annotator, or yes and no. A question without a long answer is
    unanswerable: its gold document is the page's first paragraph. A question with only a long answer is left out. As
    in the official evaluation, an answer counts if at least two of five annotators have found one.
    """
    for record in records(path, problems):
        tokens = _tokens(record)
        candidates = [_Span(c, tokens) for c in children(record, "long_answer_candidates", _NEED)]
        passages = _passages(record, tokens, candidates)
        annotations = list(children(record, "annotations", _NEED))
        enough = min(2, len(annotations))
        long = [span for a in annotations if (span := _long_answer(a, tokens)).words]
        answers = [answer for a in annotations if (answer := _short_answer(a, tokens))]
        answerable = len(long) >= enough
        gold = [passage for span, passage in passages if answerable and span.holds(long[0])][:1]
        yield converted(
            record.text("question_text", _NEED, may_be_blank=True),
            (answers if len(answers) >= enough else []) if answerable else [options.unanswerable],
            gold if answerable else _first_paragraph(passages),
            documents=[passage for _, passage in passages],
            answerable=answerable,
            source=record.where,
        )


class _Span:
    """Tokens `start` to `end` of a page; a missing span (both are -1) has no words."""

    def __init__(self, record: Record, tokens: Sequence[str]) -> None:
        start, end = (record.fields.get(name) for name in ("start_token", "end_token"))
        if not (isinstance(start, int) and isinstance(end, int) and end <= len(tokens)):
            record.note("start_token", f"{start} to {end} is no span of {len(tokens)} tokens; {_NEED}")
            start = end = -1
        self.start, self.end = start, end
        self.top_level = record.fields.get("top_level", True)
        self.words = tokens[self.start : self.end] if 0 <= self.start < self.end else []

    def holds(self, other: _Span) -> bool:
        return self.start <= other.start and other.end <= self.end


def _tokens(record: Record) -> list[str]:
    original = record.fields.get("document_tokens")
    if isinstance(original, list):
        return [str(token.get("token", "")) if isinstance(token, dict) else "" for token in original]
    return record.text("document_text", _NEED).split(" ")  # split at spaces only, as the spans' token numbers do


def _passages(record: Record, tokens: list[str], candidates: list[_Span]) -> list[tuple[_Span, Document]]:
    url = record.text("document_url", _NEED, required=False)
    title = record.text("document_title", _NEED, required=False) or _title_in(url)
    texts = ((span, _text(span.words)) for span in candidates if span.top_level)
    return [(span, format_passage(text, source=url, title=title)) for span, text in texts if text]


def _first_paragraph(passages: list[tuple[_Span, Document]]) -> list[Document]:
    paragraphs = [passage for span, passage in passages if span.words[0] == "<P>"]
    return (paragraphs or [passage for _, passage in passages])[:1]


def _long_answer(annotation: Record, tokens: list[str]) -> _Span:
    return _Span(child(annotation, "long_answer", _NEED), tokens)


def _short_answer(annotation: Record, tokens: list[str]) -> str:
    """The answer of one annotator, with its spans joined: a question that asks for a list has several."""
    spans = [_Span(span, tokens) for span in annotation.records("short_answers", _NEED)]
    words = ", ".join(text for span in spans if (text := _text(span.words)))
    said = annotation.fields.get("yes_no_answer")
    return words or {"YES": "yes", "NO": "no"}.get(said if isinstance(said, str) else "", "")


def _text(tokens: Sequence[str]) -> str:
    """Running text: no tags, rows and list items on separate lines, no spaces before punctuation."""
    text = " ".join("\n" if t in _NEW_LINE else t for t in tokens if t in _NEW_LINE or not _TAG.fullmatch(t))
    text = text.replace("``", '"').replace("''", '"')
    text = re.sub(r" +([,.;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)", r"\1", text)
    text = re.sub(r"([(\[{]) +", r"\1", text)
    return re.sub(r" *\n[ \n]*", "\n", text).strip()


def _title_in(url: str) -> str:
    parts = urlsplit(url)
    named: Any = parse_qs(parts.query).get("title", [])
    return (named[0] if named else unquote(parts.path.rpartition("/")[2])).replace("_", " ")


NATURAL_QUESTIONS = Format("Natural Questions: simplified-nq-train.jsonl.gz, or the original nq-dev-*.jsonl.gz", read)
