"""The results of a retriever training: metrics.json, run.json, the model card, and the report as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.files import write_text
from groundtune.evaluation.retriever_verdicts import Compared, RetrieverResults
from groundtune.evaluation.statistics import Interval
from groundtune.reporting.markdown import md, md_fence, md_list, md_table
from groundtune.reporting.report import callout, minus, page
from groundtune.runs.record import inputs, run_facts
from groundtune.system.text import as_json, counted

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = ("", "Untrained [95 %]", "Tuned [95 %]", "Difference [95 %]", "")
_HOW_TO_READ = (
    "Intervals are by passage. The last retriever of a table is the one in use; its recall decides. text_recall counts "
    "a passage with at least 60 % of the gold text."
)
_SHORT = {"no clear difference": "unclear"}


def write_retriever_results(folder: Path, results: RetrieverResults) -> None:
    """Write all files; report.html, which marks a finished run, is the last."""
    metrics = {
        "verdict": results.verdict, "kind": results.kind, "kept": "tuned" if results.tuned else "untrained",
        "best_step": results.best_step, "compared": [one.to_dict() for one in results.compared],
        "history": list(results.history),
    }  # fmt: skip
    for name, content in (("metrics.json", metrics), ("run.json", {**results.record, "notes": list(results.notes)})):
        write_text(folder / name, as_json(content))
    write_text(folder / "README.md", _card(folder, results))
    write_text(folder / "report.md", _markdown(results))
    write_text(folder / "report.html", _page(results))


def retriever_table(compared: Compared) -> Table:
    """Scores before and after training, for the terminal."""
    from groundtune.system.tables import TextTable

    table = TextTable(box=None, padding=(0, 1, 0, 0), title=_title(compared), title_justify="left")
    for heading in ("", "untrained", "tuned", _HEADER[-2].lower(), ""):
        table.add_column(heading, no_wrap=True)
    for name, untrained, tuned, *found in _rows(compared):  # with all intervals it would not fit into 80 columns
        cells = [name, untrained.partition(" ")[0], tuned.partition(" ")[0], *found]
        table.add_row(*cells, style={"better": "green", "worse": "red"}.get(found[-1]))
    return table


def _title(compared: Compared) -> str:
    return f"{counted(len(compared.examples), 'question')} on {counted(compared.passages, 'passage')}: {compared.what}"


def _rows(compared: Compared) -> Iterator[list[str]]:
    for retriever, lines in compared.table.items():
        for metric, (untrained, tuned, found) in lines.items():
            cells = [_cell(untrained), _cell(tuned), _cell(found, "+")]
            verdict = _SHORT.get(found.verdict, found.verdict)
            yield [f"{retriever}: {metric.partition('/')[2]}", *cells, verdict]


def _cell(mean: Interval, sign: str = "") -> str:
    return f"{mean.value:{sign}.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def _measured(history: Sequence[dict[str, Any]], metric: str) -> list[list[str]]:
    """Recall by step."""
    name = f"eval_{metric}"
    return [[str(row["step"]), f"{row[name]:.3f}"] for row in history if name in row]


def _markdown(results: RetrieverResults) -> str:
    record = results.record
    blocks = ["# Groundtune report: a retriever", f"**{md(results.verdict)}.**"]
    for compared in results.compared:
        blocks += [f"## {md(_title(compared))}", md_table(_HEADER, _rows(compared))]
    blocks += [_HOW_TO_READ] if results.compared else []
    if results.notes:
        blocks += ["## Notes", "\n".join(f"- {md(note)}" for note in results.notes)]
    if results.compared and (during := _measured(results.history, results.compared[0].recall)):
        blocks += ["## During training", md_table(["Step", results.compared[0].recall], during)]
    blocks += ["## To reproduce", md_fence(record.get("command", "")), md_list(run_facts(record) | inputs(record))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _card(folder: Path, results: RetrieverResults) -> str:
    flag = "--embedding_model" if results.kind == "embedding" else "--reranker"
    tags = "sentence-transformers" if results.kind == "embedding" else "sentence-transformers\n- cross-encoder"
    return (
        f"---\nlibrary_name: sentence-transformers\ntags:\n- {tags}\n---\n\n# {md(folder.name)}\n\n"
        f"**{md(results.verdict)}.**\n\nMade by `groundtune retriever`; use it as `{flag}`, or load it with "
        "sentence-transformers. `report.md` has all figures.\n"
    )


def _page(results: RetrieverResults) -> str:
    verdict = f"<p><strong>{minus(results.verdict)}.</strong></p>"
    remarks = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    sections = "".join(_section(compared) for compared in results.compared)
    body = callout(verdict) + sections + (callout(f"<ul>{remarks}</ul>") if remarks else "")
    return page("report", "A retriever", body, results.record)


def _section(compared: Compared) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _HEADER)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{minus(cell)}</td>" for cell in row[1:])}</tr>'
        for row in _rows(compared)
    )
    return (
        f'<section><h2>{escape(_title(compared))}</h2><table class="metrics"><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="small">{escape(_HOW_TO_READ)}</p></section>'
    )
