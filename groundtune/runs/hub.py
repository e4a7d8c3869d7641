"""Publishing a run on the model hub: which of its files go there, at the end and, if requested, from every checkpoint.

Trainer's flags keep their meaning: --push_to_hub, --hub_model_id, --hub_strategy, --hub_private_repo ... But Trainer
pushes the whole output folder, including answers, passages and local paths; here only the model, its tokenizer, the
card and metrics.json are pushed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from groundtune import __version__
from groundtune.errors import DataError
from groundtune.system.outputs import is_link
from groundtune.system.text import hide_secrets, one_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

MODEL = (
    "model*.safetensors", "adapter_model*.safetensors", "*.safetensors.index.json", "config.json",
    "generation_config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "vocab.*", "merges.txt", "*.model",
)  # fmt: skip
RESULTS = ("README.md", "metrics.json")
REPORT = ("report.html", "report.md", "answers.html", "predictions/test_*.jsonl")  # they quote the data
_STAGED = ".pushing-"


class NotPushed(Exception):
    """The run is complete on disk but not on the hub; the message says why and what to do."""


class Hub:
    """The hub repository of a run; `training` holds its `TrainingArguments`."""

    def __init__(self, training: TrainingArguments) -> None:
        self.training = training
        self.name = training.hub_model_id or Path(cast(str, training.output_dir)).absolute().name
        self._api = HfApi(library_name="groundtune", library_version=__version__, token=training.hub_token)
        self._pushing: list[Future] = []

    def create(self) -> str:
        """Create the repository unless it exists; its full name. Raises `DataError` if that fails."""
        try:
            private = self.training.hub_private_repo
            self.name = self._api.create_repo(self.name, private=private, exist_ok=True).repo_id
        except Exception as error:  # the hub's client has a dozen kinds
            problem = f"--push_to_hub: {self.name} cannot be created on the hub ({hide_secrets(one_line(error))})"
            ways_out = "log in with `hf auth login`, name another --hub_model_id, or remove the flag and push later"
            raise DataError([f"{problem}; {ways_out}"]) from error
        return self.name

    def push(self, folder: Path, report: bool = False, on_name: Callable[[str], None] = lambda name: None) -> str:
        """Push the publishable files of a finished run, with `report` also its report and test predictions; the URL.

        `on_name` gets the full name of the repository before anything is pushed. Waits for pushes still under way.
        Raises `NotPushed`.
        """
        self.wait()
        for left in folder.glob(f"{_STAGED}*"):  # left by a push that was killed
            shutil.rmtree(left, ignore_errors=True)
        _tell_of_a_local_base(folder)
        files = (*MODEL, *RESULTS, *(REPORT if report else ()))
        try:
            on_name(self.create())
            with tempfile.TemporaryDirectory(prefix=_STAGED, dir=folder) as staged:
                _stage(folder, files, Path(staged))
                self._upload(staged, "End of training")
        except DataError as error:
            raise NotPushed(_how_to_push(folder, error.problems[0].partition("; ")[0])) from error
        except Exception as error:
            raise NotPushed(_how_to_push(folder, f"--push_to_hub: {hide_secrets(one_line(error))}")) from error
        return f"{self._api.endpoint}/{self.name}"

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push a checkpoint's model in the background and, depending on --hub_strategy, the whole checkpoint.

        A failure is only a warning: the next checkpoint, or the end of the run, tries again.
        """
        strategy = self.training.hub_strategy
        under_way = any(not push.done() for push in self._pushing)
        if strategy == HubStrategy.END or (under_way and not self.training.hub_always_push):
            return
        self._push_later(checkpoint, MODEL)
        if strategy == HubStrategy.CHECKPOINT:
            self._push_later(checkpoint, ("*",), "last-checkpoint")
        elif strategy == HubStrategy.ALL_CHECKPOINTS:
            self._push_later(checkpoint, ("*",), checkpoint.name)

    def wait(self) -> None:
        """Wait until no push is under way."""
        wait(self._pushing)

    def _push_later(self, checkpoint: Path, files: Iterable[str], path_in_repo: str | None = None) -> None:
        # A newer checkpoint may cause this one to be removed before it is pushed.
        staged = tempfile.mkdtemp(prefix=_STAGED, dir=checkpoint.parent)
        try:
            _stage(checkpoint, files, Path(staged))
            message = f"Training in progress, {checkpoint.name}"
            push = self._upload(staged, message, path_in_repo=path_in_repo, run_as_future=True)
        except Exception as error:
            push = Future()
            push.set_exception(error)
        self._pushing = [other for other in self._pushing if not other.done()] + [push]
        push.add_done_callback(partial(_pushed, checkpoint.name, staged))

    def _upload(self, folder: str, message: str, **options: Any) -> Any:
        return self._api.upload_folder(
            repo_id=self.name,
            folder_path=folder,
            commit_message=message,
            revision=self.training.hub_revision,
            **options,
        )


def _stage(folder: Path, patterns: Iterable[str], target: Path) -> None:
    """Link the files that match a pattern into `target`, or copy them if links fail; `*` does not match a slash."""
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        inside = target / path.relative_to(folder)
        if not path.is_file() or inside.exists() or is_link(path):  # a link leads to files that the run did not write
            continue
        inside.parent.mkdir(exist_ok=True)
        try:
            os.link(path, inside)
        except OSError:
            shutil.copy2(path, inside)


def _tell_of_a_local_base(folder: Path) -> None:
    config = folder / "adapter_config.json"
    base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path") if config.is_file() else None
    if base and Path(base).is_dir():
        logger.warning(
            "the adapter names a local folder as its base model, %s, which others do not have: push that too", base
        )


def _pushed(what: str, staged: str, push: Future) -> None:
    shutil.rmtree(staged, ignore_errors=True)
    if error := push.exception():
        logger.warning("%s was not pushed to the hub (%s); the run continues", what, hide_secrets(one_line(error)))


def _how_to_push(folder: Path, problem: str) -> str:
    return (
        f"{problem}. The run is complete in {folder} but not on the hub; run the same command again to push it without "
        "training"
    )
