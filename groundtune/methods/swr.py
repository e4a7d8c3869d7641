"""SwR, SFT with a frozen retriever: chat history + question + gold passages + retrieved passages -> answer."""

from groundtune.methods.method import Method
from groundtune.prompts.policies import augmented_passages

SWR = Method(
    name="swr",
    title="SwR",
    help="SFT with a frozen retriever: train on gold and retrieved passages",
    reads="gold and retrieved passages",
    retrieves=True,
    policy=augmented_passages,
)
