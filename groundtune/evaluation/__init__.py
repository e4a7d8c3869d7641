"""Answers -> scores, intervals, outcomes, comparisons and verdicts; and whatever gives or grades the answers."""
