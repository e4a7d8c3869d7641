"""`groundtune serve`: a chat page, an OpenAI-compatible API and tools for agents, in front of the documents."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.commands.ask import WITHOUT
from groundtune.commands.evaluate import inference_arguments, inference_parser
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given
from groundtune.commands.terminal import be_quiet, say, say_json
from groundtune.errors import DataError
from groundtune.evaluation.arguments import BASE, MODEL, InferenceArguments, with_flags
from groundtune.serving.arguments import ServeArguments

if TYPE_CHECKING:
    import socket

    from groundtune.serving.answers import Serving

logger = logging.getLogger(__name__)

USAGE = """[MODEL] [--port N] [--host ADDRESS --api_key KEY] [--FLAG VALUE ...]"""
DESCRIPTION = """Serve a model with its documents: a chat page, an OpenAI-compatible API (/v1/chat/completions,
/v1/models) and two tools for agents (/mcp: search, ask), in one process. The last message of the user is the question,
and the earlier ones its history; passages are searched for here, with the retriever and prompt of the run. Questions of
several users are answered side by side. Votes on the page go to a file that `groundtune convert feedback` reads."""
EXAMPLES = """examples:
  groundtune serve runs/my_qa_model
  groundtune serve runs/my_qa_model --with_base                       the page compares it with the base model, blind
  GROUNDTUNE_SERVE_KEY=... groundtune serve runs/my_qa_model --host 0.0.0.0
  groundtune serve --generator openai:http://localhost:8000/v1 --generator_model my-model \\
      --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2"""
_NOT_HERE = WITHOUT - {"per_device_eval_batch_size", "with_base", "eval_file"}
_QUESTIONS, _LONGEST_QUESTION = 4, 120  # examples on the page, and their characters


def main(argv: Sequence[str]) -> int:
    """Serve until a signal ends it; what is being answered then is finished first."""
    words = given(parser(), argv)
    typed = partial(with_flags, ["groundtune", "serve", *argv])
    arguments = inference_arguments(words, for_questions=True, again=typed)
    server = filled(ServeArguments, words)
    if problems := arguments.check(has_examples=False) + server.check(arguments.model.model_name_or_path):
        raise DataError(problems)
    if words["quiet"] or words["json"]:
        be_quiet()
    with server.bound() as bound:
        host, port = bound.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        serving = open_serving(arguments, server)

        def ready() -> None:
            if words["json"]:
                say_json({"url": url, "model": serving.name, "feedback_file": str(serving.feedback.path)}, indent=None)
            else:
                say(f"{serving.name} answers at {url}; votes go to {serving.feedback.path}; Ctrl-C ends it")

        run(serving, bound, ready)
    return 0


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = inference_parser("serve", USAGE, DESCRIPTION, EXAMPLES, _NOT_HERE, helps=_HELPS)
    add_group(made, ServeArguments, [field.name for field in fields(ServeArguments)])
    return made


_HELPS = {
    "eval_file": "Examples (.jsonl) whose questions the page suggests. Default: those of MODEL's run.",
    "per_device_eval_batch_size": "Questions that a local model answers side by side. (default: 16)",
    "with_base": "Also load the base model: the page then compares the two, blind. (default: false)",
    "concurrency": "Parallel requests to a server. (default: 8)",
}


def open_serving(arguments: InferenceArguments, server: ServeArguments) -> Serving:
    """Everything that is loaded before the first question. Raises `DataError` or `ModelError`."""
    from groundtune.serving.answers import Serving
    from groundtune.serving.batching import Batching
    from groundtune.serving.feedback import FeedbackFile
    from groundtune.serving.finding import Finder
    from groundtune.serving.telling import Manner
    from groundtune.serving.voices import BASE as VOICE_OF_BASE
    from groundtune.serving.voices import TUNED, open_voices

    cites = arguments.prompt.citations
    manners = {TUNED: Manner(cites, arguments.least(MODEL))}  # what is wrong with the thresholds is known first
    if arguments.answers.with_base:
        manners[VOICE_OF_BASE] = Manner(cites, arguments.least(BASE))
    finder = Finder(arguments)
    return Serving(
        name=arguments.name,
        batching=Batching(finder, open_voices(arguments), server.queue_size),
        feedback=FeedbackFile(server.feedback_path(arguments.model.model_name_or_path)),
        max_new_tokens=arguments.evaluation.max_new_tokens,
        most_tokens=arguments.data.max_seq_length,
        allow_system_prompt=server.allow_system_prompt,
        api_key=server.key,
        questions=_suggested(arguments.data.eval_file),
        model_sha256=_sha256_of_run(arguments),
        manners=manners,
    )


def _suggested(eval_file: str) -> list[str]:
    """Some questions of the examples, for a page that nobody has asked anything yet."""
    from groundtune.data.files import read_examples
    from groundtune.evaluation.evaluator import spread

    if not eval_file:
        return []
    try:
        examples = [e for e in read_examples(eval_file) if not e.chat_history and len(e.question) <= _LONGEST_QUESTION]
    except DataError as error:
        logger.info("no questions are suggested: %s", error.problems[0])
        return []
    return [example.question for example in spread(examples, _QUESTIONS)]


def _sha256_of_run(arguments: InferenceArguments) -> str:
    from groundtune.data.files import sha256_of

    return sha256_of(Path(arguments.run.folder, "run.json")) if arguments.run else ""


def run(serving: Serving, bound: socket.socket, ready: Any = lambda: None) -> None:
    """Serve at a bound socket until a signal arrives."""
    import uvicorn

    from groundtune.serving.api import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        make_app(serving), http="h11", ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=1000,
    )  # fmt: skip
    Server(config).run(sockets=[bound])
