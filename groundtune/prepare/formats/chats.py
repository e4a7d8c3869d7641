"""Chat formats of other trainers: read, and two of them written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from groundtune.data.entries import Record, shown
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, Unsaid, children, converted, records
from groundtune.prompts.prompt import chat_turns
from groundtune.prompts.thoughts import TEXT_PARTS, after_thoughts
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn

_MESSAGES = 'a line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_SHAREGPT = 'a line is {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}'
_ALPACA = 'a row is {"instruction": "the question", "input": "the passage", "output": "the answer"}'
_PROMPT = 'a line is {"prompt": "...", "completion": "..."}, both texts or both lists of messages'
_DOCUMENT_FIELDS = ("documents", "gold_docs", "passages", "contexts", "context")
SYSTEM, TOOL = "system", "tool"
_TEXT_FIELDS = ("page_content", "text", "content", "contents")

# Role or speaker -> whose turn it is; several tools have names of their own.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "function", "function_call", "observation", "ipython"), TOOL),
}


@dataclass(frozen=True)
class Message:
    """One message; `learnt` is False for an answer that its file excludes from training."""

    speaker: str
    text: str
    learnt: bool = True


def read_messages(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Every answer of the assistant becomes an example, with the earlier turns as its chat history.

    Reads OpenAI's files for fine-tuning: an answer with `"weight": 0` is history only, and a row of preferences
    (`input`, `preferred_output`) gives its preferred answer. Passages come from the row's `documents` (or a similar
    field, such as `context`), with `options.prompt_pattern` from the prompts themselves, or else from
    `options.search`; an example without passages is left out.
    """
    for record in records(path, problems):
        if isinstance(asked := record.fields.get("input"), dict):
            prompt = Record(record.where, asked, problems, prefix="input.")
            dialogue = [*_messages(prompt, "messages"), *_messages(record, "preferred_output")]
        else:
            dialogue = _messages(record, "messages")
        yield from _examples(record, dialogue, options)


