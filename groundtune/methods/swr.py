"""SwR, SFT with a frozen retriever: chat history + question + gold passages + retrieved passages -> answer."""

from groundtune.arguments import SHUFFLED
from groundtune.methods.method import Method
from groundtune.prompts.policies import augmented_passages

SWR = Method(
    name="swr",
    title="SwR",
    help="SFT with a frozen retriever: train on gold and retrieved passages",
    reads="gold and retrieved passages",
    retrieves=True,
    policy=augmented_passages,
    # Gold always first teaches a model to read the first passage, and gold elsewhere less well (docs/results.md).
    defaults={"passage_order": SHUFFLED},
)
