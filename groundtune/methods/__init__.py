"""The training methods. A new one is one file here and one line below; commands, recipes and reports ask it."""

from collections.abc import Sequence

from groundtune.methods.method import Method
from groundtune.methods.sft import SFT
from groundtune.methods.swr import SWR

METHODS: dict[str, Method] = {method.name: method for method in (SFT, SWR)}


def method_named_first(words: Sequence[str]) -> tuple[Method, list[str]]:
    """The method that a command line begins with, plain SFT if with none, and its other words."""
    named = bool(words) and words[0] in METHODS
    return (METHODS[words[0]], list(words[1:])) if named else (SFT, list(words))


def method_of(name: str) -> Method:
    """The method of that name; of a model that no known method trained, plain SFT: it loads and answers as any does."""
    return METHODS.get(name, SFT)
