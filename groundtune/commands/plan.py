"""The file of a sweep, as a plan: which cells there are, and the commands that train and evaluate each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from groundtune.arguments import DataArguments
from groundtune.commands.config import Entry, read_tree
from groundtune.commands.evaluate import inference_arguments
from groundtune.commands.evaluate import parser as evaluation_parser
from groundtune.commands.parsing import given, parse_arguments
from groundtune.data.checks import ERROR, check_texts, read_dataset
from groundtune.errors import DataError
from groundtune.evaluation.figures import compared, is_kept
from groundtune.evaluation.verdicts import F1
from groundtune.methods import METHODS
from groundtune.methods.swr import SWR
from groundtune.prompts.policies import CONTEXTS
from groundtune.runs.cells import Asked, Cell, Plan

BASE = "none"  # the method of the base model
PROBE = "probe.jsonl"
MOST = 1000  # runs of a plan
_MOST_NAMES = 500  # cells: of more, the corrected level is below the least p-value of 10,000 random flips
# A cell is evaluated by itself, afterwards; its training ends with a test on a few questions only.
_TRAINING = {
    "eval_strategy": "no", "eval_on_start": "false", "save_strategy": "steps", "save_steps": "0.2",
    "save_total_limit": "1",
}  # fmt: skip
_KEYS = (
    "output_dir", "results", "report", "questions", "metric", "also", "baseline", "method", "seeds", "settings",
    "evaluate", "grid", "cells",
)  # fmt: skip
_OURS = {"output_dir", "seed", "method", "seeds", "config", "quiet", "json"}  # no flags of a cell
# Of `groundtune evaluate`; its model is what the cell is.
_WITHOUT_INFLUENCE = {
    "model", "full_dataset_index_path", "output_dir", "embedding_batch_size", "per_device_eval_batch_size",
    "concurrency", "bootstrap_samples", "quiet", "json", "full",
}  # fmt: skip
_OF_TRAINING = ("eval_file", "bootstrap_samples")  # not what an evaluation asks
_PRECISION, _AUTO = "bf16", "auto"  # true where the hardware computes bfloat16
_NOT_OF_A_NAME = re.compile(r"[^\w.,=+-]")

Flags = Mapping[str, Entry]


def read_plan(path: str, changes: Mapping[str, str], output_dir: str = "") -> Plan:
    """The plan in a YAML file; `changes` override its settings by flag.

    Its files are not read. Paths are relative to the current folder, as flags are, but `results` and `report` to the
    file's. Raises `DataError` with every problem, each with its line.
    """
    tree = read_tree(path)
    reader = _Reader(path, tree)
    settings = {**reader.flags("settings"), **{name: Entry(name, value) for name, value in changes.items()}}
    folder = Path(output_dir or reader.text("output_dir", f"runs/{Path(path).stem}"))
    beside = Path(path).parent
    seeds = reader.seeds(tree.get("seeds"), (0,))
    named = reader.cells(seeds)
    questions = reader.text("questions")
    evaluations = reader.evaluations()
    if not questions:
        reader.problems.append(f"{path}:1: questions: missing; name the file of examples that the cells answer")
    reader.refuse_ours(settings)
    if reader.problems:
        raise DataError(reader.problems)
    cells = [
        _cell(name, method, seed, {**settings, **flags}, evaluations, questions, folder)
        for name, method, flags, its_seeds in named
        for seed in (its_seeds if method else (None,))
    ]
    names = list(dict.fromkeys(cell.name for cell in cells))
    if twice := [label for label, count in Counter(cell.label for cell in cells).items() if count > 1]:
        reader.problem("cells", f"two cells would be {twice[0]}; give one of them another name")
    if changes and not output_dir and reader.text("results"):
        reader.problem("results", "with --set, these would be of other cells; give --output_dir, too")
    baseline = reader.text("baseline", names[0] if names else "")
    if names and baseline not in names:
        reader.problem("baseline", f"no cell is called {baseline}; take one of {', '.join(names)}")
    metric, also = reader.text("metric", F1), reader.texts("also")
    for name in ("metric", "also"):
        if lost := [one for one in ([metric] if name == "metric" else also) if not is_kept(one)]:
            reader.problem(
                name, f"no figures of {lost[0]} are kept; take one such as {F1} or errors/answerable_refused"
            )
    results, report = reader.text("results"), reader.text("report")
    if reader.problems:
        raise DataError(reader.problems)
    return Plan(
        file=Path(path),
        output_dir=folder,
        results=beside / results if results and not output_dir else folder / "results",
        report=beside / report if report and not output_dir else folder / "sweep.md",
        metric=metric,
        also=tuple(also),
        baseline=baseline,
        cells=tuple(_in_turns(cells)),
    )


def _in_turns(cells: Sequence[Cell]) -> list[Cell]:
    """The first seed of every cell, then the second: a table with all rows is there early."""
    before: Counter[str] = Counter()
    placed = []
    for cell in cells:
        placed.append((before[cell.name], cell))
        before[cell.name] += 1
    return [cell for _, cell in sorted(placed, key=itemgetter(0))]


class _Reader:
    """Reads the parts of the file, and collects problems."""

    def __init__(self, path: str, tree: Flags) -> None:
        self.path, self.tree = path, tree
        unknown = [name for name in tree if name not in _KEYS]
        self.problems = [f"{tree[name].label}: no such part; a plan has {', '.join(_KEYS)}" for name in unknown]

    def problem(self, name: str, what: str) -> None:
        self.problems.append(f"{self.tree[name].label if name in self.tree else f'{self.path}:1: {name}'}: {what}")

    def text(self, name: str, default: str = "") -> str:
        value = self.tree[name].value if name in self.tree else None
        if isinstance(value, (list, dict)) or "\0" in (value or ""):
            self.problem(name, "must be one text, without null characters")
            return default
        return default if value is None else value

    def texts(self, name: str) -> list[str]:
        value = self.tree[name].value if name in self.tree else []
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value
        self.problem(name, "must be a list, such as [a, b]")
        return []

    def flags(self, name: str) -> dict[str, Entry]:
        return self._flags(self.tree.get(name))

    def _flags(self, entry: Entry | None) -> dict[str, Entry]:
        """The flags in a mapping; empty, with the problem noted, if it is something else."""
        if entry is None or entry.value is None:
            return {}
        if not isinstance(entry.value, dict):
            self.problems.append(f"{entry.label}: must have flags with their values, one per line")
            return {}
        for flag in entry.value.values():
            if isinstance(flag.value, dict):
                self.problems.append(f"{flag.label}: write a JSON object as text, in quotes")
            elif isinstance(flag.value, list) and not all(isinstance(one, str) for one in flag.value):
                self.problems.append(f"{flag.label}: must be one list of plain values")
        return {name: replace(flag, name=name) for name, flag in entry.value.items()}

    def seeds(self, entry: Entry | None, default: tuple[int, ...]) -> tuple[int, ...]:
        if entry is None:
            return default
        given = entry.value if isinstance(entry.value, list) else [entry.value]
        if given and all(isinstance(one, str) and re.fullmatch(r"\d{1,9}", one) for one in given):
            numbers = tuple(map(int, given))
            if twice := [one for one, count in Counter(numbers).items() if count > 1]:
                self.problems.append(f"{entry.label}: {twice[0]} is there twice; give each seed once")
            return numbers
        self.problems.append(f"{entry.label}: must be a list of whole numbers, such as [0, 1, 2]")
        return default

    def refuse_ours(self, flags: Flags) -> None:
        for flag in sorted(flags.keys() & _OURS):
            self.problems.append(f"{flags[flag].label}: cannot be set by a plan; the sweep sets it")

    def evaluations(self) -> dict[str, dict[str, Entry]]:
        """The flags of each evaluation; without any, one end to end as in training."""
        named = self.tree["evaluate"].value if "evaluate" in self.tree else None
        if named is None:
            return {"retrieved": {}}
        if not isinstance(named, dict) or not named:
            self.problem("evaluate", "must have a name and its flags per line, such as mix: {retriever: mix}")
            return {}
        for name, entry in named.items():
            if _NOT_OF_A_NAME.search(name) or not 0 < len(name) <= 60:
                self.problems.append(
                    f"{entry.label}: the name of an evaluation has up to 60 letters, digits, . = + - only"
                )
        flags = {name: self._flags(entry) for name, entry in named.items()}
        for its in flags.values():
            self.refuse_ours(its)
        return flags

    def cells(self, seeds: tuple[int, ...]) -> list[tuple[str, str, dict[str, Entry], tuple[int, ...]]]:
        """Name, method, flags and seeds of each cell, as listed or as all combinations of a grid."""
        if ("grid" in self.tree) == ("cells" in self.tree):
            self.problems.append(f"{self.path}:1: cells: give either `cells` or `grid`")
            return []
        if "grid" in self.tree:
            listed = self._combinations()
        elif isinstance(named := self.tree["cells"].value, dict) and named:
            listed = {name: (entry, self._flags(entry)) for name, entry in named.items()}
        else:
            self.problem("cells", "must have a name and its flags per line, such as sft: {method: sft}")
            return []
        if len(listed) > _MOST_NAMES:
            self.problem("grid" if "grid" in self.tree else "cells", f"more than {_MOST_NAMES} cells; take fewer")
            return []
        if len(listed) * len(seeds) > MOST:
            self.problem("grid" if "grid" in self.tree else "cells", f"more than {MOST:,} runs; take fewer values")
            return []
        return [self._named(name, entry, flags, seeds) for name, (entry, flags) in listed.items()]

    def _combinations(self) -> dict[str, tuple[Entry, dict[str, Entry]]]:
        grid = self.tree["grid"]
        flags = self._flags(grid)
        values = {name: flag.value if isinstance(flag.value, list) else [flag.value] for name, flag in flags.items()}
        if empty := [flag for name, flag in flags.items() if not values[name] or None in values[name]]:
            self.problems += [f"{flag.label}: has no value; list the values to try" for flag in empty]
            return {}
        found: dict[str, tuple[Entry, dict[str, Entry]]] = {}
        total = 1
        for tried in values.values():
            total *= len(tried)
        if not flags or total > MOST:
            self.problem("grid", f"{total if flags else 0:,} combinations; a sweep has 1 to {MOST:,}")
            return {}
        for chosen in product(*values.values()):
            cell = dict(zip(values, chosen, strict=True))
            name = ",".join(f"{flag}={value}" for flag, value in cell.items())
            entry = replace(grid, name=name)
            found[_NOT_OF_A_NAME.sub("_", name)] = entry, {n: replace(flags[n], value=v) for n, v in cell.items()}
        if len(found) < total:
            self.problem("grid", "two combinations have the same name; write different values, or list `cells`")
        return found

    def _named(
        self, name: str, entry: Entry, flags: dict[str, Entry], seeds: tuple[int, ...]
    ) -> tuple[str, str, dict[str, Entry], tuple[int, ...]]:
        if _NOT_OF_A_NAME.search(name) or not 0 < len(name) <= 100 or name.startswith((".", "-")):
            self.problems.append(
                f"{entry.label}: the name of a cell is the name of a folder: up to 100 letters, digits, . = + -"
            )
        its_seeds = self.seeds(flags.pop("seeds", None), seeds)
        method = flags.pop("method").value if "method" in flags else self.text("method", SWR.name)
        if method not in (*METHODS, BASE):
            self.problems.append(f"{entry.label}: no method is called {method}; take {', '.join(METHODS)} or {BASE}")
        self.refuse_ours(flags)
        return name, "" if method == BASE else str(method), flags, its_seeds


def _cell(
    name: str, method: str, seed: int | None, flags: Flags, evaluations: Mapping[str, Flags], questions: str,
    output_dir: Path,
) -> Cell:  # fmt: skip
    """A cell with the words of its commands."""
    values = _values(flags)
    chosen = (some[_PRECISION].value for some in (flags, *evaluations.values()) if _PRECISION in some)
    by_machine = (_PRECISION,) if _AUTO in chosen else ()
    cell = Cell(name, method, seed, (), (), by_machine=by_machine)
    folder = output_dir / cell.label
    if method:
        usual = {} if "eval_strategy" in values else _TRAINING
        own = {**usual, "eval_file": str(output_dir / PROBE)} | values
        if "eval_file" in values:  # it chooses the checkpoint, so it says nothing about others at the end
            own.setdefault("test_file", str(output_dir / PROBE))
        words = words_of({**own, "seed": str(seed), "output_dir": str(folder)})
        model, known = str(folder), {}
    else:
        words, model = [], str(values.get("model_name_or_path") or "")
        known = {flag: value for flag, value in values.items() if flag in _flags_of_evaluate()}
    asked = []
    for one, its_flags in evaluations.items():
        its = {"eval_file": questions} | known | _values(its_flags)
        if not method:
            its["eval_file"] = its_flags["eval_file"].value if "eval_file" in its_flags else questions
        its["output_dir"] = str(folder / f"evaluation-{one}")
        asked.append(Asked(one, (model, *words_of(its)), _contexts(its.get("contexts"))))
    return replace(cell, words=tuple(words) if method else (model,), evaluations=tuple(asked))


def _values(flags: Flags) -> dict[str, Any]:
    """The flags' values, where `bf16: auto` is what this machine computes."""
    values = {flag: entry.value for flag, entry in flags.items()}
    if values.get(_PRECISION) == _AUTO:
        from groundtune.model.loading import computes_bf16  # here, because it imports torch

        values[_PRECISION] = str(computes_bf16()).lower()
    return values


