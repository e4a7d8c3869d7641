"""What a model says after its thoughts: only that is its answer.

Models mark thoughts with tags, with control tokens, or with channels. An answer that ends inside a thought is none.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable

_ENDS = {  # the mark that begins a thought, and the one that ends it
    "<think>": "</think>",  # most models
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE Deep
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command
    "<|channel>": "<channel|>",  # Gemma 4
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",  # Kimi K3
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",  # Apriel
}
_AROUND = {  # marks around an answer
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",  # Command
    "<|open|>response<|sep|>": "<|close|>response<|sep|>",  # Kimi K3
    "<|begin_of_solution|>": "<|end_of_solution|>",  # Sky-T1
    "[BEGIN FINAL RESPONSE]": "[END FINAL RESPONSE]",  # Apriel
    "<response>": "</response>",  # Granite
    "<answer>": "</answer>",  # Hunyuan
}
# gpt-oss: every message names its channel, and only the channel `final` is for the user.
_CHANNEL = "<|channel|>"
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_MESSAGE_ENDS = re.compile(r"<\|(?:end|return|call|start)\|>")
# The same from a server that leaves out control tokens.
_FINAL_AS_TEXT, _ANALYSIS_AS_TEXT = "assistantfinal", re.compile(r"\s*analysis(?=[A-Z])")

# Types of the parts of a message that are text; others are thoughts, images or calls of tools.
TEXT_PARTS = ("text", "output_text", "input_text")

# Control tokens with these spellings are marks; one mark can consist of several.
MARKS = frozenset([
    *_ENDS, *_ENDS.values(), *_AROUND, *_AROUND.values(), "<|open|>", "<|close|>", "<|sep|>", _CHANNEL, "<|message|>",
    "<|constrain|>", "<|start|>", "<|end|>",
])  # fmt: skip


def after_thoughts(text: str) -> tuple[str, bool]:
    """The text after the last thought, stripped, and whether the text ends inside one ("" in that case).

    The mark that begins a thought may be missing: it can be part of the prompt.
    """
    text, inside = _in_final_channel(text)
    said = text[max((text.rfind(end) + len(end) for end in _ENDS.values() if end in text), default=0) :]
    if inside or any(begin in said for begin in _ENDS):
        return "", True
    return _without_frame(said), False


def open_thought(prompt: str) -> str:
    """The end of a prompt from the mark that begins a thought, if the prompt ends inside one; else empty."""
    if not after_thoughts(prompt)[1]:
        return ""
    return prompt[max(prompt.rfind(begin) for begin in (*_ENDS, _CHANNEL)) :]


def outside_thoughts(pieces: Iterable[str]) -> Generator[str, None, bool]:
    """Stream what a streamed text says after its thoughts. What may turn out to be a mark waits for the next piece.

    Returns whether the text ends inside a thought.
    """
    text = shown = ""
    for piece in pieces:
        text += piece
        said, inside = after_thoughts(text[: len(text) - _half_a_mark(text)])
        if not inside and len(said) > len(shown) and said.startswith(shown):
            yield said[len(shown) :]
            shown = said
    said, inside = after_thoughts(text)
    if said != shown and not inside:  # it may also have thought again, and corrected itself
        yield said[len(shown) :] if said.startswith(shown) else f"\n\n{said}"
    return inside


def _in_final_channel(text: str) -> tuple[str, bool]:
    """The text of the last message if it is in the final channel, and whether it is in another."""
    if _FINAL_AS_TEXT in text and text.lstrip().startswith("analysis"):
        return text.rpartition(_FINAL_AS_TEXT)[2], False
    inside = bool(_ANALYSIS_AS_TEXT.match(text))
    if _CHANNEL in text:
        begin = max((match.end() for match in _FINAL.finditer(text)), default=None)
        inside = begin is None or _CHANNEL in text[begin:]
        text = text[begin:]
    return _MESSAGE_ENDS.split(text, maxsplit=1)[0], inside


def _without_frame(said: str) -> str:
    for begin, end in _AROUND.items():
        said = said.strip()
        if begin.startswith(("<|", "[")):  # nobody writes these in a sentence
            said = said.rpartition(begin)[2].partition(end)[0]
        else:
            said = said.removeprefix(begin).removesuffix(end)
    return said.strip()


def _half_a_mark(text: str) -> int:
    """The length of the longest end of `text` that begins a mark."""
    if "analysis".startswith(text.lstrip()):
        return len(text)
    longest = max(map(len, MARKS))
    return next(
        (n for n in range(min(len(text), longest), 0, -1) if any(mark.startswith(text[-n:]) for mark in MARKS)), 0
    )
