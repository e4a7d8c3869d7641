"""Whether an export answers as its run did: the run's test questions, compared one by one.

The passages are those that the run retrieved, so neither documents nor retriever are needed. First prompt, stop tokens,
settings and weights are compared with the run's, which finds faults that few answers would show; then the answers.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from groundtune.aliases import Model
from groundtune.arguments import ModelArguments
from groundtune.data.files import in_folder, sha256_of
from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.evaluation.evaluator import EndToEndEvaluator, spread
from groundtune.evaluation.predictions import read_predictions
from groundtune.evaluation.requirements import non_inferior
from groundtune.evaluation.statistics import FEWEST_PASSAGES, PairedDifference, clusters_of, paired_difference
from groundtune.evaluation.verdicts import F1, power
from groundtune.export.about import About
from groundtune.export.checks import prompts_differ, settings_differ, stops_differ, vocabulary_differs, weights_differ
from groundtune.model.endpoint import Endpoint
from groundtune.model.generators import computing
from groundtune.model.loading import load_tokenizer
from groundtune.model.opening import AnsweringModel
from groundtune.prompts.prompt import asked_of_template, make_prompt
from groundtune.schema import Prediction, Reply

VERIFIED, FAILED, UNKNOWN = "verified", "failed", "not verified"
OnProgress = Callable[[str, int], Callable[[int], None]]
# What reads the export where nothing in this process can.
_ELSEWHERE = {"gguf": "llama.cpp", "ollama": "Ollama", "vllm": "vLLM"}


@dataclass(frozen=True)
class Verified:
    """The outcome: `faults` are differences from the run, `unknown` says what nothing here could run.

    `same` of `n` answers equal those that were measured, each to its last character; `difference` is that of token F1.
    `alike` of the others differ by rounding alone: the run gives the measured answer again, and that of the export if
    it computes in `computed`, as the export does.
    """

    by: str
    margin: float
    faults: list[str]
    unknown: list[str] = field(default_factory=list)
    same: int = 0
    n: int = 0
    difference: PairedDifference | None = None
    alike: int = 0
    computed: str = ""

    @property
    def status(self) -> str:
        if self.faults:
            return FAILED
        shown = self.n and (self.same + self.alike == self.n or self._not_worse)
        return VERIFIED if shown and not self.unknown else UNKNOWN

    @property
    def _not_worse(self) -> bool:
        return self.difference is not None and non_inferior(self.difference, self.margin)

    @property
    def lines(self) -> list[str]:
        """The outcome in words, the verdict first."""
        return [self._verdict, *self.faults, *self.unknown]

    @property
    def _verdict(self) -> str:
        if not self.n:
            return f"Failed: not the model of the run ({len(self.faults)} differences), so no question was asked"
        answers = f"{self.same} of {self.n} answers by {self.by} are the run's"
        if self.same == self.n or self.difference is None:
            return f"{self.status.capitalize()}: {answers}"
        d = self.difference
        if self.computed:
            others = self.n - self.same
            these = f"the other {others}" if self.alike == others else f"{self.alike} of the other {others}"
            answers += f", and {these} are what it answers in {self.computed}, in which the export computes"
        change = f"token F1 {d.value:+.3f} [{d.low:.3f}, {d.high:.3f}]"
        if self.same + self.alike == self.n:
            verdict = "by rounding alone"
        elif self._not_worse:
            verdict = f"not worse by more than {self.margin:g}"
        elif d.passages < FEWEST_PASSAGES:
            verdict = power(d)
        else:
            verdict = f"it may be worse by more than {self.margin:g}"
        return f"{self.status.capitalize()}: {answers}; all questions: {change}, {verdict}"

    def to_dict(self) -> dict[str, Any]:
        difference = self.difference.to_dict() if self.difference else None
        return {**asdict(self), "difference": difference, "status": self.status}


def verify(
    arguments: InferenceArguments,
    folder: Path,
    about: About,
    endpoint: Endpoint | None,
    margin: float,
    most: int,
    on_progress: OnProgress,
) -> Verified:
    """Compare the export in `folder` with its run, which `arguments` names; by `endpoint` if one serves the export.

    At most `most` questions are asked (0: all). Raises `DataError` and `ModelError` if either cannot be read.
    """
    measured = _measured(arguments, about, most)
    run = arguments.answering_model()
    dtype = arguments.run.settings.get("dtype", "auto") if arguments.run else "auto"  # flags are of the export
    run, converted = (replace(run, arguments=replace(run.arguments, dtype=its)) for its in (dtype, about.dtype))
    tokenizer = run.open_tokenizer()
    prompt = make_prompt(tokenizer, arguments.prompt)
    evaluator = _evaluator(arguments, measured, prompt, tokenizer.pad_token_id)
    faults = [*_run_changed(measured, evaluator), *stops_differ(folder, prompt)]
    theirs = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
    messages = _messages(about, evaluator)
    faults += vocabulary_differs(theirs, tokenizer)
    faults += prompts_differ(theirs, messages, [question.prompt_ids for question in evaluator.questions])
    model = converted.open_to_merge(prompt, tokenizer.pad_token_id)
    faults += [*settings_differ(folder, model), *weights_differ(folder, model)]
    del model
    gc.collect()
    if faults:
        return Verified("", margin, faults)
    n = len(measured)
    if endpoint is not None:
        return _by_server(endpoint, evaluator, messages, measured, margin, on_progress(f"{endpoint.model} answers", n))
    unknown = []
    if elsewhere := _ELSEWHERE.get(about.to):
        unknown = [f"Not verified: {elsewhere}, which nothing here runs; start it and add --endpoint openai:URL"]
    # What was trained in float32 was measured under autocast. An adapter was not added to the weights then, and what it
    # changes would be rounded away. float16 under autocast would compute in bfloat16, and hide what overflows.
    bf16 = arguments.bf16 and (about.dtype == "bfloat16" or (run.trained_whole and about.dtype == "float32"))
    exported = AnsweringModel(ModelArguments(model_name_or_path=str(folder), dtype=about.dtype), bf16)
    answered, faults = _answers(exported, evaluator, about, on_progress("the export answers", n))
    found = _compared("transformers", margin, measured, answered, faults)
    if found.same < found.n and bf16 != arguments.bf16:
        others = [i for i, pair in enumerate(zip(measured, answered, strict=True)) if not _same(*pair)]
        wanted = _evaluator(arguments, [measured[i] for i in others], prompt, tokenizer.pad_token_id)
        # In bfloat16, an answer depends on what else is in its batch: as it was measured, with all questions.
        again, _ = _answers(run, evaluator, about, on_progress("the run answers as it was measured", n))
        on_done = on_progress(f"the run answers in {about.dtype}", len(others))
        now, _ = _answers(replace(converted, bf16=bf16), wanted, about, on_done)
        if again and now:  # else a number was not finite, and the run explains nothing
            of_all = [(measured[i], again[i], answered[i], its) for i, its in zip(others, now, strict=True)]
            alike = sum(_same(before, then) and _same(export, its) for before, then, export, its in of_all)
            found = replace(found, alike=alike, computed=about.dtype)
    return replace(found, unknown=unknown)


def _measured(arguments: InferenceArguments, about: About, most: int) -> list[Prediction]:
    """The run's answers to its test questions."""
    run = Path(arguments.model.model_name_or_path)
    if sha256_of(run / "run.json") != about.run_sha256:
        raise DataError([f"{run}: is not the run that was exported ({about.run}), or was changed; export it again"])
    return spread(list(read_predictions(in_folder(run, "predictions", "test_tuned.jsonl"))), most)


