"""A server of tiny random models on a loopback port, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from groundtune.commands import serve
from groundtune.commands.evaluate import inference_arguments
from groundtune.commands.flags import filled
from groundtune.commands.parsing import given
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.serving.answers import Serving
from groundtune.serving.api import make_app
from groundtune.serving.arguments import ServeArguments


@dataclass
class Running:
    url: str
    serving: Serving
    server: uvicorn.Server

    @property
    def batching(self) -> Any:
        return self.serving.batching

    def settled(self) -> bool:
        """Whether nothing is answered or waits, within a few seconds."""
        return until(lambda: not self.batching.busy and not self.batching.waiting)


def until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def arguments_of(*words: Any, **flags: Any) -> tuple[InferenceArguments, ServeArguments]:
    argv = [*map(str, words), *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    read = given(serve.parser(), argv)
    return inference_arguments(read, True, lambda more: ""), filled(ServeArguments, read)


@contextmanager
def running(serving: Serving, **settings: Any) -> Iterator[Running]:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(serving), http="h11", ws="none", lifespan="on", log_config=None, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert until(lambda: server.started)
    try:
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", serving, server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def tiny_flags(family: Any, embedder: Path, data: Path, index: Path) -> dict[str, Any]:
    """Flags of `ask` and `serve` for a tiny model."""
    return {
        "full_dataset_file_path": data / "documents.jsonl", "embedding_model": embedder,
        "full_dataset_index_path": index, "eval_num_to_retrieve": 2, "max_seq_length": 200, "max_new_tokens": 12,
        "bf16": "false", "instruction": "Answer.",
    }  # fmt: skip
