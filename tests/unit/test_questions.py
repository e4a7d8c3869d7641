"""Questions are generated once, stored, judged and split by passage, in spite of failing servers and stopped runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from groundtune.cli import main
from groundtune.data.evidence import support
from groundtune.data.files import read_examples, write_documents
from groundtune.prepare import gates, questions
from groundtune.prepare.gates import GATES, gates_of
from groundtune.prepare.given import find, read_questions
from groundtune.prepare.questions import Asker, Sampled, Settings, found_within, read_prompt, sample_passages
from groundtune.prepare.support import check_support, parse_verdict, support_prompt
from groundtune.prepare.written import own_part, parse_answer, parse_questions
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document, Reply

THINGS = ["lamp", "chair", "table", "carpet", "mirror", "candle", "teapot", "basket", "pillow", "kettle", "ladder"]
FILLING = "It was made by hand in a small workshop near the harbour and is sold with a card that tells its story."


def documents(n: int = 40) -> list[Document]:
    return [
        Document(f"The {thing} number {i} costs {i + 100} coins and weighs {i + 500} grams. {FILLING}")
        for i, thing in zip(range(n), THINGS * n)
    ]


def settings(**changes) -> Settings:
    prompts = {name: read_prompt(None, file) for name, file in
               (("question_prompt", "questions.txt"), ("answer_prompt", "answer.txt"),
                ("support_prompt", "support.txt"))}  # fmt: skip
    return Settings(**prompts | {"min_words": 5, "passages": 40} | changes)


def reply_to(prompt: str) -> str:
    """An obedient model's reply: two questions on the passage, or the price or weight that a question asks for."""
    passage = re.search(r"The (\w+) number (\d+) costs (\d+) coins and weighs (\d+) grams", prompt)
    thing, number, price, weight = passage.groups()
    if "Answer to check:" in prompt:
        figures = re.findall(r"\d+", prompt.rpartition("Answer to check:")[2])
        return f"The passage says so.\n[[{'yes' if {*figures} & {price, weight} else 'no'}]]"
    if "Question:" not in prompt:
        return f"1. What does {thing} number {number} cost?\n2) How heavy is {thing} number {number}?\nThat is all."
    asked = prompt.rpartition("Question:")[2]
    return f"It costs {price} coins." if "cost" in asked else f"It weighs {weight} grams."


@dataclass
class FakeGenerator:
    """Replies by a function of the prompt; None means a failed request, a final "..." that the token limit was hit."""

    reply: object = reply_to
    prompts: list[str] = field(default_factory=list)

    def complete(self, messages_list, max_tokens, *, on_done=lambda done: None):
        self.prompts += [messages[-1]["content"] for messages in messages_list]
        texts = [self.reply(messages[-1]["content"]) for messages in messages_list]
        for _ in texts:
            on_done(1)
        return [Reply(failure="no luck") if t is None else Reply(t, not t.endswith("...")) for t in texts]


def make(folder: Path, generator: FakeGenerator, documents_: list[Document], asked: list[str] | None = None, **changes):
    """Generate and judge questions, or answer those `asked`, as the command does."""
    chosen = settings(**changes)
    chosen = replace(chosen, retrieved_within=chosen.retrieved_within or found_within(len(documents_)))
    retriever = BM25Retriever(documents_)
    work = find(asked, chosen, retriever) if asked else Sampled(sample_passages(documents_, chosen))
    journal = questions.open_journal(folder, chosen, "fake")
    ask = Asker(lambda: generator, journal, chosen.max_new_tokens, batch=8)
    lexical = chosen.support == "lexical"
    work.write(chosen, ask, lambda pairs: None if lexical else check_support(pairs, chosen, ask))
    result = gates.judge(work.asked(journal), chosen, journal, retriever)
    result.counts["passages"] = len(work.read(journal))
    return result, ask.failures


# Sampling and parsing


def test_a_sample_is_the_same_on_every_run_and_grows_without_moving():
    small, large = (sample_passages(documents(), settings(passages=n)) for n in (5, 20))
    assert small == large[:5] == sample_passages(documents()[::-1], settings(passages=5))
    assert sample_passages(documents(), settings(passages=5, seed=1)) != small


def test_short_passages_and_tables_of_figures_are_not_sampled():
    bad = [Document("Too short."), Document("1024 | 77.5 | 2024-01-01 | 33 | a | 55 | 1,000 | 12:30 | 9 " * 5)]
    assert sample_passages([*bad, *documents(3)], settings(min_words=10, passages=9)) == sample_passages(
        documents(3), settings(min_words=10, passages=9)
    )


def test_a_passage_in_a_script_whose_vowels_are_marks_is_sampled():
    burmese = Document("မြန်မာနိုင်ငံသည် အရှေ့တောင်အာရှတွင် တည်ရှိသော နိုင်ငံတစ်ခု ဖြစ်သည်။ ရန်ကုန်မြို့သည် အကြီးဆုံးမြို့ဖြစ်ပြီး နေပြည်တော်သည် မြို့တော်ဖြစ်သည်။")
    assert sample_passages([burmese], settings()) == [burmese]


@pytest.mark.parametrize(
    "text",
    [
        "1. What does it cost?\n2. How heavy is it?",
        "Here they are:\n\n- What does it cost?\n- How heavy is it?\n- What does it cost?",
        'Q1: "What does it cost?"\nQuestion 2: **How heavy is it?**',
        "What does it cost?\nHow heavy is it?\nHow old is it?",
    ],
)
def test_questions_are_found_in_what_models_write(text):
    assert parse_questions(text, 2) == ["What does it cost?", "How heavy is it?"]


