"""What a sweep found, as Markdown with one table and one plot, made from the figures of its finished cells alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from groundtune.data.files import write_text
from groundtune.errors import DataError
from groundtune.evaluation.figures import Figures
from groundtune.evaluation.standings import BETTER, UNCLEAR, WORSE, At, Standing, Standings, spread_of_seeds, standings
from groundtune.evaluation.statistics import Interval
from groundtune.evaluation.verdicts import ERRORS, F1, SCORES
from groundtune.reporting.markdown import md, md_table
from groundtune.reporting.plots import as_file, systems_plot
from groundtune.runs.cells import Plan
from groundtune.system.inputs import read_text
from groundtune.system.text import counted

NOT_MEASURED = "not measured"
_NAMED_BY_GROUP = ("citations", "grounded")  # "recall" alone would be that of an answer
_BEGIN, _END = "<!-- sweep {name}: begin -->", "<!-- sweep {name}: end -->"


def places(plan: Plan) -> list[At]:
    """Where the metric is read: every evaluation and context of the plan, in order; the first one decides."""
    asked = {one.name: one for cell in plan.cells for one in cell.evaluations}
    return [At(name, context, plan.metric) for name, one in asked.items() for context in one.contexts]


def all_standings(plan: Plan, figures: Sequence[Figures], samples: int = 10_000) -> list[Standings]:
    """The cells at each place and, of the first place, by each metric that is to be shown as well."""
    first, *others = places(plan)
    also = [At(first.evaluation, first.context, metric) for metric in plan.also]
    return [standings(plan.names, figures, at, plan.baseline, samples) for at in (first, *others, *also)]


def table(found: Sequence[Standings]) -> tuple[list[str], list[list[str]]]:
    """The header and a row per cell: means with 95 % intervals, the difference that decides, and the minutes."""
    decides = found[0]
    shown = [one for one in found if any(row.mean for row in one.cells)] or [decides]
    header = ["Cell", "Seeds", *(_column(one, found) for one in shown), f"- {decides.baseline}", "", "Minutes"]
    rows = []
    for row in decides.cells:
        if not any(one.of(row.name).mean for one in shown):
            rows.append([row.name, "0", NOT_MEASURED, *[""] * (len(shown) + 2)])
            continue
        means = [_interval(one.of(row.name).mean) or NOT_MEASURED for one in shown]
        seeds = row.seeds or max(one.of(row.name).seeds for one in shown)  # those of the difference, if there is one
        rows.append([row.name, str(seeds), *means, _interval(row.difference, "+"), _word(row), _minutes(row)])
    return header, rows


def plot(plan: Plan, found: Sequence[Standings]) -> str:
    """An SVG figure: a row per cell, a mark for each place where the metric was measured."""
    shown = [one for one in found if one.at.metric == plan.metric and any(row.mean for row in one.cells)]
    if not shown:
        return ""
    rows: dict[str, list[Interval | None]] = {}
    for name in plan.names:
        means = [one.of(name).mean for one in shown]
        rows[name if any(means) else f"{name} ({NOT_MEASURED})"] = means
    return systems_plot(plan.file.stem, [f"{one.at.evaluation}, {one.at.context}" for one in shown], rows, width=7)


def write_sweep(plan: Plan, figures: Sequence[Figures], found: Sequence[Standings]) -> None:
    """Write the report between this sweep's marks, around which a page may have more, and the plot beside it.

    Raises `DataError` as `check_report` does.
    """
    check_report(plan)
    picture = plan.report.with_name(f"{plan.file.stem}.svg")
    svg = plot(plan, found)
    text = markdown(plan, figures, found, picture.name if svg else "")
    begin, end = _marks(plan.file.stem)
    whole = read_text(plan.report) if plan.report.is_file() else f"{begin}\n{end}\n"
    before, _, rest = whole.partition(begin)
    plan.report.parent.mkdir(parents=True, exist_ok=True)
    write_text(plan.report, f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")
    if svg:
        write_text(picture, as_file(svg))


def _marks(name: str) -> tuple[str, str]:
    return _BEGIN.format(name=name), _END.format(name=name)


def check_report(plan: Plan) -> None:
    """Raise `DataError` if the report would replace a file that no sweep wrote."""
    begin, end = _marks(plan.file.stem)
    if plan.report.is_file() and end not in read_text(plan.report).partition(begin)[2]:
        problem = f"report: {plan.report} exists and has no lines {begin} and {end}; add them, or name another file"
        raise DataError([f"{plan.file}: {problem}"])


def markdown(plan: Plan, figures: Sequence[Figures], found: Sequence[Standings], picture: str = "") -> str:
    """The report: how it was measured, the table, the plot, what to choose and what did not help."""
    decides = found[0]
    blocks = [
        f"{_number(plan, figures)} {_how(decides)}",
        md_table(*table(found)),
        *([f"![{md(_title(decides.at))} of each cell]({picture})"] if picture else []),
        md(decides.sentence),
        *_what_did_not_help(decides),
        *_seeds(decides),
        *_where(figures),
    ]
    return "\n\n".join(blocks) + "\n"


def _number(plan: Plan, figures: Sequence[Figures]) -> str:
    done, cells = len(figures), len(plan.cells)
    return (
        f"{done} of {cells} runs {'is' if done == 1 else 'are'} measured."
        if done < cells
        else f"All {cells} runs are measured."
    )


def _how(decides: Standings) -> str:
    corrected = ""
    if decides.comparisons > 1:
        level = f"{100 * decides.level:.2f}".rstrip("0").rstrip(".")
        corrected = f" at {level} %, which is 95 % corrected for {decides.comparisons} comparisons (Bonferroni)"
    return (
        f"Means with 95 % intervals, by passage and over seeds. The difference is that of {md(_title(decides.at))}, "
        f"paired by question{corrected}. Minutes are those of training one seed"
        f"{'' if decides.on_one_machine else ', on machines or in precisions that differ'}."
    )


def _what_did_not_help(decides: Standings) -> list[str]:
    """The cells that are not clearly better than the baseline, so that nobody tries them again in vain."""
    of = {word: [row.name for row in decides.cells if row.verdict == word] for word in (BETTER, WORSE, UNCLEAR)}
    than = f"than {decides.baseline}"
    words = [
        f"Clearly better {than}: {', '.join(of[BETTER])}." if of[BETTER] else "",
        f"Clearly worse {than}: {', '.join(of[WORSE])}." if of[WORSE] else "",
        f"Without a clear difference from {decides.baseline}: {', '.join(of[UNCLEAR])}." if of[UNCLEAR] else "",
    ]
    missing = [row.name for row in decides.cells if row.mean is None]
    words.append(f"{NOT_MEASURED.capitalize()}: {', '.join(missing)}." if missing else "")
    return [md(line)] if (line := " ".join(filter(None, words))) else []


def _seeds(decides: Standings) -> list[str]:
    several = [row for row in decides.cells if len(row.of_seeds) > 1]
    if not several:
        return []
    spreads = ", ".join(f"{row.name} {spread_of_seeds(row.of_seeds):.3f}" for row in several)
    return [md(f"Largest distance of one seed's mean from the mean of its cell: {spreads}.")]


def _where(figures: Sequence[Figures]) -> list[str]:
    """Machines and versions, and the number of runs by each."""
    if not figures:
        return []
    machines = _counted(", ".join(filter(None, (one.machine.get("device", ""), one.precision))) for one in figures)
    names = ("groundtune", "torch", "transformers", "peft")
    versions = _counted(", ".join(f"{n} {one.versions[n]}" for n in names if n in one.versions) for one in figures)
    return [md(f"Measured on {machines}; with {versions}.")]


def _counted(values: Iterable[str]) -> str:
    listed = [value for value in values if value]
    different = dict.fromkeys(listed)
    if len(different) < 2:
        return next(iter(different), "an unknown machine")
    return "; ".join(f"{value} ({counted(listed.count(value), 'run')})" for value in different)


def _title(at: At) -> str:
    return f"{_metric(at.metric)} ({at.evaluation}, {at.context})"


def _column(one: Standings, found: Sequence[Standings]) -> str:
    several = len({(other.at.evaluation, other.at.context) for other in found}) > 1
    return _title(one.at) if several else _metric(one.at.metric)


def _metric(name: str) -> str:
    known = {F1: "F1", **{metric: label for metric, label in SCORES.items() if metric != F1}, **ERRORS}
    group, _, its = name.partition("/")
    words = its.replace("_", " ")
    return known.get(name, (f"{group}, {words}" if group in _NAMED_BY_GROUP else words).capitalize())


def _interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    digits = 2 if abs(found.value) < 10 else 1
    return f"{found.value:{sign}.{digits}f} {found.ends(digits)}"


def _word(row: Standing) -> str:
    return {UNCLEAR: "unclear"}.get(row.verdict, row.verdict)


def _minutes(row: Standing) -> str:
    return "" if row.minutes is None else f"{row.minutes:.0f}"
