"""Groundtune from Python: `train`, `load`, `evaluate`, `compare`, `open_retriever`.

Each function does the work of the command of that name, with the same arguments, checks and defaults: a keyword is a
flag without its dashes. Functions return what commands print, and raise exceptions where commands exit. They do not
end the process, leave signal handlers behind, or set up logging: `logging.getLogger("groundtune")` is the caller's.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.arguments import GROUPS, DataArguments, RetrievalArguments
from groundtune.commands.ask import WITHOUT
from groundtune.commands.compare import beside, compared
from groundtune.commands.config import as_in_a_file
from groundtune.commands.evaluate import inference_arguments, inference_parser
from groundtune.commands.evaluate import parser as evaluate_parser
from groundtune.commands.flags import add_group, filled
from groundtune.commands.index import retriever_problems
from groundtune.commands.parsing import at_their_lines, given, light_parser, parse_arguments
from groundtune.commands.terminal import add_output_flags
from groundtune.commands.train import pushed
from groundtune.errors import DataError
from groundtune.evaluation.arguments import GROUPS as ANSWERING
from groundtune.methods import METHODS
from groundtune.runs.record import recorded_as
from groundtune.runs.remembered import remembered
from groundtune.system.durable import disk_errors
from groundtune.system.progress import bar, bars
from groundtune.system.signals import Stopped, watched
from groundtune.system.text import without_secrets

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from groundtune.evaluation.comparison import Comparison
    from groundtune.recipes.evaluate import Evaluated, OnProgress
    from groundtune.reporting.results import Results
    from groundtune.retrieval.retrievers import Retriever
    from groundtune.schema import Turn
    from groundtune.serving.dialogue import Dialogue, Source
    from groundtune.training.arguments import RunArguments

    PathLike = str | os.PathLike[str]

logger = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.RLock()  # random generators and accelerate's state belong to the process
# Flags that exist only on the command line.
_PRINTS = "controls printing, which functions never do"
_NOT_HERE = {"config": "is not an argument of this function", "json": _PRINTS, "full": _PRINTS}
_SET_BY_TRAINING = re.compile(r"ACCELERATE_|WANDB_RUN_GROUP$")  # environment variables
_RETRIEVER = (
    (DataArguments, ["full_dataset_file_path", "full_dataset_index_path"]),
    (
        RetrievalArguments,
        [
            "embedding_model",
            "embedding_server_model",
            "filter",
            "store",
            "vector_dtype",
            "retriever",
            "mix_weight",
            "reranker",
            "reranker_model",
            "rerank_depth",
            "rerank_weight",
            "embedding_batch_size",
            "embedding_dtype",
            "query_prompt",
            "document_prompt",
        ],
    ),
)


@dataclass(frozen=True)
class Answer:
    """An answer with the passages that it is based on.

    `sources` are in the order of the prompt, best first. `chat_history` is the conversation so far, including this
    question and answer: pass it to the next `ask`. `finished` is False if the answer was cut at `max_new_tokens`.
    `cited` is the text with the marks of its sources, if `citations` were asked for.
    """

    question: str
    text: str
    sources: tuple[Source, ...]
    chat_history: tuple[Turn, ...] = field(repr=False)
    finished: bool = True
    cited: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, as returned by `train` and `load`.

    `folder` contains the model and the results, `method` is the name of the training method, and `arguments` are the
    keywords given to `load`.
    """

    folder: Path
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _results: Results | None = field(default=None, repr=False)
    _asking: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    @cached_property
    def results(self) -> Results:
        """The run's results: `verdict`, `base` and `tuned` (each with `metrics` and `predictions`), `differences`.

        Raises:
            DataError: the results in the folder are incomplete.
        """
        if self._results is not None:
            return self._results

        from groundtune.reporting.report import read_results

        return read_results(self.folder)

    def table(self) -> Table:
        """Base and tuned model as a rich table: a notebook displays it, `rich.print` prints it in a terminal."""
        from groundtune.reporting.report import summary_table

        return summary_table(self.results)

    def ask(self, question: str, chat_history: Sequence[Turn] = ()) -> Answer:
        """Answer a question from the documents, as `groundtune ask` does.

        The first question opens the model, the retriever and the documents; they are kept until `close` is called.
        Threads may share a run: their questions are answered one after the other.

        Args:
            question: A text that is not empty.
            chat_history: The conversation so far, oldest turn first. `query_history` decides which turns are part of
                the search query; a long conversation loses its oldest turns.

        Raises:
            DataError: the question is empty or too long, a file is missing, or the folder names models or files outside
                itself and the run was made on another machine: in that case give them to `load` as keywords.
            ModelError: a model cannot be loaded.
            EndpointError: the server of `generator` cannot be used.
        """
        if not question.strip():
            raise DataError(["question: is empty; write one"])
        with self._asking, _by_keyword("ask"), _progress(not self.arguments.get("quiet")):
            dialogue = replace(self._dialogue, turns=list(chat_history))
            sources, words = dialogue.ask(question)
            for _ in words:
                pass
        said, turns = dialogue.told.said, tuple(dialogue.turns)
        return Answer(question, said.answer.strip(), tuple(sources), turns, dialogue.told.finished, said.marked)

    def evaluate(self, *, config: PathLike | None = None, **arguments: Any) -> Evaluated:
        """Evaluate the run's model; see `evaluate`. The keywords given to `load` apply here too.

        The model that answers `ask` is closed first, so that only one model is in memory.
        """
        self.close()
        return evaluate(self.folder, config=config, **{**self.arguments, **arguments})

    def close(self) -> None:
        """Release the model that answers `ask`; the next question opens it again."""
        with self._asking:
            self.__dict__.pop("_dialogue", None)

    @cached_property
    def _dialogue(self) -> Dialogue:
        from groundtune.serving.dialogue import open_dialogue

        again = partial(_written, "groundtune.load", self.folder, self.arguments)
        words = given(_asking_parser(), [], self.arguments) | {"model": str(self.folder)}
        arguments = inference_arguments(words, for_questions=False, again=again)
        if problems := arguments.check(has_examples=False):
            raise DataError(problems)
        with _as_it_was():
            return open_dialogue(arguments)