@pytest.mark.parametrize(
    "question",
    [
        "1984 was written by whom?",
        "3.5 mm jack cables: are they sold?",
        "10:30 Uhr: ist dann geöffnet?",
        "2.0 or 2.1: which is newer?",
    ],
)
@pytest.mark.parametrize("numbering", ["", "1. ", "2) ", "(3) ", "**4.** ", "Q5: ", "Question 6: ", "- "])
def test_a_question_that_begins_with_a_number_keeps_it(question, numbering):
    assert parse_questions(numbering + question, 2) == [question]


def test_a_number_may_stand_close_to_its_question():
    assert parse_questions("1.What does it cost?\n2)How heavy is it?", 2) == ["What does it cost?", "How heavy is it?"]


@pytest.mark.parametrize(
    "question",
    [
        "كم يكلف هذا المصباح؟",
        "Πόσο κοστίζει η λάμπα;",
        "Πόσο κοστίζει η λάμπα\u037e",
        "Որքա՞ն արժե լամպը։",
        "このランプはいくらですか？",
    ],
)
def test_questions_are_known_by_the_mark_of_their_script(question):
    assert parse_questions(f"1. {question}\nA statement of facts;\nAnother one.", 2) == [question]


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: At nine.", "At nine."),
        ("At nine.\nQuestion: And then?\nAnswer: Ten.", "At nine."),
        ("At nine.\n\nOn Sundays at ten.", "At nine.\n\nOn Sundays at ten."),
        ("Not answered.", ""),
        (" NOT ANSWERED", ""),
        ("", ""),
    ],
)
def test_an_answer_is_what_a_model_says_first_or_nothing(text, answer):
    assert parse_answer(Reply(text)) == (answer, True)


def test_an_answer_is_finished_if_it_ended_or_if_a_base_model_went_on_to_something_else():
    cut = Reply("It opens at", finished=False)
    assert parse_answer(cut) == ("It opens at", False)
    assert parse_answer(Reply("It opens at nine.\n\nPassage:\nThe", finished=False)) == ("It opens at nine.", True)


def test_of_a_reply_that_did_not_stop_by_itself_only_its_own_part_counts():
    """A base model continues with another example, whose questions are about a passage that it invented."""
    went_on = "What does it cost?\n\nPassage:\n<passage>\nCats.\n</passage>\n\nQuestions:\nWho likes cats?"
    assert parse_questions(own_part(Reply(went_on, finished=False)), 2) == ["What does it cost?"]
    assert own_part(Reply(f"\n{went_on}".replace("What", "Passage: What", 1), finished=False)).strip() == ""
    restated = Reply("Passage: a lamp.\nIt costs 100 coins. [[yes]]")
    assert parse_verdict(own_part(restated)) is True
    assert parse_verdict(own_part(Reply("It does. [[no]]\n\nPassage:\n... [[yes]]", finished=False))) is False


def test_of_a_base_model_only_the_first_line_is_the_answer_as_in_the_examples_of_its_prompt():
    repeated = Reply("\nIt costs ten.\nIt costs ten.\nIt costs", finished=False)
    assert parse_answer(repeated) == (repeated.text.strip(), False)
    assert parse_answer(repeated, one_line=True) == ("It costs ten.", True)
    assert parse_answer(Reply("It costs", finished=False), one_line=True) == ("It costs", False)
    assert parse_answer(Reply("NOT ANSWERED\n\nPassage:", finished=False), one_line=True) == ("", True)
    answers = read_prompt(None, "answer.txt", by_example=True).split("Answer:\n")[1:-1]
    assert all(re.fullmatch(r"[^\n]+\n\nPassage:\n.*", answer, re.DOTALL) for answer in answers)


@pytest.mark.parametrize("name", ["questions", "answer", "support"])
def test_a_packaged_prompt_with_examples_ends_in_the_form_of_its_examples(name):
    prompt = read_prompt(None, f"{name}.txt", by_example=True)
    assert prompt != read_prompt(None, f"{name}.txt")
    first, *examples, last = prompt.strip().split("Passage:\n<passage>\n")[1:] + [
        prompt.strip().rpartition("Passage:\n")[2]
    ]
    assert examples and "{" not in first + "".join(examples[:-1])
    labels = [line for line in last.splitlines() if re.fullmatch(r"[A-Z][\w ]*:", line)]
    assert labels and [line for line in first.splitlines() if line in labels] == labels
    assert last.endswith(labels[-1]) and first.partition(f"{labels[-1]}\n")[2].strip()


def test_a_passage_with_braces_stays_as_it_is_in_a_prompt():
    passage = Document("Write {question} and {number} and {passage}.")
    chosen = settings()
    assert passage.text in questions.question_prompt(chosen, passage)
    prompt = questions.answer_prompt(chosen, passage, "Why {passage}?")
    assert passage.text in prompt and "<question>\nWhy {passage}?\n</question>" in prompt


# Gates


@pytest.mark.parametrize(
    "answer, share",
    [
        ("It opens at nine.", 1),
        ("The doors are opened at nine o'clock sharp.", 2 / 5),  # doors and nine, but not o, clock, sharp
        ("At midnight.", 0),
        ("In 1999.", 0),
        ("", 0),
    ],
)
def test_support_is_the_share_of_what_an_answer_adds(answer, share):
    found = support(answer, "When does the library open?", "The library's doors open at nine.")
    assert found == pytest.approx(share)


