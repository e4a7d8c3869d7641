"""Unanswerable questions: does the model abstain when it should, and only then?

Scored as in SQuAD 2.0 (Rajpurkar et al. 2018, "Know What You Don't Know"): an answer to an unanswerable question is
right if it says that there is no answer, and wrong otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from groundtune.evaluation.metrics import generation_scores, normalised
from groundtune.schema import Example

UNANSWERABLE, ANSWERABLE = "abstained/unanswerable", "abstained/answerable"
AGREEMENT = tuple(f"generation/{name}" for name in ("exact_match", "f1", "precision", "recall"))

# How models without fine-tuning usually abstain in English. The source must be mentioned, or "It does not include
# shipping" would count.
_READ = r"(?:passages?|texts?|contexts?|documents?|articles?|sources?|paragraphs?|(?:provided|given) information)"
_NOT = r"(?:do|does|did|is|are|was|were|can)(?: not|n['\u2019]t)|cannot"
_SAID = r"(?:mentioned|stated|specified|provided|given|answered|discussed|included|found|available)"
_UNKNOWN = re.compile(
    rf"\b{_READ}\b[^.!?]{{0,40}}\b(?:{_NOT}) (?:\w+ )?(?:mention|state|specify|provide|give|answer|discuss|include|"
    rf"contain|say|tell|address|indicate|hold|have)|"
    rf"\b(?:{_NOT}) (?:\w+ )?{_SAID} (?:in|by) the \w*\s?{_READ}|"
    r"\b(?:I|we) (?:do not|don['\u2019]t|cannot|can['\u2019]t|could not|couldn['\u2019]t|am unable to|am not able to) "
    r"(?:know|answer|determine|tell|find)|"
    r"\b(?:cannot|can['\u2019]t|can not|could not) be (?:answered|determined)|"
    rf"\b{_READ}\b[^.!?]{{0,40}}\bno (?:information|mention|answer)|"
    rf"\bno (?:information|mention|answer)\b[^.!?]{{0,60}}\b{_READ}|"
    r"\b(?:not enough|insufficient|not sufficient) information|\bunanswerable\b|\bnot answerable\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]?")


def abstains(answer: str, unknown: Collection[str]) -> bool:
    """Whether an answer abstains: it begins with one of the texts `unknown`, normalised as in SQuAD, or its first
    sentence is one that models commonly abstain with in English."""
    said = normalised(answer)
    gold = (normalised(text) for text in unknown)
    if any(text and said[: len(text)] == text for text in gold):
        return True
    first = _SENTENCE.match(answer.strip())
    return bool(first and _UNKNOWN.search(first[0]))


def unknown_texts(examples: Sequence[Example]) -> frozenset[str]:
    """The gold texts of the unanswerable examples; empty if all examples have an answer."""
    return frozenset(text for e in examples if not e.answerable for text in e.acceptable_answers)


def answer_scores(answer: str, example: Example, unknown: Collection[str]) -> dict[str, float]:
    """`metrics.generation_scores`, and whether the answer abstains, named as in `METRICS`.

    For an unanswerable question, exact match, F1, precision and recall are 1 if the answer abstains, else 0; ROUGE and
    BLEU compare its words with the gold answer. `unknown` holds the `unknown_texts` of all examples; if it is empty,
    abstention is not scored.
    """
    scores = generation_scores(answer, example.acceptable_answers)
    if not unknown:
        return scores
    abstained = float(abstains(answer, unknown))
    if example.answerable:
        return {**scores, ANSWERABLE: abstained}
    return {**scores, **dict.fromkeys(AGREEMENT, abstained), UNANSWERABLE: abstained}


def note(examples: Sequence[Example]) -> str:
    """A note for readers of the means; empty if every question has an answer."""
    without = sum(not example.answerable for example in examples)
    if not without:
        return ""
    return (
        f"{without} of {len(examples)} questions are unanswerable: they are excluded from the retrieval means, and "
        "their exact match, F1, precision and recall are 1 if the model abstained, else 0, as in SQuAD 2.0"
    )
