"""Attacks on every input of every row of docs/security.md: nothing runs, leaves, is overwritten, hangs or crashes.

    python tests/faults/hostile_inputs.py [WORD ...]

Each case of attacks.py runs its command in a forked process that is watched (watching.py): code of the input that
runs, programs that start, connections, secrets that are read, files that change outside the output folder, tracebacks,
time and memory. Before, the watch must see one example of each. WORDs choose cases by their group and name.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "unit"), str(TESTS / "faults")]

import broken_models
import watching
from attacks import CONTROLS, GROUPS, Attack, Place, cases

MOST_SECONDS, MOST_MB, MOST_BYTES = 60.0, 2500, 16 * 2**30
KINDS = ("executed", "sent", "read", "overwritten", "traceback", "beyond a limit")
# Every character that a terminal obeys, but for those that end a line.
WRITES = {chr(code) for code in (*range(32), *range(127, 160))} - set("\n\r\t") | set("\u202e\u2066")


@dataclass
class Outcome:
    """What a command did with a case: what it should not have done, by kind; `wrong`: another answer than expected."""

    attack: Attack
    status: int
    said: str
    seconds: float
    memory_mb: float
    found: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class World(broken_models.World):
    """Tiny folders of each kind, and a run with its checkpoints."""

    def _make(self) -> int:
        from groundtune.cli import main

        super()._make()
        return main(TRAIN.format(**self.paths(), out=self.folder / "trained").split())

    def paths(self) -> dict[str, str]:
        names = ("model", "adapter", "embedding", "run", "index", "data", "trained")
        files = {name: f"{self.folder}/{name}.jsonl" for name in ("predictions", "good")}
        documents = f"--full_dataset_file_path {self.folder}/data/documents.jsonl"
        return {name: str(self.folder / name) for name in names} | files | {"documents": documents}

    def attempt(self, attack: Attack) -> Outcome:
        from tiny_run import Child

        place = Place(self.folder, self.folder.parent / "case")
        place.make()
        built = Child(lambda: attack.build(place) and 0 or 0, place.folder / "build.log")
        if built.wait():
            raise RuntimeError(f"{attack.name}: {(place.folder / 'build.log').read_text()}")
        before = snapshot(self.folder, place, attack)
        child, begin = Child(lambda: _run(attack, place, self.paths()), place.log), time.monotonic()
        while child.running():
            time.sleep(0.01)
            if time.monotonic() - begin > MOST_SECONDS:
                os.killpg(child.pid, signal.SIGKILL)
        said, peak = place.log.read_text("utf-8", "replace"), child.usage.ru_maxrss / 1024
        outcome = Outcome(attack, child.status, said, child.seconds, peak)
        outcome.found = _found(outcome, place, before, snapshot(self.folder, place, attack))
        outcome.wrong = _wrong(outcome, place)
        return outcome


TRAIN = (
    "sft --model_name_or_path {model} --train_file {data}/train.jsonl --eval_file {data}/eval.jsonl {documents} "
    "--retriever bm25 --output_dir {out} --max_steps 2 --eval_steps 1 --save_steps 1 --max_new_tokens 2 --bf16 false "
    "--max_seq_length 300 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --bootstrap_samples 100"
)


def _run(attack: Attack, place: Place, paths: dict[str, str]) -> int:
    """In the forked process: the command, watched, without the hub's own switch for working offline."""
    from huggingface_hub import constants

    from groundtune.cli import main

    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    constants.HF_HUB_OFFLINE = attack.offline
    tempfile.tempdir = str(place.folder / "tmp")
    sys.dont_write_bytecode = True
    os.chdir(place.folder / "work")
    with attack.serve(place) as server:
        port = [server.server.server_port] if server else []
        _watch(place, port)
        os.environ.update(attack.environment)
        attack.before(place)
        if attack.instead:
            return attack.instead(place)
        return main(_words(attack, paths | place.paths() | ({"server": server.url} if server else {})))


def _words(attack: Attack, given: dict[str, str]) -> list[str]:
    """Names of files stay whole, whatever they contain."""
    words: list[str] = []
    for word in attack.command.replace("{train}", TRAIN).split():
        words += given[word[1:-1]].split() if word == "{documents}" else [word.format(**given)]
    return words


def _watch(place: Place, ports: list[int]) -> None:
    site = place.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(watching.SITE)
    writable = [str(place.folder / name) for name in ("out", "tmp", "cache")] + ["/dev/"]
    told = {"report": str(place.report), "folder": str(place.folder / "in"), "secret": str(place.secret),
            "ports": ports, "writable": writable}  # fmt: skip
    os.environ[watching.REPORT] = json.dumps(told)
    os.environ.update(
        HOME=str(place.folder / "home"), TMPDIR=str(place.folder / "tmp"), PYTHONDONTWRITEBYTECODE="1", COLUMNS="400",
        GROUNDTUNE_CACHE=str(place.folder / "cache"), PYTHONPATH=os.pathsep.join([str(site), str(TESTS.parent)]),
    )  # fmt: skip
    watching.begin()


