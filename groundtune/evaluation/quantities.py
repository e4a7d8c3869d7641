"""Amounts and dates in a text, in units that can be compared: "two weeks" is 14 days, "5 pm" is 17:00."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from groundtune.data.numbers import value_of

_TOLERANCE = 0.05  # a month is 30 days or 31, a GB 1000 MB or 1024


@dataclass(frozen=True)
class Quantity:
    """An amount from `low` to `high` in the base unit of its kind; `written` is its number, `noun` what is counted."""

    kind: str
    low: float
    high: float
    written: float
    noun: str = ""

    def fits(self, other: Quantity) -> bool:
        """Whether both may be true: the ranges overlap, and two limits of the same sort are equal."""
        if self.open_end and self.open_end == other.open_end:
            return math.isclose(self.limit, other.limit, rel_tol=_TOLERANCE)
        slack = _TOLERANCE * min(abs(self.limit), abs(other.limit)) if self.kind != "count" else 0.0
        return self.low <= other.high + slack and other.low <= self.high + slack

    @property
    def open_end(self) -> int:
        return (self.high == math.inf) - (self.low == -math.inf)

    @property
    def limit(self) -> float:
        return self.low if math.isfinite(self.low) else self.high


_NUMBER_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100,
    "dozen": 12, "once": 1, "twice": 2,
    "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6, "sieben": 7, "acht": 8, "neun": 9, "zehn": 10, "zwölf": 12,
    "deux": 2, "trois": 3, "quatre": 4, "cinq": 5, "sept": 7, "huit": 8, "neuf": 9, "dix": 10, "douze": 12,
    "dos": 2, "tres": 3, "cuatro": 4, "cinco": 5, "seis": 6, "siete": 7, "ocho": 8, "nueve": 9, "diez": 10,
    "due": 2, "tre": 3, "quattro": 4, "cinque": 5, "sei": 6, "sette": 7, "otto": 8, "nove": 9, "dieci": 10,
    "dois": 2, "duas": 2, "três": 3, "quatro": 4, "sete": 7, "oito": 8, "dez": 10,
}  # fmt: skip
_DAY = 86_400.0
# Unit -> kind and size in the base unit of its kind.
_UNITS: dict[str, tuple[str, float]] = {}


def _units(kind: str, **sizes: float) -> None:
    _UNITS.update({name: (kind, size) for names, size in sizes.items() for name in names.split("_")})


_units("time", second_sekunde_seconde_segundo_secondo_sec=1, minute_min_minuto_分=60)
_units("time", hour_hr_stunde_heure_hora_ora_小时_小時_時間=3600, day_tag_jour_día_dia_giorno_天_日_日間=_DAY)
_units("time", week_woche_semaine_semana_settimana_周_週_週間_星期=7 * _DAY)
_units("time", month_monat_mois_mes_meses_mese_mesi_mês_个月_ヶ月_か月=365 * _DAY / 12)
_units("time", year_jahr_an_ans_année_año_anno_anni_ano_年=365 * _DAY)
_units("length", mm=1e-3, cm_centimeter_centimetre=1e-2, m_meter_metre=1, km_kilometer_kilometre=1e3)
_units("length", inch_inches=0.0254, foot_feet_ft=0.3048, yard=0.9144, mile_mi=1609.344)
_units("weight", mg=1e-3, g_gram_gramm=1, kg_kilo_kilogram=1e3, lb=453.6, oz_ounce=28.35, ton_tonne=1e6)
_units("volume", ml=1e-3, l_liter_litre=1, gallon=3.785)
_units("data", kb_kilobyte=1e3, mb_megabyte=1e6, gb_gigabyte=1e9, tb_terabyte=1e12)
_units("frequency", hz_hertz=1, khz=1e3, mhz=1e6, ghz=1e9)
_units("percent", percent_prozent=1)
_units("money $", dollar_usd=1)
_units("money €", euro_eur=1)
_units("money £", gbp=1)
_units("money ¥", yuan_元_円_yen=1)
_UNITS |= {"%": ("percent", 1), "$": ("money $", 1), "€": ("money €", 1), "£": ("money £", 1), "¥": ("money ¥", 1)}
_DIGITS = r"[0-9]+(?:[.,][0-9]+)*(?:[ \u00a0\u202f][0-9]{3}(?![0-9]))*"
_WORDS = "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))
_ONE = rf"(?:{_DIGITS}|(?:{_WORDS})(?:[ -](?:{_WORDS}))?(?![^\W\d_]))"
_BETWEEN = r"\s*(?:to|-|\u2013|bis|à|a|or|and)\s*"
_SCALE = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "millionen": 1e6, "millions": 1e6, "millones": 1e6}
_CJK_UNIT = "个月|ヶ月|か月|小时|小時|時間|分|天|日間|日|週間|周|週|星期|年|人|元|円|位|次|回|个|名"
_AT_LEAST = r"at least|more than|over|above|minimum of|mindestens|au moins|al menos|almeno"
_AT_MOST = r"up to|at most|less than|under|below|within|maximum of|no more than|höchstens|bis zu|jusqu'à"
_AMOUNT = re.compile(
    rf"(?P<least>\b(?:{_AT_LEAST})\s+)?(?P<most>\b(?:{_AT_MOST})\s+)?(?P<currency>[$€£¥])?\s*"
    rf"(?<![a-zà-ÿ0-9_.,#/:-])(?P<first>{_ONE})(?:{_BETWEEN}[$€£¥]?(?P<second>{_ONE})(?!\w))?"
    rf"(?:\s+(?P<scale>{'|'.join(_SCALE)})\b)?"
    rf"(?:\s*(?:°|degrees?)\s*(?P<degree>c|f|celsius|fahrenheit)\b|\s*(?P<sign>[%€$£])|\s*(?P<cjk>{_CJK_UNIT})|"
    r"\s?(?:(?:business|working|calendar|full) )?(?P<unit>[^\W\d_]+))?(?P<more>\s+or (?:more|older|over|later))?"
)
_CJK_NUMBER = re.compile(rf"[一二两三四五六七八九十百]{{1,7}}(?={_CJK_UNIT})")
_CJK_DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"两": 2}
_SPECIAL = (
    (re.compile(r"\ban hour and a half\b"), "90 minutes"),
    (re.compile(r"\bhalf an hour\b"), "30 minutes"),
    (re.compile(r"\b(?:a )?half of\b|\bhalf the\b"), "50 % "),
    (re.compile(r"\ba quarter of\b"), "25 % "),
    (re.compile(r"\b(?:for|in|lasts|within|of|takes) (?:a|an) (?=(?:second|minute|hour|day|week|month|year)\b)"), "1 "),
    (re.compile(r"\ba dozen\b"), "12"),
    (re.compile(r"(?m)^\s*[0-9]+[.)] "), " "),
    (re.compile(r"\b(?:step|page|chapter|section|version|error|level|figure|table|line) [0-9.]+"), " "),
    (re.compile(r"\b[0-9]{1,2}(?:st|nd|rd|th)\b|\b[0-9]+-[0-9-]+\b"), " "),
)


def quantities_of(text: str, comma: bool = False) -> list[Quantity]:
    """The amounts in a text in lower case; dates, versions, list numbers and names are left out.

    `comma`: "1.000" is a thousand and "1,5" one and a half.
    """
    text = _CJK_NUMBER.sub(lambda found: str(_from_cjk(found[0])), text)
    for pattern, meaning in _SPECIAL:
        text = pattern.sub(meaning, text)
    for pattern in _DATE_PATTERNS:
        text = pattern.sub(" ", text)
    return [one for found in _AMOUNT.finditer(text) if (one := _quantity(found, comma))]


def _from_cjk(number: str) -> int:
    total, digit = 0, 0
    for character in number:
        if character in "十百":
            total += (digit or 1) * (10 if character == "十" else 100)
            digit = 0
        else:
            digit = _CJK_DIGITS[character]
    return total + digit


def _number(text: str, comma: bool) -> float | None:
    if text[0].isdigit():
        value = value_of(text, comma)
        return None if value is None else float(value)
    parts = [_NUMBER_WORDS[part] for part in re.split("[ -]", text) if part]
    return float(parts[0] * parts[1] if len(parts) > 1 and parts[1] == 100 else sum(parts))


def _quantity(found: re.Match[str], comma: bool) -> Quantity | None:
    first = _number(found["first"], comma)
    second = _number(found["second"], comma) if found["second"] else first
    if first is None or second is None:
        return None
    scale = _SCALE.get(found["scale"] or "", 1)
    unit = found["currency"] or found["sign"] or found["cjk"] or found["unit"] or ""
    if found["degree"]:
        low, high = ((value - 32) / 1.8 if found["degree"][0] == "f" else value for value in (first, second))
        return _ranged(found, "temperature", low, high, first, "")
    kind, size = _unit_of(unit)
    noun = unit if kind == "count" else ""
    return _ranged(found, kind, first * scale * size, second * scale * size, first, noun)


def _unit_of(name: str) -> tuple[str, float]:
    for one in (name, name.removesuffix("s"), name.removesuffix("en"), name.removesuffix("n"), name.removesuffix("e")):
        if one in _UNITS:
            return _UNITS[one]
    return "count", 1


def _ranged(found: re.Match[str], kind: str, low: float, high: float, written: float, noun: str) -> Quantity:
    if found["least"] or found["more"]:
        return Quantity(kind, low, math.inf, written, noun)
    if found["most"]:
        return Quantity(kind, -math.inf, high, written, noun)
    return Quantity(kind, min(low, high), max(low, high), written, noun)


# Dates
_MONTHS = [
    "january januar janvier enero gennaio janeiro jan", "february februar février febrero febbraio fevereiro feb",
    "march märz mars marzo março mar", "april avril abril aprile apr", "may mai mayo maggio maio",
    "june juni juin junio giugno junho jun", "july juli juillet julio luglio julho jul",
    "august août agosto aug", "september septembre septiembre settembre setembro sep sept",
    "october oktober octobre octubre ottobre outubro oct okt", "november novembre noviembre novembro nov",
    "december dezember décembre diciembre dicembre dezembro dec dez",
]  # fmt: skip
_MONTH_OF = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
_DAYS = [
    "monday montag lundi lunes lunedì", "tuesday dienstag mardi martes martedì",
    "wednesday mittwoch mercredi miércoles mercoledì", "thursday donnerstag jeudi jueves giovedì",
    "friday freitag vendredi viernes venerdì", "saturday samstag sonnabend samedi sábado sabato",
    "sunday sonntag dimanche domingo domenica",
]  # fmt: skip
_DAY_OF = {name: number for number, names in enumerate(_DAYS) for name in names.split()}
_MONTH, _WEEKDAY = "|".join(_MONTH_OF), "|".join(_DAY_OF)
_ISO = re.compile(r"\b(?P<year>[12][0-9]{3})-(?P<month>[01]?[0-9])-(?P<day>[0-3]?[0-9])\b")
_POINTS = re.compile(r"\b(?P<day>[0-3]?[0-9])\.\s?(?P<month>[01]?[0-9])\.\s?(?P<year>[12][0-9]{3})\b")
_DAY_FIRST = re.compile(
    rf"\b(?P<day>[0-3]?[0-9])(?:st|nd|rd|th|\.|er)?\s+(?:of |de |di )?(?P<month>{_MONTH})\b\.?,?"
    r"(?:\s+(?:de )?(?P<year>[12][0-9]{3}))?"
)
_MONTH_FIRST = re.compile(
    rf"\b(?P<month>{_MONTH})\b\.?(?:\s+(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?(?![0-9]))?"
    r"(?:,?\s+(?P<year>[12][0-9]{3}))?"
)
_YEAR = re.compile(  # unless it is an amount of something
    r"(?<![\w.,$€£-])(?P<year>1[0-9]{3}|20[0-9]{2})(?![\w%,.]*[0-9])"
    r"(?!\s*(?:[^\W\d_]*(?:bytes?|seats?|dollars?|euros?|people|gr?a?m?s?|km|hz|mb|gb|元|円)\b|[%€$£]))"
)
_CLOCK = re.compile(
    r"\b(?P<hour>[0-2]?[0-9])(?:[:.](?P<minute>[0-5][0-9]))?\s*(?P<half>a\.?m\b|p\.?m\b|uhr\b|h\b)"
    r"|\b(?P<hour2>[0-2]?[0-9]):(?P<minute2>[0-5][0-9])\b"
)
_DATE_PATTERNS = (_ISO, _POINTS, _DAY_FIRST, _MONTH_FIRST, _YEAR, _CLOCK)
_SPAN = re.compile(rf"\b(?P<first>{_WEEKDAY})s?\s*(?:to|through|-|\u2013|bis|à|a)\s*(?P<last>{_WEEKDAY})s?\b")


def dates_of(text: str) -> dict[str, set[int]]:
    """The years, months, days (month and day), weekdays and times (minutes) that a text in lower case names."""
    parts: dict[str, set[int]] = {"year": set(), "month": set(), "day": set(), "weekday": set(), "time": set()}
    for pattern in (_ISO, _POINTS, _DAY_FIRST, _MONTH_FIRST, _YEAR):
        for found in pattern.finditer(text):
            _add(found.groupdict(), parts)
        text = pattern.sub(" ", text)
    for found in _SPAN.finditer(text):
        first, last = _DAY_OF[found["first"]], _DAY_OF[found["last"]]
        parts["weekday"] |= {day % 7 for day in range(first, last + 1 if last >= first else last + 8)}
    parts["weekday"] |= {_DAY_OF[name] for name in re.findall(rf"\b({_WEEKDAY})s?\b", text)}
    parts["weekday"] |= set(range(5)) if re.search(r"\bweekdays?\b", text) else set()
    parts["weekday"] |= {5, 6} if re.search(r"\bweekends?\b", text) else set()
    parts["time"] = {minutes for found in _CLOCK.finditer(text) if (minutes := _minutes(found)) is not None}
    return parts


def _add(found: dict[str, str | None], parts: dict[str, set[int]]) -> None:
    if year := found.get("year"):
        parts["year"].add(int(year))
    if name := found.get("month"):
        month = int(name) if name.isdigit() else _MONTH_OF[name]
        parts["month"].add(month)
        if day := found.get("day"):
            parts["day"].add(100 * month + int(day))


def _minutes(found: re.Match[str]) -> int | None:
    hour, minute = int(found["hour"] or found["hour2"]), int(found["minute"] or found["minute2"] or 0)
    if (found["half"] or "").startswith("p") and hour < 12:
        hour += 12
    if (found["half"] or "").startswith("a") and hour == 12:
        hour = 0
    return 60 * hour + minute if hour < 24 else None
