"""From answers to scores, intervals, outcomes, comparisons and verdicts; and what produces and grades the answers."""
