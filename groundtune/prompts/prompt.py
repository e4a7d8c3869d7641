"""The only place that writes prompts, for training, evaluation and serving.

    instruction, passages, chat history, question  ->  prompt ids   (the model reads them)
    answer                                         ->  answer ids   (the model learns them; the last one ends the turn)

Prompt and answer are tokenised separately and their ids concatenated, so that the prompt for generation is, token for
token, the beginning of the training row, even if the tokenizer would merge tokens across the boundary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, groupby, pairwise
from typing import Any, Protocol, cast

from groundtune.aliases import Tokenizer
from groundtune.arguments import BLOCK, TAUGHT, PromptArguments
from groundtune.errors import ModelError
from groundtune.prompts.citations import CITE, mark, numbered
from groundtune.prompts.citations import inert as without_mark
from groundtune.prompts.thoughts import MARKS, open_thought
from groundtune.schema import ASSISTANT, USER, Document, Turn
from groundtune.system.model_folders import why_not_loaded

_WITHOUT_TEMPLATE = "give --user_prefix and --assistant_prefix, and it is not used"


class Prompt(Protocol):
    """A prompt style for one tokenizer."""

    @property
    def style(self) -> str:
        """`prefix` or `chat`."""

    @property
    def instruction(self) -> str:
        """The text before the passages."""

    @property
    def tokens(self) -> _Tokens:
        """The tokenizer, with the few rules that every prompt needs."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The same as text, for servers."""

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        """Everything the model reads before its answer.

        It begins with one BOS token: in the prefix style if the tokenizer puts one before a text, in a chat template if
        the template writes one.
        """

    def borders(
        self, ids: Sequence[int], passages: Sequence[Document], chat_history: Sequence[Turn], question: str
    ) -> tuple[int, ...]:
        """Where each passage begins in the prompt `ids`, and where the last one ends; empty under full attention."""

    def answer_ids(self, answer: str) -> list[int]:
        """The answer's ids; the last one is in `stop_ids`."""

    @property
    def blocks(self) -> bool:
        """Whether passages read no other passage: `--passage_attention block`."""

    @property
    def cites(self) -> bool:
        """Whether passages are numbered, and answers marked with their numbers."""

    @property
    def opened(self) -> str:
        """The beginning of the thought that prompts end in; empty if they end outside of thoughts."""

    @property
    def tail(self) -> tuple[str, str]:
        """What prompts lack at the end of a chat template's generation prompt, and what they have in its place."""

    @property
    def learnt_around(self) -> tuple[str, str]:
        """The text before and after an answer in `answer_text(answer_ids(answer))`."""

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of generated ids without the end of the turn, thoughts included, with their marks."""


def make_prompt(tokenizer: Tokenizer, arguments: PromptArguments) -> Prompt:
    """Prefix style if any prefix flag is given; else the tokenizer's chat template; else prefixes USER / ASSISTANT.

    Raises `ModelError` for a chat template that fails, or leaves out what it is given, and for marks of citations that
    the tokenizer cannot write.
    """
    given = (arguments.user_prefix, arguments.assistant_prefix, arguments.sep_user, arguments.sep_sys)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    tokens = _Tokens(tokenizer, template + "".join(filter(None, given)))
    cites = arguments.citations == TAUGHT
    if cites and mark(12) not in tokens.spelt_out(f"So. {mark(12)}"):
        problem = f"{tokenizer.name_or_path}: its tokenizer cannot write {mark(12)}"
        raise ModelError(f"{problem}; with --citations afterwards, it does not have to")
    blocks = arguments.passage_attention == BLOCK
    if tokenizer.chat_template and all(value is None for value in given):
        prompt = ChatPrompt(tokens, arguments.instruction, arguments.thinking, cites, blocks)
        prompt.check()
        return prompt
    defaults = ("USER", "ASSISTANT", " ", tokenizer.eos_token or "")
    prefixes = (d if g is None else g for g, d in zip(given, defaults))
    return PrefixPrompt(tokens, arguments.instruction, cites, blocks, *prefixes)


def request_prompt(tokenizer: Tokenizer) -> Prompt:
    """The prompt of a model that writes or grades texts; one whose template cannot stop its thoughts may think."""
    prompt = make_prompt(tokenizer, PromptArguments(instruction=""))
    return replace(prompt, thinking="keep") if isinstance(prompt, ChatPrompt) and prompt.problem else prompt


def request_ids(prompt: Prompt, turns: Sequence[Turn]) -> list[int]:
    """Ids of a conversation without our instruction or passages, the user's turn last, written by the chat template.

    Without a template the ids are those of the plain text: a base model would also continue with speaker names.
    """
    if isinstance(prompt, ChatPrompt):
        return prompt.prompt_ids([], turns[:-1], turns[-1].message)
    return prompt.tokens.encode_prompt(prompt.tokens.inert("\n\n".join(turn.message for turn in turns)))


@dataclass(frozen=True)
class PrefixPrompt:
    """Instruction and passages, then each turn as `prefix: message` and its separator, then `assistant prefix:`."""

    tokens: _Tokens
    instruction: str
    cites: bool
    blocks: bool
    user_prefix: str
    assistant_prefix: str
    sep_user: str
    sep_sys: str
    style = "prefix"
    opened = ""
    tail = learnt_around = ("", "")

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        return self.tokens.encode_prompt(self._text(passages, chat_history, question))

    def borders(
        self, ids: Sequence[int], passages: Sequence[Document], chat_history: Sequence[Turn], question: str
    ) -> tuple[int, ...]:
        text = partial(self._text, passages, chat_history, question)
        return _borders(self, ids, passages, text, self.tokens.encode_prompt)

    def _text(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> str:
        prefix = {USER: self.user_prefix, ASSISTANT: self.assistant_prefix}
        separator = {USER: self.sep_user, ASSISTANT: self.sep_sys}
        turns = "".join(
            f"{prefix[turn.speaker]}: {turn.message}{separator[turn.speaker]}"
            for turn in _conversation(self.tokens.inert, chat_history, question, self.cites)
        )
        opening = _opening_of(self, passages)
        opening += "\n\n" if opening else ""
        return f"{opening}{turns}{self.assistant_prefix}:"

    def answer_ids(self, answer: str) -> list[int]:
        text = f" {self.tokens.inert(answer.strip())}{self.sep_sys}"
        ids = self.tokens.encode_after(f"{self.assistant_prefix}:", text)
        # A separator that is not a control token of this tokenizer ("</s>" for most) cannot stop generation.
        return ids if ids[-1] in self.stop_ids else [*ids, self.tokens.eos_id]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        ids = self.tokens.encode(self.sep_sys.strip())
        separator = ids if len(ids) == 1 and ids[0] in self.tokens.special_ids else []
        return tuple(dict.fromkeys([*separator, self.tokens.eos_id, *self.tokens.model_end_ids]))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        spelt = [self.sep_sys.strip(), *map(self.tokens.spelling, self.stop_ids)]
        return tuple(dict.fromkeys(filter(None, spelt)))

    def answer_text(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids, self.stop_ids).removesuffix(self.sep_sys.strip()).strip()


@dataclass(frozen=True)
class ChatPrompt:
    """The tokenizer's own chat template; the first user message begins with instruction and passages.

    A row is what the template writes for the answered conversation, up to the end of the answer's turn. Its prompt ends
    right before the answer, or with `thinking` "keep", where the template hands over to the model, which may think.
    """

    tokens: _Tokens
    instruction: str
    thinking: str = "drop"
    cites: bool = False
    blocks: bool = False
    style = "chat template"

    def prompt_ids(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> list[int]:
        if self.thinking == "drop" and self.problem:
            raise ModelError(self.problem)
        # Nothing is added to what the template writes, not even BOS: so do transformers' `apply_chat_template`, and the
        # servers that apply the template themselves.
        return self.tokens.encode(self._text(passages, chat_history, question))

    def borders(
        self, ids: Sequence[int], passages: Sequence[Document], chat_history: Sequence[Turn], question: str
    ) -> tuple[int, ...]:
        text = partial(self._text, passages, chat_history, question)
        return _borders(self, ids, passages, text, self.tokens.encode)

    def _text(self, passages: Sequence[Document], chat_history: Sequence[Turn], question: str) -> str:
        conversation = _conversation(self.tokens.inert, chat_history, question, self.cites)
        return self._before_answer(_alternating(_opening_of(self, passages), conversation))

    def answer_ids(self, answer: str) -> list[int]:
        if self.problem:
            raise ModelError(self.problem)
        frame = self._frame
        text = f"{frame.lead}{self.tokens.inert(answer.strip())}{frame.closing}"
        return [*self.tokens.encode_after(frame.before, text), frame.end]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        # The template's end-of-turn token is often not the tokenizer's EOS token, and a model may have more of them.
        return tuple(dict.fromkeys([self._frame.end, self.tokens.eos_id, *self.tokens.model_end_ids]))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, map(self.tokens.spelling, self.stop_ids))))

    def answer_text(self, ids: Sequence[int]) -> str:
        return self.opened + self.tokens.decode(ids, self.stop_ids)

    @property
    def lacks_bos(self) -> bool:
        """Whether the tokenizer puts a BOS token before a text, but the template before no conversation."""
        bos = self.tokens.bos
        return bool(bos) and self.prompt_ids([], [], "Question7Q")[:1] != bos

    @cached_property
    def opened(self) -> str:
        return open_thought(self._frame.before)

    @property
    def problem(self) -> str:
        """Why no row can be what the template writes, in one line; empty if rows can."""
        return self._frame.problem and (
            f"{self.tokens.tokenizer.name_or_path}: its chat template {self._frame.problem}; correct the template, or "
            "give --user_prefix and --assistant_prefix, and it is not used"
        )

    @cached_property
    def tail(self) -> tuple[str, str]:
        return self._frame.removed, self._frame.added

    @property
    def learnt_around(self) -> tuple[str, str]:
        lead = self._frame.lead if self.thinking == "keep" else ""
        return self.opened + self.tokens.spelt_out(lead), self.tokens.spelt_out(self._frame.closing)

    @cached_property
    def _frame(self) -> _Frame:
        """What the template writes around an answer, found by rendering a conversation with and without one."""
        turns = [Turn(USER, f"{self.instruction}\n\n{_QUESTION}".strip())]
        asked = self._render(turns, asks=True)
        whole = self._render([*turns, Turn(ASSISTANT, _ANSWER)], asks=False)
        before, written, after = whole.rpartition(_ANSWER)
        if not written:
            return _Frame(asked.rpartition(_QUESTION)[2], end=self.tokens.eos_id, problem="leaves an answer out")
        closing, end = self._end_of_turn(turns, after)
        lead = before[len(asked) :] if before.startswith(asked) else ""
        problem = ""
        if self.thinking == "drop":
            lead = "" if lead.strip() else lead  # white space belongs to the first token of the answer
            asked, generation = before.removesuffix(lead), asked
            same = len(os.path.commonprefix([asked, generation]))
            if opened := open_thought(before.rpartition(_QUESTION)[2]):
                problem = f"writes an answer inside a thought ({opened!r}), which --thinking drop cannot close"
            removed, added = generation[same:], asked[same:]
        else:
            removed = added = ""
            tails = [text.rpartition(_QUESTION)[2] for text in (asked, before)]
            if not before.startswith(asked) or open_thought(tails[1]):
                problem = "asks with {!r}, but writes an answer after {!r}: with --thinking keep".format(*tails)
                problem += ", no row can be both; use --thinking drop"
        return _Frame(asked.rpartition(_QUESTION)[2], lead, closing, end, removed, added, problem)

    def _end_of_turn(self, turns: Sequence[Turn], after: str) -> tuple[str, int]:
        """The template's text from an answer to the end of its turn, and the token that ends it.

        `after`: the text behind the last answer of a conversation. A turn's own end also stands before another turn;
        some templates write it nowhere else, and some models end a turn with the token that begins the next one.
        """
        tokens, another = self.tokens, ""
        with suppress(ModelError):  # the template allows one question only
            longer = self._render([*turns, Turn(ASSISTANT, _ANSWER), Turn(USER, _QUESTION)], asks=False)
            another = longer.rpartition(_ANSWER)[2].rpartition(_QUESTION)[0]
        both = os.path.commonprefix([after, another])
        ends = {tokens.eos_id, *tokens.model_end_ids}
        candidates = [
            next((id for id in tokens.encode(both) if id in ends), None),
            next((id for id in reversed(tokens.encode(both)) if id in tokens.special_ids), None),
            next((id for id in tokens.encode(after) if id in tokens.special_ids), None),
            next((id for id in tokens.encode(another) if id in ends), None),
        ]
        end = next((id for id in candidates if id is not None), None)
        if end is None:
            return "", tokens.eos_id
        text = next(text for text in (both, after, another) if end in tokens.encode(text))
        return text.partition(tokens.spelling(end))[0], end

    def _before_answer(self, turns: Sequence[Turn]) -> str:
        if self.thinking == "keep":
            return self._render(turns, asks=True)
        whole = self._render([*turns, Turn(ASSISTANT, _ANSWER)], asks=False)
        return whole.rpartition(_ANSWER)[0].removesuffix(self._frame.lead)

    def check(self) -> None:
        """Raise `ModelError` if the template fails, or leaves out a passage or question; see `problem` for answers."""
        passage = "Passage5P"
        text = self._render([Turn(USER, f"{passage}\n\n{_QUESTION}")], asks=True)
        if lost := [name for name, said in (("passages", passage), ("question", _QUESTION)) if said not in text]:
            name = self.tokens.tokenizer.name_or_path
            raise ModelError(f"{name}: its chat template leaves out the {lost[0]}; {_WITHOUT_TEMPLATE}")

    def _render(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": turn.speaker, "content": turn.message} for turn in turns]
        tokenizer = self.tokens.tokenizer
        # Templates call it by either name; without one, they write what their model expects by default.
        off: dict[str, Any] = {} if self.thinking == "keep" else {"enable_thinking": False, "thinking": False}
        try:
            written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, **off)
            return cast(str, written)  # without `tokenize` it is always that
        except RecursionError as error:  # its text is of Python, not of the template
            raise ModelError(f"{tokenizer.name_or_path}: its chat template never ends; {_WITHOUT_TEMPLATE}") from error
        except Exception as error:  # a template is a program, and may raise anything
            problem = f"{tokenizer.name_or_path}: its chat template fails ({why_not_loaded(error)})"
            raise ModelError(f"{problem}; {_WITHOUT_TEMPLATE}") from error


_QUESTION, _ANSWER = "Question7Q", "Answer7A"
SYSTEM = "system"  # a role of messages, not a speaker of turns


@dataclass(frozen=True)
class _Frame:
    """The template's text around an answer: `before` it from the question on, `lead` and `closing` that are learnt with
    it, and the token that ends its turn."""

    before: str
    lead: str = ""
    closing: str = ""
    end: int = 0
    removed: str = ""
    added: str = ""
    problem: str = ""


def to_continue(prompt: Prompt) -> dict[str, Any]:
    """What a server must know to continue a prompt's ids: keywords of `model.endpoint.Endpoint.continue_prompts`."""
    return {"stop": prompt.stop_texts, "opened": prompt.opened, "special_tokens": prompt.tokens.hides_marks}


