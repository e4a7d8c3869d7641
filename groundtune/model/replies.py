"""Reads a server's reply and decides whether it is an answer, before anything is scored or stored.

A reply may have null content, a list of parts without text, a refusal, a tool call, or reasoning that never ends. None
of these is an answer: they count as failures, not as answers with a score of 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from groundtune.prompts.thoughts import TEXT_PARTS, after_thoughts
from groundtune.schema import Reply
from groundtune.system.text import one_line

# Values of finish_reason; any other value, such as "stop" or "eos", means that the model stopped by itself.
_CUT = {
    "length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_new_tokens", "model_length",
    "max_length", "token_limit", "length_limit", "error_limit", "incomplete", "context_length_exceeded",
    "model_context_window_exceeded",
}  # fmt: skip
_FILTERED = {
    "content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "sensitive", "error_toxic", "guardrail_intervened", "language",
}  # fmt: skip
_BROKEN = {
    "error", "abort", "aborted", "cancelled", "canceled", "malformed_function_call", "network_error", "timeout",
    "insufficient_system_resource",
}  # fmt: skip
_TOOLS = {"tool_calls", "tool_call", "function_call", "tool_use"}
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thoughts")  # fields of a message
ONLY_THOUGHTS = "only thoughts and no answer; raise the token limit, or turn thinking off in the request options"


def reply_of(choice: Any, prompt_tokens: int | None = None, new_tokens: int | None = None, opened: str = "") -> Reply:
    """The reply in a choice of `/chat/completions` or `/completions`; `failure` says why it is not an answer, if so.

    `opened` is the beginning of the thought that the prompt ended in, if any.
    Raises AttributeError or TypeError if `choice` is malformed.
    """
    message = getattr(choice, "message", None)
    written = choice.text if message is None else message.content
    text, inside_thoughts = after_thoughts(opened + text_of(written))
    ended = how_it_ended(choice)
    failure = _failure(message, written, text, ended, inside_thoughts)
    return Reply(
        text="" if failure else text,
        finished=ended not in _CUT and not inside_thoughts,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        failure=failure,
    )


class Streamed:
    """The choice that the pieces of a streamed reply add up to."""

    def __init__(self) -> None:
        self.text, self.finish_reason = "", ""
        self.message: SimpleNamespace | None = None  # of `/chat/completions`

    def add(self, choice: Any) -> str:
        """Add a piece, and return its text. Raises AttributeError or TypeError if it is malformed."""
        delta = getattr(choice, "delta", None)
        text = text_of(choice.text if delta is None else delta.content)
        self.text += text
        self.finish_reason = getattr(choice, "finish_reason", None) or self.finish_reason
        if delta is not None:
            self.message = self.message or SimpleNamespace(refusal="", tool_calls=None, thinking=None)
            self.message.content = self.text
            self.message.refusal += getattr(delta, "refusal", None) or ""
            called = getattr(delta, "tool_calls", None) or getattr(delta, "function_call", None)
            self.message.tool_calls = self.message.tool_calls or called
            self.message.thinking = self.message.thinking or no_answer(delta) == ONLY_THOUGHTS
        return text


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
    parts = [part for part in _parts(message) if isinstance(part, Mapping)]
    refusals = [getattr(message, "refusal", None), *(part.get("refusal") for part in parts)]
    if refusal := next(filter(None, refusals), None):
        return f"the model refused: {one_line(refusal, 200)}"
    if getattr(message, "tool_calls", None) or getattr(message, "function_call", None):
        return "the model called a tool in place of an answer"
    thinks = any(part.get("type") in _THOUGHTS for part in parts)
    return ONLY_THOUGHTS if thinks or any(getattr(message, name, None) for name in _THOUGHTS) else ""


def how_it_ended(choice: Any) -> str:
    """The `finish_reason` of a choice in one spelling: servers also write "FinishReason.MAX_TOKENS"."""
    said = re.sub(r"\W+", "_", str(getattr(choice, "finish_reason", None) or "stop").strip().lower())
    return re.sub(r"^finish_?reason_", "", said)


def why_stopped(ended: str) -> str:
    """Why a reply that ended so is no answer, whatever its text; empty if it may be one."""
    if ended in _FILTERED:
        return f"the server's content filter stopped the reply (finish_reason {ended})"
    if ended in _BROKEN:
        return f"the server stopped the reply (finish_reason {ended})"
    if ended in _TOOLS:
        return "the model called a tool in place of an answer"
    return "the model refused" if ended == "refusal" else ""


def _failure(message: Any, written: Any, text: str, ended: str, inside_thoughts: bool) -> str:
    if getattr(message, "refusal", None):
        return no_answer(message)
    if stopped := why_stopped(ended):
        return stopped
    if inside_thoughts or (not text and ended in _CUT):
        return ONLY_THOUGHTS
    if text or (message is None and written is not None):  # an empty completion is the model's own choice
        return ""
    return no_answer(message) or f"an empty reply (finish_reason {ended})"


def _parts(message: Any) -> Sequence[Any]:
    content = getattr(message, "content", None)
    return content if isinstance(content, Sequence) and not isinstance(content, str) else ()


def _text_of_part(part: Any) -> str:
    """The text of a content part; reasoning and images are not part of an answer."""
    if not isinstance(part, Mapping):
        part = {name: getattr(part, name, None) for name in ("type", "text")}
    text = part.get("text")
    text = text.get("value") if isinstance(text, Mapping) else text
    return text if part.get("type", "text") in TEXT_PARTS and isinstance(text, str) else ""
