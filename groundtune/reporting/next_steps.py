"""What the numbers mean and which command comes next: three lines for the terminal and the top of every report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from groundtune.evaluation.abstention import REFUSED
from groundtune.evaluation.arguments import without_flags
from groundtune.evaluation.outcomes import KNEW, LUCKY, MISSED, RIGHT, WRONG, Rightness, with_outcomes
from groundtune.evaluation.statistics import FEWEST_PASSAGES, PairedDifference
from groundtune.methods import METHODS
from groundtune.system.text import counted, one_line

if TYPE_CHECKING:
    from groundtune.evaluation.predictions import Evaluation
    from groundtune.schema import Prediction

_MANY = 0.1  # share of the questions from which a cause is worth a line
_FINE = 0.05  # a difference in token F1 that a test should be able to find
_LINES = 3


@dataclass(frozen=True)
class Step:
    """What a number means, and the command that comes next; empty if there is none."""

    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.command}" if self.command else f"{self.text}."


@dataclass(frozen=True)
class Known:
    """What the next steps depend on. `settings` are arguments by name, also those that commands are to repeat."""

    model: str  # the run, or what else `ask` and `evaluate` take
    evaluation: Evaluation  # of the model, end to end if it was evaluated so
    settings: Mapping[str, Any]
    right: Rightness = Rightness()
    difference: PairedDifference | None = None  # of token F1, from the base model
    method: str = ""  # of the run; empty if no run made the model
    again: Callable[[Mapping[str, str]], str] | None = None  # the command that evaluated it, with flags added


def next_steps(known: Known) -> list[Step]:
    """Three lines, the outcomes and what cost most answers; then how to talk to the model."""
    causes = sorted(_causes(known), key=lambda cause: -cause[0])
    steps = [_summary(known), *(step for _, step in causes[: _LINES - 1])]
    if not causes:
        steps.append(Step("No single cause stands out: read ten answers on the page before you trust the numbers"))
    return [*steps, *_talk(known)]


def _talk(known: Known) -> list[Step]:
    ways = {"Ask it": "ask", "Talk to it in a browser, or let programs ask it": "serve"}
    return [Step(text, _words(command, known.model)) for text, command in ways.items()] if known.model else []


def _summary(known: Known) -> Step:
    counts = _counts(known)
    n, right = known.evaluation.n, counts.get(RIGHT, 0) + counts.get(LUCKY, 0) + counts.get(KNEW, 0)
    return Step(f"{right} of {counted(n, 'question')} answered right ({known.right})")


def _counts(known: Known) -> dict[str, int]:
    counts: dict[str, int] = {}
    for prediction in _with_outcomes(known):
        counts[prediction.outcome] = counts.get(prediction.outcome, 0) + 1
    return counts


def _with_outcomes(known: Known) -> Sequence[Prediction]:
    predictions = known.evaluation.predictions
    return predictions if any(p.outcome for p in predictions) else with_outcomes(predictions, known.right)


def _causes(known: Known) -> Iterator[tuple[float, Step]]:
    """What stands out, each with the number of questions that it costs."""
    n, passages = known.evaluation.n, known.evaluation.passages
    if passages < FEWEST_PASSAGES:
        more = FEWEST_PASSAGES - passages
        few = f"questions on {counted(passages, 'passage')}, and a verdict takes {FEWEST_PASSAGES}"
        text = f"Too few to conclude anything: {few}"
        yield n + 1, Step(f"{text}, so add questions on {more} more or better many more", _more_questions(known, 100))
    elif (found := known.difference) and found.verdict == "no clear difference" and found.detectable > _FINE:
        needed = _rounded_up(n * (found.detectable / _FINE) ** 2)
        text = f"No clear difference: this test finds {found.detectable:.2f} or more; for {_FINE:g} it takes about"
        yield n / 4, Step(f"{text} {needed:,} questions instead of {n}", _more_questions(known, needed))
    for cost, step in _lost(known):
        if cost >= _MANY * n:
            yield cost, step


def _lost(known: Known) -> Iterator[tuple[int, Step]]:
    """Causes of answers that are not right."""
    predictions = _with_outcomes(known)
    lost = [p for p in predictions if p.outcome in (MISSED, WRONG) and p.example.has_evidence]
    cut = [p for p in predictions if not p.finished and not p.failure]
    of, missed = known.evaluation.n, [p for p in lost if p.outcome == MISSED and p.context == "retrieved"]
    left_out = [p for p in missed if _found(p)]
    if cut:
        text = f"{len(cut)} of {of} answers were cut at {_limit(known)}"
        yield len(cut), Step(*_longer(known, cut, text))
    if left_out:
        text = f"For {len(left_out)} of {of} questions the passage was found, but the prompt had no room for it"
        yield len(left_out), Step(text, _evaluated(known, max_seq_length=2 * _max_seq_length(known)))
    if not_found := len(missed) - len(left_out):
        text = f"For {not_found} of {of} questions no passage with the answer was found; compare retrievers"
        yield not_found, Step(text, _retrievers(known))
    declined = sum(p.scores.get(REFUSED) == 1 and p.withheld is None for p in predictions)
    if declined:
        text = f"On {declined} of {of} questions it said that it does not know, although they have an answer; train on"
        yield declined, Step(*_fewer_abstentions(known, text))
    wrong = [p for p in lost if p.outcome == WRONG and p.finished and p.scores.get(REFUSED) != 1]
    if wrong:
        text = f"{len(wrong)} of {of} answers are wrong although a passage with the answer was read"
        yield len(wrong), _other_method(known, text)


def _found(prediction: Prediction) -> bool:
    gold = {document.id for document in prediction.example.gold_documents}
    return any(hit.document.id in gold for hit in prediction.hits)


def _fewer_abstentions(known: Known, text: str) -> tuple[str, str]:
    """What taught the model to abstain: rows that lost their gold, else the unanswerable ones of the file."""
    preset = METHODS[known.method].defaults if known.method in METHODS else {}
    if dropout := known.settings.get("gold_dropout", preset.get("gold_dropout")):
        return f"{text} fewer rows without gold, with a --gold_dropout below {one_line(dropout, 20)}", ""
    if not (train := known.settings.get("train_file")):
        return f"{text} fewer unanswerable rows", ""
    return f"{text} fewer unanswerable rows than there are now", shlex.join(
        ["grep", "-c", '"answerable": false', str(train)]
    )


def _other_method(known: Known, text: str) -> Step:
    """Another method or a larger model; for a model that no run made, training.

    The first of the others: docs/results.md has no method that answered better than the plainest one.
    """
    other = next(method for name, method in METHODS.items() if name != known.method)
    if not known.method:
        return Step(f"{text}; train the model on examples, or take a larger one", f"groundtune {other.name} -h")
    text = f"{text}; take a larger model, or compare with {other.title}"
    try:
        typed = shlex.split(str(known.settings.get("command", "")))
    except ValueError:  # a call in Python, whose quotes are others
        typed = []
    if typed[:2] != ["groundtune", known.method] or not known.model:
        return Step(text, f"groundtune {other.name} -h")
    kept = without_flags(typed[2:], ("--output_dir", "-o"))
    return Step(text, shlex.join(["groundtune", other.name, *kept, "--output_dir", f"{known.model}-{other.name}"]))


def _longer(known: Known, cut: Sequence[Prediction], text: str) -> tuple[str, str]:
    """A limit that the longest gold answer would fit into, at the tokens per character of the answers that were cut.

    Thoughts count as tokens but not as text: answers with more tokens than bytes say nothing of a limit. An answer
    whose tokens a server did not count has as many as the limit. The prompts keep their room.
    """
    limit = _number(known, "max_new_tokens")
    tokens = [limit if p.new_tokens is None else p.new_tokens for p in cut]
    begun = [(p.answer, n) for p, n in zip(cut, tokens, strict=True) if n <= len(p.answer.encode("utf-8", "replace"))]
    written = sum(n for _, n in begun) / max(1, sum(len(answer) for answer, _ in begun))
    longest = max(len(answer) for p in cut for answer in p.example.acceptable_answers)
    needed = 32 * math.ceil(1.2 * longest * written / 32)
    if not begun:
        return f"{text} with little or no text: read some, and if thoughts came first, raise --max_new_tokens", ""
    if needed <= limit:
        return f"{text}, which is long enough for the gold answers: it has not learnt to stop; train for longer", ""
    whole = needed + max(p.prompt_tokens or 0 for p in cut)
    longer = {"max_seq_length": whole} if whole > _max_seq_length(known) else {}
    return text, _evaluated(known, max_new_tokens=needed, **longer)


def _limit(known: Known) -> str:
    limit = _number(known, "max_new_tokens")
    return f"{limit} tokens" if limit else "the token limit"


def _max_seq_length(known: Known) -> int:
    return _number(known, "max_seq_length") or 2048


def _number(known: Known, name: str) -> int:
    """A whole number among the settings, which may come from an edited record; 0 if it is none."""
    value = known.settings.get(name)
    return value if isinstance(value, int) else 0


def _retrievers(known: Known) -> str:
    """The command that measures every retriever, chosen on the eval questions and reported on the others."""
    named = {name: known.settings.get(name) for name in ("full_dataset_file_path", "eval_file", "test_file")}
    embedding = known.settings.get("eval_embedding_model") or known.settings.get("embedding_model")
    named |= {"embedding_model": embedding or "MODEL", "retriever": "all"}
    return _words("index", "", **named) if named["full_dataset_file_path"] and named["eval_file"] else ""


def _more_questions(known: Known, number: int) -> str:
    documents = known.settings.get("full_dataset_file_path")
    return (
        _words("questions", str(documents), output_dir="more", generator="MODEL", passages=number) if documents else ""
    )


def _rounded_up(number: float) -> int:
    """To two digits, because more would claim to be exact."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def _evaluated(known: Known, **flags: int) -> str:
    """The evaluation once more with these flags: of the same questions, in the same way."""
    return (
        known.again({f"--{name}": str(value) for name, value in flags.items()})
        if known.again
        else _words("evaluate", known.model, **flags)
    )


def _words(command: str, model: str, **flags: Any) -> str:
    """A command line; flags without a value are left out."""
    given = [word for name, value in flags.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["groundtune", command, *([model] if model else []), *given])