def test_a_wrong_figure_is_never_supported():
    passage = "The lamp costs 120 coins and is sold in the shop near the harbour."
    assert support("The lamp costs 120 coins in the shop near the harbour.", "What is the price?", passage) == 1
    assert support("The lamp costs 130 coins in the shop near the harbour.", "What is the price?", passage) == 0


def test_good_questions_pass_and_each_gate_stops_its_kind(tmp_path):
    def reply(prompt: str) -> str:
        number = int(re.search(r"number (\d+)", prompt)[1])
        if "Question:" in prompt:
            said = reply_to(prompt)
            other = {3: "NOT ANSWERED", 4: "It costs 7 coins.", 5: f"{said} And ...", 6: f"{said}\nQuestion: Why ..."}
            return other.get(number, said)
        return {1: "What is the purpose of this code?", 2: "Who wrote the iliad of troy?"}.get(number, reply_to(prompt))

    result, failures = make(tmp_path, FakeGenerator(reply), documents(12), passages=12, retrieved_within=2)
    counts = result.counts
    assert not failures and counts["passages"] == 12 and counts["questions"] == counts["answers"] == 22
    stopped = stopped_passages(result)
    assert stopped == {
        "mentions the passage": {1},
        "repeats another question": set(),
        "not answered by its passage": {3},
        "answer cut at the token limit": {5},
        "answer not supported by its passage": {4},
        "passage not retrieved for it": {2},
    }
    assert {*stopped} == {*gates_of(settings())} == {*counts} & {*GATES}
    assert counts["kept"] == 22 - sum(counts[gate] for gate in GATES) == sum(map(len, result.splits.values()))


@pytest.mark.parametrize(
    "question, mentions",
    [
        ("What is the purpose of this code?", True),
        ("What does this do?", True),
        ("How are these settings changed?", True),
        ("According to the text, who pays?", True),
        ("Does strip('abc') remove the string 'abc' or any of these characters?", False),
        ("Which holidays are there this year?", False),
        ("When does the library open?", False),
        ("Which main argument does the author make about trade in this passage?", True),
        ("Which of the following is a colour?", True),
        ("What does the function open() return in the above example?", True),
        ("How do I sign the document?", False),
        ("Should my code check the text of an exception message?", False),
        ("What is a number for in the context of taxes?", False),
    ],
)
def test_a_question_that_points_at_something_only_its_passage_shows_is_known_by_its_words(question, mentions):
    assert gates.mentions_passage(question) is mentions


@pytest.mark.parametrize("number, within", [(1, 1), (10, 1), (50, 2), (400, 5), (1757, 10), (10**6, 20)])
def test_the_larger_the_database_the_more_results_may_precede_the_passage_of_a_question(number, within):
    assert found_within(number) == within


def test_a_question_that_fits_many_passages_fails_because_its_own_is_not_found_by_it(tmp_path):
    """By default, without a flag: "What is sold with a card?" is answered by every passage."""
    vague = lambda prompt: (  # noqa: E731
        "It is sold with a card that tells its story." if "Question:" in prompt else "What is sold with a card?"
    )
    result, _ = make(tmp_path, FakeGenerator(vague), documents(40), passages=40)
    assert result.counts["kept"] <= found_within(40) == 2
    assert result.counts["passage not retrieved for it"] >= 38 - result.counts["repeats another question"]
    rows = {row["why"] for row in result.rejected}
    assert rows <= {"passage not retrieved for it", "repeats another question"} and len(result.rejected) >= 38


@pytest.mark.parametrize("declines", ["The passage does not mention it.", "I don't know.", "Das steht nicht im Text."])
def test_an_answer_that_declines_in_its_own_words_is_no_answer(tmp_path, declines):
    reply = lambda prompt: declines if "Question:" in prompt else reply_to(prompt)  # noqa: E731
    result, _ = make(tmp_path, FakeGenerator(reply), documents(3), passages=3)
    assert result.counts["not answered by its passage"] == 6 and not result.kept


def stopped_passages(result) -> dict[str, set[int]]:
    """By gate, the numbers of the passages whose questions it rejected."""
    numbers = {gate: set() for gate in GATES if gate in result.counts}
    for row in result.rejected:
        numbers[row["why"]].add(int(re.search(r"number (\d+)", row["passage"]["page_content"])[1]))
    assert {gate: len([row for row in result.rejected if row["why"] == gate]) for gate in numbers} == {
        gate: result.counts[gate] for gate in numbers
    }
    return numbers


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("It says so. [[yes]]", True),
        ("[[ No ]].\n", False),
        ("Is it [[yes]] or [[no]]? The price is another.\n[[no]]", False),
        ("[[yes]] and what follows from it", None),
        ("yes", None),
        ("[[maybe]]", None),
        ("[[yes", None),
        ("", None),
    ],
)
def test_a_verdict_is_what_a_reply_ends_in_and_anything_else_is_none(text, verdict):
    assert parse_verdict(text) is verdict


def checking_reply(prompt: str) -> str | None:
    """1 is rejected by the LLM, 2 gets chatter, 3 no reply; 4 answers with a wrong figure, 5 in other words."""
    number = int(re.search(r"number (\d+)", prompt)[1])
    if "Answer to check:" in prompt:
        return {1: "It is made up. [[no]]", 2: "I would say yes.", 3: None, 5: "[[yes]]"}.get(number, reply_to(prompt))
    if "Question:" in prompt:
        return {4: "It costs 7 coins.", 5: "Hardly anything, honestly."}.get(number, reply_to(prompt))
    return reply_to(prompt)