def train(method: str, *, config: PathLike | None = None, **arguments: Any) -> Run:
    """Train a model and compare it with its base model, as `groundtune sft` and `groundtune swr` do.

    The same call resumes an interrupted run from its last checkpoint, and returns at once if the run is finished.
    Ctrl-C finishes the step, saves it, and raises `KeyboardInterrupt`; a second Ctrl-C does not wait. Random
    generators, signal handlers and environment variables are restored afterwards. If several threads call this
    function, one trains while the others wait.

    Args:
        method: `sft` trains on gold passages, `swr` on gold and retrieved passages.
        config: A YAML or JSON file of arguments; keywords override it.
        arguments: Any flag of `groundtune sft`, without its dashes: `model_name_or_path`, `embedding_model`,
            `train_file`, `eval_file`, `test_file`, `full_dataset_file_path`, `output_dir`, `use_peft`, and all of
            `transformers.TrainingArguments`. Paths, numbers, booleans, lists and dictionaries are given as such; None
            means the default, even if the file sets another value. `quiet=True` shows no progress.

    Raises:
        DataError: arguments or data are wrong, or `output_dir` contains another run; `problems` lists everything.
        ModelError: a model cannot be loaded.
        OutOfMemory: a single row does not fit into memory.
        NonFiniteLoss: the training diverged.
        DiskError: the disk is full or fails.
        NotPushed: the run is finished and saved, but not on the hub; repeat the call to push it.
    """
    if method not in METHODS:
        raise DataError([f"method: {method!r} is unknown; use one of {', '.join(METHODS)}"])
    words = _words(config)
    with _ONE_AT_A_TIME, _by_keyword(method, lambda problems: at_their_lines(problems, words, arguments)), _as_it_was():
        parsed = parse_arguments(method, words, _allowed(arguments))
        with recorded_as(_written("groundtune.train", method, {"config": config, **arguments})):
            results = _trained(parsed)
        if parsed.training.process_index == 0:
            pushed(parsed)
    quiet = {"quiet": True} if parsed.output.quiet else {}
    return Run(Path(parsed.training.output_dir), method, quiet, results)