def chat_turns(
    instruction: str, passages: Sequence[Document], chat_history: Sequence[Turn], question: str, cites: bool = False
) -> list[Turn]:
    """The turns that `ChatPrompt` gives to a chat template, with alternating roles; used to export training files."""
    opening = _opening(str, instruction, passages, cites)
    return _alternating(opening, _conversation(str, chat_history, question, cites))


def chat_messages(
    instruction: str, passages: Sequence[Document], chat_history: Sequence[Turn], question: str, cites: bool = False
) -> list[dict[str, str]]:
    """`chat_turns` as messages, for a server that applies its model's own chat template.

    The server's tokenizer is unknown here, so text that spells one of its special tokens is not changed.
    """
    turns = chat_turns(instruction, passages, chat_history, question, cites)
    return [{"role": turn.speaker, "content": turn.message} for turn in turns]


def asked_of_template(
    prompt: Prompt, passages: Sequence[Document], chat_history: Sequence[Turn], question: str
) -> list[dict[str, str]]:
    """The messages from which the chat template of an export (`export.chat_template`) writes `prompt.prompt_ids`.

    A chat template gets those of `ChatPrompt`. In the prefix style nothing stands before instruction and passages, so
    they are a system message. No text spells a special token.
    """
    turns = _conversation(prompt.tokens.inert, chat_history, question, prompt.cites)
    opening = _opening_of(prompt, passages)
    if prompt.style == "prefix":
        turns = [Turn(SYSTEM, opening)] * bool(opening) + turns
    else:
        turns = _alternating(opening, turns)
    return [{"role": turn.speaker, "content": turn.message} for turn in turns]


