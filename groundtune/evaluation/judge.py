"""A language model, here or on a server, as a judge of answers: every answer is graded or counted as failed.

The judge prompt is a text file with the placeholders `$question`, `$answer` (required), `$gold_answer`, `$passages` and
`$chat_history`; it asks for a rating from 1 to 5 in the form [[3]]. The score is (rating - 1) / 4. What takes their
place is fenced (see prompts/fences.py): an answer may claim to be a 5.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.model.endpoint import EndpointError, is_server
from groundtune.model.opening import open_writer, writing_model
from groundtune.prompts.fences import fenced, introduced
from groundtune.schema import Prediction, Reply
from groundtune.system.inputs import read_text
from groundtune.system.text import to_json

SHIPPED = Path(__file__).parent / "judge_prompts"
_FIELDS = ("question", "answer", "gold_answer", "passages", "chat_history")
_RATING = re.compile(r"\[\[\s*([1-5])\s*\]\]")

Complete = Callable[..., list[Reply]]  # as `Endpoint.complete` and `LocalModel.complete`


@dataclass(frozen=True)
class JudgePrompt:
    """The prompt of a judge; its scores are named `judge/<name>`."""

    name: str
    text: str

    def messages(self, prediction: Prediction) -> list[dict[str, str]]:
        example = prediction.example
        turns = "\n".join(f"{turn.speaker}: {turn.message}" for turn in example.chat_history)
        values = {
            "question": fenced("question", example.question),
            "answer": fenced("answer", prediction.answer),
            "gold_answer": fenced("reference", example.answer),
            "passages": "\n\n".join(fenced("passage", document.text) for document in prediction.read) or "(none)",
            "chat_history": fenced("conversation", turns) if turns else "(none)",
        }
        return [{"role": "user", "content": Template(introduced(self.text, "answer")).substitute(values)}]


def read_judge_prompts(names: Sequence[str]) -> list[JudgePrompt]:
    """Read judge prompts, shipped ones or text files. Raises `DataError` with every problem of every prompt."""
    prompts, problems = [], []
    for name in names:
        shipped = SHIPPED / f"{name}.txt"
        path = shipped if os.path.isfile(shipped) else Path(name)
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the name
            known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.txt")))
            problems.append(f"--judge_prompt: {name} cannot be read ({error}); name a text file, or use one of {known}")
            continue
        problems += [f"--judge_prompt: {path}: {problem}" for problem in _problems(text)]
        prompts.append(JudgePrompt(re.sub(r"\W+", "_", path.stem), text))
    if problems:
        raise DataError(problems)
    return prompts


def judged(
    predictions: Sequence[Prediction],
    prompt: JudgePrompt,
    complete: Complete,
    max_tokens: int,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Prediction]:
    """The same predictions, in order, each with the score `judge/<name>` and the judge's text.

    Failed predictions are not graded. If the judgement failed or contains no rating, the prediction gets no score, and
    its `judged` says why; `Evaluation.scored` does not count it.
    """
    to_judge = [i for i, prediction in enumerate(predictions) if not prediction.failure]
    replies = complete([prompt.messages(predictions[i]) for i in to_judge], max_tokens, on_done=on_done)
    found = list(predictions)
    for i, reply in zip(to_judge, replies, strict=True):
        rating = rating_of(reply.text)
        score = {} if reply.failure or rating is None else {f"judge/{prompt.name}": (rating - 1) / 4}
        said = f"failed: {reply.failure}" if reply.failure else reply.text
        found[i] = replace(found[i], scores={**found[i].scores, **score}, judged={**found[i].judged, prompt.name: said})
    return found


def rating_of(text: str) -> int | None:
    """The last rating in a judgement, because it may mention others first; None if there is none."""
    ratings = _RATING.findall(text)
    return int(ratings[-1]) if ratings else None


def _problems(text: str) -> list[str]:
    # `Template.get_identifiers` needs Python 3.11.
    found: list[Any] = [match.groupdict() for match in Template.pattern.finditer(text)]
    named = {match["named"] or match["braced"] for match in found} - {None}
    problems = [f"${name} is unknown; use {', '.join('$' + n for n in _FIELDS)}" for name in sorted(named - {*_FIELDS})]
    if any(match["invalid"] is not None for match in found):
        problems.append("contains a $ that starts no field; write $$ for a dollar sign")
    if "answer" not in named:
        problems.append("does not use $answer, so nothing would be graded")
    if "[[" not in text:
        problems.append("does not ask for a rating in double brackets, such as [[3]], so none would be found")
    return problems


def open_judge(arguments: InferenceArguments) -> Complete:
    """`complete` of the server or model that grades. Raises `ModelError`."""
    judge = arguments.judge
    limits = arguments.generator.limits
    return open_writer(judge.judge, judge.judge_model, judge.judge_options, bf16=arguments.bf16, **limits).complete


def probe_judge(arguments: InferenceArguments) -> None:
    """Request a word from a server, or look up a model's tokenizer, to report a wrong name before hours of work.

    Raises `ModelError` or `EndpointError`.
    """
    if is_server(arguments.judge.judge):
        messages = [{"role": "user", "content": "Answer with one word: are you there?"}]
        (reply,) = open_judge(arguments)([messages], arguments.judge.judge_max_new_tokens)
        if reply.failure:
            raise EndpointError(f"--judge: {reply.failure}; {_way_out(arguments, reply.failure)}")
    elif arguments.judge.judge:
        writing_model(arguments.judge.judge, arguments.bf16).open_tokenizer()


def _way_out(arguments: InferenceArguments, failure: str) -> str:
    judge = arguments.judge
    if "max_completion_tokens" in failure:  # required by OpenAI's newer models, whose error names it
        options = {"max_tokens": None, "max_completion_tokens": judge.judge_max_new_tokens}
        return f"add --judge_options '{to_json(options)}'"
    return f"check the server log: does it have a model {judge.judge_model!r}, or does it need other --judge_options?"