def _contexts(value: Any) -> tuple[str, ...]:
    named = [name.strip() for name in str(value or "retrieved").split(",")]
    return tuple(CONTEXTS) if named == ["all"] else tuple(dict.fromkeys(named))


def _flags_of_evaluate() -> set[str]:
    return {action.dest for action in evaluation_parser()._actions} - {"help", "model", "config", *_OURS}


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line; those without a value keep their defaults."""
    return [word for name, value in flags.items() for word in Entry(name, value).flag()]


def identified(plan: Plan) -> Plan:
    """The plan with the settings of each cell, for which flags are checked and files read.

    Raises `DataError` with every problem of every command, under the cell's name.
    """
    problems: list[str] = []

    def tried(cell: Cell, settings: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return settings()
        except DataError as error:
            problems.extend(f"{plan.file}: {cell.name}: {problem}" for problem in error.problems)
            return {}

    cells = [
        replace(
            cell,
            settings=tried(cell, partial(_trained, cell)),
            evaluations=tuple(
                replace(asked, settings=tried(cell, partial(_evaluated, cell, asked))) for asked in cell.evaluations
            ),
        )
        for cell in plan.cells
    ]
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    return replace(plan, cells=tuple(cells))


def _trained(cell: Cell) -> dict[str, Any]:
    """What determines a cell's weights."""
    from groundtune.runs.cells import settings_of, weights_of

    if not cell.method:
        return {"--model_name_or_path": weights_of(cell.words[0])}
    arguments, method = parse_arguments(cell.method, cell.words), METHODS[cell.method]
    if problems := arguments.check(for_training=method.title if method.retrieves else ""):
        raise DataError(problems)
    settings = settings_of(arguments)
    return {name: value for name, value in settings.items() if name.removeprefix("--") not in cell.by_machine}


