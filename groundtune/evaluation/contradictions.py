"""Does an answer contradict the gold answer? Rules for yes and no, negation, numbers, units and dates.

A rule speaks only where both texts are about the same thing: the rest counts as no contradiction. What the rules find
is measured on pairs labelled by hand (`tests/comparison/contradictions.jsonl`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from groundtune.data.languages import DECIMAL_COMMA, language_of
from groundtune.data.words import FILLERS, folded, stem, words
from groundtune.evaluation.abstention import abstains
from groundtune.evaluation.quantities import Quantity, dates_of, quantities_of
from groundtune.schema import Example

_YES = {
    "en": "yes yeah yep certainly definitely", "de": "ja", "fr": "oui", "es": "sí", "it": "sì", "pt": "sim", "ru": "да",
    "zh": "是的 是 可以 能 会 有 需要 对", "ja": "はい", "ko": "네 예",
}  # fmt: skip
_NO = {
    "en": "no nope", "de": "nein", "fr": "non", "es": "no", "it": "no", "pt": "não", "ru": "нет",
    "zh": "不是 不可以 不能 不会 没有 不需要 不用 不行", "ja": "いいえ", "ko": "아니요 아니오",
}  # fmt: skip
_REGRET = (
    r"(?:(?:unfortunately|sorry|i'?m afraid|leider|malheureusement|lamentablemente|purtroppo|infelizmente)[\s,]+)?"
)
_UNSPACED = ("zh", "ja", "ko")


def _leading(table: dict[str, str]) -> re.Pattern[str]:
    spaced = "|".join(word for language, said in table.items() if language not in _UNSPACED for word in said.split())
    joined = "|".join(word for language in _UNSPACED for word in table[language].split())
    ends = r"(?=\s*(?:[,.;:!\u2014\u3001\u3002\uff0c-]|$))" if table is _YES else ""
    return re.compile(rf"{_REGRET}(?:(?:{spaced})(?=\s*(?:[,.;:!\u2014-]|$))|(?:{joined}){ends})")


_LEADING_YES, _LEADING_NO = _leading(_YES), _leading(_NO)
# A question that asks for the opposite: "no" may then mean that it is so.
_TURNED = re.compile(r"\b(?:mind|object|not)\b|n['\u2019]t\b|\bnicht\b|\bpas\b", re.IGNORECASE)
_LIMITED = re.compile(r"\b(?:never|without|only|ohne|sans|sin|senza|sem)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nothing|cannot|neither|nor|nicht|kein\w*|nie|ne|n'|aucune?|jamais|non|nunca|não|"
    r"nenhum\w*|\u043d\u0435|\u043d\u0435\u043b\u044c\u0437\u044f|\u043d\u0435\u0442)\b|n't\b|不|没|無|ません|ない(?:$|[。、])"
)
_SOURCE = re.compile(r"\binformation\b|\bdocuments\b|\bpassages?\b|\bcontext\b")
# Words that limit a statement, or deny it without "not": comparing negations would go wrong.
_LIMITS = frozenset(
    words("only except unless without outside until before beyond other others otherwise than but nur außer ohne")
)


_LONGEST = 4000  # characters of a text that are compared


def contradicts(answer: str, gold: str, question: str = "") -> bool:
    """Whether the answer contradicts the gold answer, as far as the rules can tell."""
    said, wanted = _Text(answer), _Text(gold)
    if not said.plain or not wanted.plain or said.silent or wanted.silent:
        return False
    comma = language_of(f"{question} {gold} {answer}") in DECIMAL_COMMA
    return (
        _opposite(said, wanted, question)
        or _negated(said, wanted)
        or _other_quantity(said, wanted, question, comma)
        or _other_date(said, wanted, question)
    )


def contradiction_scores(answer: str, example: Example) -> dict[str, float]:
    """`generation/contradiction`: 1 if the answer contradicts every acceptable answer, else 0; none for a question
    without an answer."""
    if not example.answerable:
        return {}
    found = (contradicts(answer, gold, example.question) for gold in example.acceptable_answers)
    return {"generation/contradiction": float(all(found))}


@dataclass(frozen=True)
class _Text:
    """A text as the rules compare it."""

    raw: str

    @cached_property
    def plain(self) -> str:
        return folded(self.raw[:_LONGEST]).replace("\u2019", "'").lower().strip(" \t\n*_\"'")

    @cached_property
    def first(self) -> str:
        """The first sentence, without the yes or no that opens it."""
        return re.split(r"(?<=[a-z)%\u3040-\u9fff])[.;!?\u3002](?:\s|$)|\n|\u3002", self.plain, maxsplit=1)[0]

    @property
    def silent(self) -> bool:
        """Whether it says that it does not know, and so neither yes nor no."""
        return abstains(self.raw, ()) or bool(self.negations and _SOURCE.search(self.first))

    @property
    def opening(self) -> int:
        """1 for a leading yes, -1 for a leading no, else 0."""
        if _LEADING_NO.match(self.plain):
            return -1
        return int(bool(_LEADING_YES.match(self.plain)))

    @property
    def negations(self) -> int:
        return len(_NEGATION.findall(self.first))


def _stems(text: str) -> set[str]:
    """The words that carry content, without endings: "covers" and "covered" are one."""
    found = (word for word in words(text) if word not in FILLERS and not _NEGATION.fullmatch(word))
    return {stem(word) for word in found if word not in _AUXILIARIES}


_AUXILIARIES = frozenset(
    words(
        "isn aren don doesn didn did won wouldn couldn shouldn t s should could would must need am had also even still "
        "longer just my i we me our yes no"
    )
)


def _opposite(said: _Text, wanted: _Text, question: str) -> bool:
    """One text says yes and the other no; the word itself may be missing if its sentence repeats the question."""
    if _TURNED.search(question):
        return False
    mine, theirs = _stance(said, question), _stance(wanted, question)
    return mine * theirs < 0 and (said.opening != 0 or wanted.opening != 0)


def _stance(text: _Text, question: str) -> int:
    if text.opening or _LIMITED.search(question) or not re.search(r"[?\uff1f\u061f]", question):
        return text.opening
    asked, first = _stems(re.split(r"[.!] ", question.strip())[-1]), _stems(text.first)
    if not asked or len(asked & first) < max(2, 0.5 * len(asked)) or words(text.first).count("only"):
        return 0
    return -1 if text.negations % 2 else 1


def _negated(said: _Text, wanted: _Text) -> bool:
    """Both say the same words, one of them with a negation."""
    if said.opening or wanted.opening or (said.negations + wanted.negations) % 2 == 0:
        return False
    mine, theirs = _stems(said.first), _stems(wanted.first)
    if len(mine & theirs) < 2 or _LIMITS & ({*words(said.first)} ^ {*words(wanted.first)}):
        return False
    return len(mine ^ theirs) <= 1 and len(mine & theirs) >= 0.75 * max(len(mine), len(theirs))


_ASKS_AMOUNT = re.compile(
    r"\bhow (?:many|much|long|old|far|large|big|often|heavy|wide|high|tall|fast|hot|late)\b|"
    r"\bwhat (?:is|are|was) the\b|"
    r"\bwhat (?:percentage|share|number|commission|fee|size|rate|does|memory|temperature)\b|\bby how\b|"
    r"\bwie (?:viele?|lange|hoch|oft|weit|gross|groß)\b|\bwas kostet\b|\bcombien\b|\bcuánt\w+|\bquant\w+|"
    r"几|多少|多久|何|いくら|いくつ|сколько",
    re.IGNORECASE,
)
_ASKS_DATE = re.compile(
    r"\bwhen\b|\bwhat (?:year|day|date|time|month)\b|\bwhich (?:year|day|date|month)\b|\bdeadline\b|\bin what month\b|"
    r"\buntil what\b|\bwann\b|\bquand\b|\bcuándo\b|\bquando\b|\bquelle heure\b|什么时候|何时|いつ|何時|когда",
    re.IGNORECASE,
)
_SHORT = 25  # words up to which two statements are taken to be about one thing


def _one_thing(said: _Text, wanted: _Text) -> bool:
    mine, theirs = _stems(said.plain), _stems(wanted.plain)
    short = max(len(words(said.plain)), len(words(wanted.plain))) <= _SHORT
    return short and len(mine & theirs) >= 0.5 * min(len(mine), len(theirs))


def _other_quantity(said: _Text, wanted: _Text, question: str, comma: bool) -> bool:
    """Both give an amount of the same kind, and no amount of one fits any of the other."""
    asks = bool(_ASKS_AMOUNT.search(question))
    if not asks and not _one_thing(said, wanted):
        return False
    mine, theirs = quantities_of(said.plain, comma), quantities_of(wanted.plain, comma)
    for kind in {one.kind for one in theirs}:
        pair = [one for one in mine if one.kind == kind], [one for one in theirs if one.kind == kind]
        if pair[0] and not _fits(*pair) and (kind != "count" or _same_things(*pair, asks)):
            return True
    return _other_currency(mine, theirs) or (asks and _bare_against_unit(mine, theirs, question))


def _fits(mine: Sequence[Quantity], theirs: Sequence[Quantity]) -> bool:
    return any(a.fits(b) for a, b in product(mine, theirs))


def _same_things(mine: Sequence[Quantity], theirs: Sequence[Quantity], asks: bool) -> bool:
    """Whether counts are of the same things: by their noun, or as the only ones that a question for an amount gets."""
    nouns = {stem(one.noun) for one in mine} & {stem(one.noun) for one in theirs} - {""}
    return bool(nouns) or (asks and len(mine) == len(theirs) == 1)


def _other_currency(mine: Sequence[Quantity], theirs: Sequence[Quantity]) -> bool:
    """20 euros against 20 dollars; other amounts may be a conversion."""
    money = [{one.kind: one for one in side if one.kind.startswith("money")} for side in (mine, theirs)]
    return (
        all(len(side) == 1 for side in money)
        and not (money[0].keys() & money[1].keys())
        and (next(iter(money[0].values())).low == next(iter(money[1].values())).low)
    )


def _bare_against_unit(mine: Sequence[Quantity], theirs: Sequence[Quantity], question: str) -> bool:
    """ "18 or older" against "21 years old"."""
    if not re.search(r"\bhow old\b|\bage\b", question, re.IGNORECASE):
        return False
    values = [{one.written for one in side} for side in (mine, theirs)]
    return all(values) and not values[0] & values[1]


def _other_date(said: _Text, wanted: _Text, question: str) -> bool:
    """Both name a year, month, day, weekday or time of day, and have none in common."""
    if not _ASKS_DATE.search(question) and not _one_thing(said, wanted):
        return False
    mine, theirs = dates_of(said.plain), dates_of(wanted.plain)
    return any(mine[part] and theirs[part] and not mine[part] & theirs[part] for part in theirs if part in mine)