def test_an_llm_may_decide_what_is_supported_and_what_it_did_not_say_is_no_pass(tmp_path):
    result, failures = make(tmp_path, FakeGenerator(checking_reply), documents(12), passages=12, support="llm")
    assert stopped_passages(result) == {
        "mentions the passage": set(),
        "repeats another question": set(),
        "not answered by its passage": set(),
        "answer cut at the token limit": set(),
        "answer not supported according to the LLM": {1, 4},
        "LLM verdict not understood": {2},
        "no LLM verdict": {3},
        "passage not retrieved for it": set(),
    }
    assert failures == ["no luck"] * 2 and result.counts["kept"] == 24 - 8
    said = {row["said"] for row in result.rejected if "said" in row}
    assert {"It is made up. [[no]]", "I would say yes."} < said


def test_both_gates_ask_the_llm_only_about_what_the_words_support(tmp_path):
    generator = FakeGenerator(checking_reply)
    result, _ = make(tmp_path, generator, documents(12), passages=12, support="both")
    stopped = stopped_passages(result)
    assert stopped["answer not supported by its passage"] == {4, 5}
    assert stopped["answer not supported according to the LLM"] == {1}
    asked = [prompt for prompt in generator.prompts if "Answer to check:" in prompt]
    assert len(asked) == 24 - 4 and not any("It costs 7 coins" in prompt for prompt in asked)


def test_verdicts_are_kept_and_only_what_failed_or_changed_is_asked_again(tmp_path):
    checks = lambda generator: [p for p in generator.prompts if "Answer to check:" in p]  # noqa: E731
    first, again = FakeGenerator(checking_reply), FakeGenerator()
    make(tmp_path, first, documents(12), passages=12, support="llm")
    result, failures = make(tmp_path, again, documents(12), passages=12, support="llm")
    assert len(again.prompts) == len(checks(again)) == 2 and all("number 3 " in prompt for prompt in again.prompts)
    assert not failures and result.counts["no LLM verdict"] == 0
    for changed in ({"support_prompt": settings().support_prompt + " "}, {"checker": "another"}):
        other = FakeGenerator()
        make(tmp_path, other, documents(12), passages=12, support="llm", **changed)
        assert len(other.prompts) == len(checks(other)) == 24
    nothing = FakeGenerator()
    assert make(tmp_path, nothing, documents(12), passages=12, support="llm")[0] == result and nothing.prompts == []


def test_the_packaged_prompt_of_the_check_holds_all_three_texts_and_asks_for_what_is_read():
    prompt = support_prompt(settings(), Document("A {answer} in the passage."), "Why {passage}?", "So {question}.")
    assert all(text in prompt for text in ("A {answer} in the passage.", "Why {passage}?", "So {question}."))
    assert "[[yes]]" in prompt and "[[no]]" in prompt


def test_a_question_asked_twice_is_kept_once(tmp_path):
    reply = lambda prompt: reply_to(prompt) if "Question:" in prompt else "How many coins does a thing cost?"  # noqa: E731
    result, _ = make(tmp_path, FakeGenerator(reply), documents(6), passages=6, retrieved_within=6)
    assert result.counts["repeats another question"] == 5 and result.counts["kept"] == 1


def test_hard_negatives_are_found_for_the_question_and_do_not_answer_it(tmp_path):
    copy = Document(documents(1)[0].page_content.replace("by hand", "by machine"))  # holds the same answers
    result, _ = make(tmp_path, FakeGenerator(), [*documents(12), copy], passages=13)
    examples = [example for split in result.splits.values() for example in split]
    assert all(len(e.hard_negatives) == 2 and not {*e.hard_negatives} & {*e.gold_documents} for e in examples)
    (cost,) = [e for e in examples if e.question == "What does lamp number 0 cost?"]
    assert not {*cost.hard_negatives} & {copy, documents(1)[0]}


def test_no_passage_is_in_two_files_and_a_larger_run_moves_none(tmp_path):
    where = {}
    for n in (20, 40):
        result, _ = make(tmp_path, FakeGenerator(), documents(), passages=n, eval_share=0.2, test_share=0.2)
        split_of = {e.gold_documents[0].id: name for name, these in result.splits.items() for e in these}
        assert sum(len({e.gold_documents[0].id for e in these}) for these in result.splits.values()) == len(split_of)
        assert where.items() <= split_of.items()
        where = split_of
    assert len(where) == 40 and set(where.values()) == {"train", "eval", "test"}


# Stopping and resuming


