"""The command in a process of its own: ended while it answers, and killed while people vote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from conftest import tiny_documents
from fake_server import FakeServer

from groundtune.data.files import write_documents

ROOT = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "What does a card cost?"}]
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="ended by signals"),
    pytest.mark.slow,  # they start the command several times
]


@pytest.fixture
def start(tmp_path):
    """Start the command, with another server behind it; its process and address."""
    write_documents(tmp_path / "documents.jsonl", tiny_documents())
    begun, released = threading.Event(), threading.Event()

    def speak(body):
        begun.set()
        released.wait(20)
        return "Four coins a year."

    processes = []
    with FakeServer(speak) as behind:
        flags = {
            "full_dataset_file_path": tmp_path / "documents.jsonl", "retriever": "bm25", "generator_model": "m",
            "generator": f"openai:{behind.url}", "feedback_file": tmp_path / "votes.jsonl", "port": 0,
        }  # fmt: skip
        words = [sys.executable, "-m", "groundtune.cli", "serve", "--json"]
        words += [str(word) for flag in flags.items() for word in (f"--{flag[0]}", flag[1])]

        def run():
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
            )
            processes.append(process)
            told = process.stdout.readline()
            assert told, process.stderr.read()
            return process, json.loads(told)["url"]

        run.begun, run.released = begun, released
        yield run
        released.set()
        for process in processes:
            process.kill()
            process.communicate()


def test_sigterm_first_finishes_the_answer_and_ends_with_143(start):
    process, url = start()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.chat.completions.create, model="", messages=ASKED)
        assert start.begun.wait(20)
        process.send_signal(signal.SIGTERM)
        start.released.set()
        assert reply.result(20).choices[0].message.content == "Four coins a year."
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143 and out == "" and err.splitlines()[-1] == "stopped by SIGTERM"


def test_killed_and_restarted_while_people_vote_no_acknowledged_vote_is_lost(start, tmp_path):
    start.released.set()
    process, url = start()
    body = {"model": "", "messages": ASKED}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()
    sources = [source["id"] for source in reply["sources"]]
    shown = [{"question": ASKED[0]["content"], "answer": "Four coins a year.", "sources": sources}]
    saved: list[str] = []
    enough = threading.Event()

    def votes(voter):
        for n in range(1000):
            comment = f"{voter}/{n}"
            try:
                body = {"id": reply["id"], "vote": "up", "comment": comment, "shown": shown}
                httpx.post(f"{url}/feedback", json=body, timeout=20).raise_for_status()
            except httpx.HTTPError:
                return
            saved.append(comment)
            if len(saved) > 40:
                enough.set()

    with ThreadPoolExecutor(8) as pool:
        for voter in range(8):
            pool.submit(votes, voter)
        assert enough.wait(30)
        process.kill()
    _, url = start()  # whose page is still open in a browser
    body = {"id": reply["id"], "vote": "down", "comment": "after", "shown": shown}
    assert httpx.post(f"{url}/feedback", json=body, timeout=20).status_code == 200
    written = (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()
    lines = [json.loads(line) for line in written if line.endswith("}")]
    assert {line["comment"] for line in lines} >= {*saved, "after"}
    assert lines[-1]["answer"] == "Four coins a year." and len(lines[-1]["sources"]) == len(reply["sources"])
