"""HotpotQA (Yang et al. 2018): questions over two Wikipedia paragraphs among ten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from groundtune.data.entries import Record
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, children, converted, records
from groundtune.schema import Document

_NEED = 'a question is {"question", "answer", "supporting_facts": [[title, 0]], "context": [[title, [sentence]]]}'


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """The paragraphs with supporting facts are gold, the others hard negatives."""
    for record in records(path, problems):
        facts = children(record, "supporting_facts", _NEED, pair=("title", "sent_id"))
        supporting = {fact.text("title", _NEED) for fact in facts}
        paragraphs = dict(_paragraphs(record))
        gold = [passage for title, passage in paragraphs.items() if title in supporting]
        yield converted(
            record.text("question", _NEED, may_be_blank=True),
            [record.text("answer", _NEED, required=False)],
            # One of two paragraphs is not enough to answer; some are missing in the full-wiki files.
            gold if len(gold) == len(supporting) else [],
            negatives=[passage for title, passage in paragraphs.items() if title not in supporting],
            source=record.where,
        )


def _paragraphs(record: Record) -> Iterator[tuple[str, Document]]:
    for paragraph in children(record, "context", _NEED, pair=("title", "sentences")):
        title = paragraph.text("title", _NEED)
        text = "".join(paragraph.texts("sentences", _NEED)).strip()
        if text:
            yield title, format_passage(text, title=title)


HOTPOTQA = Format("HotpotQA: hotpot_train_v1.1.json, or rows of the hub's copy", read)
