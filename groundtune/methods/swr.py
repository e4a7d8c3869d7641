"""SwR, SFT with a frozen retriever: chat history + question + gold passages + retrieved passages -> answer."""

from groundtune.methods.method import Method
from groundtune.passages import augmented_passages

SWR = Method(
    name="swr",
    description="supervised fine-tuning on gold passages and what a frozen retriever finds",
    retrieves_for_training=True,
    passages=augmented_passages,
)