def test_a_stopped_run_goes_on_without_asking_twice(tmp_path):
    whole, _ = make(tmp_path / "whole", FakeGenerator(), documents(), passages=10)
    calls = 0

    def reply(prompt: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 19:  # in the second batch of answers
            raise KeyboardInterrupt
        return reply_to(prompt)

    stopped = FakeGenerator(reply)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "part", stopped, documents(), passages=10)
    kept = (tmp_path / "part" / "generated.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 10 + 0 or len(kept) == 1 + 10 + 8
    with open(tmp_path / "part" / "generated.jsonl", "a") as file:
        file.write('{"passage": "half a li')  # as a killed process leaves it
    rest = FakeGenerator()
    result, _ = make(tmp_path / "part", rest, documents(), passages=10)
    assert result == whole
    assert len(rest.prompts) == 30 - (len(kept) - 1)
    nothing = FakeGenerator()
    assert make(tmp_path / "part", nothing, documents(), passages=10)[0] == whole and nothing.prompts == []


def test_a_request_that_failed_is_asked_again_by_the_next_run(tmp_path):
    fails = lambda prompt: None if "number 3 " in prompt else reply_to(prompt)  # noqa: E731
    result, failures = make(tmp_path, FakeGenerator(fails), documents(6), passages=6)
    assert failures == ["no luck"] and result.counts["passages"] == 5
    again = FakeGenerator()
    result, failures = make(tmp_path, again, documents(6), passages=6)
    assert result.counts["passages"] == 6 and not failures and len(again.prompts) == 3


def test_a_journal_made_with_other_settings_is_not_continued(tmp_path):
    from groundtune.errors import DataError

    make(tmp_path, FakeGenerator(), documents(3), passages=3)
    with pytest.raises(DataError, match=r"questions per passage was 2, now 3; name another --output_dir"):
        make(tmp_path, FakeGenerator(), documents(3), passages=3, questions_per_passage=3)


# Given questions


def test_a_given_question_is_answered_from_the_first_passage_that_answers_it_and_the_others_are_named(tmp_path):
    def reply(prompt: str) -> str:
        passage, asked = prompt.rpartition("Passage:")[2].split("Question:")
        named = re.search(r"number (\d+)", asked)
        here = named and f"number {named[1]} " in passage
        return reply_to(prompt) if here and "weigh" in asked else "NOT ANSWERED"

    weighs = [f"Of lamp, chair and table, what does number {n} weigh?" for n in (0, 1, 2)]
    asked = [*weighs, weighs[1], "Where does lamp number 0 come from?", "xyzzy?"]
    generator = FakeGenerator(reply)
    result, _ = make(tmp_path, generator, documents(12), asked, passages_tried=12, retrieved_within=12)
    assert {e.question: e.gold_documents[0].text[:20].split(" number")[0] for e in result.kept} == dict(
        zip(weighs, ("The lamp", "The chair", "The table"))
    )
    assert {row["question"]: row["why"] for row in result.rejected} == {
        weighs[1]: "repeats another question",
        "Where does lamp number 0 come from?": "not answered by its passage",
        "xyzzy?": "passage not retrieved for it",
    }
    assert len(generator.prompts) == len({*generator.prompts})  # no passage is read twice for one question
    again = FakeGenerator(reply)
    assert make(tmp_path, again, documents(12), asked, passages_tried=12, retrieved_within=12)[0] == result
    assert again.prompts == []


def test_a_given_question_whose_request_failed_waits_for_the_next_run_and_is_not_called_unanswered(tmp_path):
    asked = ["What does lamp number 0 cost?"]
    result, failures = make(tmp_path, FakeGenerator(lambda prompt: None), documents(12), asked)
    assert failures == ["no luck"] and not result.kept and not result.rejected
    result, failures = make(tmp_path, FakeGenerator(), documents(12), asked)
    assert not failures and [e.question for e in result.kept] == asked


def test_a_question_is_unanswered_only_once_all_its_passages_were_read(tmp_path):
    asked = ["What does lamp number 0 or number 11 cost?"]
    reply = lambda prompt: None if "The lamp number 0 " in prompt else "NOT ANSWERED"  # noqa: E731
    result, failures = make(tmp_path, FakeGenerator(reply), documents(12), asked, retrieved_within=3)
    assert failures and result.counts["answers"] < 3 and not result.rejected
    result, _ = make(tmp_path, FakeGenerator(lambda _: "NOT ANSWERED"), documents(12), asked, retrieved_within=3)
    assert result.counts["answers"] == 3 and [row["question"] for row in result.rejected] == asked


def test_a_question_without_a_good_answer_is_rejected_for_what_is_wrong_with_its_best_answer(tmp_path):
    """An answer that was only cut off is of more use to the user than what a later passage made the model invent."""
    said = iter(["NOT ANSWERED", "It costs 100 coins and ...", "It costs 7 coins."])
    asked = ["What does lamp number 0 cost?"]
    result, _ = make(tmp_path, FakeGenerator(lambda _: next(said)), documents(12), asked, retrieved_within=3)
    (row,) = result.rejected
    assert (row["why"], row["answer"]) == ("answer cut at the token limit", "It costs 100 coins and ...")


@pytest.mark.parametrize("support", ["llm", "both"])
def test_an_answer_that_the_llm_rejects_is_sought_in_the_next_passage(tmp_path, support):
    def reply(prompt: str) -> str:
        if "Answer to check:" in prompt:
            return "[[yes]]" if "number 11 " in prompt.partition("Question:")[0] else "[[no]]"
        return "It was made in a small workshop near the harbour."

    asked = ["What was made by hand, lamp number 0 or lamp number 11?"]
    result, _ = make(tmp_path, FakeGenerator(reply), documents(12), asked, support=support, retrieved_within=3)
    assert [e.gold_documents[0].text[:18] for e in result.kept] == ["The lamp number 11"]


@pytest.mark.parametrize(
    "text, questions_",
    [
        ("What is a lamp?\n\n- Who pays?\r\n2. How come", ["What is a lamp?", "Who pays?", "How come"]),
        ("\ufeff如何退货？\n", ["如何退货？"]),
        (
            '{"question": "Why\\nso?", "gold_answer": "x"}\n\n{"question": "Who?", "chat_history": []}',
            ["Why so?", "Who?"],
        ),
    ],
)
def test_given_questions_are_lines_of_a_text_or_of_json(tmp_path, text, questions_):
    (tmp_path / "q").write_bytes(text.encode())
    assert read_questions(tmp_path / "q") == questions_


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("q.txt", b"\n \n", "has no question; write one on each line"),
        ("q.txt", b"\xff\xfeW", "cannot be read"),
        ("q.csv", b"question,answer\n", "is a .csv file; give a text with one question on each line"),
        ("q.jsonl", b'{"question": "Why?"}\nWho?', "q.jsonl:2: line: not valid JSON"),
        ("q.jsonl", b'{"question": " "}', "q.jsonl:1: question: is blank"),
        ("q.jsonl", b'{"Question": "Why?"}', "q.jsonl:1: question: missing (there is 'Question')"),
        (
            "q.jsonl",
            b'{"question": "And then?", "chat_history": [{}]}',
            "q.jsonl:1: chat_history: a question must make",
        ),
    ],
)
def test_what_is_wrong_with_given_questions_is_a_line_each(database, tmp_path, capsys, name, text, said):
    (tmp_path / name).write_bytes(text)
    flags = ("--generator", "openai:http://127.0.0.1:9/v1", "--generator_model", "m", "--questions", tmp_path / name)
    assert run(database, "-o", tmp_path / "qa", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "qa").exists()