def _trained(arguments: RunArguments) -> Results | None:
    """The results of the run; None if it was already finished."""
    from groundtune.recipes.train import train as trained
    from groundtune.runs.resume import AlreadyFinished

    folder, shown = Path(arguments.training.output_dir), not arguments.output.quiet
    try:
        with watched(second_ends=False), _progress(shown), disk_errors(folder):
            return trained(arguments)
    except AlreadyFinished as finished:
        logger.info("%s", finished)
        return None
    except Stopped as stopped:
        logger.warning("%s; the same call resumes from the last checkpoint", stopped)
        signal.raise_signal(stopped.signum)  # for the caller's handler: Ctrl-C becomes a KeyboardInterrupt
        raise


def load(folder: PathLike, **arguments: Any) -> Run:
    """Open a run that `train`, `groundtune sft` or `groundtune swr` finished. No model is loaded yet.

    The folder stores the names of model, retriever, prompt and files. Those outside the folder are used only if the
    run was made on this machine; otherwise `ask` and `evaluate` raise a `DataError` that says which keywords to give
    here.

    Args:
        folder: The run's `output_dir`.
        arguments: Any flag of `groundtune ask`, without its dashes, to override the stored settings:
            `full_dataset_file_path`, `embedding_model`, `base_model`, `eval_num_to_retrieve`, `max_new_tokens`,
            `generator` ... `quiet=True` shows no progress.

    Raises:
        DataError: there is no finished run, its record was edited, or an argument is unknown or wrong.
    """
    path = os.fspath(folder)
    with _by_keyword("ask"):
        given(_asking_parser(), [], _allowed(arguments))
        run = remembered(path)
    if run is None or not run.method:
        found = "no such folder" if not os.path.isdir(path) else "it contains no finished run"
        raise DataError([f"{path}: {found}; name the output_dir of a run that `train` finished"])
    return Run(Path(path), run.method, arguments)


def evaluate(model: PathLike | Run = "", *, config: PathLike | None = None, **arguments: Any) -> Evaluated:
    """Evaluate any model end to end, as `groundtune evaluate` does, and write metrics, predictions and a page.

    Args:
        model: A run, a model's or an adapter's folder, or a hub name. Empty: the server that `generator` names.
        config: A YAML or JSON file of arguments; keywords override it.
        arguments: Any flag of `groundtune evaluate`, without its dashes: `eval_file`, `contexts`, `with_base`, `judge`,
            `output_dir` ... Settings stored in a run's folder need not be given. `quiet=True` shows no progress.

    Returns:
        `evaluations[context][system]` with `metrics` (each a mean with its 95 % interval) and `predictions`; the
        system is "model" or, with `with_base`, also "base"; `comparisons`; and `failures`, which is empty if every
        answer and judgement succeeded.

    Raises:
        DataError: arguments or data are wrong; `problems` lists everything, before any model is loaded.
        ModelError: a model cannot be loaded.
        EndpointError: a server cannot be used.
        DiskError: the disk is full or fails.
    """
    if isinstance(model, Run):
        return model.evaluate(config=config, **arguments)
    name = os.fspath(model)
    again = partial(_written, "groundtune.evaluate", name, {"config": config, **arguments})
    with _by_keyword("evaluate"):
        words = given(evaluate_parser(), _words(config), _allowed(arguments)) | {"model": name}
        parsed = inference_arguments(words, for_questions=True, again=again)

        from groundtune.recipes.evaluate import evaluate as evaluated

        shown = not words["quiet"]
        with _as_it_was(), _progress(shown), recorded_as(again({})), _answering_bars(shown) as on_progress:
            return evaluated(parsed, on_progress)


