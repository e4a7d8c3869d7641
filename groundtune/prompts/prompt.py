"""The only place where a prompt is written: for training, evaluation and serving alike.

    instruction, passages, chat history, question  ->  prompt ids   (the model reads them)
    answer                                         ->  answer ids   (the model learns them; the last one ends the turn)

Prompt and answer are tokenised apart and their ids joined, so that the prompt of generation is, token for token, the
beginning of the training row, whatever a tokenizer would have merged across the seam.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

from groundtune.aliases import Tokenizer
from groundtune.arguments import PromptArguments
from groundtune.errors import ModelError
from groundtune.schema import ASSISTANT, USER, Document, Turn
from groundtune.system.model_folders import why_not_loaded


class Prompt(Protocol):
    """A way of writing prompts for one tokenizer."""

    @property
    def style(self) -> str:
        """`prefix` or `chat`."""

    @property
    def tokens(self) -> _Tokens:
        """The tokenizer, with the few rules that every prompt needs."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The same for a server, which is told in words."""

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        """Everything the model reads before its answer, with exactly one beginning-of-sequence token if it has one."""

    def answer_ids(self, answer: str) -> list[int]:
        """The answer's ids; the last one is in `stop_ids`."""

    def answer_text(self, ids: Sequence[int]) -> str:
        """The answer that generated ids spell, without whatever ends the turn."""


def make_prompt(tokenizer: Tokenizer, arguments: PromptArguments) -> Prompt:
    """Prefix style if any prefix flag is given; else the tokenizer's chat template; else USER / ASSISTANT."""
    given = (arguments.user_prefix, arguments.assistant_prefix, arguments.sep_user, arguments.sep_sys)
    tokens = _Tokens(tokenizer)
    if tokenizer.chat_template and all(value is None for value in given):
        return ChatPrompt(tokens, arguments.instruction)
    defaults = ("USER", "ASSISTANT", " ", tokenizer.eos_token or "")
    return PrefixPrompt(tokens, arguments.instruction, *(d if g is None else g for g, d in zip(given, defaults)))


def request_ids(prompt: Prompt, turns: Sequence[Turn]) -> list[int]:
    """Ids of a conversation that asks for something by itself, the user's turn last: written by the chat template.

    Without one it is just the text: a base model goes on with what it reads, names of speakers included.
    """
    if isinstance(prompt, ChatPrompt):
        return prompt.prompt_ids([], turns[:-1], turns[-1].message)
    return prompt.tokens.encode_prompt(prompt.tokens.inert("\n\n".join(turn.message for turn in turns)))


@dataclass(frozen=True)
class PrefixPrompt:
    """Instruction and passages, then each turn as `prefix: message` and its separator, then `assistant prefix:`."""

    tokens: _Tokens
    instruction: str
    user_prefix: str
    assistant_prefix: str
    sep_user: str
    sep_sys: str
    style = "prefix"

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        prefix = {USER: self.user_prefix, ASSISTANT: self.assistant_prefix}
        separator = {USER: self.sep_user, ASSISTANT: self.sep_sys}
        turns = "".join(
            f"{prefix[turn.speaker]}: {self.tokens.inert(turn.message)}{separator[turn.speaker]}"
            for turn in [*chat_history, Turn(USER, question)]
        )
        opening = _opening(self.tokens.inert, self.instruction, passages)
        opening += "\n\n" if opening else ""
        return self.tokens.encode_prompt(f"{opening}{turns}{self.assistant_prefix}:")

    def answer_ids(self, answer: str) -> list[int]:
        text = f" {self.tokens.inert(answer.strip())}{self.sep_sys}"
        ids = self.tokens.encode_after(f"{self.assistant_prefix}:", text)
        # A separator that is no end token of this tokenizer ("</s>" for most) cannot stop generation by itself.
        return ids if ids[-1] in self.stop_ids else [*ids, *self.stop_ids]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.tokens.eos_id,)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        spelt = [self.sep_sys.strip(), *(self.tokens.special_ids[id] for id in self.stop_ids)]
        return tuple(dict.fromkeys(filter(None, spelt)))

    def answer_text(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids, self.stop_ids).removesuffix(self.sep_sys.strip()).strip()