def _conversation(inert: Callable[[str], str], chat_history: Sequence[Turn], question: str, cites: bool) -> list[Turn]:
    """The turns, the question last; none spells a special token or, if passages are numbered, one of their marks."""
    turns = [*chat_history, Turn(USER, question)]
    return [Turn(turn.speaker, inert(without_mark(turn.message) if cites else turn.message)) for turn in turns]


def _opening(inert: Callable[[str], str], instruction: str, passages: Sequence[Document], cites: bool) -> str:
    """The text before the conversation; the same for every question about the same passages, so prefixes are shared."""
    return "\n\n".join(_parts(inert, instruction, passages, cites)).strip()


def _opening_of(prompt: Prompt, passages: Sequence[Document]) -> str:
    return _opening(prompt.tokens.inert, prompt.instruction, passages, prompt.cites)


def _parts(inert: Callable[[str], str], instruction: str, passages: Sequence[Document], cites: bool) -> Sequence[str]:
    """The instruction, and the text of each passage."""
    cites = cites and bool(passages)
    texts = numbered(passages) if cites else [document.text for document in passages]
    return [f"{instruction} {CITE}".strip() if cites else instruction, *map(inert, texts)]


def _borders(
    prompt: Prompt, ids: Sequence[int], passages: Sequence[Document], text: Callable[[], str],
    encode: Callable[[str], list[int]],
) -> tuple[int, ...]:  # fmt: skip
    """`Prompt.borders` of the prompt that `encode` makes of `text()`, which is written only if it is needed."""
    if not prompt.blocks or not passages:
        return ()
    written = text()
    return prompt.tokens.borders(ids, written, _cuts(prompt, passages, written), encode)


