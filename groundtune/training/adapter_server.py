"""Evaluations that an OpenAI-compatible server answers while training goes on: it loads each step's adapter.

vLLM does so by `/load_lora_adapter` and `/unload_lora_adapter`, if it was started with `--enable-lora` and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=true. It is told a path, so it must see the folder of the run under the same one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from groundtune.errors import DataError
from groundtune.evaluation.evaluator import EndToEndEvaluator, Evaluation
from groundtune.model.endpoint import Endpoint, EndpointError, failing, lasting
from groundtune.prompts.prompt import to_continue
from groundtune.schema import Reply
from groundtune.system.durable import discard
from groundtune.system.outputs import inside

logger = logging.getLogger(__name__)

_SERVED = ".serving-"  # a name that nothing mistakes for a checkpoint
_HOW = (
    "start vLLM with --enable-lora --max-lora-rank {rank} and VLLM_ALLOW_RUNTIME_LORA_UPDATING=true, where it sees "
    "this folder under the same path"
)


@dataclass
class AdapterServer:
    """The server at `endpoint`, to which the adapters in `output_dir` are named; `rank` is theirs.

    Every step's adapter has a name of its own, because a server keeps what it loaded under a name.
    """

    endpoint: Endpoint
    output_dir: Path
    rank: int
    _thread: threading.Thread | None = field(default=None, repr=False)
    _found: list[Evaluation] = field(default_factory=list, repr=False)

    def folder(self, step: int) -> Path:
        """Where the adapter of a step has to be saved before `start`."""
        return inside(self.output_dir, f"{_SERVED}{step:06d}").absolute()

    def check(self, step: int) -> None:
        """Load and unload the adapter of `step`; raises `DataError` with the reason if the server does not."""
        try:
            self._load(step)
        except EndpointError as error:
            way_out = _HOW.format(rank=self.rank)
            raise DataError([f"--eval_endpoint: cannot load {self.folder(step)}: {error}; {way_out}"]) from error
        finally:
            self._remove(step)

    def start(self, step: int, evaluator: EndToEndEvaluator) -> None:
        """Begin to answer `evaluator`'s questions with the adapter of `step`, which `result` then waits for."""
        self._found = []
        self._thread = threading.Thread(target=self._answer, args=(step, evaluator), daemon=True)
        self._thread.start()

    def result(self) -> Evaluation:
        """The evaluation that `start` began. Answers that failed count as failed, and as nothing else."""
        if self._thread is None:
            raise RuntimeError("no evaluation was started")
        self._thread.join()
        self._thread = None
        return self._found[0]

    def _answer(self, step: int, evaluator: EndToEndEvaluator) -> None:
        prompts = [question.prompt_ids for question in evaluator.questions]
        begin = time.perf_counter()
        try:
            replies = self._replies(step, evaluator, prompts)
        except Exception as error:  # in a thread it would be lost, and the run would wait for nothing
            replies = failing(f"{type(error).__name__}: {error}")(prompts)
        self._found.append(evaluator.score(replies, time.perf_counter() - begin))

    def _replies(self, step: int, evaluator: EndToEndEvaluator, prompts: list[list[int]]) -> list[Reply]:
        try:
            self._load(step)
            asked = replace(self.endpoint, model=self._name(step))
            ask = lasting(asked.continue_prompts, met=True)
            return ask(prompts, evaluator.max_new_tokens, **to_continue(evaluator.prompt))
        except EndpointError as error:
            logger.warning("step %d: the server did not load the adapter: %s", step, error)
            return failing(str(error))(prompts)
        finally:
            self._remove(step)

    def _load(self, step: int) -> None:
        load = partial(self._ask, "/load_lora_adapter", step, lora_path=str(self.folder(step)))
        try:
            load()
        except EndpointError:
            # An earlier start of this run may have been killed before it unloaded it.
            self._unload(step)
            load()

    def _remove(self, step: int) -> None:
        self._unload(step)
        discard(self.folder(step))

    def _unload(self, step: int) -> None:
        with suppress(EndpointError):  # the server is gone, or never loaded it
            self._ask("/unload_lora_adapter", step)

    def _ask(self, path: str, step: int, **more: str) -> None:
        plain = replace(self.endpoint, options={})  # fields for answers are none of these requests'
        plain.ask(path, [{"lora_name": self._name(step), **more}])

    def _name(self, step: int) -> str:
        run = hashlib.sha256(str(self.output_dir.absolute()).encode()).hexdigest()[:8]
        return f"groundtune-{run}-step-{step}"
