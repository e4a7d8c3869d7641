"""`groundtune ask`: one question, or a dialogue in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

from groundtune.arguments import AFTERWARDS
from groundtune.commands.evaluate import inference_arguments, inference_parser
from groundtune.commands.parsing import given
from groundtune.commands.terminal import be_quiet, complain, say, say_json, say_text
from groundtune.errors import DataError
from groundtune.evaluation.arguments import AnswerArguments, JudgeArguments, with_flags
from groundtune.prompts.citations import mark

if TYPE_CHECKING:
    from groundtune.serving.dialogue import Dialogue, Source

USAGE = """[MODEL] [QUESTION] [--full_dataset_file_path FILE] [--embedding_model MODEL] [--FLAG VALUE ...]"""
DESCRIPTION = """Ask a model about the documents. The answer is streamed, followed by the passages it is based on.
Without a question, a dialogue starts: each question is asked together with the earlier turns, and a long dialogue
drops its oldest turns. Questions can also be piped in, one per line. A run folder stores its retriever, prompt and
documents, so MODEL alone is enough for a run."""
EXAMPLES = """examples:
  groundtune ask runs/my_qa_model "Can I return a lamp?"
  groundtune ask runs/my_qa_model
  groundtune ask --generator openai:http://localhost:8000/v1 --generator_model my-model --question "Can I return it?" \\
      --full_dataset_file_path documents.jsonl --embedding_model intfloat/e5-base-v2"""
COMMANDS = """/sources shows the full passages, /new starts a new dialogue,
Ctrl-C stops an answer, /quit or Ctrl-D leaves."""
CUT = "the answer is cut at --max_new_tokens; raise it to read the rest"
WITHOUT = {  # flags of `evaluate` that `ask` does not need
    *(field.name for group in (JudgeArguments, AnswerArguments) for field in fields(group)),
    "eval_file", "eval_max_samples", "bootstrap_samples", "abstentions", "reuse_answers",
} - {"bf16", "base_model", "abstain_below"}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Answer one question, or all until there are no more."""
    words = given(parser(), argv)
    typed = partial(with_flags, ["groundtune", "ask", *argv])
    arguments = inference_arguments(words, for_questions=False, again=typed)
    if problems := arguments.check(has_examples=False):
        raise DataError(problems)
    question = words.get("asked", words["question"])
    if question is not None and not question.strip():
        raise DataError(["QUESTION: is empty; write one, or leave it out for a dialogue"])

    from groundtune.serving.dialogue import open_dialogue

    if words["quiet"] or words["json"]:
        be_quiet()
    dialogue = open_dialogue(arguments)
    show = _show_json if words["json"] else _show_answer if words["quiet"] else _show
    if question:
        show(dialogue, question)
    elif sys.stdin.isatty():
        _converse(dialogue)
    else:
        for line in _questions(sys.stdin):
            show(dialogue, line)
    return 0


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = inference_parser("ask", USAGE, DESCRIPTION, EXAMPLES, WITHOUT)
    made.add_argument(
        "question", nargs="?", default=None, metavar="QUESTION", help="Without a question, a dialogue starts."
    )
    made.add_argument("--question", dest="asked", metavar="TEXT", help="The question, if no MODEL is named.")
    return made


def _questions(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _converse(dialogue: Dialogue) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history for input()
    say_text(f"Ask about the documents. {COMMANDS}")
    sources: list[Source] = []
    while True:
        try:
            question = input("\n> ").strip()
        except EOFError:
            say("")
            return
        if question.lower() in ("/quit", "/exit", "exit", "quit"):
            return
        if question == "/new":
            dialogue.turns.clear()
            say("a new dialogue; earlier turns are forgotten")
        elif question == "/sources":
            say_text("\n\n".join(f"[{i}] {source.document.text}" for i, source in enumerate(sources, 1)))
        elif question.startswith("/"):
            say_text(COMMANDS)
        elif question:
            try:
                sources = _show(dialogue, question)
            except KeyboardInterrupt:
                say("", "stopped; this question and its answer are forgotten")
            except DataError as error:  # too long, or the server is gone: the dialogue continues
                complain(*error.problems)


def _show(dialogue: Dialogue, question: str) -> list[Source]:
    sources = _show_answer(dialogue, question)
    read = f"{len(sources)} passage{'' if len(sources) == 1 else 's'}"
    if dialogue.manner.citations == AFTERWARDS and dialogue.told.said.marked:
        say_text(f"\n{dialogue.told.said.marked}")
    found = f"{'read' if dialogue.told.withheld else 'based on'} {read}:"
    say("", found if sources else "no passage was found, or none fits into the prompt")
    for i, source in enumerate(sources, 1):
        number = mark(i) if dialogue.cites else f"[{i}]"
        say(f"  {number} {source.score:.3f}  {', '.join(filter(None, (source.title, source.place)))}")
    return sources


def _show_answer(dialogue: Dialogue, question: str) -> list[Source]:
    sources, words = dialogue.ask(question)
    for word in words:
        say_text(word, end="")
    say("")
    if not dialogue.told.finished:
        complain(CUT)
    return sources


def _show_json(dialogue: Dialogue, question: str) -> None:
    """Print one object on one line, so that several questions give JSONL."""
    sources, words = dialogue.ask(question)
    for _ in words:
        pass
    told = dialogue.told
    cited = {"cited": told.said.marked} if dialogue.cites else {}
    shown = [{"title": s.title, "score": s.score, **s.document.to_dict()} for s in sources]
    say_json(
        {"question": question, "answer": told.said.answer, **cited, "finished": told.finished, "sources": shown},
        indent=None,
    )
