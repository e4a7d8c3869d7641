"""Arguments for evaluating, asking and judging; those for data, retrieval, prompt and model are those of training."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from groundtune.arguments import (
    BLOCK,
    REWRITE,
    DataArguments,
    EvaluationArguments,
    ModelArguments,
    PromptArguments,
    RetrievalArguments,
    argument,
    check_loading,
    check_model_name,
    check_retrieval,
    no_room,
    no_such_file,
    reads_vectors,
    reranked_by,
    too_small,
)
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.methods import Method, method_of
from groundtune.model.endpoint import Endpoint, endpoint_at, is_server, server_problems
from groundtune.prompts.policies import CONTEXTS
from groundtune.retrieval.rewriting import cannot_rewrite
from groundtune.runs.remembered import BASE_MODEL, EVALUATION, Remembered, base_not_followed, leads_out_of
from groundtune.schema import nfc
from groundtune.system.model_folders import adapter_base_of, model_problems
from groundtune.system.outputs import links_at, links_in
from groundtune.system.text import harmless_line, words_without_secrets

logger = logging.getLogger(__name__)

MODEL, BASE = "model", "base"  # the system that answers; with --with_base it is compared with the other
SEARCHED = ("retrieved", "gold_and_distractors")  # the contexts that need a retriever


PARTS = ("contexts", "rank", "k", "distractors", "abstention")  # of a study
SEARCHED_PARTS = {"rank", "k", "distractors"}


if TYPE_CHECKING:
    from groundtune.evaluation.confidence import Chosen, Thresholds
    from groundtune.evaluation.requirements import Limit
    from groundtune.model.opening import AnsweringModel


SERVER = ["concurrency", "requests_per_minute", "endpoint_retries", "endpoint_timeout"]  # request settings


@dataclass
class GeneratorArguments:
    """The model or server that answers."""

    _argument_group_name = "generator"

    generator: str = argument(
        "",
        "An OpenAI-compatible server that answers instead of a local model, such as openai:http://localhost:8000/v1. "
        "Its API key is read from the environment: GROUNDTUNE_API_KEY, else OPENAI_API_KEY.",
    )
    generator_model: str = argument("", "Name of the model on the server.")
    generator_api: str = argument(
        "",
        "completions: the server receives the prompt as token ids of MODEL's tokenizer. chat: the server receives "
        "messages and applies its own template. Default: completions if MODEL is given, else chat.",
        ["completions", "chat"],
    )
    generator_options: str = argument(
        "", 'Extra fields for every request, as JSON; null removes a built-in field: {"max_tokens": null, "seed": 1}.'
    )
    concurrency: int = argument(8, "Parallel requests to a server.")
    requests_per_minute: float = argument(0.0, "Maximum requests per minute to a server; 0: no limit.")
    endpoint_retries: int = argument(5, "Number of retries of a failed request, with increasing delays.")
    endpoint_timeout: float = argument(120.0, "Timeout of a request in seconds.")

    @property
    def limits(self) -> dict[str, Any]:
        """Request settings, as fields of `Endpoint`."""
        return {
            "concurrency": self.concurrency,
            "requests_per_minute": self.requests_per_minute,
            "retries": self.endpoint_retries,
            "timeout": self.endpoint_timeout,
        }

    @property
    def least(self) -> list[tuple[object, str, float]]:
        """The minimum of each value, for `too_small`."""
        return [(self, name, least) for name, least in zip(SERVER, (1, 0, 0, 0.001), strict=True)]


@dataclass
class JudgeArguments:
    """A language model that grades the answers."""

    _argument_group_name = "judge"

    judge: str = argument(
        "", "Model that grades the answers: openai:URL, or a model folder or hub name to load locally. Empty: none."
    )
    judge_model: str = argument("", "Name of the judge model on the server.")
    judge_prompt: list[str] = argument(
        ["correctness"],
        "What to grade: correctness (against the gold answer), faithfulness (to the passages), or your own text file. "
        "The prompts are written to --output_dir, where you can copy and edit them.",
    )
    judge_options: str = argument("", "Like --generator_options, for the judge.")
    judge_max_new_tokens: int = argument(300, "Maximum judgement length in tokens.")


@dataclass
class AnswerArguments:
    """The context that answers are based on, and when an answer counts as right."""

    _argument_group_name = "answers"

    contexts: str = argument(
        "retrieved",
        "Passages that the model reads, as a comma-separated list, or all: closed_book (no passage), retrieved (end "
        "to end), gold, gold_and_distractors (gold among hard negatives and retrieved passages, in a random order).",
    )
    closed_book_instruction: str = argument(
        "Answer the user's question.", "Instruction at the start of a prompt without passages."
    )
    with_base: bool = argument(
        False, "Also evaluate the base model on the same prompts; needs an adapter or a run folder."
    )
    study: str = argument(
        "",
        "Also study where answers are lost, for MODEL and its base model, and write study.json and a section of the "
        "page. A comma-separated list of: contexts (all four), rank (the same questions with the gold passage first "
        "and fourth), k (1 to 8 passages retrieved), distractors (gold among 0 to 7 others), abstention (thresholds on "
        "likelihood). Without a value: all.",
        alone="all",
    )
    forgetting: str = argument(
        "",
        "A text file, whose paragraphs are read, or JSONL with a text, or a prompt and perhaps an answer, per line, "
        "that has nothing to do with the documents. The loss of MODEL and its base model on it, and a few "
        "continuations, show what training has cost elsewhere.",
    )
    right_metric: str = argument("generation/f1", "The score that decides whether an answer counts as right.")
    right_threshold: float = argument(0.5, "Minimum score for an answer to count as right.")
    abstain_below: str = argument(
        "",
        "Withhold unlikely answers, and say that the passages do not answer the question. A folder that this command "
        "wrote for other questions, some of them unanswerable: each system abstains below the thresholds that were "
        "best for it there. Or numbers, for all systems: a mean log-probability such as -0.7 or, with the score of the "
        "first passage, -0.7,0.4. Default: what --keep_thresholds stored in MODEL's run; never: withhold nothing.",
    )
    keep_thresholds: bool = argument(
        False,
        "Store the thresholds that were best for these questions in MODEL's run: evaluate, ask and serve then withhold "
        "unlikely answers. Choose them on questions that you do not report.",
    )
    fail_under: list[str] = argument(
        [],
        "Exit with status 1 if a mean of the model is lower: METRIC=VALUE ..., such as f1=0.3 or recall@4=0.7. "
        "It is the mean in the context retrieved, or in the first context if that is not evaluated.",
    )
    fail_over: list[str] = argument([], "The same if a mean is higher, such as unfinished=0.05.")
    per_device_eval_batch_size: int = argument(16, "Questions per batch of a local model.")
    base_model: str = argument(
        "",
        "Base model (hub name or folder) of MODEL's adapter or, with --with_base, the model that MODEL was trained "
        "from. Default: the one named in MODEL's folder, if this machine created it.",
    )
    bf16: bool | None = argument(None, "Compute in bfloat16. Default: if the hardware supports it.")
    output_dir: str = argument(
        "",
        "Folder for metrics, predictions and the report. Default: `evaluation` in the run folder, else "
        "runs/evaluate-NAME.",
    )

    def __post_init__(self) -> None:
        self.closed_book_instruction = nfc(self.closed_book_instruction)


GROUPS = (
    DataArguments,
    RetrievalArguments,
    PromptArguments,
    ModelArguments,
    EvaluationArguments,
    GeneratorArguments,
    JudgeArguments,
    AnswerArguments,
)


def _listed(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def with_flags(words: Sequence[str], flags: Mapping[str, str]) -> str:
    """A command line with flags added, which replace what it says of them; without secrets."""
    kept = words_without_secrets(without_flags(words, flags))
    return shlex.join([*kept, *(word for flag in flags.items() for word in flag)])


def without_flags(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """A command line less these flags, which take one value each."""
    following = zip(("", *words), words)
    return [word for before, word in following if before not in flags and word.partition("=")[0] not in flags]


@dataclass(frozen=True)
class InferenceArguments:
    """All arguments of `groundtune evaluate` and `ask`; `model.model_name_or_path` is MODEL.

    `run` is the run that made MODEL, None if no run did. `again(flags)` is the user's command with the missing flags
    added; error messages print it.
    """

    data: DataArguments
    retrieval: RetrievalArguments
    prompt: PromptArguments
    model: ModelArguments
    evaluation: EvaluationArguments
    generator: GeneratorArguments
    judge: JudgeArguments
    answers: AnswerArguments
    run: Remembered | None = None
    again: Callable[[Mapping[str, str]], str] = partial(with_flags, ())

    @property
    def name(self) -> str:
        """A short name for what answers, for display."""
        folder = Path(self.model.model_name_or_path)
        return self.generator.generator_model or folder.name or folder.resolve().name  # "." has no name

    @property
    def output_dir(self) -> Path:
        """The folder for the results."""
        in_run = self.run is not None and self.api == "here"
        default = Path(self.model.model_name_or_path, EVALUATION) if in_run else Path("runs", f"evaluate-{self.name}")
        return Path(self.answers.output_dir or default)

    @property
    def contexts(self) -> list[str]:
        named = _listed(self.answers.contexts)
        return list(CONTEXTS) if named == ["all"] or "contexts" in self.study else named

    @property
    def study(self) -> list[str]:
        """The parts of the study; empty if there is none."""
        named = _listed(self.answers.study) if self.answers.study else []
        return list(PARTS) if named in (["all"], ["true"]) else named

    @property
    def with_base(self) -> bool:
        """Whether the base model answers, too: if that is asked for, and in a study if it is known."""
        studied = self.study or self.answers.forgetting
        return self.answers.with_base or bool(studied and self.api == "here" and self.base)

    @property
    def searches(self) -> bool:
        """Whether any context needs a retriever."""
        return any(context in SEARCHED for context in self.contexts) or bool({*self.study} & SEARCHED_PARTS)

    @property
    def api(self) -> str:
        """`here`, `completions` or `chat`."""
        if not self.generator.generator:
            return "here"
        return self.generator.generator_api or ("completions" if self.model.model_name_or_path else "chat")

    def generator_endpoint(self) -> Endpoint:
        """The server that answers."""
        g = self.generator
        return endpoint_at(g.generator, g.generator_model, g.generator_options, **g.limits)

    @property
    def searching(self) -> RetrievalArguments:
        """The retrieval arguments, with what writes the questions of `--query_history rewrite` if none is named: the
        model that MODEL was trained from, as in its training; else the server that answers; else MODEL."""
        if self.retrieval.rewriter or self.retrieval.query_history != REWRITE:
            return self.retrieval
        g = self.generator
        if not g.generator or (self.run and self.base):
            return replace(self.retrieval, rewriter=self.base or self.model.model_name_or_path)
        named = {"rewriter": g.generator, "rewriter_model": g.generator_model, "rewriter_options": g.generator_options}
        return replace(self.retrieval, **cast("dict[str, Any]", named))

    @property
    def bf16(self) -> bool:
        """The value of `--bf16`, else whether the hardware supports bfloat16."""
        from groundtune.model.loading import computes_bf16  # here, because it imports torch, and -h must be fast

        return computes_bf16() if self.answers.bf16 is None else self.answers.bf16

    @property
    def method(self) -> Method:
        """The method of the run that made MODEL; its functions load and evaluate MODEL."""
        return method_of(self.run.method if self.run else "")

    def answering_model(self) -> AnsweringModel:
        """MODEL, ready to be opened. Raises `DataError` if it is an adapter whose configuration cannot be read."""
        from groundtune.model.opening import AnsweringModel, adapter_base

        base = self.base if self.answers.base_model else adapter_base(self.model)
        base = self.base if base and os.path.isdir(self.model.model_name_or_path) else base
        settings = self.run.settings if self.run else {"use_peft": True}
        return AnsweringModel(
            self.model, self.bf16, base, self.run is not None, not settings.get("use_peft"), self.method.load
        )

    def base_model(self) -> AnsweringModel:
        """The base model of the run that made MODEL."""
        model = replace(self.model, model_name_or_path=self.base)
        return replace(self.answering_model(), arguments=model, base="", by_run=False)

    def check(self, has_examples: bool = True) -> list[str]:
        """Every problem that shows without reading data or loading a model, one line each; empty if there are none.

        `has_examples`: the questions are the examples of --eval_file, not typed by a user.
        """
        if outside := self._outside(has_examples):
            return [self._not_followed(outside)]  # before accessing anything that the folder names
        files = self._check_files(has_examples)
        problems = [*files, *self._check_who(), *self._check_judge(), *self._check_numbers(), *self._check_limits()]
        return [*self._no_such_run(), *problems] if problems else []

    def _no_such_run(self) -> list[str]:
        """The likely reason for everything else that is missing: the name of a run that is not there."""
        name = self.model.model_name_or_path
        if self.api != "here" or not name or os.path.exists(name) or re.search(r"\s", name):
            return []
        return [f"MODEL: no such folder: {name}; check the path (the name of a hub model needs the arguments below)"]

    def _outside(self, has_examples: bool) -> dict[str, str]:
        """Flag -> value: what would be used although only MODEL's folder names it, it lies outside the folder, and this
        machine did not make the run."""
        wanted = {"--base_model": self._base_outside()}
        if self.run:
            if wanted["--base_model"] == self.run.outside.get(BASE_MODEL):
                wanted |= {"--model_revision": self.run.revision or "", "--gguf_file": self.run.gguf_file or ""}
            names = dict(self.run.outside)
            if has_examples and not self.data.eval_file:
                wanted["--eval_file"] = names.get("test_file") or names.get("eval_file") or ""
            if self.searches and not self.data.full_dataset_file_path:
                wanted["--full_dataset_file_path"] = names.get("full_dataset_file_path", "")
            embedding = self.retrieval.eval_embedding_model or self.retrieval.embedding_model
            if self.searches and reads_vectors(self.retrieval) and not embedding:
                named = names.get("eval_embedding_model") or names.get("embedding_model") or ""
                wanted["--embedding_model"] = named
            if self.searches and not self.retrieval.reranker:
                wanted["--reranker"] = names.get("reranker", "")
            if self.searches and self.retrieval.query_history == REWRITE:
                missing = [name for name in ("rewriter", "rewrite_prompt") if not getattr(self.retrieval, name)]
                wanted |= {f"--{name}": names.get(name, "") for name in missing}
        return {flag: value for flag, value in wanted.items() if value}

    def _base_outside(self) -> str:
        """The base model, if one is needed but MODEL's folder may not decide it; else empty."""
        folder = self.model.model_name_or_path
        if self.answers.base_model or not os.path.isdir(folder) or (self.run and self.run.own):
            return ""
        base = adapter_base_of(Path(folder))
        if base:
            return base if leads_out_of(folder, base) else ""
        answers = self.answers
        compares = answers.with_base or answers.study or answers.forgetting
        return self.run.outside.get(BASE_MODEL, "") if self.run and compares else ""

    @property
    def base(self) -> str:
        """The model that MODEL was trained from; empty if that is unknown without asking a hub."""
        run, folder = self.run, self.model.model_name_or_path
        known = run.names.get(BASE_MODEL, "") if run else ""
        of_adapter = adapter_base_of(Path(folder)) if not known and os.path.isdir(folder) else ""
        return self.answers.base_model or known or of_adapter

    def _not_followed(self, outside: Mapping[str, str]) -> str:
        return harmless_line(
            f"{self.model.model_name_or_path}: names {', '.join(outside.values())} outside its folder, but this "
            "machine has no record of creating the folder, so they are not used; if you trust them, name them "
            f"yourself: {self.again(outside)}"
        )

    def _check_files(self, has_examples: bool) -> list[str]:
        data, problems, searches = self.data, [], self.searches
        if has_examples and not data.eval_file:
            problems.append("--eval_file: missing; name a file of examples (.jsonl)")
        if searches and not data.full_dataset_file_path:
            way_out = f", or remove {' and '.join(SEARCHED)} from --contexts" if has_examples else ""
            problems.append(f"--full_dataset_file_path: missing; name the document database{way_out}")
        read = ["eval_file"] * has_examples + ["full_dataset_file_path"] * searches
        problems += no_such_file(data, read)
        if searches and data.full_dataset_index_path:
            problems += in_the_way("full_dataset_index_path", data.full_dataset_index_path, folder=True)
        if has_examples:
            problems += in_the_way("output_dir", self.output_dir, folder=True) or self._links()
        unknown = [context or '""' for context in self.contexts if context not in CONTEXTS]
        if unknown:
            problems.append(f"--contexts: unknown: {', '.join(unknown)}; choose from {', '.join(CONTEXTS)}, or all")
        problems += no_such_file(self.answers, ["forgetting"])
        if self.answers.forgetting and self.api != "here":
            problems.append("--forgetting: a server gives no loss of a text; name a model on this machine")
        if unknown := [part or '""' for part in self.study if part not in PARTS]:
            problems.append(f"--study: unknown: {', '.join(unknown)}; choose from {', '.join(PARTS)}, or all")
        if "abstention" in self.study and "retrieved" not in self.contexts:
            problems.append("--study: abstention needs the context retrieved; add it to --contexts")
        return problems + ([*check_retrieval(self.searching), *self._check_rewriter()] if searches else [])

    def _check_rewriter(self) -> list[str]:
        if self.retrieval.query_history != REWRITE:
            return []
        name = self.searching.rewriter
        if not name or is_server(name):
            return []  # without any name there is no MODEL either, which is reported
        own = [] if self.retrieval.rewriter else cannot_rewrite(self.model)
        return own or base_not_followed("rewriter", name)

    def _links(self) -> list[str]:
        """The links that results would be written through; a default output folder must not be a link itself."""
        chosen_here = [] if self.answers.output_dir else [self.output_dir]
        return links_at(chosen_here, "output_dir") or links_in(self.output_dir, "predictions", flag="output_dir")

    def _check_who(self) -> list[str]:
        name, problems = self.model.model_name_or_path, []
        if self.api == "here" and not name:
            problems.append("MODEL: missing; name a folder or hub model, or a server with --generator openai:URL")
        elif not os.path.isdir(name) and re.search(r"\s", name):
            problems.append(
                f"MODEL: {name!r} is not a model; name a folder or hub model first, or write --question before it"
            )
        if self.answers.keep_thresholds and not self.run:
            problems.append(f"--keep_thresholds: {name or 'a server'} is no run's folder; leave it out")
        if self.api == "completions" and not name:
            problems.append("--generator_api completions: needs MODEL for its tokenizer; name MODEL, or use chat")
        problems += [problem.removeprefix("--") for problem in check_model_name("MODEL", name)]
        if self.api == "here":
            # The GGUF file belongs to the base model, not to the adapter's folder.
            problems += check_loading(replace(self.model, use_peft=True, gguf_file=None))
            base = self.answers.base_model or (adapter_base_of(Path(name)) if os.path.isdir(name) else "")
            gguf_file = None if base else self.model.gguf_file
            problems += [*model_problems(name, gguf_file, with_base=False), *model_problems(base, self.model.gguf_file)]
        if self.generator.generator:
            g = self.generator
            problems += server_problems("generator", g.generator, g.generator_model, g.generator_options)
            if self.prompt.passage_attention == BLOCK:
                problems.append(
                    "--passage_attention block: a server computes full attention; give --passage_attention full to "
                    "measure the model so, or leave --generator out"
                )
            if self.answers.with_base:
                problems.append(
                    "--with_base: a server has only one model; evaluate the base model separately, then compare"
                )
        return problems

    def _check_judge(self) -> list[str]:
        from groundtune.evaluation.metrics import (  # here, because it imports numpy, and -h must be fast
            METRICS,
            greater_is_better,
        )

        judge, problems = self.judge, []
        # Metrics from 0 to 1 that every answer has, and for which higher is better.
        known = [n for n in METRICS if n.startswith(("generation/", "grounded/")) and greater_is_better(n)]
        if self.answers.right_metric not in known and not self.answers.right_metric.startswith("judge/"):
            problems.append(f"--right_metric: {self.answers.right_metric} is unknown; choose from {', '.join(known)}")
        if self.answers.right_metric.startswith("judge/") and not judge.judge:
            problems.append(f"--right_metric: {self.answers.right_metric} needs a judge; name one with --judge")
        if not 0 <= (least := self.answers.right_threshold) <= 1:
            problems.append(f"--right_threshold: {least:g}; give a number from 0 to 1 (a judge's 4 of 5 is 0.75)")
        if is_server(judge.judge):
            problems += server_problems("judge", judge.judge, judge.judge_model, judge.judge_options)
        elif judge.judge:
            problems += check_model_name("judge", judge.judge)
            problems += base_not_followed("judge", judge.judge) or model_problems(judge.judge)
        return problems

    def thresholds(self) -> Chosen | None:
        """The thresholds below which an answer is withheld; None: none is. Raises `DataError`."""
        from groundtune.evaluation.confidence import read_thresholds  # here, because it imports numpy

        return read_thresholds(self.answers.abstain_below, self.run.folder if self.run else None, self.scored_by)

    def least(self, system: str) -> Thresholds:
        """The thresholds of one system end to end, for answers that people get. Raises `DataError`."""
        from groundtune.evaluation.confidence import Thresholds

        known = self.thresholds()
        least = Thresholds() if known is None else known.of("retrieved", system)
        if least is None:
            logger.warning("--abstain_below: none was chosen for the %s end to end, so it answers everything", system)
            return Thresholds()
        if least.logprob is not None and self.api != "here":
            logger.warning("--abstain_below: the server gives no log-probabilities, so only the retrieval score counts")
            return replace(least, logprob=None)
        return least

    @property
    def scored_by(self) -> str:
        """What gives passages their scores, in words."""
        retrieval = self.retrieval
        embedding = Path(retrieval.eval_embedding_model or retrieval.embedding_model).name
        weights = f"{retrieval.mix_weight:g}, {retrieval.rerank_weight}"
        return f"{retrieval.retriever} {embedding}{reranked_by(retrieval.reranker)} ({weights})"

    def limits(self) -> list[Limit]:
        """The conditions that the evaluation must meet. Raises `DataError` with all that are wrong."""
        from groundtune.evaluation.requirements import read_limits  # here, because it imports numpy

        return read_limits(self.answers.fail_under, self.answers.fail_over)

    def _check_limits(self) -> list[str]:
        """Malformed conditions, and those on metrics that are not measured here."""
        from groundtune.evaluation.requirements import not_measured

        judges = [re.sub(r"\W+", "_", Path(name).stem) for name in self.judge.judge_prompt] if self.judge.judge else []
        try:
            return not_measured(self.limits(), judges, self.retrieval.eval_num_to_retrieve if self.searches else 0)
        except DataError as error:
            return error.problems

    def _check_numbers(self) -> list[str]:
        least = [
            (self.data, "max_seq_length", 16),
            (self.retrieval, "eval_num_to_retrieve", 1),
            (self.retrieval, "embedding_batch_size", 1),
            (self.evaluation, "max_new_tokens", 1),
            (self.evaluation, "bootstrap_samples", 100),
            (self.evaluation, "eval_max_samples", 0),
            (self.evaluation, "passage_cache", 0),
            *self.generator.least,
            (self.judge, "judge_max_new_tokens", 1),
            (self.answers, "per_device_eval_batch_size", 1),
        ]
        missing = no_such_file(self.evaluation, ("abstentions",))
        return too_small(least) + no_room(self.data, self.evaluation) + missing