def _evaluated(cell: Cell, asked: Asked) -> dict[str, str]:
    """What an evaluation's words determine besides its model, whatever the machine decides; they are checked as when it
    starts, so that nothing is trained in vain."""
    values = given(evaluation_parser(), asked.words)
    try:
        arguments = inference_arguments(_as_trained(cell, values), for_questions=True, again=lambda more: "")
        if problems := [p for p in arguments.check() if not (cell.method and p.startswith("MODEL: "))]:
            raise DataError(problems)  # of a trained cell's model its training tells
        arguments.thresholds()
        _check_questions(arguments.data.eval_file)
    except DataError as error:
        raise DataError([f"evaluation {asked.name}: {problem}" for problem in error.problems]) from error
    without = {*_WITHOUT_INFLUENCE, *cell.by_machine}
    return compared({name: value for name, value in values.items() if name not in without})


def _as_trained(cell: Cell, values: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's values, with those that a run would remember of its training; the base model stands for it."""
    if not cell.method:
        return dict(values)
    flags = dict(word[2:].split("=", 1) for word in cell.words if re.match(r"--\w+=", word))
    model = flags.get("model_name_or_path", "")
    known = {flag: value for flag, value in flags.items() if flag in _flags_of_evaluate() - {*_OF_TRAINING}}
    its = given(evaluation_parser(), [model, *words_of(known)])
    return {**its, "base_model": model, **values, "model": model, "keep_thresholds": False}


@cache
def _check_questions(path: str) -> None:
    """Raise `DataError` with every error in a file of questions."""
    dataset = read_dataset(DataArguments(eval_file=path))
    if errors := [str(finding) for finding in check_texts(dataset) if finding.severity == ERROR]:
        raise DataError(errors)