@dataclass(frozen=True)
class ChatPrompt:
    """The tokenizer's own chat template; the first user message begins with instruction and passages."""

    tokens: _Tokens
    instruction: str
    style = "chat template"

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        conversation = [Turn(t.speaker, self.tokens.inert(t.message)) for t in [*chat_history, Turn(USER, question)]]
        opening = _opening(self.tokens.inert, self.instruction, passages)
        return self.tokens.encode_prompt(self._render(_alternating(opening, conversation), asks=True))

    def answer_ids(self, answer: str) -> list[int]:
        before, lead, end = self._around_answer
        return [*self.tokens.encode_after(before, lead + self.tokens.inert(answer.strip())), end]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        # The template's end of turn often is not the tokenizer's eos; either must end an answer.
        return tuple(dict.fromkeys([self._around_answer[2], self.tokens.eos_id]))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return tuple(self.tokens.special_ids[id] for id in self.stop_ids)

    def answer_text(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids, self.stop_ids)

    @cached_property
    def _around_answer(self) -> tuple[str, str, int]:
        """End of the generation prompt, what the template writes from there to the answer, and the id that ends it."""
        question, answer = "Question7Q", "Answer7A"
        asked = self._render([Turn(USER, question)], asks=True)
        whole = self._render([Turn(USER, question), Turn(ASSISTANT, answer)], asks=False)
        # Templates of reasoning models put an empty thought before an answer but not into the generation prompt (or
        # the other way round); what the model will see is the generation prompt, so that is what training follows.
        # Only space between the two is the answer's: it belongs to the answer's first token.
        lead = whole[len(asked) :].partition(answer)[0] if whole.startswith(asked) else ""
        lead = "" if lead.strip() else lead
        closing = self.tokens.encode(whole.rpartition(answer)[2])
        end = next((id for id in closing if id in self.tokens.special_ids), self.tokens.eos_id)
        return asked.rpartition(question)[2], lead, end

    def _render(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": turn.speaker, "content": turn.message} for turn in turns]
        tokenizer = self.tokens.tokenizer
        try:
            written = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asks, enable_thinking=False
            )
            return cast(str, written)  # without `tokenize` it is always that
        except Exception as error:  # a template is a program, and may raise anything
            problem = f"{tokenizer.name_or_path}: its chat template fails ({why_not_loaded(error)})"
            raise ModelError(f"{problem}; give --user_prefix and --assistant_prefix, and it is not used") from error


def chat_turns(
    instruction: str, passages: Sequence[Document], chat_history: Sequence[Turn], question: str
) -> list[Turn]:
    """The turns that `ChatPrompt` gives to a chat template, roles alternating: for files that other tools train on."""
    opening = _opening(str, instruction, passages)
    return _alternating(opening, [*chat_history, Turn(USER, question)])


def chat_messages(
    instruction: str, passages: Sequence[Document], chat_history: Sequence[Turn], question: str
) -> list[dict[str, str]]:
    """`chat_turns` as messages, for a server that writes the prompt with its model's own chat template.

    Its tokenizer is not known here: a text that spells one of its special tokens is left as it is.
    """
    turns = chat_turns(instruction, passages, chat_history, question)
    return [{"role": turn.speaker, "content": turn.message} for turn in turns]


def _opening(inert: Callable[[str], str], instruction: str, passages: Sequence[Document]) -> str:
    """What comes before the conversation: the same text for every question on the same passages."""
    return "\n\n".join([instruction, *(inert(document.text) for document in passages)]).strip()


def _alternating(opening: str, conversation: Sequence[Turn]) -> list[Turn]:
    """Users and assistants in turn, a user first: many templates refuse anything else.

    Consecutive messages of one speaker are joined by a blank line; to an assistant that begins, the opening is said
    even where it is empty.
    """
    merged = [Turn(USER, opening)] if opening or conversation[0].speaker == ASSISTANT else []
    for turn in conversation:
        if merged and merged[-1].speaker == turn.speaker:
            merged[-1] = Turn(turn.speaker, f"{merged[-1].message}\n\n{turn.message}")
        else:
            merged.append(turn)
    return merged


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer, with the few rules that every prompt needs."""

    tokenizer: Tokenizer

    @cached_property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """Id and spelling of every special token."""
        added = {id: token.content for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return {**added, **dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))}

    @cached_property
    def _bos(self) -> list[int]:
        """The beginning-of-sequence token, if this tokenizer puts one before a text."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else []

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens count; none is added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a whole prompt, with exactly one beginning-of-sequence token where the tokenizer has one."""
        ids = self.encode(text)
        return ids if ids[:1] == self._bos else [*self._bos, *ids]

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of `text` as they are when it follows `before`.

        SentencePiece tokenizers write a space before a text that stands alone; encoding it behind its predecessor and
        cutting that off gives what a running text has. Where the two would merge, the text is encoded alone.
        """
        first, both = self.encode(before), self.encode(before + text)
        return both[len(first) :] if both[: len(first)] == first else self.encode(text)

    def decode(self, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
        """Text up to the first stop token, stripped."""
        end = next((i for i, id in enumerate(ids) if id in stop_ids), len(ids))
        # Some tokenizers are set to delete spaces before punctuation when they decode: no answer is to be changed.
        kept = list(ids[:end])
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text).strip()  # of several lists of ids it would be several

    def spelt(self, text: str) -> str:
        """A text as it comes back from its ids, special tokens made inert: some tokenizers write other forms."""
        return self.decode(self.encode(self.inert(text.strip())), ())

    def inert(self, text: str) -> str:
        """A text that spells no special token: a document or a user must not be able to end a turn or begin one."""
        return self._special_spellings.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    @cached_property
    def _special_spellings(self) -> re.Pattern[str]:
        spellings = sorted((s for s in self.special_ids.values() if len(s) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
