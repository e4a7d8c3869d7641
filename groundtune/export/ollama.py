"""A Modelfile for Ollama, whose templates are of Go: written only where they give the text of the chat template.

A prompt is the messages with the texts of a `Frame` around them. The frame is found by rendering a conversation, and
accepted if it gives the text of the chat template for every trial conversation. Ollama's template is that frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from groundtune.aliases import Tokenizer
from groundtune.errors import ModelError
from groundtune.export.chat_template import TRIALS, rendered
from groundtune.prompts.prompt import SYSTEM, PrefixPrompt, Prompt, asked_of_template
from groundtune.schema import ASSISTANT, USER
from groundtune.system.text import to_json

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Frame:
    """The texts around the messages of a prompt: before everything, before and after each message, before the answer.

    `first_user` stands in place of `user` before a user's message that is the first of all.
    """

    first: str
    first_user: str = ""
    user: str = ""
    after_user: str = ""
    assistant: str = ""
    after_assistant: str = ""
    after_system: str = ""
    tail: str = ""

    def written(self, messages: Messages) -> str:
        """The prompt for these messages."""
        around = {
            SYSTEM: ("", self.after_system),
            USER: (self.user, self.after_user),
            ASSISTANT: (self.assistant, self.after_assistant),
        }
        text = self.first
        for i, message in enumerate(messages):
            before, after = around[message["role"]]
            before = self.first_user if message["role"] == USER and not i else before
            text += f"{before}{message['content']}{after}"
        return text + self.tail

    def in_go(self) -> str:
        """The same as a template of Ollama, in one line: its texts are constants, so no white space is trimmed."""
        content = "{{ $m.Content }}"
        users = f"{{{{ if $i }}}}{_constant(self.user)}{{{{ else }}}}{_constant(self.first_user)}{{{{ end }}}}"
        cases = (
            f'{{{{ if eq $m.Role "{SYSTEM}" }}}}{content}{_constant(self.after_system)}',
            f'{{{{ else if eq $m.Role "{USER}" }}}}{users}{content}{_constant(self.after_user)}',
            f"{{{{ else }}}}{_constant(self.assistant)}{content}{_constant(self.after_assistant)}{{{{ end }}}}",
        )
        messages = f"{{{{ range $i, $m := .Messages }}}}{''.join(cases)}{{{{ end }}}}"
        return f"{_constant(self.first)}{messages}{_constant(self.tail)}"


def frame_of(tokenizer: Tokenizer, prompt: Prompt) -> Frame:
    """The frame of the prompts that the chat template of `tokenizer` writes. Raises `ModelError` if it has none.

    Ollama begins a prompt with a BOS token where the tokenizer does, so that one is left out.
    """
    frame, bos = _found(tokenizer, prompt), tokenizer.bos_token or ""
    for trial in TRIALS:
        messages = asked_of_template(prompt, *trial)
        if frame.written(messages) != rendered(tokenizer, messages):
            raise _refused(
                tokenizer, "its prompts are not only texts around messages, and Ollama's template would differ"
            )
    if not prompt.tokens.bos:
        return frame
    if not frame.first.startswith(bos):
        raise _refused(tokenizer, f"Ollama would put {bos} before every prompt, which the model was not trained with")
    return replace(frame, first=frame.first.removeprefix(bos))


def modelfile(frame: Frame, weights: str, stops: Sequence[str], context: int, max_new_tokens: int) -> str:
    """The text of a Modelfile: greedy answers, every stop token, and a context that holds every prompt.

    Ollama's own defaults would cut long prompts, sample, and penalise repeated words.
    """
    template = frame.in_go()
    parameters = {
        "temperature": 0, "repeat_penalty": 1, "num_ctx": context, "num_predict": max_new_tokens,
    }  # fmt: skip
    lines = [f"FROM {weights}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {to_json(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _found(tokenizer: Tokenizer, prompt: Prompt) -> Frame:
    """What may be the frame: of the prefix style its own texts, else the texts between messages of a conversation."""
    if isinstance(prompt, PrefixPrompt):
        (first, *_) = _between(tokenizer, [SYSTEM, USER])
        user, assistant = f"{prompt.user_prefix}: ", f"{prompt.assistant_prefix}: "
        ends = {"after_user": prompt.sep_user, "after_assistant": prompt.sep_sys, "after_system": "\n\n"}
        return Frame(first, user, user, assistant=assistant, tail=assistant[:-1], **ends)
    first, assistant, user, tail = _between(tokenizer, [USER, ASSISTANT, USER])
    return Frame(first, user=user, assistant=assistant, tail=tail)


def _between(tokenizer: Tokenizer, roles: Sequence[str]) -> list[str]:
    """The texts before, between and after messages of these roles."""
    said = [f"Said{i}S" for i in range(len(roles))]
    text = rendered(tokenizer, [{"role": role, "content": words} for role, words in zip(roles, said)])
    parts = []
    for words in said:
        before, _, text = text.partition(words)
        parts.append(before)
    return [*parts, text]


def _refused(tokenizer: Tokenizer, why: str) -> ModelError:
    name = tokenizer.name_or_path
    return ModelError(f"--to ollama: {name}: {why}; export it with --to vllm, or with --to gguf for llama.cpp")


def _constant(text: str) -> str:
    """A text as an action of Go; escapes of JSON are Go's, too. Three quotes would end the template."""
    return f"{{{{ {to_json(text)} }}}}" if text else ""
