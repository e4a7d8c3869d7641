"""Chat formats of other trainers, `messages` and prompt with completion; read and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundtune.data.entries import Record, shown
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, children, converted, records
from groundtune.prompts.prompt import chat_turns
from groundtune.prompts.thoughts import TEXT_PARTS, after_thoughts
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn

_MESSAGES = 'a line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_PROMPT = 'a line is {"prompt": "...", "completion": "..."}, both texts or both lists of messages'
_DOCUMENT_FIELDS = ("documents", "gold_docs", "passages", "contexts", "context")
_TEXT_FIELDS = ("page_content", "text", "content", "contents")

Message = tuple[str, str]  # role, content


def read_messages(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Every answer of the assistant becomes an example, with the earlier turns as its chat history.

    Passages come from the row's `documents` (or a similar field, such as `context`) or, with `options.prompt_pattern`,
    from the prompts themselves; an example without passages is left out.
    """
    for record in records(path, problems):
        yield from _examples(record, _messages(record, "messages"), options)


def read_prompts(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Like `read_messages`, for rows with a prompt and its completion."""
    for record in records(path, problems):
        if isinstance(record.fields.get("prompt"), list):
            dialogue = [*_messages(record, "prompt"), *_messages(record, "completion")]
        else:
            dialogue = [(USER, record.text("prompt", _PROMPT)), (ASSISTANT, record.text("completion", _PROMPT))]
        yield from _examples(record, dialogue, options)


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
    return [(m.text("role", need), _content(m, need)) for m in children(record, key, need)]


def _content(message: Record, need: str) -> str:
    """The text of a message, or the joined text parts of a list; empty for a message that calls a tool."""
    parts = message.fields.get("content")
    if isinstance(parts, list):
        spoken = [p for p in message.records("content", need) if p.fields.get("type", "text") in TEXT_PARTS]
        return "\n".join(part.text("text", need, required=False) for part in spoken)
    return message.text("content", need, required=False)


def _examples(record: Record, dialogue: Sequence[Message], options: Options) -> Iterator[Converted]:
    passages = list(_documents(record))
    history: list[Turn] = []
    system = "\n\n".join(content for role, content in dialogue if role in ("system", "developer"))
    talk = [message for message in dialogue if message[0] in (USER, ASSISTANT)]
    found = False
    for (role, said), (next_role, answer) in zip(talk, talk[1:]):
        if (role, next_role) != (USER, ASSISTANT):
            continue
        found = True
        question = _without_passages(said, passages)
        if options.prompt_pattern:
            in_prompt, question = _search(options.prompt_pattern, f"{system}\n\n{said}".strip(), said)
            passages = in_prompt or passages
        yield converted(question, [answer], passages, history=history, source=record.where)
        history += [Turn(USER, question), Turn(ASSISTANT, after_thoughts(answer)[0])]
    if not found:
        yield Converted(left_out="without a question")


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


MESSAGES = Format('chats: lines of {"messages": [...]}, with "documents" or --prompt_pattern', read_messages)
PROMPT_COMPLETION = Format('lines of {"prompt", "completion"}, with "documents" or --prompt_pattern', read_prompts)
