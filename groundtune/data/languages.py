"""Which language a text is in: by its script, or by its commonest words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex

from groundtune.data.words import words

NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "sv": "Swedish", "pl": "Polish", "tr": "Turkish", "zh": "Chinese", "ja": "Japanese",
    "ko": "Korean", "th": "Thai", "lo": "Lao", "km": "Khmer", "my": "Burmese", "ru": "Cyrillic script",
    "el": "Greek", "ar": "Arabic script", "he": "Hebrew", "hi": "Devanagari script", "bn": "Bengali", "ta": "Tamil",
    "te": "Telugu", "ka": "Georgian", "hy": "Armenian",
}  # fmt: skip
# Words that are frequent in one language and rare in the others.
_COMMON = {
    "en": "the and of is are was you your with for this that not it be can how what which when does do there a an as "
    "at by in on no or if we they he she will from have has been must may one",
    "de": "der die das und ist nicht ein eine einen mit für auf den dem sie wir werden kann wie auch im zum zur "
    "sind kostet gilt am es ich",
    "fr": "le les des est et une un du de la à où je dans pour pas vous nous avec sur qui aux cette être sont ce il au "
    "ne",
    "es": "el la de los las una un no en lo hay por con para del que y se su está son como más pero tiene hay puede",
    "it": "il la lo un i gli di è che un per con non della sono si del nel alla come più questo ha anche",
    "pt": "o os um uma é em para com não do da dos das que se no na você são por mais ao",
    "nl": "het een en van is niet op te dat de zijn voor met aan er om hebben wordt deze kan",
    "sv": "och att det som en är på för av med den till inte har om ett kan du eller från",
    "pl": "i w na z się nie jest to do że jak są dla od przez oraz może być po ale",
    "tr": "ve bir bu için ile da de ne çok daha olarak olan gibi kadar veya değil var en mı mi",
}
_OF_WORD: dict[str, list[str]] = {}
for _language, _words in _COMMON.items():
    for _word in _words.split():
        _OF_WORD.setdefault(_word, []).append(_language)
# One letter of the script is enough; Japanese before Chinese, as it uses both. Scripts that several languages share
# stand for one of them here.
_SCRIPTS = {
    "ja": r"[\p{Hiragana}\p{Katakana}]", "ko": r"\p{Hangul}", "zh": r"\p{Han}", "th": r"\p{Thai}", "lo": r"\p{Lao}",
    "km": r"\p{Khmer}", "my": r"\p{Myanmar}", "ru": r"\p{Cyrillic}", "el": r"\p{Greek}{3}", "ar": r"\p{Arabic}",
    "he": r"\p{Hebrew}", "hi": r"\p{Devanagari}", "bn": r"\p{Bengali}", "ta": r"\p{Tamil}", "te": r"\p{Telugu}",
    "ka": r"\p{Georgian}", "hy": r"\p{Armenian}",
}  # fmt: skip
_OF_SCRIPT = [(language, regex.compile(script)) for language, script in _SCRIPTS.items()]
_FEW = 4
_LATIN = regex.compile(r"\p{Latin}")
DECIMAL_COMMA = frozenset(["de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "ru", "el", "ka", "hy"])
UNSPACED = frozenset(["zh", "ja", "th", "lo", "km", "my"])


RECOGNISED = frozenset(["en", "de", "fr", "es", "it", "pt", "zh", "ja"])  # for abstentions and contradictions


def limits_of(language: str, term_search: bool, unanswerable: bool) -> list[str]:
    """What cannot be measured, or is measured otherwise, in a language. `term_search`: BM25 is used."""
    found = []
    if language in UNSPACED or language == "ko":
        found.append("F1, ROUGE and BLEU compare characters, not words, so do not compare them with other languages")
    elif language != "en":
        found.append("ROUGE does not join the forms of a word, as it does in English")
    if language not in RECOGNISED:
        found.append("contradictions are found in numbers, but not in yes and no")
        if unanswerable:
            found.append("an answer that says it does not know is recognised by the gold texts only; add --abstentions")
    if term_search and language == "de":
        found.append(
            'BM25 does not take compounds apart, so "Versicherung" does not find "Haftpflichtversicherung"; use '
            "--retriever hybrid or dense"
        )
    elif term_search and language in ("ru", "pl", "tr", "ar", "he"):
        found.append("BM25 does not join the forms of a word; use --retriever hybrid or dense")
    return found


def language_of(text: str, least: int = 1) -> str:
    """The code of a text's language; empty if its words decide nothing, as in "1.000" or a name.

    `least`: how many words of a language in Latin script must be there.
    """
    if not text.isascii():
        counts = {language: len(script.findall(text)) for language, script in _OF_SCRIPT}
        first = next((language for language, count in counts.items() if count), "")
        # A foreign name in a Latin text does not decide; in East Asian text, a Latin name is often the longer part.
        if first and 3 * sum(counts.values()) >= len(_LATIN.findall(text)):
            return first if first in ("ja", "ko") else max(counts, key=lambda language: counts[language])
    found = Counter(language for word in set(words(text)) for language in _OF_WORD.get(word, ()))
    (first, count), (_, next_count) = [*found.most_common(2), ("", 0), ("", 0)][:2]
    if len(words(text)) > _FEW:
        least = max(least, 2)  # one may be a name
    return first if count >= least and count > next_count else ""


def languages_of(texts: Iterable[str]) -> Counter[str]:
    """How many of the texts are in each language; "No." alone, which may be of several, is in none."""
    return Counter(language for text in texts if (language := language_of(text, least=2)))
