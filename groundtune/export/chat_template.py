"""The prompt of a run as a chat template, so that a server writes the ids that the model was trained on.

A run's prompt is not always what its tokenizer's template writes: thoughts are closed, or the prefix style was used. A
template is accepted only if the ids that it gives for trial conversations are the prompt's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

from groundtune.aliases import Tokenizer
from groundtune.errors import ModelError
from groundtune.prompts.prompt import PrefixPrompt, Prompt, asked_of_template
from groundtune.schema import ASSISTANT, USER, Document, Turn
from groundtune.system.model_folders import why_not_loaded
from groundtune.system.text import to_json

# What texts may look like that a template trims, joins or cuts.
_DOCUMENTS = (
    Document("Returns are accepted within 60 days."),
    Document('Title: Fees\n\n  - 1,024 EUR (a year)\n  - 42 %; "quoted", it\'s {free}\tnaïve 日本 😀'),
)
_SAID = (Turn(USER, "Hello there!"), Turn(ASSISTANT, "Good day.\n\nHow can I help?"))
TRIALS: tuple[tuple[tuple[Document, ...], tuple[Turn, ...], str], ...] = (
    (_DOCUMENTS[:1], (), "Can I return it?"),
    (_DOCUMENTS, (), "What does it cost?\nAnd since when?"),
    (_DOCUMENTS[1:], _SAID, "And then?"),
    (_DOCUMENTS, (*_SAID, Turn(USER, "A lamp."), Turn(ASSISTANT, "No.")), "Why?"),
    ((), (), "Can I return it?"),
)


def with_trained_template(tokenizer: Tokenizer, prompt: Prompt) -> Tokenizer:
    """A copy of the tokenizer whose chat template writes the run's prompt. Raises `ModelError` if none does."""
    found = copy.deepcopy(tokenizer)
    for template in _candidates(tokenizer, prompt):
        found.chat_template = template
        with suppress(ModelError):
            if all(written_ids(found, prompt, *trial) == prompt.prompt_ids(*trial) for trial in TRIALS):
                return found
    raise ModelError(
        f"{tokenizer.name_or_path}: no chat template gives the token ids of the run's prompt ({prompt.style}); serve "
        "the model with token ids instead: groundtune evaluate RUN --generator openai:URL --generator_api completions"
    )


def written_ids(tokenizer: Tokenizer, prompt: Prompt, *asked: Any) -> list[int]:
    """The ids that a server gives the model: those of the text that the template of `tokenizer` writes.

    `asked` are passages, chat history and question; instruction and form of the messages are those of `prompt`.
    """
    return encoded(tokenizer, rendered(tokenizer, asked_of_template(prompt, *asked)))


def rendered(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    """What the template writes, as servers ask it: with the generation prompt, and no other keyword.

    Raises `ModelError` if the template fails.
    """
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program, and may raise anything
        why = why_not_loaded(error)
        raise ModelError(f"{tokenizer.name_or_path}: its chat template fails ({why}); export again") from error


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that a template wrote; servers add no BOS token to it."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _candidates(tokenizer: Tokenizer, prompt: Prompt) -> Iterator[str]:
    """Templates that may write the prompt, the one that changes least first."""
    if isinstance(prompt, PrefixPrompt):
        bos = tokenizer.bos_token if prompt.tokens.bos else ""
        yield _prefix_template(prompt, bos)
        yield _prefix_template(prompt, f"{bos} ")  # where a tokenizer puts a space before a text
        return
    own = tokenizer.get_chat_template()
    yield own
    off = "{% set enable_thinking = false %}{% set thinking = false %}"
    yield off + own
    removed, added = prompt.tail
    kept = f"written[:written | length - {len(removed)}]"
    asks = f"add_generation_prompt and written.endswith({to_json(removed)})"
    yield (
        f"{off}{{% set written %}}{own.removesuffix(chr(10))}{{% endset %}}"
        f"{{{{ {kept} + {to_json(added)} if {asks} else written }}}}"
    )


def _prefix_template(prompt: PrefixPrompt, bos: str) -> str:
    """The prefix style as Jinja: the system message first, then each turn with its prefix and separator."""

    def turn(prefix: str, separator: str) -> str:
        return f"{to_json(f'{prefix}: ')} + message['content'] + {to_json(separator)}"

    shapes = {
        "system": f"message['content'] + {to_json(chr(10) * 2)}",
        USER: turn(prompt.user_prefix, prompt.sep_user),
        ASSISTANT: turn(prompt.assistant_prefix, prompt.sep_sys),
    }
    cases = "".join(
        f"{{% if message['role'] == '{role}' %}}{{{{ {shape} }}}}{{% endif %}}" for role, shape in shapes.items()
    )
    asks = f"{{% if add_generation_prompt %}}{{{{ {to_json(f'{prompt.assistant_prefix}:')} }}}}{{% endif %}}"
    first = f"{{% if not written.startswith({to_json(bos.strip())}) %}}{{{{ {to_json(bos)} }}}}{{% endif %}}"
    written = f"{{% set written %}}{{% for message in messages %}}{cases}{{% endfor %}}{asks}{{% endset %}}"
    return f"{written}{first if bos.strip() else ''}{{{{ written }}}}"
