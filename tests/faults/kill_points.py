"""Kill -9 at random points of a tiny run; the same command, run again, must end with the weights of an undisturbed run.

Half of the points are events (before or after a call that computes or reaches the disk, in the middle of a file of
tensors), half are moments. Nothing is cleaned by hand. `--against trainer` does the same to transformers' Trainer, used
as its examples use it: `resume_from_checkpoint=get_last_checkpoint(output_dir)`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from tiny_run import VARIANTS, WEIGHTS, Child, Events, flags, kill, make_inputs, outcome, sha256, warm_up

_ATTEMPTS = 3  # of the same command after the kill, before a person would have to intervene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", choices=sorted(SUBJECTS), default="groundtune")
    parser.add_argument("--keep", action="store_true", help="keep the folders of points that failed")
    options = parser.parse_args()
    start, judge = SUBJECTS[options.against]
    rng = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="kill_points_"))
    warm_up()
    make_inputs(work / "inputs")
    expected = {variant: _undisturbed(work, variant, start, judge) for variant in VARIANTS[: options.points]}
    phases: Counter[str] = Counter()
    results: Counter[str] = Counter()
    for point in range(options.points):
        variant = VARIANTS[point % len(VARIANTS)]
        undisturbed, seconds, wanted = expected[variant]
        output = work / f"point_{point}"
        phase = _killed(output, variant, rng, undisturbed, seconds, start, work, by_event=point // 2 % 2 == 0)
        result = _run_again(output, variant, start, judge, wanted, work)
        phases[phase] += 1
        results[result] += 1
        print(f"{point + 1}/{options.points} {variant}, killed at {phase}: {result}", flush=True)
        if not (options.keep and result != "identical"):
            shutil.rmtree(output)
    print("\nkilled at")
    for phase, n in phases.most_common():
        print(f"{n:5} {phase}")
    print(
        f"\n{options.against}, {options.points} kill points:", ", ".join(f"{n} {r}" for r, n in results.most_common())
    )
    if not options.keep:
        shutil.rmtree(work)
    return 0 if results["identical"] == options.points else 1


def _undisturbed(work: Path, variant: str, start: Callable[..., int], judge: Callable[..., Any]) -> tuple:
    """Events, seconds and outcome of an undisturbed run."""
    output, events = work / "undisturbed", Events()
    child = Child(lambda: _watched(events, lambda: start(work / "inputs", output, variant)), work / "undisturbed.log")
    status = child.wait()
    assert status == 0, (work / "undisturbed.log").read_text()
    result = events, child.seconds, judge(output, variant)
    shutil.rmtree(output)
    print(f"{variant}: {child.seconds:.1f} s and {len(events.labels)} events undisturbed", flush=True)
    return result


def _killed(
    output: Path, variant: str, rng: random.Random, undisturbed: Events, seconds: float, start: Callable[..., int],
    work: Path, by_event: bool,
) -> str:  # fmt: skip
    """Run and kill; the place of the kill. If the run had already ended, another moment is drawn."""
    while True:
        events = Events(at=undisturbed.choose(rng) if by_event else None, act=kill)
        log = work / "killed.log"
        child = Child(lambda events=events: _watched(events, lambda: start(work / "inputs", output, variant)), log)
        if not by_event:
            time.sleep(rng.uniform(0, seconds))
            child.send(signal.SIGKILL)
        if child.wait() == 137:
            return (["the start"] + events.labels)[-1]
        shutil.rmtree(output)


def _run_again(output: Path, variant: str, start: Any, judge: Any, wanted: Any, work: Path) -> str:
    for attempt in range(_ATTEMPTS):
        log = work / f"again_{attempt}.log"
        log.unlink(missing_ok=True)
        if Child(lambda: start(work / "inputs", output, variant), log).wait() == 0:
            return "identical" if judge(output, variant) == wanted else "different"
    print(log.read_text()[-2000:])
    shutil.rmtree(max(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2])))
    if Child(lambda: start(work / "inputs", output, variant), log).wait() == 0:
        same = judge(output, variant) == wanted
        return f"{'identical' if same else 'different'}, once its last checkpoint was removed by hand"
    return "not to be continued"


def _watched(events: Events, work: Callable[[], int]) -> int:
    with events.watched():
        return work()


# What is killed


def _groundtune(inputs: Path, output: Path, variant: str) -> int:
    from groundtune.cli import train_command

    return train_command("swr", flags(inputs, output, variant))


def _trainer(inputs: Path, output: Path, variant: str) -> int:
    """The same model, data and arguments with transformers' Trainer; it scores the loss and generates nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    from groundtune.data.files import read_examples

    set_seed(42)
    folder = inputs / "models" / variant
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if variant == VARIANTS[0]:
        model = get_peft_model(model, LoraConfig("CAUSAL_LM", r=2, lora_dropout=0.2, target_modules="all-linear"))

    def rows(file: str) -> list[dict[str, Any]]:
        texts = [f"{e.gold_documents[0].text}\n{e.question}\n{e.answer}" for e in read_examples(inputs / "data" / file)]
        return [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text)["input_ids"] for text in texts)]

    trainer = Trainer(
        model,
        TrainingArguments(
            str(output), per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=9,
            eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, save_total_limit=2,
            load_best_model_at_end=True, learning_rate=1e-2, logging_steps=1, report_to="none", disable_tqdm=True,
            use_cpu=True, per_device_eval_batch_size=1,
        ),
        train_dataset=rows("train.jsonl"),
        eval_dataset=rows("eval.jsonl"),
        data_collator=lambda batch: {k: torch.tensor([row[k] for row in batch]) for k in batch[0]},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if os.path.isdir(output) else None)
    trainer.save_model()
    return 0


SUBJECTS: dict[str, tuple[Callable[..., int], Callable[[Path, str], Any]]] = {
    "groundtune": (_groundtune, outcome),
    "trainer": (_trainer, lambda output, variant: sha256(output / WEIGHTS[variant])),
}

if __name__ == "__main__":
    sys.exit(main())
