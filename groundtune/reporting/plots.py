"""The report's figures: inline SVG with the page's colour variables, so that they follow light, dark and print mode."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

from groundtune.evaluation.verdicts import F1, SCORES
from groundtune.reporting.results import GOLD_LOSS, Results, finite, flat, merged_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from groundtune.evaluation.statistics import Interval

_COLOURS = dict(ink="#000001", muted="#000002", grid="#000003", tuned="#000004", base="#000005", paper="#000006")
_MARKS = "osD^vPX*"  # they identify systems; colours mean better and worse elsewhere


def dot_plot(results: Results) -> str:
    """Answer scores of both models with their intervals."""
    labels = {metric: label for metric, label in SCORES.items() if metric in results.differences}
    pairs = [(results.base.metrics[metric], results.tuned.metrics[metric]) for metric in labels]

    def draw(axes: Axes) -> None:
        for kind, offset, name in ((0, -0.14, "base"), (1, 0.14, "tuned")):
            at = [position + offset for position in range(len(pairs))]
            ends = [pair[kind] for pair in pairs]
            colour = _COLOURS[name]
            axes.hlines(at, [end.low for end in ends], [end.high for end in ends], colour, linewidth=2, alpha=0.5)
            axes.plot([end.value for end in ends], at, "o", color=colour, markersize=6, label=name, clip_on=False)
        _labelled_rows(axes, list(labels.values()))
        axes.set_xlim(left=0)
        _legend(axes, 2)

    values = zip(labels.values(), pairs, strict=True)
    alt = "; ".join(f"{name}: base {base.value:.2f}, tuned {tuned.value:.2f}" for name, (base, tuned) in values)
    return _figure("before_after", (3.7, 3.9), "Means with 95 % intervals", "", alt, draw)


def systems_plot(
    title: str, names: Sequence[str], rows: Mapping[str, Sequence[Interval | None]], width: float = 3.7
) -> str:
    """A row per metric label with a dot per system: the first is grey, each of the others has its own marker; `width`
    in inches."""
    spread = 0.56 / len(names)

    def draw(axes: Axes) -> None:
        for i, name in enumerate(names):
            at = [row + spread * (i - (len(names) - 1) / 2) for row in range(len(rows))]
            found = [(y, end) for y, ends in zip(at, rows.values()) if (end := ends[i]) is not None]
            colour = _COLOURS["base" if i == 0 and len(names) > 1 else "tuned"]
            heights, ends = [y for y, _ in found], [end for _, end in found]
            axes.hlines(heights, [end.low for end in ends], [end.high for end in ends], colour, linewidth=2, alpha=0.5)
            mark = _MARKS[i % len(_MARKS)]
            axes.plot([end.value for end in ends], heights, mark, color=colour, ms=6, label=_short(name), clip_on=False)
        _labelled_rows(axes, list(rows))
        axes.set_xlim(left=0)
        _legend(axes, _columns(names))

    alt = "; ".join(
        f"{label}: " + ", ".join(f"{name} {end.value:.2f}" for name, end in zip(names, ends) if end is not None)
        for label, ends in rows.items()
    )
    height = 1.0 + len(rows) * max(0.42, 0.16 * len(names)) + 0.2 * (len(names) // _columns(names))
    return _figure(f"systems {title}", (width, height), "Means with 95 % intervals", "", alt, draw)


def differences_plot(
    title: str, names: Sequence[str], rows: Mapping[str, Sequence[Interval | None]], reference: str
) -> str:
    """A row per metric label with each system's paired difference from the reference, around a line at 0."""
    spread = 0.56 / len(names)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_COLOURS["muted"], linewidth=1, zorder=0)
        for i, name in enumerate(names):
            at = [row + spread * (i - (len(names) - 1) / 2) for row in range(len(rows))]
            found = [(y, end) for y, ends in zip(at, rows.values()) if (end := ends[i]) is not None]
            heights, ends = [y for y, _ in found], [end for _, end in found]
            colour, mark = _COLOURS["tuned"], _MARKS[(i + 1) % len(_MARKS)]
            axes.hlines(heights, [end.low for end in ends], [end.high for end in ends], colour, linewidth=2, alpha=0.5)
            axes.plot([end.value for end in ends], heights, mark, color=colour, ms=6, label=_short(name), clip_on=False)
        _labelled_rows(axes, list(rows))
        if len(names) > 1:
            _legend(axes, _columns(names))

    alt = "; ".join(
        f"{label}: " + ", ".join(
            f"{name} {end.value:+.2f} from {end.low:+.2f} to {end.high:+.2f}"
            for name, end in zip(names, ends) if end is not None
        )
        for label, ends in rows.items()
    )  # fmt: skip
    caption, explanation = f"Differences from {reference}", "Paired, with 95 % intervals; right of 0 is higher."
    height = 0.8 + len(rows) * max(0.42, 0.16 * len(names)) + 0.2 * (len(names) // _columns(names))
    return _figure(f"differences {title}", (3.7, height), caption, explanation, alt, draw)


def points_plot(
    title: str,
    axis: str,
    curves: Mapping[str, Sequence[tuple[float, Interval | None]]],
    ticks: Mapping[float, str] | None = None,
) -> str:
    """A line per name through measured points (place, mean with interval): "base" and "recall" grey, others blue.

    `ticks` are the names of places, if those are no numbers; such points are not joined.
    """
    known = {name: [(at, end) for at, end in points if end is not None] for name, points in curves.items()}
    known = {name: points for name, points in known.items() if points}
    span = max((at for points in known.values() for at, _ in points), default=1) or 1

    def draw(axes: Axes) -> None:
        for i, (name, points) in enumerate(known.items()):
            colour = _COLOURS[{"base": "base", "recall": "muted"}.get(name, "tuned")]
            at = [x + span * 0.012 * (i - (len(known) - 1) / 2) for x, _ in points]  # intervals beside each other
            ends = [end for _, end in points]
            if name == "recall":
                axes.plot(at, [end.value for end in ends], ":", color=colour, label=name, linewidth=1.4, zorder=0)
                continue
            axes.vlines(at, [end.low for end in ends], [end.high for end in ends], colour, linewidth=2, alpha=0.5)
            line = "" if ticks else "-"
            axes.plot(at, [end.value for end in ends], _MARKS[i % len(_MARKS)] + line, color=colour, ms=5, label=name)
        if ticks:
            axes.set_xticks(list(ticks), [name.replace("_", " ") for name in ticks.values()], rotation=20, ha="right")
        else:
            axes.set_xticks(sorted({at for points in known.values() for at, _ in points}))
        axes.set_xlabel("" if ticks else axis)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        _legend(axes, len(known))

    def place(at: float) -> str:
        return (ticks or {}).get(at, f"{at:g}")

    alt = "; ".join(
        f"{name}: " + ", ".join(f"{end.value:.2f} at {place(at)}" for at, end in points)
        for name, points in known.items()
    )
    explanation = f"Token F1 by {axis}, with 95 % intervals."
    return _figure(f"points {title}", (3.7, 3.0), title, explanation, alt, draw) if known else ""


def abstention_plot(title: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Both error rates at each threshold, a line per system; a point at the lower left would be perfect."""
    refused, answered = "answerable_refused", "unanswerable_answered"

    def draw(axes: Axes) -> None:
        for i, (name, points) in enumerate(curves.items()):
            x, y = ([point[rate] for point in points] for rate in (refused, answered))
            colour = _COLOURS["base" if name == "base" else "tuned"]
            axes.plot(x, y, _MARKS[i % len(_MARKS)] + "-", color=colour, ms=3, label=_short(name), clip_on=False)
        axes.set_xlabel("answerable, refused")
        axes.set_ylabel("unanswerable, answered")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        _legend(axes, 2)

    without = "; ".join(f"{name}: {points[0][answered]:.2f} unanswerable answered" for name, points in curves.items())
    return _figure(f"abstention {title}", (3.7, 3.4), f"Error rates, {title}", "", f"No threshold: {without}", draw)


def _short(name: str) -> str:
    """A name shortened for the legend; keeps its end, where paths differ."""
    short = name if len(name) <= 30 else f"…{name[-29:]}"
    return f" {short}" if short.startswith("_") else short  # a legend leaves out what begins with "_"


def _columns(names: Sequence[str]) -> int:
    """Number of legend columns: two if the names are short enough."""
    return 2 if all(len(name) <= 14 for name in names) else 1


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, frameon=False, handletextpad=0.1)


def _labelled_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=_COLOURS["ink"])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", pad=8)  # room for a dot at 0
    axes.grid(axis="y", visible=False)


def metric_plot(results: Results) -> str:
    """The metric that chose the checkpoint (or token F1) and a second one by step; empty if none was measured."""
    names = dict.fromkeys([(results.selection_metric or F1).removeprefix("eval_"), F1, "generation/rougeL"])
    curves = [(name, _points(results, f"eval_{name}")) for name in names if name in SCORES]
    curves = [(SCORES[name], rows) for name, rows in curves if rows][:2]
    if not curves:
        return ""
    highest = max(rows[-1][1] for _, rows in curves)

    def draw(axes: Axes) -> None:
        for (name, rows), colour in zip(reversed(curves), ("muted", "tuned")[-len(curves) :], strict=True):
            steps, values, lows, highs = zip(*rows, strict=True)
            main, colour = colour == "tuned", _COLOURS[colour]
            if main:  # overlapping bands would be indistinguishable
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
                axes.vlines(steps[:1], lows[:1], highs[:1], colour, linewidth=1, alpha=0.5)
            axes.plot(steps, values, "o-", color=colour, linewidth=1.8 if main else 1.1, markersize=4 if main else 3)
            at = (7, 1 if values[-1] == highest else -8)  # in points from the curve's end, away from the other label
            axes.annotate(name, (steps[-1], values[-1]), at, textcoords="offset points", color=colour)
            if main and results.best_step in steps:
                best = steps.index(results.best_step)
                axes.axvline(steps[best], color=_COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)), zorder=0)
                axes.plot(steps[best], values[best], "o", color=_COLOURS["paper"], mec=colour, ms=9, mew=2)
        _steps_axis(axes)

    name, rows = curves[0]
    alt = f"{name} by step: " + ", ".join(f"{value:.2f} at step {step}" for step, value, *_ in rows)
    ring = "" if results.best_step is None else f" The ring marks the selected checkpoint, step {results.best_step}."
    explanation = (
        f"{_asked(results)} evaluated during training, {name} with its 95 % interval; step 0 is the base model.{ring}"
    )
    return _figure("metric", (5.2, 3.0), "Answers, end to end", explanation, alt, draw)


def _asked(results: Results) -> str:
    """The number of questions behind the curves, if it is not the whole file."""
    most = flat(results.record.get("arguments", {})).get("eval_max_samples") or 0
    rows = results.record.get("inputs", {}).get("eval_file", {}).get("rows", 0)
    return f"{most} of the {rows} eval questions" if 0 < most < rows else "Eval questions"


def loss_plot(results: Results) -> str:
    """The training loss and the loss with gold passages by step; empty if neither was logged."""
    training, gold = _points(results, "loss"), _points(results, GOLD_LOSS)
    if not training and not gold:
        return ""

    def draw(axes: Axes) -> None:
        for rows, marker, colour, name in ((training, "-", "muted", "training"), (gold, "o-", "tuned", "evaluation")):
            if rows:
                steps, values, *_ = zip(*rows, strict=True)
                marker = "o" if len(rows) == 1 else marker
                axes.plot(steps, values, marker, color=_COLOURS[colour], linewidth=1.4, markersize=4, label=name)
        _steps_axis(axes)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)

    explanation = (
        "Nats per answer token, on the training rows and on the eval questions with their gold passage (the one with "
        "the answer)."
    )
    alt = "; ".join(
        f"{name} loss {rows[0][1]:.2f} at step {rows[0][0]}, {rows[-1][1]:.2f} at step {rows[-1][0]}"
        for name, rows in (("training", training), ("evaluation", gold)) if rows
    )  # fmt: skip
    return _figure("loss", (5.2, 3.0), "Loss", explanation, alt, draw)


def _points(results: Results, name: str) -> list[tuple[int, float, float, float]]:
    """(step, value, low, high) wherever the history has a finite value."""
    rows = (row for row in merged_history(results.history) if finite(row.get(name)))
    return [(r["step"], r[name], r.get(f"{name}_low", r[name]), r.get(f"{name}_high", r[name])) for r in rows]


def _steps_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)
    # Room for lines and dots at both ends: what lies on the frame is cut in half.
    highest = max(axes.dataLim.y1, 1e-9)
    axes.set_ylim(-0.015 * highest, 1.05 * highest)


_ON_PAPER = dict(ink="#3b4148", muted="#737a82", grid="#d9d8d2", tuned="#1f62a8", base="#878d95", paper="#ffffff")


def as_file(figure: str) -> str:
    """A figure as an SVG file of its own, in colours that can be read on white and on black."""
    svg = figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")]
    for name, colour in _ON_PAPER.items():
        svg = svg.replace(f"var(--{name})", colour)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1) + "\n"


def _figure(
    name: str, size: tuple[float, float], caption: str, explanation: str, alt: str, draw: Callable[[Axes], None]
) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    c = _COLOURS
    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "text.color": c["ink"], "grid.color": c["grid"],
        "xtick.color": c["muted"], "ytick.color": c["muted"], "xtick.major.size": 3, "ytick.major.size": 0,
        "axes.edgecolor": c["muted"], "axes.labelcolor": c["muted"], "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "text.parse_math": False,  # names may have dollar signs
    }  # fmt: skip
    with matplotlib.rc_context(cast("dict[Any, Any]", style)):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        svg = _svg(figure, alt)
    return f"<figure>{svg}<figcaption><b>{escape(caption)}</b>{escape(explanation)}</figcaption></figure>"


def _svg(figure: Figure, alt: str) -> str:
    from io import StringIO

    file = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has fonts of its own
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    box = re.findall(r'viewBox="[^"]*"', svg)[0]
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # Figures share most ids, and an id may occur only once per page: keep only those that are referenced.
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if f"#{found[1]}" in svg else "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {box} {links} role="img" aria-label="{escape(alt)}">{svg}'
