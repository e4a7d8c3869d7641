"""How much of an answer is found in the passages that the model read; measured on the texts, without a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from groundtune.data.words import word_count
from groundtune.evaluation.metrics import token_precision
from groundtune.schema import Document, nfc

# Spans in matching quotation marks. Under three words, a span is a name or a term rather than a quotation.
_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|„([^“”\n]+)[“”]|«([^»\n]+)»|「([^」\n]+)」|『([^』\n]+)』')
_LEAST_WORDS = 3


def groundedness_scores(answer: str, passages: Sequence[Document]) -> dict[str, float]:
    """`grounded/tokens` and, if the answer quotes something, `grounded/quotes`; both in [0, 1], named as in `METRICS`.

    `grounded/tokens` is the token precision of the answer against all passages together (K-precision, Adlakha et al.
    2024, "Evaluating Correctness and Faithfulness of Instruction-Following Models for Question Answering"): each word
    that is in no passage lowers it. It recognises neither a correct paraphrase nor a false statement made of the
    passages' words. Empty answers and empty passages score as in `token_precision`.
    """
    texts = [document.text for document in passages]
    scores = {"grounded/tokens": token_precision(answer, "\n".join(texts))}
    if spans := quoted_spans(answer):
        missing = missing_quotes(answer, passages)
        scores["grounded/quotes"] = 1 - len(missing) / len(spans)
    return scores


def quoted_spans(answer: str) -> list[str]:
    """The spans of at least three words that an answer puts in quotation marks, in order."""
    spans = (next(filter(None, groups)) for groups in _QUOTED.findall(answer))
    return [span for span in spans if word_count(span) >= _LEAST_WORDS]


def missing_quotes(answer: str, passages: Sequence[Document]) -> list[str]:
    """The quoted spans found in no passage, ignoring case, whitespace and trailing punctuation."""
    texts = [_plain(document.text) for document in passages]
    return [span for span in quoted_spans(answer) if not any(_plain(span).rstrip(".,;:!? ") in text for text in texts)]


def _plain(text: str) -> str:
    return " ".join(nfc(text).lower().split())
