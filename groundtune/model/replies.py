"""Reads a server's reply and decides whether it is an answer, before anything is scored or stored.

A reply may have null content, a list of parts without text, a refusal, a tool call, or reasoning that never ends. None
of these is an answer: they count as failures, not as answers with a score of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundtune.schema import Reply
from groundtune.system.text import after_thoughts, one_line

# Values of finish_reason; any other value, such as "stop" or "eos", means that the model stopped by itself.
_CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "max_length", "token_limit", "incomplete"}
_FILTERED = {"content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii"}
_BROKEN = {"error", "abort", "aborted", "cancelled", "canceled", "malformed_function_call"}
_TOOLS = {"tool_calls", "tool_call", "function_call", "tool_use"}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message
ONLY_THOUGHTS = "only thoughts and no answer; raise the token limit, or turn thinking off in the request options"


def reply_of(choice: Any, prompt_tokens: int | None = None, new_tokens: int | None = None) -> Reply:
    """The reply in a choice of `/chat/completions` or `/completions`; `failure` says why it is not an answer, if so.

    Raises AttributeError or TypeError if `choice` is malformed.
    """
    message = getattr(choice, "message", None)
    written = choice.text if message is None else message.content
    text, inside_thoughts = after_thoughts(text_of(written))
    ended = str(choice.finish_reason or "stop").strip().lower()
    failure = _failure(message, written, text, ended, inside_thoughts)
    return Reply(
        text="" if failure else text,
        finished=ended not in _CUT,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        failure=failure,
    )


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a string, null, or a list of parts; only text parts count.

    Raises TypeError for anything else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(_text_of_part(part) for part in content)
    raise TypeError(f"its content is a {type(content).__name__}")


def no_answer(message: Any) -> str:
    """What a message contains instead of text, in words; empty if nothing."""
    if refusal := getattr(message, "refusal", None):
        return f"the model refused: {one_line(refusal, 200)}"
    if getattr(message, "tool_calls", None) or getattr(message, "function_call", None):
        return "the model called a tool in place of an answer"
    return ONLY_THOUGHTS if any(getattr(message, name, None) for name in _THOUGHTS) else ""


def _failure(message: Any, written: Any, text: str, ended: str, inside_thoughts: bool) -> str:
    if getattr(message, "refusal", None):
        return no_answer(message)
    if ended in _FILTERED:
        return f"the server's content filter stopped the reply (finish_reason {ended})"
    if ended in _BROKEN:
        return f"the server stopped the reply (finish_reason {ended})"
    if inside_thoughts or (not text and ended in _CUT):
        return ONLY_THOUGHTS
    if not text and ended in _TOOLS:
        return "the model called a tool in place of an answer"
    if text or (message is None and written is not None):  # an empty completion is the model's own choice
        return ""
    return no_answer(message) or f"an empty reply (finish_reason {ended})"


def _text_of_part(part: Any) -> str:
    """The text of a content part; reasoning and images are not part of an answer."""
    if not isinstance(part, Mapping):
        part = {name: getattr(part, name, None) for name in ("type", "text")}
    text = part.get("text")
    return text if part.get("type", "text") in ("text", "output_text") and isinstance(text, str) else ""
