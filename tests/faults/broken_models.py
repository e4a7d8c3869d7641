"""Broken model folders, indexes, run folders and predictions: each ends in one line, exit status 2, and in time.

    python tests/faults/broken_models.py [WORD ...]

Every case of damages.py is done to a copy of a tiny folder, and the commands that read it run, each in a forked process
with limits on time and memory. WORDs choose cases by their names.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from damages import FOUND_LATER, Case, cases, put

MOST_SECONDS, MOST_BYTES = 30.0, 12 * 2**30
ASKED = "ask {model} Why? {documents} --retriever bm25 --max_new_tokens 2 --quiet"
EVALUATED = (
    "evaluate {model} --eval_file {data}/test.jsonl --contexts gold --max_new_tokens 2 --output_dir {out} --quiet"
)
TRAINED = "--model_name_or_path {model} --train_file {data}/train.jsonl --eval_file {data}/eval.jsonl {documents}"
DIAGNOSED = f"doctor sft {TRAINED} --retriever bm25 --quiet"
EMBEDDED = "--embedding_model {embedding} --full_dataset_index_path {out}"
COMMANDS = {
    "model": [DIAGNOSED, ASKED, EVALUATED],
    "adapter": [ASKED.replace("--retriever", "--base_model {base} --retriever")],
    "embedding": [f"doctor swr {TRAINED} {EMBEDDED} --quiet", f"index {{documents}} {EMBEDDED}"],
    "run": [
        "ask {run} Why? --max_new_tokens 2 --quiet",
        "evaluate {run} --max_new_tokens 2 --output_dir {out} --quiet",
    ],
    "index": ["index {documents} --embedding_model {embedding} --full_dataset_index_path {index}"],
    "predictions": ["compare {predictions} {good} -o {out}.html"],
}


class World:
    """Tiny folders of each kind, made in a process of their own: one that has computed cannot be forked safely."""

    def __init__(self, folder: Path):
        from tiny_run import Child, warm_up

        warm_up()
        self.folder = folder
        self.out = folder / "out"
        ended = Child(self._make, folder / "made.log").wait()
        assert ended == 0, (folder / "made.log").read_text()

    def _make(self) -> int:
        from conftest import make_family, save_bert_embedder, write_data

        from groundtune.arguments import ModelArguments
        from groundtune.cli import main
        from groundtune.model.loading import add_lora

        make = self.folder
        for name in ("data", "model", "bert"):
            (make / name).mkdir()
        write_data(make / "data")
        family = make_family("llama", make / "model")
        add_lora(family.model(), ModelArguments(lora_r=2)).save_pretrained(make / "adapter")
        put("adapter_config.json", {"base_model_name_or_path": str(make / "model")})(make / "adapter")
        save_bert_embedder(make / "bert").rename(make / "embedding")
        shutil.copytree(make / "model", make / "run")
        run = {
            "method": "sft", "model": {"model_name_or_path": str(make / "run")}, "retrieval": {"retriever": "bm25"},
            "prompt": {}, "training": {"bf16": False}, "evaluation": {"bootstrap_samples": 100},
        }  # fmt: skip
        run["data"] = {"full_dataset_file_path": f"{make}/run/documents.jsonl", "test_file": f"{make}/run/test.jsonl"}
        (make / "run/run.json").write_text(json.dumps({"arguments": run}))
        for name in ("documents", "test"):
            shutil.copy(make / f"data/{name}.jsonl", make / "run")
        index = f"--full_dataset_index_path {make}/index"
        documents = f"--full_dataset_file_path {make}/data/documents.jsonl"
        assert main(f"index {documents} {index} --embedding_model {make}/embedding".split()) == 0
        evaluate = EVALUATED.format(model=make / "model", data=make / "data", out=make / "evaluated")
        assert main(evaluate.split()) == 0
        shutil.copy(make / "evaluated/predictions/gold.jsonl", make / "predictions.jsonl")
        shutil.copy(make / "predictions.jsonl", make / "good.jsonl")
        return 0

    def complaints(self, case: Case) -> Iterator[str]:
        """What is wrong with each command's reaction to the case."""
        names = ("model", "adapter", "embedding", "run", "index")
        paths = {name: str(self.folder / name) for name in names}
        damaged = self.folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        if case.kind == "predictions":
            target = damaged / "predictions.jsonl"
            shutil.copy(self.folder / "predictions.jsonl", target)
        else:
            target = damaged / case.kind
            shutil.copytree(self.folder / case.kind, target)
        if case.kind == "run":  # paths in its record are inside it
            record = (target / "run.json").read_text().replace(str(self.folder / "run"), str(target))
            (target / "run.json").write_text(record)
        case.damage(target)
        paths |= {"predictions": str(self.folder / "predictions.jsonl"), case.kind: str(target)}
        if case.kind == "adapter":
            paths["model"] = str(target)
        paths |= {"base": str(self.folder / "model"), "good": str(self.folder / "good.jsonl")}
        paths |= {"data": str(self.folder / "data"), "out": str(self.out)}
        paths["documents"] = f"--full_dataset_file_path {self.folder}/data/documents.jsonl"
        for command in COMMANDS[case.kind]:
            shutil.rmtree(self.out, ignore_errors=True)
            if found := self._complaint(case, command.format(**paths)):
                yield f"{case.kind}: {case.name}: {command.split()[0]}: {found}"

    def _complaint(self, case: Case, command: str) -> str:
        from tiny_run import Child

        from groundtune.cli import main

        def work() -> int:
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            status = main(command.split())
            print(f"\npeak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
            return status

        log = self.folder / "log"
        log.unlink(missing_ok=True)
        child, begin = Child(work, log), time.monotonic()
        while child.running():
            time.sleep(0.01)
            if time.monotonic() - begin > MOST_SECONDS:
                child.send(9)
        said = log.read_text("utf-8", "replace")
        peak = int(found[1]) if (found := re.search(r"\npeak (\d+) MB", said)) else 0
        lines = lines_of(said)
        if child.status == 137:
            return f"did not end in {MOST_SECONDS:.0f} s"
        if "Traceback" in said or "panicked" in said:
            return "traceback: " + " | ".join(lines[-2:])[:500]
        if peak > 3000:
            return f"{peak} MB"
        if child.status == 0:
            too_early = command.startswith("doctor") and case.name in FOUND_LATER
            return "" if case.harmless or too_early else "succeeded: " + " | ".join(lines)[:300]
        if child.status != 2:
            return f"status {child.status}: " + " | ".join(lines)[:400]
        if len(lines) != 1:
            return f"{len(lines)} lines: " + " | ".join(lines)[:600]
        if os.environ.get("SHOW"):
            print(f"    ok {case.kind}: {case.name}: {command.split()[0]}: {lines[0][:330]}")
        return "" if case.harmless or "damaged" in lines[0] else f"does not name it: {lines[0]}"


def lines_of(said: str) -> list[str]:
    """What a command said, without what libraries say, warnings and sums."""
    others = r".*Loading weights|\[transformers\]|embedding \d+ of|\d+ of \d+ documents are|peak \d+ MB|warning: "
    others += r"|\d+ (error|warning)s?( and|$| in)"
    lines = [line for line in said.splitlines() if line.strip() and not re.match(others, line)]
    return [line.removeprefix("error: ") for line in lines]


def main(words: list[str]) -> int:
    chosen = [case for case in cases() if all(word in f"{case.kind}: {case.name}" for word in words)]
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        world = World(Path(temporary))
        for case in chosen:
            for complaint in world.complaints(case):
                wrong.append(complaint)
                print(complaint, flush=True)
    print(f"{len(chosen)} broken folders and files, {len(wrong)} not answered as they should be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