def read_prompts(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Like `read_messages`, for rows with a prompt and its completion."""
    for record in records(path, problems):
        if isinstance(record.fields.get("prompt"), list):
            dialogue = [*_messages(record, "prompt"), *_messages(record, "completion")]
        else:
            dialogue = [
                Message(USER, record.text("prompt", _PROMPT)),
                Message(ASSISTANT, record.text("completion", _PROMPT)),
            ]
        yield from _examples(record, dialogue, options)


def read_sharegpt(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Like `read_messages`, for rows of `conversations` between `human` and `gpt`, as ShareGPT and Vicuna have them."""
    for record in records(path, problems):
        turns = [
            Message(_speaker(turn, "from", _SHAREGPT), turn.text("value", _SHAREGPT, required=False))
            for turn in children(record, "conversations", _SHAREGPT)
        ]
        yield from _examples(record, [*_system(record), *turns], options)


def read_alpaca(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Rows of `instruction` (the question), `input` (the passage) and `output` (the answer), as Alpaca has them.

    `history`, pairs of earlier questions and answers, and `system` are read too.
    """
    for record in records(path, problems):
        pairs = children(record, "history", _ALPACA, (USER, ASSISTANT)) if record.fields.get("history") else ()
        earlier = [
            Message(speaker, pair.text(speaker, _ALPACA, required=False), learnt=False)
            for pair in pairs
            for speaker in (USER, ASSISTANT)
        ]
        asked = Message(USER, record.text("instruction", _ALPACA))
        answer = Message(ASSISTANT, record.text("output", _ALPACA, may_be_blank=True))
        passage = record.text("input", _ALPACA, required=False)
        dialogue = [*_system(record), *earlier, asked, answer]
        yield from _examples(record, dialogue, options, [format_passage(passage)] if passage.strip() else [])


def _system(record: Record) -> list[Message]:
    return [Message(SYSTEM, record.text("system", _SHAREGPT, required=False))] if record.fields.get("system") else []


def messages_row(example: Example, instruction: str) -> dict[str, Any]:
    """A row of `messages` like our own chat prompt, with instruction and passages before the first question."""
    turns = [*_prompt(example, instruction), Turn(ASSISTANT, example.answer)]
    return {"messages": _rows(turns), "documents": [d.to_dict() for d in example.gold_documents]}


def prompt_row(example: Example, instruction: str) -> dict[str, Any]:
    """The same as `prompt` and `completion`, split before the answer; both are lists of messages."""
    prompt, completion = _rows(_prompt(example, instruction)), _rows([Turn(ASSISTANT, example.answer)])
    documents = [document.to_dict() for document in example.gold_documents]
    return {"prompt": prompt, "completion": completion, "documents": documents}


def _prompt(example: Example, instruction: str) -> list[Turn]:
    return chat_turns(instruction, example.gold_documents, example.chat_history, example.question)


def _rows(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.speaker, "content": turn.message} for turn in turns]


def _messages(record: Record, key: str) -> list[Message]:
    need = _MESSAGES if key == "messages" else _PROMPT
    return [
        Message(_speaker(m, "role", need), _content(m, need), m.fields.get("weight", 1) != 0)
        for m in children(record, key, need)
    ]


def _speaker(message: Record, key: str, need: str) -> str:
    name = message.text(key, need)
    if name.strip() and name.strip().lower() not in _ROLES:
        message.note(key, f"{shown(name)} is unknown; use one of {', '.join(_ROLES)}")
    return _ROLES.get(name.strip().lower(), USER)


def _content(message: Record, need: str) -> str:
    """The text of a message, or the joined text parts of a list; empty for a message that calls a tool."""
    parts = message.fields.get("content")
    if isinstance(parts, list):
        spoken = [p for p in message.records("content", need) if p.fields.get("type", "text") in TEXT_PARTS]
        return "\n".join(part.text("text", need, required=False) for part in spoken)
    return message.text("content", need, required=False)


def _joined(dialogue: Iterable[Message]) -> list[Message]:
    """The turns of user and assistant, without thoughts and blank turns; adjacent turns of one speaker are one."""
    talk: list[Message] = []
    for message in dialogue:
        text = after_thoughts(message.text)[0] if message.speaker == ASSISTANT else message.text
        if message.speaker not in (USER, ASSISTANT) or not text.strip():
            continue
        if talk and talk[-1].speaker == message.speaker:
            learnt = talk[-1].learnt or message.learnt
            talk[-1] = Message(message.speaker, f"{talk[-1].text}\n\n{text}", learnt)
        else:
            talk.append(replace(message, text=text))
    return talk


def _examples(
    record: Record, dialogue: Sequence[Message], options: Options, passages: Sequence[Document] = ()
) -> Iterator[Converted]:
    given = list(passages) or list(_documents(record))
    history: list[Turn] = []
    system = "\n\n".join(message.text for message in dialogue if message.speaker == SYSTEM and message.text.strip())
    tools = sum(message.speaker == TOOL for message in dialogue)
    unsaid = Unsaid(system, tools)
    found = False
    for asked, answered in pairwise(_joined(dialogue)):
        if asked.speaker != USER:
            if not history:  # a greeting, before anything was asked
                history.append(Turn(ASSISTANT, asked.text))
            continue
        question, of_prompt = _without_passages(asked.text, given), given
        if options.prompt_pattern:
            in_prompt, question = _search(options.prompt_pattern, f"{system}\n\n{asked.text}".strip(), asked.text)
            of_prompt = given = in_prompt or given
        if answered.learnt:
            found = True
            gold = of_prompt or options.search(question, answered.text)
            one = converted(question, [answered.text], gold, history=history, source=record.where)
            yield replace(one, unsaid=unsaid)
            unsaid = Unsaid()
        history += [Turn(USER, question), Turn(ASSISTANT, answered.text)]
    if not found:
        yield Converted(left_out="without a question and an answer", unsaid=unsaid)


def _search(pattern: re.Pattern[str], prompt: str, said: str) -> tuple[list[Document], str]:
    """The matches of the groups `passage` and `question`; `said` is the question if the latter does not match."""
    groups = [match.groupdict() for match in pattern.finditer(prompt)]
    passages = [text.strip() for g in groups if (text := g.get("passage")) and text.strip()]
    questions = [text.strip() for g in groups if (text := g.get("question")) and text.strip()]
    return [format_passage(text) for text in passages], questions[-1] if questions else said


def _without_passages(said: str, passages: Sequence[Document]) -> str:
    """The question in a prompt that repeats the passages: the text after the last of them."""
    texts = {text for passage in passages for text in (passage.text, passage.page_content) if text and text in said}
    ends = [said.rfind(text) + len(text) for text in texts]
    return said[max(ends, default=0) :].strip() or said


def _documents(record: Record) -> Iterator[Document]:
    key = next((name for name in _DOCUMENT_FIELDS if record.fields.get(name)), "")
    values = record.fields.get(key)
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, str) and value.strip():
            yield format_passage(value)
        elif isinstance(value, dict):
            if (document := _document(value)).text:
                yield document
        elif value:
            record.note(key, f"holds {shown(value)}; a document is a text or an object with one")


def _document(fields: dict[str, Any]) -> Document:
    def text(*names: str) -> str:
        return next((fields[name] for name in names if isinstance(fields.get(name), str)), "")

    if formatted := text("fmt_content"):
        metadata = fields.get("metadata")
        return Document(text(*_TEXT_FIELDS), formatted, metadata if isinstance(metadata, dict) else {})
    return format_passage(text(*_TEXT_FIELDS), source=text("source", "url"), title=text("title"))


MESSAGES = Format('chats: lines of {"messages": [...]}, such as OpenAI files for fine-tuning', read_messages)
PROMPT_COMPLETION = Format('lines of {"prompt", "completion"}', read_prompts)
SHAREGPT = Format('lines of {"conversations": [{"from", "value"}, ...]}', read_sharegpt)
ALPACA = Format('rows of {"instruction": question, "input": passage, "output": answer}', read_alpaca)
