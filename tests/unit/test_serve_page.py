"""The chat page in a real browser: a dialogue by keyboard, votes, and not a single request to another host."""

from __future__ import annotations

import json

import browser
import pytest
from fake_server import FakeServer, Refusal
from serving import arguments_of, running, until

from groundtune.commands.serve import open_serving
from groundtune.data.files import write_documents
from groundtune.schema import Document

pytestmark = [
    pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed"),
    pytest.mark.skipif("sys.platform == 'win32'", reason="the debugging pipe needs POSIX"),
    pytest.mark.model,  # not one of the quick ones
]
HOSTILE = "Closed 😀 <img src=https://evil.example/x onerror=alert(1)> [link](https://evil.example) at six."
DOCUMENTS = [
    Document("The library 😀 opens at nine.", "", {"title": "<b>Opening</b>", "source": "a.pdf", "sheet": 3}),
    Document("The library closes at six <script>alert(1)</script>.", "", {"title": "Closing"}),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def serve(tmp_path):
    """Start a server behind which another one says `speak(body)`."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(speak, **more):
            write_documents(tmp_path / "documents.jsonl", DOCUMENTS)
            behind = stack.enter_context(FakeServer(speak))
            remote = {"generator": f"openai:{behind.url}", "generator_model": "m", "endpoint_retries": 0}
            flags = {"full_dataset_file_path": tmp_path / "documents.jsonl", "retriever": "bm25"} | remote | more
            serving = open_serving(*arguments_of(**flags, feedback_file=tmp_path / "votes.jsonl"))
            serving.questions = ["When does the library open?"]
            if more.get("api_key") is None:
                serving.batching.voices["base"] = serving.batching.voices["tuned"]
            server = stack.enter_context(running(serving))
            server.behind = behind
            return server

        yield start


def lines(server):
    path = server.serving.feedback.path
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def ask(page, text, answers):
    page.value("document.getElementById('question').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.votes:not([hidden])').length === {answers}")


@pytest.mark.parametrize("width", [1400, 390])
def test_a_dialogue_of_three_turns_asks_no_other_host_and_shows_every_text_as_text(page, serve, width):
    server = serve(lambda body: HOSTILE)
    page.requests.clear(), page.problems.clear(), page.console.clear()
    page.resize(width, 900)
    page.open(server.url)
    page.wait("!document.getElementById('ask').hidden")
    for n, question in enumerate(["When does the library close? <i>", "And on Sunday?", "Really?"], 1):
        ask(page, question, n)
    said = [message["content"] for message in server.behind.bodies[-1]["messages"]]
    assert said[1:] == [HOSTILE, "And on Sunday?", HOSTILE, "Really?"] and said[0].endswith(
        "When does the library close? <i>"
    )
    assert page.value("document.querySelector('.turn h2').textContent") == "When does the library close? <i>"
    assert page.value("document.querySelector('.answer .text').textContent") == HOSTILE
    assert page.value("document.getElementById('said').textContent") == HOSTILE  # read out when it is complete
    assert page.value("document.querySelectorAll('#dialogue :is(img, script, b, i, a)').length") == 0
    assert (
        page.value("[...document.querySelectorAll('mark')].slice(0, 2).map((one) => one.textContent).join()")
        == "closes,six"
    )
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.problems == page.console == [] and all(address.startswith(server.url) for address in page.requests)


def test_everything_can_be_done_by_keyboard_and_a_correction_is_saved(page, serve):
    server = serve(lambda body: "At ten.")
    page.open(server.url)
    page.wait("document.querySelector('#examples button')")
    page.value("document.querySelector('#examples button').focus()")
    page.press("Enter")  # an example
    page.wait("document.querySelector('.votes:not([hidden])')")
    focused = []
    page.value("document.getElementById('question').focus()")
    for _ in range(6):
        page.press("Tab", modifiers=8)  # backwards from the question
        focused.append(page.value("document.activeElement.textContent.trim()"))
    assert {"Ask again", "Comment", "Bad answer", "Good answer"} <= set(focused)
    page.value(
        "[...document.querySelectorAll('.votes button')].find((one) => one.textContent === 'Bad answer').focus()"
    )
    page.press(" ")
    page.wait("document.querySelector('.note').textContent.startsWith('Saved')")
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.value("document.querySelector('[name=correction]').focus()")
    page.type("At nine.")
    page.press("Tab")
    page.press("Enter")
    assert until(lambda: len(lines(server)) == 2)
    first, second = lines(server)
    assert (first["vote"], second["vote"], second["correction"]) == ("down", "down", "At nine.")
    assert first["id"] == second["id"] and second["answer"] == "At ten." and second["sources"]


def test_every_button_and_field_has_a_name_for_a_screen_reader(page, serve):
    server = serve(lambda body: "At ten.")
    page.open(server.url)
    page.wait("!document.getElementById('ask').hidden")
    ask(page, "When?", 1)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored")]
    roles = ("button", "textbox", "checkbox", "DisclosureTriangle", "heading")
    named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in shown if node.get("role")]
    assert [one for one in named if one[0] in roles and not one[1]] == []
    assert ("textbox", "Your question") in named and ("heading", "When?") in named


def test_two_models_are_compared_blind_and_the_better_answer_goes_on(page, serve):
    answers = iter(["One.", "Two.", "Three.", "Four."])
    server = serve(lambda body: next(answers))
    page.open(server.url)
    page.wait("!document.getElementById('compare').hidden")
    page.value("document.getElementById('blind').click()")
    ask(page, "When?", 1)
    shown = page.value("[...document.querySelectorAll('.answer .text')].map((one) => one.textContent)")
    assert sorted(shown) == ["One.", "Two."]
    page.value(
        "[...document.querySelectorAll('.votes button')].find((one) => one.textContent === 'B is better').click()"
    )
    page.wait("document.querySelector('.note').textContent.startsWith('Saved')")
    ask(page, "And then?", 2)
    assert server.behind.bodies[-1]["messages"][1]["content"] == shown[1]
    (line,) = lines(server)
    assert line["vote"] == "right" and [one["answer"] for one in line["answers"]] == shown
    assert sorted(one["model"] for one in line["answers"]) == ["base", "tuned"]


def test_a_failure_is_told_and_the_question_can_be_asked_again(page, serve):
    said = iter([Refusal(500), "At nine."])
    server = serve(lambda body: next(said))
    page.open(server.url)
    page.wait("!document.getElementById('ask').hidden")
    ask(page, "When?", 1)
    assert "has failed" in page.value("document.querySelector('.note').textContent")
    page.value("document.querySelector('.votes button').click()")
    page.wait("document.querySelector('.answer .text').textContent === 'At nine.'")
    page.wait("document.querySelectorAll('.votes button').length === 4")
    assert page.value("document.querySelector('.note').textContent") == ""


def test_a_server_with_a_key_asks_for_it_once(page, serve):
    server = serve(lambda body: "At nine.", api_key="k1-secret")
    page.open(server.url)
    page.wait("!document.getElementById('key').hidden")
    for key in ("wrong", "k1-secret"):
        page.value("document.getElementById('key-text').focus()")
        page.type(key)
        page.press("Enter")
        page.wait(f"document.getElementById('ask').hidden === {str(key == 'wrong').lower()}")
    ask(page, "When?", 1)
    assert page.value("document.querySelector('.answer .text').textContent") == "At nine."


def test_the_number_of_a_passage_stands_behind_the_sentence_that_cites_it_and_opens_it(page, serve):
    server = serve(lambda body: "The library 😀 closes at six. ⟦2⟧ It opens at nine. ⟦1⟧⟦7⟧", citations="taught")
    page.problems.clear(), page.console.clear()
    page.open(server.url)
    page.wait("!document.getElementById('ask').hidden")
    ask(page, "When does the library open and close?", 1)
    text = page.value("document.querySelector('.answer .text').textContent")
    assert text == "The library 😀 closes at six.2 It opens at nine.1"
    names = "[...document.querySelectorAll('.cite')].map((one) => one.getAttribute('aria-label'))"
    assert page.value(names) == ["Passage 2", "Passage 1"]
    page.value("document.querySelector('.cite').click()")
    assert page.value("document.activeElement.textContent").startswith("2. ")
    assert page.value("document.querySelectorAll('.sources details')[1].open")
    page.value("document.querySelector('.votes button').click()")
    page.wait("document.querySelector('.note').textContent.startsWith('Saved')")
    ask(page, "Really?", 2)
    clean = "The library 😀 closes at six. It opens at nine."
    assert server.behind.bodies[-1]["messages"][1]["content"] == lines(server)[0]["answer"] == clean
    assert page.problems == page.console == []


def test_an_answer_asked_for_again_is_drawn_at_random_which_page_and_vote_say(page, serve):
    server = serve(lambda body: f"Draw {body['seed']}." if body["temperature"] else "At nine.")
    page.open(server.url)
    page.wait("!document.getElementById('ask').hidden")
    ask(page, "When?", 1)
    assert page.value("document.querySelector('.sampled').hidden")
    for n in (1, 2):
        page.value("[...document.querySelectorAll('.votes button')].at(-1).click()")
        page.wait(f"document.querySelector('.answer .text').textContent === 'Draw {n}.'")
        page.wait("document.querySelectorAll('.votes:not([hidden])').length === 1")
        assert f"temperature 0.7, seed {n}" in page.value("document.querySelector('.sampled').textContent")
    page.value("document.querySelector('.votes button').click()")
    page.wait("document.querySelector('.note').textContent.startsWith('Saved')")
    (line,) = lines(server)
    assert line["answer"] == "Draw 2." and line["sampled"] == {"temperature": 0.7, "seed": 2}
