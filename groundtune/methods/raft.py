"""RAFT (Zhang et al. 2024): gold among distractors in any order; some rows lose their gold, and teach to abstain."""

from groundtune.arguments import DISTRACTORS, SHUFFLED
from groundtune.methods.method import Method
from groundtune.prompts.policies import augmented_passages

RAFT = Method(
    name="raft",
    title="RAFT",
    help="train on gold among distractors in any order, and to abstain without gold",
    reads="gold passages among distractors, or distractors alone",
    retrieves=True,
    policy=augmented_passages,
    defaults={"passage_order": SHUFFLED, "distractors": list(DISTRACTORS), "gold_dropout": 0.2},
)