def compare(*runs: PathLike | Run | Evaluated, names: Sequence[str] = (), output: PathLike | None = "") -> Comparison:
    """Compare systems that answered the same questions, as `groundtune compare` does. No model is loaded.

    Args:
        runs: At least two: runs (their tuned models), results of `evaluate`, folders of either, or prediction files.
            Every other system is compared with the first, question by question.
        names: Names of the systems, in the same order. Default: the shortest parts of their paths that differ.
        output: Output page (.html); the numbers are written next to it as .json. Default: comparison.html in the
            folder of the first system. None: neither is written.

    Returns:
        `evaluations` by name, `differences[name][metric]` from the first with 95 % intervals, and `verdict(name)`.

    Raises:
        DataError: there are no predictions, or no question was answered by all systems; `problems` lists everything.
        DiskError: the disk is full or fails.
    """
    paths = [_path_of(run) for run in runs]
    file = None if output is None else os.fspath(output) or (beside(paths[0]) if paths else "comparison.html")
    call = _written("groundtune.compare", *paths, {"names": list(names), "output": file})
    with _by_keyword("compare"), recorded_as(call):
        return compared(paths, list(names), file)


def open_retriever(
    full_dataset_file_path: PathLike = "", *, config: PathLike | None = None, **arguments: Any
) -> Retriever:
    """Open the retriever over all documents that training, evaluation and `ask` use.

    Documents that are new or changed are embedded first; their vectors are cached in `full_dataset_index_path`.

    Args:
        full_dataset_file_path: The document database (.jsonl, .parquet, or a LocalRQA .pkl).
        config: A YAML or JSON file of arguments; keywords override it.
        arguments: `embedding_model`, `embedding_server_model`, `retriever` ("mix", "dense", "bm25" or "hybrid"),
            `full_dataset_index_path`,
            `embedding_batch_size`, `embedding_dtype`, `store`, `vector_dtype`, `query_prompt`, `document_prompt`, and
            `filter`, a condition on metadata such as 'lang == "en"'; see `groundtune index`. `quiet=True` shows no
            progress.

    Returns:
        An object with `search(questions, k)`: for each question a tuple of the min(k, documents) best `Hit`s, best
        first; "bm25" finds fewer if fewer share a word with the question. A `Hit` has a `document` and a `score`; see
        `Retriever` for what the score means.

    Raises:
        DataError: arguments or documents are wrong; `problems` lists everything.
        ModelError: the embedding model cannot be loaded.
        DiskError: the disk is full or fails.
    """
    parser = light_parser("groundtune index", "", "")
    for group, names in _RETRIEVER:
        add_group(parser, group, names)
    add_output_flags(parser)
    named = {"full_dataset_file_path": full_dataset_file_path} if full_dataset_file_path else {}
    with _by_keyword("index"):
        words = given(parser, _words(config), _allowed({**arguments, **named}))
        data, retrieval = filled(DataArguments, words), filled(RetrievalArguments, words)
        if problems := retriever_problems(data, retrieval):
            raise DataError(problems)

        from groundtune.data.files import read_documents
        from groundtune.retrieval.opening import index_folder, open_retriever_with

        with _as_it_was(), _progress(not words["quiet"]):
            documents = read_documents(data.full_dataset_file_path)
            return open_retriever_with(retrieval.embedding_model, retrieval, documents, index_folder(data))


# Arguments


def _words(config: PathLike | None) -> list[str]:
    return [] if config is None else ["--config", os.fspath(config)]