# The command, against a server


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server: replies like an obedient model, fails on request, counts concurrent requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.running, self.most, self.requests = threading.Lock(), 0, 0, []
        self.refuse = lambda number, prompt: None
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def generator(self) -> str:
        return f"openai:http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, prompt = self.server, body["messages"][-1]["content"]
        with server.lock:
            server.running += 1
            server.most = max(server.most, server.running)
            server.requests.append((time.monotonic(), self.path, self.headers["Authorization"], body))
            status = server.refuse(len(server.requests), prompt)
        time.sleep(0.02)
        reply = {"choices": [{"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": None if status else reply_to(prompt)}}]}  # fmt: skip
        data = json.dumps(reply if not status else {"error": {"message": "refused"}}).encode()
        with server.lock:
            server.running -= 1
        self.send_response(status or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    monkeypatch.setenv("OPENAI_API_KEY", "the key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as made:
        yield made
        made.shutdown()


@pytest.fixture
def database(tmp_path) -> Path:
    write_documents(tmp_path / "documents.jsonl", documents())
    return tmp_path / "documents.jsonl"


def run(*words: object) -> int:
    try:
        return main(["questions", *map(str, words)])
    except SystemExit as ended:
        return ended.code


def test_a_server_is_asked_many_questions_at_once_and_its_answers_become_examples(server, database, tmp_path, capsys):
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5, "--concurrency", 4)
    assert run(database, "-o", tmp_path / "qa", "--passages", 20, *flags) == 0
    examples = read_examples(tmp_path / "qa" / "train.jsonl")
    first = examples[0]
    assert first.answer in (f"It {verb} {n} {unit}." for verb, n, unit in (
        ("costs", re.search(r"costs (\d+)", first.gold_documents[0].text)[1], "coins"),
        ("weighs", re.search(r"weighs (\d+)", first.gold_documents[0].text)[1], "grams"),
    ))  # fmt: skip
    assert 1 < server.most <= 4 and len(server.requests) == 60
    _, path, key, body = server.requests[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer the key", "m", 0)
    said = capsys.readouterr().out
    assert re.search(r"questions\W+40\b", said) and re.search(r"kept\W+40", said)
    assert all(gate in said for gate in gates_of(settings()))
    assert re.search(r"Wrote 40 examples to ", said)


def test_another_model_on_the_server_may_check_the_answers(server, database, tmp_path, capsys):
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5, "--passages", 4)
    options = ("--generator_options", '{"chat_template_kwargs": {"enable_thinking": false}}')
    assert run(database, "-o", tmp_path / "qa", *flags, *options, "--support", "llm", "--checker_model", "judge") == 0
    models = [body["model"] for *_, body in server.requests]
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for *_, body in server.requests)
    assert models == ["m"] * 12 + ["judge"] * 8
    said = capsys.readouterr().out
    assert re.search(r"answer not supported according to the LLM\W+0", said) and re.search(r"kept\W+8", said)
    assert "answer not supported by its passage" not in said


def test_requests_keep_to_the_rate(server, database, tmp_path):
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5)
    assert run(database, "-o", tmp_path / "qa", "--passages", 2, "--requests_per_minute", 600, *flags) == 0
    times = [at for at, *_ in server.requests]
    assert len(times) == 6 and times[5] - times[0] > 0.3


