"""SFT on gold data: chat history + question + gold passages -> answer."""

from groundtune.methods.method import Method
from groundtune.prompts.policies import gold_passages

SFT = Method(
    name="sft",
    title="SFT",
    help="train on gold passages (those with the answer), and compare with the base model",
    reads="gold passages",
    retrieves=False,
    policy=gold_passages,
)
