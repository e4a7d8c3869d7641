"""The terminal output of a dialogue, with a fake retriever and model."""

from __future__ import annotations

import json

import pytest

from groundtune.cli import main
from groundtune.commands import ask
from groundtune.prompts.policies import kept
from groundtune.schema import ASSISTANT, USER, Document, Ended, Example, Hit, Turn
from groundtune.serving.dialogue import Dialogue, Source, _shortened

PASSAGE = Document(
    "Lamps\x1b[2J go back.", "", {"title": "Returns", "section": "Online > Lamps", "source": "a.md", "number": 3}
)


class Retriever:
    def search(self, questions, k):
        return [(Hit(PASSAGE, 0.5),) for _ in questions]


def dialogue(*words, finished=True):
    """A dialogue that answers every question with these words; exceptions among them are raised."""

    def say():
        for word in words:
            if isinstance(word, BaseException):
                raise word
            yield word
        return Ended(finished)

    return Dialogue(Retriever(), 1, "none", lambda example, passages: (kept(passages), say()))


@pytest.fixture
def typed(monkeypatch):
    """Make `input` return these lines and then reach the end of file."""

    def type_(*lines):
        left = iter(lines)

        def read(prompt):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)

    return type_


def test_a_question_that_is_no_utf_8_is_one_line_and_the_dialogue_goes_on(typed, capsys):
    typed("caf\udce9?", "Can I?")
    ask._converse(dialogue("Yes", "."))
    shown = capsys.readouterr()
    assert shown.err.startswith("your question: is not valid UTF-8") and "Yes." in shown.out


@pytest.mark.parametrize("words", [[" "], ["--question", ""]])
def test_an_empty_question_is_refused_before_anything_is_opened(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("groundtune.evaluation.arguments.InferenceArguments.check", lambda self, has_examples: [])
    assert main(["ask", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err == "QUESTION: is empty; write one, or leave it out for a dialogue\n"


def test_a_source_is_shown_with_its_score_its_section_and_its_file(typed, capsys):
    typed("Can I?")
    ask._converse(dialogue("Yes", "."))
    assert (
        "Yes.\n\nbased on 1 passage:\n  [1] 0.500  Returns > Online > Lamps, a.md, passage 3\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("metadata", "title", "place"),
    [
        ({"title": "T", "source": "s"}, "T", "s"),
        ({"title": "T", "source": "s", "number": 9, "sheet": 2}, "T", "s, sheet 2"),
        ({"source": "s"}, "s", ""),
        ({"title": "T", "section": "A\nB"}, "T > A B", ""),
        ({}, "How it begins", ""),
    ],
)
def test_a_source_is_called_by_what_its_metadata_say(metadata, title, place):
    source = Source(Document("How it\nbegins", "", metadata), 1.0)
    assert (source.title, source.place) == (title, place)


def test_neither_answers_nor_passages_can_give_the_terminal_orders(typed, capsys):
    typed("Can I?", "/sources")
    ask._converse(dialogue("Yes\x1b[31m\tindeed"))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "Yes\\x1b[31m\tindeed" in shown and "Lamps\\x1b[2J go back." in shown


def test_an_answer_that_is_stopped_is_forgotten_and_the_dialogue_goes_on(typed, capsys):
    talk = dialogue("It depends", KeyboardInterrupt())
    typed("Can I?", "And now?")
    ask._converse(talk)
    shown = capsys.readouterr().out
    assert shown.count("It depends") == shown.count("stopped") == 2 and talk.turns == []


@pytest.mark.parametrize("finished", [True, False])
def test_an_answer_that_was_cut_is_said_to_be(capsys, finished):
    asked = dialogue("Yes", finished=finished)
    for show in (ask._show, ask._show_answer):
        show(asked, "Can I?")
        assert (capsys.readouterr().err == f"{ask.CUT}\n") is not finished
    ask._show_json(asked, "Can I?")
    assert json.loads(capsys.readouterr().out)["finished"] is finished


@pytest.mark.parametrize("turns", [*range(12), 40, 41])
def test_a_dialogue_loses_its_oldest_questions_and_answers_and_only_as_many_as_it_must(turns):
    history = tuple(Turn((USER, ASSISTANT)[i % 2], "w " * (1 + i * 7 % 5)) for i in range(turns))
    example = Example("Can I?", "", (), history)
    for room in range(0, 260, 7):
        prompt = Counting()
        expected = history
        while expected and len(Counting().prompt_ids([], expected, "Can I?")) > room // 2:
            expected = expected[2:]
        assert _shortened(example, prompt, room).chat_history == expected
        assert prompt.written <= 4 * room + 500  # and a long dialogue is not written again and again


class Counting:
    """A prompt with a token for each word, which counts how much it has written."""

    written = 0

    def prompt_ids(self, passages, history, question):
        ids = [0] * sum(len(turn.message.split()) for turn in [*history, Turn(USER, question)])
        self.written += len(ids)
        return ids