def _evaluator(
    arguments: InferenceArguments, measured: Sequence[Prediction], prompt: Any, pad_id: int
) -> EndToEndEvaluator:
    """The evaluator of the run's test, with the passages that the run retrieved."""
    return arguments.method.evaluator(
        name="test",
        examples=[prediction.example for prediction in measured],
        hits=[prediction.hits for prediction in measured],
        prompt=prompt,
        pad_id=pad_id,
        max_length=arguments.data.max_seq_length,
        max_new_tokens=arguments.evaluation.max_new_tokens,
        batch_size=arguments.answers.per_device_eval_batch_size,
        bootstrap_samples=arguments.evaluation.bootstrap_samples,
        abstentions=arguments.evaluation.abstentions,
        shorten=arguments.data.too_long == "shorten",
        citations=arguments.prompt.citations,
    )


def _run_changed(measured: Sequence[Prediction], evaluator: EndToEndEvaluator) -> list[str]:
    """A line if the run's prompts are no longer those that it was measured with."""
    pairs = zip(measured, evaluator.questions, strict=True)
    wrong = [p.example.source for p, q in pairs if p.prompt_tokens not in (None, len(q.prompt_ids))]
    told = f"run: {len(wrong)} prompts have another length than when it was measured; its tokenizer or base has changed"
    return [told] if wrong else []


