"""The training methods. A new one is one file here and one line below."""

from groundtune.methods.method import Method
from groundtune.methods.sft import SFT
from groundtune.methods.swr import SWR

METHODS: dict[str, Method] = {"sft": SFT, "swr": SWR}
