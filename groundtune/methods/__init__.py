"""The training methods. To add one, add a file here and a line below; commands, recipes and reports use `METHODS`."""

from collections.abc import Sequence

from groundtune.methods.method import Method
from groundtune.methods.raft import RAFT
from groundtune.methods.sft import SFT
from groundtune.methods.swr import SWR

METHODS: dict[str, Method] = {method.name: method for method in (SFT, SWR, RAFT)}


def method_named_first(words: Sequence[str]) -> tuple[Method, list[str]]:
    """The method named by the first word of a command line (SFT if none is named), and the remaining words."""
    named = bool(words) and words[0] in METHODS
    return (METHODS[words[0]], list(words[1:])) if named else (SFT, list(words))


def method_of(name: str) -> Method:
    """The method of that name. A model that no known method trained uses SFT, whose loading suits any decoder."""
    return METHODS.get(name, SFT)