def snapshot(world: Path, place: Place, attack: Attack) -> dict[str, str]:
    """Every file that may not change: type, mode, and what is in it."""
    tops = [world, place.folder / "in", place.folder / "home"] + ([place.out] if attack.keeps else [])
    found = {}
    for top in tops:
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                found[os.fsdecode(path)] = _state(path)
    return {name: state for name, state in found.items() if not name.endswith((".lock", ".holder"))}


def _state(path: str) -> str:
    told = os.lstat(path)
    if stat.S_ISLNK(told.st_mode):
        return f"a link to {os.readlink(path)}"
    if not stat.S_ISREG(told.st_mode) or told.st_size > 2**24 or not told.st_mode & 0o400:
        return f"{told.st_mode} {told.st_size if stat.S_ISREG(told.st_mode) else ''}"
    return f"{told.st_mode} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def _found(outcome: Outcome, place: Place, before: dict[str, str], after: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for line in place.report.read_text().splitlines() if place.report.exists() else []:
        kind, _, what = line.strip("'\"").partition(": ")
        found[kind].append(what)
    if place.ran.exists():
        found["executed"].append("the canary")
    found["overwritten"] += [name for name in before | after if before.get(name) != after.get(name)]
    if "Traceback" in outcome.said or "panicked at" in outcome.said:
        found["traceback"].append(outcome.said[-1500:])
    if place.read_aloud(outcome.said):
        found["read"].append("the secret is in what the command wrote")
    if outcome.seconds > MOST_SECONDS or outcome.memory_mb > MOST_MB or outcome.status == 137:
        found["beyond a limit"].append(f"{outcome.seconds:.0f} s, {outcome.memory_mb:.0f} MB")
    return found


def _wrong(outcome: Outcome, place: Place) -> list[str]:
    attack, lines = outcome.attack, broken_models.lines_of(outcome.said)
    wrong = []
    if outcome.status not in attack.status:
        wrong.append(f"status {outcome.status}")
    if attack.says not in outcome.said:
        wrong.append(f"does not say {attack.says!r}")
    if outcome.status == 2 and len(lines) != attack.lines:
        wrong.append(f"{len(lines)} lines")
    if WRITES & set(outcome.said):
        wrong.append(f"writes on the terminal: {ascii(WRITES & set(outcome.said))}")
    if problem := attack.check(place):
        wrong.append(problem)
    return wrong


def controlled(world: World) -> list[str]:
    """What the watch does not see, though it happens."""
    missed = []
    for kind, attack in CONTROLS.items():
        outcome = world.attempt(attack)
        if not outcome.found[kind]:
            missed.append(f"the watch does not see what is {kind}: {outcome.said[-300:]}")
    return missed


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'':38} cases " + " ".join(f"{kind:>14}" for kind in KINDS) + f" {'another answer':>14}"]
    for group in (*GROUPS, "all"):
        of_group = [outcome for outcome in outcomes if group in ("all", outcome.attack.group)]
        if not of_group:
            continue
        counts = Counter(kind for outcome in of_group for kind in KINDS if outcome.found[kind])
        other = sum(bool(outcome.wrong) for outcome in of_group)
        numbers = " ".join(f"{counts[kind]:14}" for kind in KINDS)
        lines.append(f"{group:38} {len(of_group):5} {numbers} {other:14}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    chosen = [case for case in cases() if not words or any(word in f"{case.group}: {case.name}" for word in words)]
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary).resolve()
        (top / "world").mkdir()
        world = World(top / "world")
        missed, outcomes = controlled(world), []
        for case in chosen:
            outcomes.append(outcome := world.attempt(case))
            bad = {kind: what for kind, what in outcome.found.items() if what}
            if bad or outcome.wrong or os.environ.get("SHOW"):
                said = " | ".join(broken_models.lines_of(outcome.said))[:600]
                print(f"{case.group}: {case.name}: {bad or ''} {outcome.wrong} {outcome.status}: {said}", flush=True)
    wrong = [outcome for outcome in outcomes if outcome.wrong or any(outcome.found.values())]
    slowest, largest = max(o.seconds for o in outcomes), max(o.memory_mb for o in outcomes)
    print(*missed, table(outcomes), sep="\n")
    print(f"{len(outcomes)} cases, {len(wrong)} not withstood; at most {slowest:.1f} s and {largest:.0f} MB; "
          f"{len(CONTROLS) - len(missed)} of {len(CONTROLS)} controls seen")  # fmt: skip
    return bool(wrong or missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