def test_a_server_that_stumbles_is_asked_again_and_a_request_that_fails_is_counted(server, database, tmp_path, capsys):
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5, "--passages", 6)
    first = sample_passages(documents(), settings(passages=6))[3].page_content

    def refuse(number: int, prompt: str) -> int | None:
        return 503 if number == 2 else 400 if first in prompt else None

    server.refuse = refuse
    assert run(database, "-o", tmp_path / "qa", *flags) == 0
    assert "1 requests failed (Error code: 400" in capsys.readouterr().out
    server.refuse = lambda number, prompt: None
    asked = len(server.requests)
    assert run(database, "-o", tmp_path / "qa", *flags) == 0
    assert len(server.requests) == asked + 3 and "Wrote 12 examples" in capsys.readouterr().out


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_cannot_be_used_is_one_line_and_one_request(server, database, tmp_path, capsys, status):
    server.refuse = lambda number, prompt: status
    assert (
        run(
            database, "-o", tmp_path / "qa", "--generator", server.generator, "--generator_model", "m", "--min_words", 5
        )
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert f"Error code: {status}" in line and ("OPENAI_API_KEY" if status == 401 else "have a model 'm'") in line
    assert len(server.requests) == 1 and not (tmp_path / "qa").exists()


def test_a_model_loaded_here_writes_too(database, tmp_path, families, capsys):
    """A random model writes no question, and the command reports that; its texts are kept."""
    flags = ("--generator", families["qwen"].folder, "--passages", 3, "--min_words", 5, "--max_new_tokens", 8)
    assert run(database, "-o", tmp_path / "qa", *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # after the progress of loading
    assert line.startswith("none of 0 questions passed the gates: no question was written; see generated.jsonl")
    assert len((tmp_path / "qa" / "generated.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "qa" / "train.jsonl").exists()


# What is wrong


@pytest.mark.parametrize(
    "words, said",
    [
        (["--generator", "openai:localhost"], "'localhost' is not an address"),
        (["--generator", "openai:http://x/v1"], "--generator_model: missing"),
        (["--generator", "x", "--passages", "0"], "--passages: is 0; give 1 or more"),
        (["--generator", "x", "--unanswerable_share", "nan"], "--unanswerable_share: is nan; give 0 or more"),
        (["--generator", "x", "--min_support", "nan"], "--min_support: is nan; give 0 or more"),
        (["--generator", "x", "--eval_share", "0.5", "--test_share", "0.5"], "leave nothing to train on"),
        (["--generator", "x", "--min_words", "999"], "no passage has 999 words; lower --min_words"),
        (["--generator", "x", "--question_prompt", "prompt.txt"], "prompt.txt: lacks {passage}"),
        (["--generator", "x", "--answer_prompt", "gone.txt"], "gone.txt: cannot be read"),
        (["--generator", "x", "--support", "llm", "--support_prompt", "prompt.txt"], "lacks {passage} and {answer}"),
        (["--generator", "x", "--support", "llm", "--checker", "openai:localhost"], "'localhost' is not an address"),
        (
            ["--generator", "openai:http://x/v1", "--generator_model", "m", "--generator_options", "[1]"],
            "not an object",
        ),
        (["--generator", "x", "--support", "words"], "invalid choice: 'words'"),
        (["--generator", "x", "--checker", "y"], "--checker: has no effect with --support lexical"),
        (["--generator", "no/such/model"], "no such folder: no/such/model"),
    ],
)
def test_a_wrong_argument_is_said_before_anything_is_written(database, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("Ask {number} questions.")
    assert run(database, "-o", "qa", "--min_words", "5", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0] and not (tmp_path / "qa").exists()


@pytest.mark.parametrize("name", ["empty", "no/such/folder/at/all", "nobody/no-such-model"])
def test_a_wrong_embedding_model_is_said_before_anything_is_asked_and_as_index_says_it(
    server, database, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["index", "--full_dataset_file_path", str(database), "--embedding_model", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--embedding_model: ") and name in said and len(said.splitlines()) == 1
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5)
    assert run(database, "-o", "qa", "--embedding_model", name, *flags) == 2
    assert capsys.readouterr().err == said
    assert server.requests == [] and not Path("qa").exists()


def test_questions_are_searched_with_the_retriever_and_the_prompts_that_are_given(
    server, database, tmp_path, monkeypatch, static_embedding_folder
):
    made, judge = [], gates.judge
    monkeypatch.setattr(gates, "judge", lambda *given: made.append(given[-1]) or judge(*given))
    flags = ("--generator", server.generator, "--generator_model", "m", "--min_words", 5, "--passages", 6)
    dense = ("--embedding_model", static_embedding_folder, "--query_prompt", "Q: ", "--document_prompt", "D: ")
    run(database, "-o", tmp_path / "qa", *flags)
    run(database, "-o", tmp_path / "qa", *flags, *dense)
    run(database, "-o", tmp_path / "qa", *flags, *dense, "--retriever", "hybrid")
    run(database, "-o", tmp_path / "qa", *flags, *dense, "--retriever", "bm25")
    kinds = ["BM25Retriever", "MixRetriever", "HybridRetriever", "BM25Retriever"]
    assert [type(retriever).__name__ for retriever in made] == kinds
    for retriever in (made[1].dense, made[2].retrievers[0]):
        assert (retriever.embedder.query_prompt, retriever.embedder.document_prompt) == ("Q: ", "D: ")
    (index,) = (tmp_path / "index").glob("*/manifest.json")  # both dense ones share it
    assert json.loads(index.read_text("utf-8"))["settings"]["document_prompt"] == "D: "


def test_a_prompt_of_ones_own_is_used(tmp_path):
    (tmp_path / "prompt.txt").write_text("Frage zu: {passage}")
    chosen = settings(question_prompt=read_prompt(tmp_path / "prompt.txt", "questions.txt"))
    assert questions.question_prompt(chosen, Document("Text.")) == "Frage zu: Text."


# A review by a person


def test_a_review_stops_before_the_split_and_the_command_that_it_prints_continues_without_a_request(
    server, database, tmp_path, monkeypatch, capsys
):
    flags = (database, "--generator", server.generator, "--generator_model", "m", "--min_words", 5, "--passages", 12)
    assert run(*flags, "-o", tmp_path / "plain") == 0
    capsys.readouterr()
    out = tmp_path / "qa 1"
    assert run(*flags, "-o", out, "--review") == 0
    said = capsys.readouterr().out.splitlines()
    counted = "(questions that passed the gates: 24, and rejected ones: 0)"
    assert f"Wrote {out / 'review.md'} {counted}; edit it, then continue with" in said
    assert {path.name for path in out.iterdir()} == {"generated.jsonl", "review.md"}
    command = shlex.split(said[-1])
    assert command[:2] == ["groundtune", "questions"] and said[-1] in (out / "review.md").read_text("utf-8")
    assert not any("train.jsonl" in line for line in said)
    asked = len(server.requests)
    assert run(*command[2:]) == 0
    assert re.search(r"review: unchanged\W+24", capsys.readouterr().out)
    for name in ("train", "eval", "test", "rejected"):
        files = [(folder / f"{name}.jsonl") for folder in (tmp_path / "plain", out)]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    assert len(server.requests) == asked
    assert run(*flags, "-o", out, "--review") == 2
    assert "review.md is there already, and may have been edited; use --resume" in capsys.readouterr().err
    assert run(*flags, "-o", out) == 0
    assert f"{out / 'review.md'} was not read; --resume reads it" in capsys.readouterr().out
    assert run(*flags, "-o", tmp_path / "new", "--resume") == 2
    assert "review.md is missing; write it with --review" in capsys.readouterr().err


def test_given_questions_without_an_answer_are_named(server, database, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("What does lamp number 0 cost?\nxyzzy?\n")
    flags = ("--generator", server.generator, "--generator_model", "m", "--questions", tmp_path / "mine.txt")
    assert run(database, "-o", tmp_path / "qa", *flags) == 0
    said = capsys.readouterr().out
    assert '1 left out, passage not retrieved for it: "xyzzy?"' in said and "Wrote 1 examples" in said
    (tmp_path / "mine.txt").write_text("xyzzy?")
    assert run(database, "-o", tmp_path / "none", *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert '"xyzzy?"' in lines[0] and lines[1].startswith("none of 1 questions passed the gates: 1 passage not")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_was_written_and_reports_it_and_the_next_run_asks_only_for_the_rest(
    server, database, tmp_path, capsys, signum, signals_of_a_terminal
):
    flags = (
        database,
        "-o",
        tmp_path / "qa",
        "--generator",
        server.generator,
        "--generator_model",
        "m",
        "--min_words",
        5,
    )
    flags += ("--passages", 12, "--concurrency", 1)  # four requests a batch
    server.refuse = lambda number, prompt: os.kill(os.getpid(), signum) if number == 10 else None
    assert run(*flags) == 128 + signum
    (line,) = capsys.readouterr().err.splitlines()
    kept = len((tmp_path / "qa" / "generated.jsonl").read_text().splitlines()) - 1
    assert kept in (8, 12) and line == (
        f"stopped by {signal.Signals(signum).name}; {kept} replies are in {tmp_path / 'qa' / 'generated.jsonl'}, "
        "and the same command continues"
    )
    time.sleep(0.1)  # the server may be writing its last reply
    asked, server.refuse = len(server.requests), lambda number, prompt: None
    assert run(*flags) == 0
    assert len(server.requests) - asked == 36 - kept


def test_a_log_file_gets_a_line_within_a_batch_that_takes_long(tmp_path):
    said, journal = [], questions.open_journal(tmp_path, settings(), "fake")
    ask = Asker(FakeGenerator, journal, 9, 8, report=lambda *seen: said.append(seen))
    Sampled(sample_passages(documents(3), settings(passages=3))).write(settings(), ask, lambda asked: None)
    assert [done for stage, done, total in said if stage == "questions"] == [0, 1, 2, 3, 3]


# A generator without a chat template


def test_a_generator_without_a_chat_template_gets_prompts_with_examples_and_one_with_it_does_not(
    database, tmp_path, families, monkeypatch, caplog
):
    from groundtune.commands import questions as command
    from groundtune.model import opening

    prompts = []
    monkeypatch.setattr(command, "_ask", lambda arguments, settings, *rest: prompts.append(settings) or [])
    flags = ("--passages", 3, "--min_words", 5, "--support", "llm")
    monkeypatch.setattr(command, "_lacks_template", command._lacks_template.__wrapped__)
    real = opening.AnsweringModel.open_tokenizer

    def without(self):
        tokenizer = real(self)
        tokenizer.chat_template = None
        return tokenizer

    run(database, "-o", tmp_path / "a", "--generator", families["qwen"].folder, *flags)
    monkeypatch.setattr(opening.AnsweringModel, "open_tokenizer", without)
    run(database, "-o", tmp_path / "b", "--generator", families["qwen"].folder, *flags)
    (tmp_path / "own.txt").write_text("{passage}")
    run(
        database,
        "-o",
        tmp_path / "c",
        "--generator",
        families["qwen"].folder,
        *flags,
        "--question_prompt",
        tmp_path / "own.txt",
    )
    names = {"question_prompt": "questions.txt", "answer_prompt": "answer.txt", "support_prompt": "support.txt"}
    for made, by_example in zip(prompts, (False, True, True)):
        read = {flag: read_prompt(None, name, by_example) for flag, name in names.items()}
        if made is prompts[2]:
            read["question_prompt"] = "{passage}"
        assert {flag: getattr(made, flag) for flag in names} == read
        assert made.one_line_answers is by_example
    assert len(prompts) == 3
