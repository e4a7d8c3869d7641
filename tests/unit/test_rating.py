"""The page for people: blind, only for this machine and its own requests, and no grade is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import browser
import pytest
from test_comparison import answered, failing
from test_report import NASTY
from test_results import COLOURS, evaluation, wrong

from groundtune.cli import main
from groundtune.errors import DataError
from groundtune.evaluation.grades import ASPECTS, answer_id, read_grades
from groundtune.evaluation.predictions import write_predictions
from groundtune.serving.rating import Grades, RatingServer, items_of


def read(answers):
    return [replace(p, read=tuple(hit.document for hit in p.hits[: p.passages_read])) for p in answered(answers)]


A, B = read(wrong()), read(COLOURS)


@contextmanager
def serving(path, *systems, most=0):
    server = RatingServer(Grades(path, items_of(systems or (A, B), most)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server, path, body=None, method=None, **headers):
    """Status and content; a header that is None is left out."""
    host = f"127.0.0.1:{server.server_address[1]}"
    usual = {"Host": host, "X-Rater": "anna"}
    if body is not None:
        usual |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
    sent = {name: value for name, value in (usual | headers).items() if value is not None}
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    for name, value in (sent | ({"Content-Length": str(len(data))} if body is not None else {})).items():
        connection.putheader(name, value)
    connection.endheaders(data)
    reply = connection.getresponse()
    found = reply.status, reply.read(), dict(reply.getheaders())
    connection.close()
    return found


def items(server, rater="anna"):
    return json.loads(ask(server, f"/{server.key}/items", **{"X-Rater": rater})[1])


def grade(item, rater="anna", preferred=None, **grades):
    return {"id": item["id"], "rater": rater, "preferred": preferred, "note": "",
            "grades": {answer["id"]: grades for answer in item["answers"]}}  # fmt: skip


# What is shown


def test_both_answers_are_shown_without_their_systems_in_an_order_that_is_the_raters_own(tmp_path):
    with serving(tmp_path / "g.jsonl") as server:
        anna, again, ben = items(server), items(server), items(server, "ben")
    assert anna["items"] == again["items"] and len(anna["items"]) == 24
    assert [item["id"] for item in anna["items"]] == [item["id"] for item in ben["items"]]  # so that raters overlap
    first = [item["answers"][0]["text"] == "no idea" for item in anna["items"]]
    assert 4 < sum(first) < 20
    assert first != [item["answers"][0]["text"] == "no idea" for item in ben["items"]]
    assert set(anna["items"][0]) == {"id", "question", "history", "gold", "answers", "pair", "passages"}
    assert [passage["gold"] for passage in anna["items"][0]["passages"]] == [True, False]


def test_questions_are_those_that_all_answered_and_a_sample_is_part_of_a_larger_one():
    some = [item.id for item in items_of([A, [failing(B[0]), *B[1:20]]])]
    assert len(some) == 19
    assert [item.id for item in items_of([A, B], 5)] == [item.id for item in items_of([A, B], 9)][:5]
    with pytest.raises(DataError, match="no question was answered by all"):
        items_of([A, list(map(failing, B))])


def test_grades_of_one_system_in_the_same_file_leave_those_of_two_graded(tmp_path):
    path = tmp_path / "g.jsonl"
    for systems in ((A, B), (B,)):
        with serving(path, *systems) as server:
            (item,) = [one for one in items(server)["items"] if one["question"] == B[0].example.question]
            assert ask(server, f"/{server.key}/grade", grade(item, correct=True))[0] == 200
    with serving(path) as server:
        assert items(server)["raters"] == {"anna": 1}


def test_an_answer_that_both_gave_is_shown_once(tmp_path):
    same = [replace(p, answer=q.answer) for p, q in zip(A, B)]
    with serving(tmp_path / "g.jsonl", same, B) as server:
        (item, *_) = items(server)["items"]
        assert len(item["answers"]) == 1 and item["pair"]
        assert ask(server, f"/{server.key}/grade", grade(item, preferred="tie", correct=True))[0] == 200


# What is kept


def test_a_grade_is_in_the_file_when_the_reply_says_so_and_the_next_start_continues(tmp_path):
    path = tmp_path / "g.jsonl"
    with serving(path) as server:
        first, second, *_ = items(server)["items"]
        assert ask(server, f"/{server.key}/grade", grade(first, correct=True, harmful=False))[0] == 200
        (row,) = read_grades([path])
        assert row["rater"] == "anna" and row["answers"][0]["grades"] == {"correct": True, "harmful": False}
        assert row["question"] == first["question"] and row["time"]
    path.write_bytes(path.read_bytes() + b'{"rater": "an')  # killed while it wrote
    with serving(path) as server:
        found = items(server)
        assert list(found["done"]) == [first["id"]] and found["raters"] == {"anna": 1}
        assert items(server, "ben")["done"] == {}
        ask(server, f"/{server.key}/grade", grade(second, "Bén 日本", preferred=second["answers"][0]["id"]))
        assert items(server, "B%C3%A9n%20%E6%97%A5%E6%9C%AC")["done"].keys() == {second["id"]}
    assert len(read_grades([path])) == 2


def test_grades_that_arrive_together_are_all_kept(tmp_path):
    path = tmp_path / "g.jsonl"
    with serving(path) as server:
        found = items(server)["items"]
        threads = [
            threading.Thread(target=ask, args=(server, f"/{server.key}/grade", grade(item, f"r{rater}", correct=True)))
            for item in found[:6] for rater in range(3)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_grades([path])) == 18


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"id": None}, {"rater": ""}, {"rater": " "}, {"rater": "x" * 81}, {"rater": 1}, {"grades": {}},
     {"grades": {"x": {}}}, {"grades": []}, {"preferred": "x"}, {"note": 1}, {"aspect": "nice"}, {"note": "\ud800"},
     {"rater": "\ud800"}],
)  # fmt: skip
def test_what_is_no_grade_is_refused_and_not_kept(tmp_path, change):
    with serving(tmp_path / "g.jsonl") as server:
        (item, *_) = items(server)["items"]
        sent = grade(item, **({change.pop("aspect"): True} if "aspect" in change else {"correct": True})) | change
        status, content, _ = ask(server, f"/{server.key}/grade", sent)
        assert status == 400 and json.loads(content)["error"].startswith("the grade ")
    assert not (tmp_path / "g.jsonl").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"[" * 60_000, b"\xff", b" " * 70_000])
def test_bodies_that_are_no_object_are_refused(tmp_path, body):
    with serving(tmp_path / "g.jsonl") as server:
        assert ask(server, f"/{server.key}/grade", body)[0] == 400


def test_a_client_that_goes_away_leaves_nothing_on_the_terminal_and_a_fault_of_the_server_does(tmp_path, capfd):
    with serving(tmp_path / "g.jsonl") as server:
        for error in (ConnectionResetError(104, "Connection reset by peer"), BrokenPipeError(), ValueError("a fault")):
            try:
                raise error
            except (OSError, ValueError):
                server.handle_error(None, ("127.0.0.1", 1))
            assert ("a fault" in capfd.readouterr().err) == isinstance(error, ValueError)
        with socket.create_connection(server.server_address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
            client.sendall(f"GET /{server.key}/items HTTP/1.1\r\nHost: ".encode())
        assert ask(server, f"/{server.key}/items")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_disk_that_is_full_is_said_and_the_page_keeps_the_grade(tmp_path, monkeypatch):
    with serving(tmp_path / "g.jsonl") as server:
        (item, *_) = items(server)["items"]
        monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        status, content, _ = ask(server, f"/{server.key}/grade", grade(item, correct=True))
        assert status == 507 and "No space left" in json.loads(content)["error"]
        monkeypatch.undo()
        assert items(server)["done"] == {}


# Who may ask


def test_only_the_page_itself_can_read_or_write(tmp_path):
    with serving(tmp_path / "g.jsonl") as server:
        (item, *_) = items(server)["items"]
        port, sent = server.server_address[1], grade(item, correct=True)
        read, write = f"/{server.key}/items", f"/{server.key}/grade"
        for host in (f"evil.example:{port}", "127.0.0.1", "localhost", f"localhost.evil.example:{port}", "", None):
            assert ask(server, read, Host=host)[0] in (400, 403), host  # a name that was pointed at this machine
        assert ask(server, read, Host=f"localhost:{port}")[0] == 200
        for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port}.evil.example", f"https://127.0.0.1:{port}",
                       "", None):  # fmt: skip
            assert ask(server, write, sent, Origin=origin)[0] == 403, origin
        assert ask(server, write, sent, **{"Content-Type": "text/plain"})[0] == 404  # what a form elsewhere can send
        others = ["/", "/items", "//items", f"/{server.key}", f"/{server.key[:-1]}/items", f"/{server.key}/rating.py"]
        for path in [*others, f"/{server.key}/../../pyproject.toml"]:
            assert ask(server, path)[0] == 404, path
        assert ask(server, read, method="PUT")[0] == 501
    assert not (tmp_path / "g.jsonl").exists() and server.server_address[0] == "127.0.0.1"


def test_the_page_may_load_nothing_from_elsewhere_and_is_in_no_frame(tmp_path):
    with serving(tmp_path / "g.jsonl") as server:
        for name in ("", "rate.css", "rate.js", "items"):
            status, content, headers = ask(server, f"/{server.key}/{name}")
            policy = headers["Content-Security-Policy"]
            assert status == 200 and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert (
                headers["X-Content-Type-Options"] == "nosniff"
                and "Server" not in headers
                or "Python" not in headers["Server"]
            )
            assert name == "items" or b"://" not in content


# The command


def files(tmp_path, **answers):
    for name, given in answers.items():
        write_predictions(tmp_path / f"{name}.jsonl", evaluation(given, COLOURS))
    return [str(tmp_path / f"{name}.jsonl") for name in answers]


@pytest.mark.parametrize(
    "more, problem",
    [(["-o", "g.json"], "does not end in .jsonl"), (["--questions", "-1"], "--questions: is -1"),
     (["--port", "70000"], "--port: is 70000"), (["C", "D"], "4 systems are given")],
)  # fmt: skip
def test_what_cannot_be_rated_is_one_line(tmp_path, capsys, monkeypatch, more, problem):
    monkeypatch.chdir(tmp_path)
    assert main(["rate", *files(tmp_path, a=wrong(), b=COLOURS), *more]) == 2
    assert problem in capsys.readouterr().err


def test_a_file_that_holds_no_grades_is_not_written_to(tmp_path, capsys):
    (tmp_path / "g.jsonl").write_text('{"question": "mine"}\n')
    words = ["rate", *files(tmp_path, a=wrong()), "-o", str(tmp_path / "g.jsonl"), "--no_browser"]
    assert main(words) == 2 and "name another --output" in capsys.readouterr().err
    assert (tmp_path / "g.jsonl").read_text() == '{"question": "mine"}\n'


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_the_command_serves_until_it_is_stopped_and_no_grade_is_lost_however_it_ends(tmp_path, signum):
    path = tmp_path / "grades.jsonl"
    words = [sys.executable, "-m", "groundtune.cli", "rate", *files(tmp_path, a=wrong(), b=COLOURS), "--no_browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    address = process.stdout.readline().split()[-1]
    _, _, where, key, _ = address.split("/")
    connection = http.client.HTTPConnection(where, timeout=10)
    connection.request("GET", f"/{key}/items", headers={"X-Rater": "anna"})
    item = json.loads(connection.getresponse().read())["items"][0]
    headers = {"Origin": f"http://{where}", "Content-Type": "application/json"}
    connection.request("POST", f"/{key}/grade", json.dumps(grade(item, correct=True)), headers)
    assert connection.getresponse().status == 200
    process.send_signal(signum)
    printed, _ = process.communicate(timeout=20)
    assert len(read_grades([path])) == 1
    if signum == signal.SIGINT:
        assert process.returncode == 0 and "anna: 1 of 24 questions graded" in printed
        assert f"--grades {path}" in printed
    with serving(path) as server:  # the same file again
        assert list(items(server)["done"]) == [item["id"]]


# In a browser


@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium")
def test_thirty_answers_are_graded_by_keyboard_and_nothing_runs_or_is_loaded_from_elsewhere(tmp_path):
    questions = [f"{NASTY} <img src=x onerror=alert(1)> {i}" for i in range(30)]
    golds = [f"{colour} {i}" for i, colour in enumerate([*COLOURS, *COLOURS[:6]])]
    systems = [list(evaluation(given, golds, questions).predictions) for given in ([NASTY] * 30, golds)]
    with serving(tmp_path / "g.jsonl", *systems) as server, browser.Browser(tmp_path / "profile") as page:
        page.open(server.address)
        page.wait("document.activeElement.id === 'name'")
        page.type("Anna")
        page.press("Enter")
        for number in range(30):
            page.wait(f"document.getElementById('count').textContent.startsWith('{number} of')")
            good = page.value(
                "[...document.querySelectorAll('.answer .text')].findIndex(a => !a.textContent.includes('|'))"
            )
            page.press(*("yyyn" + "nnny" if good == 0 else "nnny" + "yyyn"), "ab"[good], "Enter")
        page.wait("!document.getElementById('end').hidden")
        assert page.problems == page.console == [] and page.value("document.querySelectorAll('img').length") == 0
        assert {request.split("/")[2] for request in page.requests if request.startswith("http")} == {
            f"127.0.0.1:{server.server_address[1]}"
        }
    rows = read_grades([tmp_path / "g.jsonl"])
    good = {answer_id(text) for text in golds}
    assert len(rows) == 30 and all(row["preferred"] in good for row in rows)
    wanted = {
        True: dict(zip(ASPECTS, (True, True, True, False))),
        False: dict(zip(ASPECTS, (False, False, False, True))),
    }
    assert all(answer["grades"] == wanted[answer["id"] in good] for row in rows for answer in row["answers"])