def _messages(about: About, evaluator: EndToEndEvaluator) -> list[list[dict[str, str]]]:
    """What a client sends that follows export.json."""
    prompt: Any = replace(evaluator.prompt, instruction=about.instruction)  # type: ignore[type-var]
    return [
        asked_of_template(prompt, question.read, example.chat_history[question.left_out.turns :], example.question)
        for question, example in zip(evaluator.questions, evaluator.examples, strict=True)
    ]


def _answers(
    opening: AnsweringModel, evaluator: EndToEndEvaluator, about: About, on_done: Callable[[int], None]
) -> tuple[Sequence[Prediction], list[str]]:
    """The model's answers; none, and why, if a number is not finite."""
    model = opening.open(evaluator.prompt, evaluator.pad_id)
    with computing(model, opening.bf16):
        faults = _not_finite(model, max((q.prompt_ids for q in evaluator.questions), key=len), about)
        return [] if faults else evaluator(model, on_answer=on_done).predictions, faults


def _not_finite(model: Model, ids: list[int], about: About) -> list[str]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits
    if bool(torch.isfinite(logits).all()):
        return []
    return [f"computing: {about.dtype} overflows on the longest prompt; export with --dtype bfloat16 or float32"]


def _by_server(
    endpoint: Endpoint,
    evaluator: EndToEndEvaluator,
    messages: Sequence[list[dict[str, str]]],
    measured: Sequence[Prediction],
    margin: float,
    on_done: Callable[[int], None],
) -> Verified:
    begin = time.perf_counter()
    replies = endpoint.complete(messages, evaluator.max_new_tokens, on_done=on_done)
    answered = evaluator.score(replies, time.perf_counter() - begin).predictions
    faults = [f"server: {len(failed)} requests failed; {failed[0]}"] if (failed := _failures(replies)) else []
    found = _compared(endpoint.model, margin, measured, answered, faults)
    # Servers count in different ways (Ollama leaves out what is cached), so this matters only where answers differ.
    if found.same < found.n and (told := _other_lengths(replies, evaluator)):
        return replace(found, faults=[*found.faults, told])
    return found


def _failures(replies: Sequence[Reply]) -> list[str]:
    return [reply.failure for reply in replies if reply.failure]


def _other_lengths(replies: Sequence[Reply], evaluator: EndToEndEvaluator) -> str:
    """A line if the server read prompts of other lengths than the run's."""
    pairs = zip(replies, evaluator.questions, strict=True)
    off = [r.prompt_tokens - len(q.prompt_ids) for r, q in pairs if r.prompt_tokens not in (None, len(q.prompt_ids))]
    if not off:
        return ""
    most = max(off, key=abs)
    why = {1: "a second BOS token?", -1: "a lost BOS token?"}.get(most, "another template, or a context that cuts?")
    return f"server: it read {len(off)} of {len(replies)} prompts with another number of tokens, up to {most:+d}: {why}"


def _compared(
    by: str, margin: float, measured: Sequence[Prediction], answered: Sequence[Prediction], faults: list[str]
) -> Verified:
    if not answered:
        return Verified(by, margin, faults)
    pairs = list(zip(measured, answered, strict=True))
    same = sum(_same(*pair) for pair in pairs)
    both = [(a, b) for a, b in pairs if F1 in a.scores and F1 in b.scores]
    difference = None
    if both:
        before, after = ([p.scores[F1] for p in side] for side in zip(*both))
        difference = paired_difference(before, after, clusters_of([a.example for a, _ in both]))
    return Verified(by, margin, faults, same=same, n=len(pairs), difference=difference)


def _same(one: Prediction, other: Prediction) -> bool:
    return one.answer.strip() == other.answer.strip() and one.finished == other.finished and not other.failure