def _allowed(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords unchanged. Raises `DataError` if one of them exists only on the command line."""
    if problems := [f"{name}: {why}; remove it" for name, why in _NOT_HERE.items() if name in arguments]:
        raise DataError(problems)
    return arguments


def _asking_parser() -> argparse.ArgumentParser:
    return inference_parser("ask", "", "", "", WITHOUT)


def _path_of(run: PathLike | Run | Evaluated) -> str:
    if isinstance(run, str | os.PathLike):
        return os.fspath(run)
    return str(run.folder if isinstance(run, Run) else run.output_dir)


def _written(function: str, *parts: Any) -> str:
    """A Python call as text, without secrets; `parts` are values, then dictionaries of keywords or `--flags`, of which
    later ones replace earlier ones."""
    values = [part for part in parts if not isinstance(part, Mapping)]
    keywords = {name.removeprefix("--"): value for part in parts if isinstance(part, Mapping)
                for name, value in part.items()}  # fmt: skip
    words = []
    for name, value in [*(("", value) for value in values), *keywords.items()]:
        value = as_in_a_file(value)
        if value not in (None, []):
            shown = repr(without_secrets(value, name))
            words.append(f"{name}={shown}" if name else shown)
    return f"{function}({', '.join(words)})"


# Problems


@contextmanager
def _by_keyword(command: str, place: Callable[[Sequence[str]], list[str]] = list) -> Iterator[None]:
    """Rewrite problems raised inside so that they name keywords, not flags; `place` adds the file they come from."""
    try:
        yield
    except DataError as error:
        error.problems = [_in_python(problem, command) for problem in place(error.problems)]
        raise


def _in_python(problem: str, command: str) -> str:
    """ "--use_peft true" -> "use_peft=True", for known flags only, so that text quoted from data stays unchanged."""
    known = _flag_names()

    def keyword(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        return found[0] if name not in known else f"{name}={value.title()}" if value else name

    problem = re.sub(r"(?<![\w'\"-])--(\w+)(?: (true|false)\b)?", keyword, problem)
    return re.sub(r"; -h ", f"; groundtune {command} -h ", re.sub(r"^MODEL:", "model:", problem))


def _flag_names() -> set[str]:
    training = sys.modules.get("groundtune.training.arguments")  # imports torch; only training mentions its flags
    groups = [*GROUPS, *ANSWERING, *([training.QATrainingArguments] if training else [])]
    return {one.name for group in groups for one in fields(group)} | {"output", "names"}


# The state of the process


@contextmanager
def _progress(shown: bool) -> Iterator[None]:
    """Show or hide progress bars inside, including those of transformers."""
    with bars(shown), nullcontext() if shown else _transformers_is_quiet():
        yield


@contextmanager
def _transformers_is_quiet() -> Iterator[None]:
    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            of_transformers.enable_progress_bar()


@contextmanager
def _answering_bars(shown: bool) -> Iterator[OnProgress]:
    """A progress bar for each stage, one after the other."""
    with ExitStack() as stack:

        def begin(what: str, total: int) -> Callable[[int], Any]:
            stack.close()  # the previous bar is full
            return stack.enter_context(bar(what, total, hidden=not shown, leave=False)).update

        yield begin


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Restore process-wide state afterwards, unless another thread is training."""
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        yield  # resetting its random generators would be worse than drawing from them
        return
    try:
        with _kept():
            yield
    finally:
        _ONE_AT_A_TIME.release()


@contextmanager
def _kept() -> Iterator[None]:
    """Restore random generators, the log level of transformers, and environment variables."""
    from transformers.utils import logging as of_transformers

    from groundtune.runs.checkpoints import kept_randomness

    level, variables = of_transformers.get_verbosity(), _variables()
    try:
        with kept_randomness():
            yield
    finally:
        of_transformers.set_verbosity(level)
        for name in _variables():
            del os.environ[name]
        os.environ.update(variables)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _SET_BY_TRAINING.match(name)}
