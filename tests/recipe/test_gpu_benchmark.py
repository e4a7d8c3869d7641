"""The benchmark for GPUs runs whole on a CPU at tiny sizes, and no section keeps the others from being measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
# As the process that measures: "sharing" fails, "windows" takes too long, "generation" ends the process.
FAKE = """
import json, os, sys, time
def say(**event): print(json.dumps(event), flush=True)
print("a library says something")
for name in sys.argv[1:]:
    say(begin=name)
    if name == "sharing": say(section=name, failed="AssertionError: no"); sys.exit()
    if name == "windows": time.sleep(60)
    if name == "generation": os._exit(3)
    say(section=name, row="float32", result="right")
    say(end=name)
"""


def test_every_section_runs_on_a_cpu_and_what_is_packed_is_exact(monkeypatch):
    monkeypatch.setattr(gpu, "matmul_peak", lambda: 100.0)
    events = list(gpu.here(list(gpu.SECTIONS), quick=True))
    assert not [event for event in events if "failed" in event or event.get("exact") is False]
    found = {(event["section"], event["row"]): event for event in events if "row" in event}
    missing = {event["section"] for event in events if "missing" in event}
    for name, section in gpu.SECTIONS.items():
        rows = [row for row in section.rows if (name, row) not in found]
        assert not rows or name in missing, (name, rows)
    assert found["packing", "float32"]["cosine"] > 0.9999
    step = found["Qwen3 0.6B", "LoRA step"]
    assert step["tokens_of_rows_a_second"] > step["computed_tokens_a_second"] > 0  # passages are shared
    assert events[0]["machine"]["torch"] and events[0]["machine"]["driver"] == "none"


def test_a_wrong_gradient_is_found(monkeypatch):
    right = gpu.loss_and_gradient

    def wrong(model, batches, total):
        loss, gradient = right(model, batches, total)
        return loss, gradient + (len(batches) == 1) * gradient.std()

    monkeypatch.setattr(gpu, "loss_and_gradient", wrong)
    found = gpu.exactness("float32", True, shared=0, share_prefix=False)
    assert not found.figures["exact"] and found.result.startswith("**wrong**")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(gpu, "_command", lambda names, quick: [sys.executable, "-c", FAKE, *names])


def test_a_section_that_fails_or_takes_too_long_or_ends_its_process_is_told_and_the_next_is_measured(fake):
    names = ["packing", "sharing", "windows", "fused LoRA", "generation", "QLoRA"]
    events = list(gpu.elsewhere(names, True, {**dict.fromkeys(names, 60.0), "windows": 0.2}))
    failed = {event["section"]: event["failed"] for event in events if "failed" in event}
    assert failed == {
        "sharing": "AssertionError: no", "windows": "took longer than 0.2 s", "generation": "its process ended (3)",
    }  # fmt: skip
    assert [event["section"] for event in events if "row" in event] == ["packing", "fused LoRA", "QLoRA"]


def test_a_process_that_cannot_be_started_is_told_once_for_each_section(monkeypatch):
    monkeypatch.setattr(gpu, "_command", lambda names, quick: [sys.executable, "-c", "raise SystemExit(1)"])
    events = list(gpu.elsewhere(["packing", "sharing"], True, {}))
    assert [event["section"] for event in events] == ["packing", "sharing"]


def test_results_and_table_are_written_and_a_failure_is_the_exit_status(fake, monkeypatch, tmp_path, capsys):
    words = ["gpu", "--quick", "--out", str(tmp_path), "--only", "packing", "sharing"]
    monkeypatch.setattr(sys, "argv", words)
    assert gpu.main() == 1
    assert [e["row"] for e in json.loads((tmp_path / "gpu.json").read_text("utf-8")) if "row" in e] == ["float32"]
    table = (tmp_path / "gpu.md").read_text("utf-8")
    assert "| packing | float32 | right |" in table and "| windows | float32 | not measured |" in table
    assert "| sharing | bfloat16 | not measured: AssertionError: no |" in table and table in capsys.readouterr().out


def test_the_page_has_a_row_for_everything_that_is_measured():
    page = (ROOT / "docs/performance.md").read_text("utf-8").splitlines()
    for line in gpu.table().splitlines():
        row = line.rpartition(" | ")[0]
        assert [at for at in page if at.startswith(f"{row} | ")] or line in page, row