def _cuts(prompt: Prompt, passages: Sequence[Document], text: str) -> Sequence[int]:
    """Where each passage begins in the `text` of a prompt, and where the last one ends, in characters.

    A passage has the blank line behind it, wherever it stands, so that its tokens are the same everywhere.
    """
    parts = _parts(prompt.tokens.inert, prompt.instruction, passages, prompt.cites)
    joined = "\n\n".join(parts)
    if (begin := text.find(joined.strip())) < 0:
        problem = f"{prompt.tokens.tokenizer.name_or_path}: its chat template changes the passages"
        raise ModelError(f"{problem}, so --passage_attention block cannot tell them apart; use full")
    end = begin + len(joined.strip())
    end += 2 * text.startswith("\n\n", end)
    first = begin - (len(joined) - len(joined.lstrip()))
    ends = accumulate(len(part) + 2 for part in parts[:-1])
    return [*(min(max(begin, first + after), end) for after in ends), end]


def _alternating(opening: str, conversation: Sequence[Turn]) -> list[Turn]:
    """Turns that alternate between user and assistant, a user first: many templates refuse anything else.

    Consecutive messages of one speaker are joined by a blank line. If the assistant begins the conversation, the
    opening becomes a user turn even if it is empty.
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
    written: str = ""  # what writes the turns: the chat template, or the prefixes

    @cached_property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def model_end_ids(self) -> tuple[int, ...]:
        """The end tokens in the model's own configuration, as found by `model.loading.load_tokenizer`."""
        return getattr(self.tokenizer, "model_end_ids", ())

    def spelling(self, id: int) -> str:
        token = self.special_ids.get(id) or self.tokenizer.convert_ids_to_tokens(id)
        return token if isinstance(token, str) else ""

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """Id and text of every control token: special tokens, and other added tokens that mark turns or end answers."""
        added = {
            id: token.content
            for id, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or id in self.model_end_ids or (token.content.strip() and token.content in self.written)
        }
        return {**added, **dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))}

    @cached_property
    def bos(self) -> list[int]:
        """The BOS token, if this tokenizer adds one before a text."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else []

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are recognised, and none is added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a whole prompt without a template, with one BOS token if the tokenizer puts one before a text."""
        ids = self.encode(text)
        return ids if ids[:1] == self.bos else [*self.bos, *ids]

    def borders(
        self, ids: Sequence[int], text: str, cuts: Sequence[int], encode: Callable[[str], list[int]]
    ) -> tuple[int, ...]:
        """The places in `ids` (`encode(text)`) that stand for the `cuts` of its text; a token across one is behind."""

        def before(end: int) -> int:
            return len(os.path.commonprefix([encode(text[:end]), list(ids)]))

        found = [before(cuts[0])]
        for begin, end in pairwise(cuts):
            # The piece by itself usually has the same tokens as in the text.
            piece = self.encode(text[begin:end])
            here = found[-1] + len(piece)
            found.append(here if list(ids[found[-1] : here]) == piece else max(before(end), found[-1]))
        return tuple(found)

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of `text` when it follows `before`.

        SentencePiece tokenizers add a space before a separate text. Encoding `before + text` and removing the ids of
        `before` gives the ids of running text. If tokens would merge at the boundary, `text` is encoded separately.
        """
        first, both = self.encode(before), self.encode(before + text)
        return both[len(first) :] if both[: len(first)] == first else self.encode(text)

    def decode(self, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
        """Text up to the first stop token, stripped."""
        end = next((i for i, id in enumerate(ids) if id in stop_ids), len(ids))
        # Some tokenizers delete spaces before punctuation when they decode, which would change answers.
        runs = groupby(ids[:end], self._marks.get)  # without their marks, thoughts would look like the answer
        return "".join(mark or self._text(list(run)) for mark, run in runs).strip()

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)  # of several lists of ids it would be several

    @cached_property
    def _marks(self) -> dict[int, str]:
        """The control tokens that mark thoughts and channels."""
        return {id: spelling for id, spelling in self.special_ids.items() if spelling in MARKS}

    @property
    def hides_marks(self) -> bool:
        """Whether text without special tokens lacks the marks that begin thoughts."""
        added = self.tokenizer.added_tokens_decoder.values()
        return any(token.special and open_thought(token.content) for token in added)

    def spelt(self, text: str) -> str:
        """A text after encoding and decoding, with inert special tokens: some tokenizers normalise text."""
        return self.spelt_out(self.inert(text.strip()))

    def spelt_out(self, text: str) -> str:
        """A text after encoding and decoding; of special tokens, only the marks of thoughts are left."""
        return self.decode(self.encode(text), ())

    def inert(self, text: str) -> str:
        """A text that spells no special token, so that no document or user can end or begin a turn."""
        return self._special_spellings.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    @cached_property
    def _special_spellings(self) -> re.Pattern[str]:
        spellings = sorted((s for s in self.special_ids.values() if len(s) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
