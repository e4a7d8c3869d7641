"""SFT on gold data: chat history + question + gold passages -> answer."""

from groundtune.methods.method import Method
from groundtune.passages import gold_passages

SFT = Method(
    name="sft",
    description="supervised fine-tuning on gold passages",
    retrieves_for_training=False,
    passages=gold_passages,
)
