"""Answers a second and time to the first token of `groundtune serve`, beside one at a time and `transformers serve`.

    python -m benchmarks.serving --model FOLDER --data FOLDER [--transformers]

Each of several users asks a question, streamed; all sides get the same ones. The servers run side by side and take
turns, one round after the other until the time is up, so that a machine that is busy slows all of them down; figures
are medians over the rounds. "One at a time" is the same server with a single slot. `transformers serve` cannot search:
it gets the prompts that ours writes, with their passages, so its time includes no retrieval. All sides decode greedily
with the same limit of new tokens, and some answers are compared with those of `groundtune ask`.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
from groundtune.serving.dialogue import open_dialogue

_READY_WITHIN = 300  # seconds


@dataclass(frozen=True)
class Measured:
    """One side with one number of users in one round."""

    side: str
    users: int
    answers: int
    seconds: float
    first_token_s: float  # median
    cpu_s: float  # of the server's process, for one answer: on a busy machine, it tells more than the clock
    lost: int
    texts: dict[str, str]  # by question

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
    parser.add_argument("--rounds", type=int, default=3, help="At most; each user asks one question in each")
    parser.add_argument("--minutes", type=float, default=12, help="No round begins that would end later")
    parser.add_argument("--max_new_tokens", type=int, default=24)
    parser.add_argument("--passages", type=int, default=2, help="Passages for each question")
    parser.add_argument("--asked", type=int, default=4, help="Answers that are compared with those of `groundtune ask`")
    parser.add_argument("--bf16", default="false", choices=["true", "false"], help="In float32, answers must be equal")
    parser.add_argument("--retriever", default=RetrievalArguments().retriever, help="As Groundtune's flag")
    parser.add_argument("--transformers", action="store_true", help="Also measure `transformers serve`")
    options = parser.parse_args()
    if options.quick:
        options.users, options.rounds, options.max_new_tokens = [1, 5], 2, 8
    options.embedding_model = options.embedding_model or str(embedding_model())
    documents, _, held_out = load_data(options.data)
    folder = str(decoder_folder(options))
    questions = [example for example in held_out if not example.chat_history]
    with tempfile.TemporaryDirectory() as temporary:
        sides = Sides(folder, Path(temporary), documents[:200] if options.quick else documents, options)
        found = measure(sides, questions)
        check_nothing_is_lost(found)
        show(found, sides.asked(questions[: options.asked]))
    return 0


def measure(sides: Sides, questions: Sequence[Example]) -> list[Measured]:
    """Every side with every number of users, in rounds."""
    options, found = sides.options, list[Measured]()
    most = max(options.users)
    with contextlib.ExitStack() as stack:
        servers = {
            "groundtune serve": (stack.enter_context(sides.ours(most)), ""),
            "one at a time": (stack.enter_context(sides.ours(1)), ""),
        }
        messages = {example.question: [{"role": "user", "content": example.question}] for example in questions}
        sent = {"groundtune serve": messages, "one at a time": messages}
        if options.transformers:
            servers["transformers serve"] = (stack.enter_context(sides.theirs()), sides.folder)
            sent["transformers serve"] = sides.with_passages(questions)
        for side, (server, model) in servers.items():  # untimed
            timed(side, server, model, dict(islice(reversed(sent[side].items()), 1)), 1, options)
        begin, end = time.monotonic(), time.monotonic() + 60 * options.minutes
        for number in range(options.rounds):
            if number and time.monotonic() + (time.monotonic() - begin) / number > end:
                break
            for users in options.users:
                asked = [questions[i % len(questions)].question for i in range(number * most, number * most + users)]
                for side in list(servers)[:: 1 if number % 2 == 0 else -1]:
                    part = {question: sent[side][question] for question in asked}
                    found.append(timed(side, *servers[side], part, users, options))
                    print(json.dumps(found[-1].to_dict()), flush=True)
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
            "embedding_model": self.options.embedding_model, "eval_num_to_retrieve": self.options.passages,
        }  # fmt: skip

    @property
    def using(self) -> InferenceArguments:
        """The arguments of `ask` that are those of our server."""
        options = self.options
        return InferenceArguments(
            DataArguments(
                full_dataset_file_path=str(self.settings["full_dataset_file_path"]),
                full_dataset_index_path=str(self.settings["full_dataset_index_path"]),
            ),
            RetrievalArguments(
                embedding_model=options.embedding_model, retriever=options.retriever,
                eval_num_to_retrieve=options.passages,
            ),
            PromptArguments(), ModelArguments(model_name_or_path=self.folder),
            EvaluationArguments(max_new_tokens=options.max_new_tokens), GeneratorArguments(), JudgeArguments(),
            AnswerArguments(bf16=options.bf16 == "true"),
        )  # fmt: skip

    def asked(self, questions: Sequence[Example]) -> dict[str, str]:
        """What `groundtune ask` answers, by question."""
        dialogue, answers = open_dialogue(self.using), {}
        for example in questions:
            dialogue.turns = []
            answers[example.question] = "".join(dialogue.ask(example.question)[1])
        return answers

    def with_passages(self, questions: Sequence[Example]) -> dict[str, list[dict[str, str]]]:
        """The messages with their passages, as our own server reads them, by question."""
        using = self.using
        retriever = open_retriever(using.retrieval, self.documents, index_folder(using.data))
        hits = retrieve(retriever, questions, using.retrieval.eval_num_to_retrieve, using.retrieval.query_history)
        return {
            example.question: chat_messages(
                using.prompt.instruction, kept(retrieved_passages(example, these)), (), example.question
            )
            for example, these in zip(questions, hits, strict=True)
        }


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


def timed(side: str, server: Server, model: str, asked: Mapping[str, Any], users: int, options: Any) -> Measured:
    """All questions, by `users` who each ask the next one as soon as they have an answer."""
    from openai import OpenAI

    client = OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=600)
    left, texts, firsts = deque(asked), {}, []

    def user() -> None:
        with contextlib.suppress(IndexError):
            while True:
                question = left.popleft()
                texts[question], first = say(client, model, asked[question], options.max_new_tokens)
                firsts.append(first)

    threads = [threading.Thread(target=user) for _ in range(users)]
    begin, cpu = time.perf_counter(), server.cpu_seconds()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - begin, server.cpu_seconds() - cpu
    first = statistics.median(firsts) if firsts else 0.0
    return Measured(side, users, len(texts), seconds, first, cpu / max(1, len(texts)), len(asked) - len(texts), texts)


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
    """Exit if an answer is missing."""
    if lost := [one for one in found if one.lost]:
        sys.exit(f"{lost[0].side} with {lost[0].users} users lost {lost[0].lost} answers")


def show(found: Sequence[Measured], asked: Mapping[str, str]) -> None:
    """A JSON line and a row for each side and number of users: medians over the rounds.

    `times` is the number of answers a second beside those of one at a time in the same round; `equal` the share of the
    answers, of those in `asked`, that are the same to the last character.
    """
    table = Table("side", "users", "rounds", "answers/s", "times", "first token, s", "CPU s/answer", "as ask")
    groups: dict[tuple[str, int], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.side, one.users), []).append(one)
    for (side, users), rounds in sorted(groups.items(), key=lambda group: group[0][1]):
        alone = groups["one at a time", users]
        row = {
            "answers_per_s": statistics.median(one.per_second for one in rounds),
            "times": statistics.median(a.per_second / b.per_second for a, b in zip(rounds, alone, strict=True)),
            "first_token_s": statistics.median(one.first_token_s for one in rounds),
            "cpu_s": statistics.median(one.cpu_s for one in rounds),
        }
        known = [(text, asked[question]) for one in rounds for question, text in one.texts.items() if question in asked]
        equal = {"compared": len(known), "equal": sum(a.strip() == b.strip() for a, b in known)}
        print(json.dumps({"side": side, "users": users, "rounds": len(rounds), **row, **equal}))
        speed = f"{row['answers_per_s']:.3f}", f"{row['times']:.2f}x", f"{row['first_token_s']:.2f}"
        same = f"{equal['equal']} of {equal['compared']}"
        table.add_row(side, str(users), str(len(rounds)), *speed, f"{row['cpu_s']:.2f}", same)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
