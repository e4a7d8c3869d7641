"""Votes on answers: on disk before they are acknowledged, blind between two models, and turned into examples."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from conftest import FACTS, tiny_documents
from peft import LoraConfig, get_peft_model
from serving import arguments_of, running, tiny_flags

from groundtune.commands.serve import open_serving
from groundtune.data.files import read_examples
from groundtune.prepare.convert import convert
from groundtune.prepare.formats import Options
from groundtune.schema import UNANSWERABLE
from groundtune.serving.api import PAGES
from groundtune.serving.chat import Refused
from groundtune.serving.feedback import FeedbackFile

QUESTION, ANSWER = FACTS["Price"][1:]
PRICE, DOGS = (document for document in tiny_documents() if document.metadata["title"] in ("Price", "Dogs"))


@pytest.fixture(scope="module")
def server(families, static_embedding_folder, data_folder, tmp_path_factory):
    """An adapter and its base model."""
    folder, base = tmp_path_factory.mktemp("votes"), families["qwen"]
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base.model(), settings).save_pretrained(folder / "adapter")
    flags = tiny_flags(base, static_embedding_folder, data_folder, folder / "index") | {"with_base": "true"}
    named = {"base_model": base.folder, "feedback_file": folder / "votes.jsonl"}
    with running(open_serving(*arguments_of(folder / "adapter", **flags, **named))) as found:
        yield found


def ask(server, model=""):
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()


def shown(reply):
    """An answer as the page sends it back."""
    sources = [source["id"] for source in reply["sources"]]
    return {
        "question": QUESTION,
        "history": [],
        "answer": reply["choices"][0]["message"]["content"],
        "sources": sources,
    }


def vote(server, id, said, *replies, **more):
    body = {"id": id, "vote": said, "shown": list(map(shown, replies)), **more}
    return httpx.post(f"{server.url}/feedback", json=body, timeout=30)


def last_line(server):
    return json.loads(server.serving.feedback.path.read_text("utf-8").splitlines()[-1])


def test_a_vote_is_a_line_with_the_question_the_answer_its_sources_and_hashes(server):
    reply = ask(server)
    assert vote(server, reply["id"], "down", reply, comment="no\nidea 😀", correction=ANSWER).json() == {"saved": True}
    line = last_line(server)
    assert line["question"] == QUESTION and line["answer"] == reply["choices"][0]["message"]["content"]
    assert [source["id"] for source in line["sources"]] == [source["id"] for source in reply["sources"]]
    assert line["sources"][0]["page_content"] and line["vote"] == "down" and line["comment"] == "no\nidea 😀"
    assert re.fullmatch("[0-9a-f]{64}", line["hashes"]["documents"]) and line["model"] == server.serving.name


def test_two_models_are_compared_without_their_names_and_the_line_names_both(server):
    plain = {name: ask(server, name)["choices"][0]["message"]["content"] for name in server.serving.names}
    assert len(set(plain.values())) == 2  # or nothing would tell them apart
    orders = set()
    for pair in (f"{i:032x}" for i in range(6)):
        replies = [ask(server, f"blind:{pair}:{side}") for side in (0, 1)]
        assert all("base" not in json.dumps(reply) and "tuned" not in json.dumps(reply) for reply in replies)
        vote(server, pair, "right", *replies)
        line = last_line(server)
        orders.add(tuple(one["model"] for one in line["answers"]))
        for one, reply in zip(line["answers"], replies, strict=True):
            assert one["answer"] == reply["choices"][0]["message"]["content"]
            assert one["answer"] == list(plain.values())[one["model"] == "base"]
    assert orders == {("tuned", "base"), ("base", "tuned")}


def test_a_vote_on_an_answer_of_before_a_restart_is_kept_with_passages_of_our_own_documents(server):
    reply = ask(server)
    reply["sources"].append({"id": "not one of ours"})
    assert vote(server, "chatcmpl-before", "up", reply).status_code == 200
    line = last_line(server)
    assert line["answer"] == reply["choices"][0]["message"]["content"]
    assert [source["id"] for source in line["sources"]] == [source["id"] for source in reply["sources"][:-1]]


def test_the_line_says_how_an_answer_was_drawn_also_after_a_restart(server):
    reply = ask(server)
    assert vote(server, reply["id"], "up", reply) and "sampled" not in last_line(server)
    for id, again in (("chatcmpl-again", 3), ("chatcmpl-again", 0)):
        body = {"id": id, "vote": "up", "shown": [shown(reply) | {"again": again}]}
        assert httpx.post(f"{server.url}/feedback", json=body, timeout=30).status_code == 200
        assert last_line(server).get("sampled") == ({"temperature": 0.7, "seed": 3} if again else None)


@pytest.mark.parametrize(
    "change",
    [{"vote": "maybe"}, {"vote": "left"}, {"id": "../x"}, {"shown": []}, {"comment": "x" * 30_000}, {"id": None}],
)
def test_what_is_no_vote_is_refused_and_not_written(server, change):
    body = {"id": "chatcmpl-1234", "vote": "up", "shown": [shown(ask(server))]} | change
    size = os.path.getsize(server.serving.feedback.path) if server.serving.feedback.path.exists() else 0
    reply = httpx.post(f"{server.url}/feedback", json=body, timeout=30)
    assert reply.status_code == 400 and reply.json()["error"]["message"]
    assert size == (os.path.getsize(server.serving.feedback.path) if server.serving.feedback.path.exists() else 0)


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    path = tmp_path / "deep" / "votes.jsonl"
    votes = FeedbackFile(path)
    votes.add({"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2, "ha')
    votes.add({"n": 3})
    assert [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}")] == [b'{"n": 1}', b'{"n": 3}']


def test_a_vote_that_the_disk_does_not_take_is_not_acknowledged(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="not saved.*No space left"):
        FeedbackFile(tmp_path / "votes.jsonl").add({"n": 1})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_vote_that_was_acknowledged_is_on_disk_after_a_kill(tmp_path):
    path = tmp_path / "votes.jsonl"
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        votes = FeedbackFile(path)
        for n in range(100_000):
            votes.add({"n": n, "text": "x" * 500})
            os.write(mouth, f"{n}\n".encode())
        os._exit(0)
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(mouth)
    acknowledged = os.read(ear, 2**20).decode().splitlines()
    written = [json.loads(line)["n"] for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    assert acknowledged and list(map(int, acknowledged)) == written[: len(acknowledged)]


# Examples


def line(id="a1", said="up", answer=ANSWER, sources=(PRICE, DOGS), **more):
    row = {"id": id, "question": QUESTION, "history": [], "vote": said, "comment": "", "correction": ""}
    shown = [{"id": source.id, "score": 0.5, **source.to_dict()} for source in sources]
    return row | {"answer": answer, "sources": shown} | more


def two(said, left, right, id="p1"):
    sides = [line(answer=text) | {"side": side, "model": "base"} for side, text in (("left", left), ("right", right))]
    row = line(id, said) | {"answers": sides}
    return {name: value for name, value in row.items() if name not in ("answer", "sources")}


def converted(tmp_path, *rows, documents=()):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    summary = convert("feedback", [path], tmp_path / "out", Options(), documents=documents)
    return read_examples(tmp_path / "out" / "votes.jsonl"), summary


def test_a_good_answer_becomes_an_example_with_the_passage_that_supports_it(tmp_path):
    history = [{"speaker": "user", "message": "Hello"}, {"speaker": "assistant", "message": "Good day"}]
    (example,), _ = converted(tmp_path, line(history=history, sources=(DOGS, PRICE)))
    assert (example.question, example.answer, example.gold_documents) == (QUESTION, ANSWER, (PRICE,))
    assert [turn.message for turn in example.chat_history] == ["Hello", "Good day"]


def test_the_last_vote_counts_and_a_correction_is_the_answer(tmp_path):
    rows = [
        line("a"),
        line("a", "down"),
        line("b", "down", "Ten coins."),
        line("b", "down", "Ten coins.", correction=ANSWER),
    ]
    (example,), summary = converted(tmp_path, *rows)
    assert example.answer == ANSWER and sum(summary.left_out.values()) == 1


@pytest.mark.parametrize(
    ("said", "answers"),
    [("left", [ANSWER]), ("right", ["A card costs four coins."]), ("both", [ANSWER, "A card costs four coins."])],
)
def test_the_better_of_two_answers_becomes_the_example(tmp_path, said, answers):
    (example,), _ = converted(tmp_path, two(said, ANSWER, "A card costs four coins."))
    assert list(example.acceptable_answers) == answers and example.gold_documents == (PRICE,)


def test_what_nobody_stands_behind_is_left_out_and_counted(tmp_path):
    rows = [line("a"), line("b", "down"), two("neither", "x", "y"), line("c", "", comment="hm"), '{"id": "torn", "que']
    examples, summary = converted(tmp_path, *rows)
    assert len(examples) == 1 and sum(summary.left_out.values()) == 4


def test_an_abstention_with_thumbs_up_is_an_unanswerable_example(tmp_path):
    (example,), _ = converted(tmp_path, line(answer=UNANSWERABLE, sources=(DOGS,)))
    assert not example.answerable and example.answer == UNANSWERABLE


def test_the_passage_of_a_correction_is_searched_for_if_none_was_read_that_has_it(tmp_path):
    rows = [line("a", "down", "x", (DOGS,), correction=ANSWER), line("b")]
    examples, summary = converted(tmp_path, *rows)
    assert len(examples) == 1 and summary.left_out.total() == 1
    examples, _ = converted(tmp_path, *rows, documents=tiny_documents())
    assert [example.gold_documents for example in examples] == [(PRICE,), (PRICE,)]


# The page


def test_the_page_names_no_other_host_and_sets_no_text_as_html():
    for name in ("index.html", "chat.js", "chat.css"):
        text = (PAGES / name).read_text("utf-8")
        assert not re.search(r"(?:https?:)?//[a-z]|@import|url\(", re.sub(r"^\s*//.*", "", text, flags=re.MULTILINE))
    script = (PAGES / "chat.js").read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\.style\b", script)
    assert not re.search(r"\son\w+=|style=", (PAGES / "index.html").read_text("utf-8"))


def test_every_part_of_the_page_comes_from_this_server_and_may_load_from_nowhere_else(server):
    for path in ("/", "/chat.js", "/chat.css", "/favicon.ico"):
        reply = httpx.get(f"{server.url}{path}")
        policy = reply.headers["content-security-policy"]
        assert reply.is_success and "default-src 'none'" in policy and "http" not in policy
    for path in ("/docs", "/redoc", "/openapi.json", "/../api.py", "/static"):
        assert httpx.get(f"{server.url}{path}").status_code == 404


def test_the_page_learns_what_it_may_offer(server):
    told = httpx.get(f"{server.url}/settings").json()
    assert told == {"model": server.serving.name, "compares": True, "questions": []}


def test_questions_of_the_examples_are_suggested(families, static_embedding_folder, data_folder, tmp_path):
    flags = tiny_flags(families["qwen"], static_embedding_folder, data_folder, tmp_path / "index")
    examples = {"eval_file": data_folder / "train.jsonl", "feedback_file": tmp_path / "votes.jsonl"}
    serving = open_serving(*arguments_of(families["qwen"].folder, **flags, **examples))
    assert serving.questions == [FACTS[title][1] for title in ("Opening", "Returns", "Food", "Dogs")]
    assert Path(serving.feedback.path) == tmp_path / "votes.jsonl"
