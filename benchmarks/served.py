"""Does `groundtune serve` answer as well as was measured? `python -m benchmarks.served RUN EVALUATION...`

EVALUATION is a folder that `groundtune evaluate RUN --eval_file FILE --contexts retrieved` wrote. The server of RUN
gets the same questions from several users of the `openai` client at once. It computes in the same precision, but in
batches of whatever waits, which changes rounding. Token F1 is compared question by question, with intervals by passage.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.serving import free_port, running
from groundtune.evaluation.metrics import token_f1
from groundtune.evaluation.predictions import read_predictions
from groundtune.evaluation.requirements import non_inferior
from groundtune.evaluation.statistics import clusters_of, paired_difference
from groundtune.schema import Example

MARGIN = 0.02  # of token F1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("evaluations", type=Path, nargs="+")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    options = parser.parse_args()

    from openai import OpenAI

    measured = [p for one in options.evaluations for p in read_predictions(one / "predictions" / "retrieved.jsonl")]
    port = free_port()
    serve = ["serve", str(options.run), f"--port={port}", f"--per_device_eval_batch_size={options.users}"]
    words = [sys.executable, "-m", "groundtune.cli", *serve]
    url = f"http://127.0.0.1:{port}"
    with running(words, f"{url}/health"), ThreadPoolExecutor(options.users) as users:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600)
        model = client.models.list().data[0].id

        def answer(one: Example) -> str:
            turns = [*((turn.speaker, turn.message) for turn in one.chat_history), ("user", one.question)]
            messages: Any = [{"role": role, "content": content} for role, content in turns]
            reply = client.chat.completions.create(
                model=model, messages=messages, temperature=0, max_tokens=options.max_new_tokens
            )
            return reply.choices[0].message.content or ""

        answers = list(users.map(answer, [prediction.example for prediction in measured]))
    before = [prediction.scores["generation/f1"] for prediction in measured]
    after = [max(token_f1(a, gold) for gold in p.example.acceptable_answers) for a, p in zip(answers, measured)]
    difference = paired_difference(before, after, clusters_of([p.example for p in measured]))
    same = sum(a.strip() == p.answer.strip() for a, p in zip(answers, measured))
    shown = {
        "n": len(answers), "same": same, "f1_measured": sum(before) / len(before), "f1_served": sum(after) / len(after),
        "difference": difference.value, "low": difference.low, "high": difference.high,
        f"not_worse_by_{MARGIN}": non_inferior(difference, MARGIN),
    }  # fmt: skip
    print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
