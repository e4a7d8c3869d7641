"""Answers a second and time to the first token of `groundtune serve`, beside one at a time and `transformers serve`.

    python -m benchmarks.serving --model FOLDER --data FOLDER [--transformers]

Each of several users asks one question after the other, streamed, on the same questions for every side. "One at a
time" is the same server with a single slot. `transformers serve` cannot search: it gets the prompts that ours writes,
with their passages, so its time includes no retrieval. All sides decode greedily with the same limit of new tokens.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import arguments, decoder_folder, load_data
from benchmarks.retrieval import add_embedding_flag
from groundtune.arguments import DataArguments, EvaluationArguments, ModelArguments, PromptArguments, RetrievalArguments
from groundtune.data.files import write_documents
from groundtune.demo import embedding_model
from groundtune.evaluation.arguments import AnswerArguments, GeneratorArguments, InferenceArguments, JudgeArguments
from groundtune.prompts.policies import kept, retrieved_passages
from groundtune.prompts.prompt import chat_messages
from groundtune.retrieval.opening import index_folder, open_retriever
from groundtune.retrieval.retrievers import retrieve
from groundtune.schema import Document, Example

_READY_WITHIN = 300  # seconds


@dataclass(frozen=True)
class Measured:
    """One side with one number of users."""

    side: str
    users: int
    answers: int
    seconds: float
    first_token_s: float  # median
    cpu_s: float  # of the server's process, for one answer: on a busy machine, it tells more than the clock
    lost: int
    texts: list[str]

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds

    def to_dict(self) -> dict[str, Any]:
        shown = {name: value for name, value in vars(self).items() if name != "texts"}
        return {**shown, "answers_per_s": round(self.per_second, 4)}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    add_embedding_flag(parser)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=4, help="Questions of each user; of one user, four times as many")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--bf16", default="false", choices=["true", "false"], help="In float32, answers must be equal")
    parser.add_argument("--retriever", default=RetrievalArguments().retriever, help="As Groundtune's flag")
    parser.add_argument("--transformers", action="store_true", help="Also measure `transformers serve`")
    options = parser.parse_args()
    if options.quick:
        options.users, options.rounds, options.max_new_tokens = [1, 5], 1, 8
    options.embedding_model = options.embedding_model or str(embedding_model())
    documents, _, held_out = load_data(options.data)
    folder = str(decoder_folder(options))
    questions = [example for example in held_out if not example.chat_history]
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(
            Sides(folder, Path(temporary), documents[:200] if options.quick else documents, options), questions
        )
    check_nothing_is_lost(found)
    show(found)
    return 0


def measure(sides: Sides, questions: Sequence[Example]) -> list[Measured]:
    """Every side with every number of users; one server runs at a time."""
    options, found = sides.options, list[Measured]()

    def part(asked: list[Any], users: int) -> list[Any]:
        return asked[: options.rounds * max(users, 4)]

    plain = [[{"role": "user", "content": example.question}] for example in questions]
    for side, slots in (("groundtune serve", max(options.users)), ("one at a time", 1)):
        with sides.ours(slots) as server:
            found += [timed(side, server, "", part(plain, users), users, options) for users in options.users]
    if options.transformers:
        with sides.theirs() as server:
            prompts = sides.with_passages(questions[: options.rounds * max(*options.users, 4)])
            for users in options.users:
                found.append(timed("transformers serve", server, sides.folder, part(prompts, users), users, options))
    return found


@dataclass(frozen=True)
class Server:
    """The address of a server, and its process."""

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@dataclass
class Sides:
    """The servers that are measured."""

    folder: str
    temporary: Path
    documents: list[Document]
    options: Any

    def __post_init__(self) -> None:
        write_documents(self.temporary / "documents.jsonl", self.documents)

    @contextlib.contextmanager
    def ours(self, slots: int) -> Iterator[Server]:
        port = free_port()
        flags = {
            **{f"--{name}": str(value) for name, value in self.settings.items()},
            "--per_device_eval_batch_size": str(slots), "--bf16": self.options.bf16, "--port": str(port),
            "--feedback_file": str(self.temporary / "feedback.jsonl"),
        }  # fmt: skip
        words = [sys.executable, "-m", "groundtune.cli", "serve", self.folder, *(w for f in flags.items() for w in f)]
        with running(words, f"http://127.0.0.1:{port}/health") as process:
            yield Server(f"http://127.0.0.1:{port}/v1", process)

    @contextlib.contextmanager
    def theirs(self) -> Iterator[Server]:
        port = free_port()
        dtype = "bfloat16" if self.options.bf16 == "true" else "float32"
        command = str(Path(sys.executable).with_name("transformers"))
        words = [command, "serve", self.folder, "--port", str(port), "--dtype", dtype, "--continuous-batching"]
        with running(words, f"http://127.0.0.1:{port}/health") as process:
            yield Server(f"http://127.0.0.1:{port}/v1", process)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "full_dataset_file_path": self.temporary / "documents.jsonl", "max_new_tokens": self.options.max_new_tokens,
            "full_dataset_index_path": self.temporary / "index", "retriever": self.options.retriever,
            "embedding_model": self.options.embedding_model,
        }  # fmt: skip

    def with_passages(self, questions: Sequence[Example]) -> list[list[dict[str, str]]]:
        """The messages with their passages, as our own server reads them."""
        groups = [
            DataArguments(
                full_dataset_file_path=str(self.settings["full_dataset_file_path"]),
                full_dataset_index_path=str(self.settings["full_dataset_index_path"]),
            ),
            RetrievalArguments(embedding_model=self.options.embedding_model, retriever=self.options.retriever),
            PromptArguments(), ModelArguments(),
            EvaluationArguments(), GeneratorArguments(), JudgeArguments(), AnswerArguments(),
        ]  # fmt: skip
        using = InferenceArguments(*groups)
        retriever = open_retriever(using.retrieval, self.documents, index_folder(using.data))
        hits = retrieve(retriever, questions, using.retrieval.eval_num_to_retrieve, using.retrieval.query_history)
        return [
            chat_messages(using.prompt.instruction, kept(retrieved_passages(example, these)), (), example.question)
            for example, these in zip(questions, hits, strict=True)
        ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(words: list[str], health: str) -> Iterator[psutil.Process]:
    """A server in a process of its own, once it answers."""
    import httpx2

    with tempfile.TemporaryFile() as log, subprocess.Popen(words, stdout=log, stderr=log, env=os.environ) as process:
        try:
            end = time.monotonic() + _READY_WITHIN
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(health, timeout=5).status_code == 200:
                        break
                time.sleep(0.2)
            else:
                log.seek(0)
                sys.exit(f"{words[0]} did not start: {log.read().decode(errors='replace')[-1500:]}")
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def timed(side: str, server: Server, model: str, asked: Sequence[Any], users: int, options: Any) -> Measured:
    """All questions, by `users` who each ask the next one as soon as they have an answer."""
    from openai import OpenAI

    client = OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=600)
    say(client, model, asked[0], options.max_new_tokens)  # untimed
    left, texts, firsts = deque(enumerate(asked)), {}, []

    def user() -> None:
        with contextlib.suppress(IndexError):
            while True:
                i, messages = left.popleft()
                texts[i], first = say(client, model, messages, options.max_new_tokens)
                firsts.append(first)

    threads = [threading.Thread(target=user) for _ in range(users)]
    begin, cpu = time.perf_counter(), server.cpu_seconds()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - begin, server.cpu_seconds() - cpu
    answers = [texts.get(i, "") for i in range(len(asked))]
    first = statistics.median(firsts) if firsts else 0.0
    each = cpu / max(1, len(texts))
    return Measured(side, users, len(texts), seconds, first, each, len(asked) - len(texts), answers)


def say(client: Any, model: str, messages: Any, max_new_tokens: int) -> tuple[str, float]:
    """The answer, and the seconds to its first word."""
    begin, first, text = time.perf_counter(), 0.0, ""
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=max_new_tokens, temperature=0, stream=True
    )
    for chunk in stream:
        if chunk.choices and (word := chunk.choices[0].delta.content):
            first = first or time.perf_counter() - begin
            text += word
    return text, first or time.perf_counter() - begin


def check_nothing_is_lost(found: Sequence[Measured]) -> None:
    """Exit if an answer is missing, or if ours differ between numbers of users."""
    if lost := [one for one in found if one.lost]:
        sys.exit(f"{lost[0].side} with {lost[0].users} users lost {lost[0].lost} answers")


def show(found: Sequence[Measured]) -> None:
    """JSON lines and a table; `equal` is the share of the answers that are those given one at a time."""
    alone = max((one.texts for one in found if one.side == "one at a time"), key=len)
    table = Table("side", "users", "answers/s", "first token, s", "CPU s/answer", "equal")
    for one in found:
        same = sum(a == b for a, b in zip(one.texts, alone)) / len(one.texts)
        print(json.dumps({**one.to_dict(), "equal": round(same, 3)}))
        speed = f"{one.per_second:.3f}", f"{one.first_token_s:.2f}", f"{one.cpu_s:.2f}"
        table.add_row(one.side, str(one.users), *speed, f"{same:.0%}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
