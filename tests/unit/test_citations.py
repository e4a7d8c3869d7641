"""Citations: what a row teaches, what is left of an answer without its marks, and how right they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.arguments import AFTERWARDS, OFF, TAUGHT, PromptArguments
from groundtune.errors import ModelError
from groundtune.evaluation.citations import citation_scores, marked
from groundtune.evaluation.evaluator import score_replies
from groundtune.evaluation.metrics import METRICS, greater_is_better, token_f1
from groundtune.evaluation.predictions import evaluation_of, read_predictions, write_predictions
from groundtune.prompts.citations import (
    CITE,
    found_afterwards,
    mark,
    read_marks,
    sentences,
    taught,
    with_marks,
    without_marks,
)
from groundtune.prompts.policies import Passage
from groundtune.prompts.prompt import chat_messages, make_prompt
from groundtune.prompts.rows import encode_questions, encode_rows
from groundtune.schema import Document, Ended, Example, Hit, Reply, Turn
from groundtune.training.labels import what_else_is_learnt

SHIPS = Document("Parcels travel overnight by ship, and arrive before noon on weekdays.")
COSTS = Document("Title: Prices\nA parcel of two kilograms costs nine euros within the country.")
OTHER = Document("The canteen is on the second floor and serves soup.")
ANSWER = "Parcels travel overnight by ship. A parcel of two kilograms costs nine euros."
EXAMPLE = Example("How do they travel, and for how much?", ANSWER, (SHIPS, COSTS))
TEXTS = [
    ANSWER, "One sentence only", "", "It is 3.5 km, i.e. far. Use x[1] and a[[2]].\n\n- The first one\n- The last",
    "開いています。九時からです。とても長い文がここにあります。", 'Why? Because it is so! "Really so." He said this.',
    "  led by spaces and more. Then on",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_marks_leave_no_trace_in_a_text_and_are_read_as_they_were_written(text):
    assert "".join(sentences(text)) == text
    said = [(sentence, (i, i + 10)) for i, sentence in enumerate(sentences(text), 1)]
    assert without_marks(with_marks(said)) == text
    assert [numbers for _, numbers in read_marks(with_marks(said))] == [
        numbers for text, numbers in said if text.strip()
    ]


def test_marks_that_a_model_did_not_finish_or_number_are_no_part_of_its_answer():
    assert {without_marks(f"It is so.{cut}") for cut in (" ⟦", " ⟦1", " ⟦1, 2", "⟦1–")} == {"It is so."}
    assert without_marks("It is ⟦x⟧ so⟦⟧.") == "It is so."
    assert read_marks("It is so here. ⟦2⟧⟦3⟧ ⟦2⟧ And on it goes") == [
        ("It is so here.", (2, 3)),
        (" And on it goes", ()),
    ]


@pytest.mark.parametrize(
    "parts",
    [
        ["1. Hold the power button of the router.", "\n2. Open the settings page now.", "\n3. Choose the last entry."],
        ["Please ask Dr. Smith about it.", " He knows J. R. Jones as well."],
        ["It opens at 9 p.m. Monday to Friday.", " On Sunday it is closed."],
        ["For U.S. Citizens there is a queue.", " We sell it in Europe.", " A buyer pays later."],
        ["пятьсот руб. в месяц стоит это.", " Это очень дорого стоит."],
        ["Es kostet 5 Euro inkl. übernachten im Haus.", " Überall gilt das so."],
        ["यह एक वाक्य है।", " यह दूसरा वाक्य है।"],
        ["هل هذا صحيح الآن؟", " نعم هذا صحيح تماما."],
    ],
)
def test_a_sentence_is_not_cut_at_an_abbreviation_or_the_number_of_an_item(parts):
    assert sentences("".join(parts)) == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It opens at nine on weekdays ⟦1⟧.", [("It opens at nine on weekdays.", (1,))]),
        ("It is so here ⟦1⟧, ⟦2⟧. And so it goes ⟦3⟧!", [("It is so here,.", (1, 2)), (" And so it goes!", (3,))]),
        ("It is so here ⟦1, 3⟧", [("It is so here", (1, 3))]),
        ("⟦2⟧ It is so here. And so it goes. ⟦1⟧", [(" It is so here.", (2,)), (" And so it goes.", (1,))]),
        ("It was ⟦in 2024⟧ so here ⟦1", [("It was", ()), (" so here", ())]),
    ],
)
def test_marks_of_models_that_were_not_taught_are_read_too(text, said):
    assert read_marks(text) == said
    found = marked(text, [SHIPS, COSTS, OTHER], TAUGHT)
    assert [found.answer[begin:end] for begin, end, _ in found.places] == [
        sentence.strip() for sentence, numbers in said for _ in numbers
    ]


def test_an_item_of_a_list_is_cited_although_its_number_stands_in_no_passage():
    answer = "1. Parcels travel overnight by ship.\n2. A parcel of two kilograms costs nine euros."
    assert taught(replace(EXAMPLE, answer=answer), [COSTS, OTHER, SHIPS]) == (
        "1. Parcels travel overnight by ship. ⟦3⟧\n2. A parcel of two kilograms costs nine euros. ⟦1⟧"
    )
    assert [numbers for _, numbers in found_afterwards(answer, [COSTS, SHIPS])] == [(2,), (1,)]


def test_a_sentence_learns_the_place_of_its_gold_passage_wherever_that_stands():
    one = replace(EXAMPLE, gold_documents=(SHIPS,))
    for read in ([SHIPS, OTHER], [OTHER, COSTS, SHIPS]):
        place = read.index(SHIPS) + 1
        assert taught(one, read) == (
            f"Parcels travel overnight by ship. ⟦{place}⟧ A parcel of two kilograms costs nine euros. ⟦{place}⟧"
        )
    assert taught(EXAMPLE, [COSTS, OTHER, SHIPS]) == (
        "Parcels travel overnight by ship. ⟦3⟧ A parcel of two kilograms costs nine euros. ⟦1⟧"
    )
    unrelated = replace(EXAMPLE, answer="Nobody knows anything about whales. Parcels travel overnight by ship.")
    assert taught(unrelated, [SHIPS, COSTS]).startswith("Nobody knows anything about whales. Parcels")
    assert taught(replace(one, answerable=False), [SHIPS]) == ANSWER and taught(one, [OTHER]) == ANSWER


@pytest.mark.parametrize(("read", "first", "second"), [([SHIPS, OTHER], " ⟦1⟧", ""), ([OTHER, COSTS], "", " ⟦2⟧")])
def test_the_gold_passage_that_is_left_is_no_source_of_what_another_one_says(read, first, second):
    assert taught(EXAMPLE, read) == (
        f"Parcels travel overnight by ship.{first} A parcel of two kilograms costs nine euros.{second}"
    )


def test_brackets_of_marks_in_texts_become_ordinary_ones():
    passage, example = (
        Document("See ⟦1⟧ there."),
        replace(EXAMPLE, answer="It says ⟦7⟧ in it.", gold_documents=(OTHER,)),
    )
    (message,) = chat_messages("Answer.", [passage, OTHER], (), "Why?", cites=True)
    assert f"Answer. {CITE}\n\n⟦1⟧ See [1] there.\n\n⟦2⟧ The canteen" in message["content"]
    assert taught(example, [OTHER]) == "It says [7] in it. ⟦1⟧"
    turns = (Turn("user", "So ⟦2⟧?"), Turn("assistant", "Yes ⟦3⟧."))
    assert "⟦" not in str(chat_messages("Answer.", [], turns, "Why ⟦4⟧?", cites=True)[1:])
    assert "⟦4⟧" in str(chat_messages("Answer.", [], turns, "Why ⟦4⟧?"))


def test_brackets_of_marks_in_a_dialogue_are_ordinary_ones_in_a_prompt_that_numbers_passages(family, style):
    prompt = make_prompt(family.tokenizer, PromptArguments(**flags(style), citations=TAUGHT))
    turns = (Turn("user", "So ⟦7⟧?"), Turn("assistant", "Yes ⟦8⟧."))
    text = family.tokenizer.decode(prompt.prompt_ids([SHIPS], turns, "Why ⟦9⟧?"))
    assert mark(1) in text and not any(mark(n) in text for n in (7, 8, 9)) and "[9]" in text


def test_a_row_teaches_marks_for_the_passages_that_fit_into_it(family, style):
    prompt = make_prompt(family.tokenizer, PromptArguments(**flags(style), citations=TAUGHT))
    one = replace(EXAMPLE, gold_documents=(COSTS,))
    passages = (Passage(OTHER, droppable=True), Passage(SHIPS, droppable=True), Passage(COSTS))
    (whole,) = encode_rows([one], [passages], prompt, 2000)
    assert whole.answer.count(mark(3)) == 2 and what_else_is_learnt(whole, whole.answer, prompt) is None
    assert mark(3) in prompt.tokens.tokenizer.decode(whole.answer_ids)
    (cut,) = encode_rows([one], [passages], prompt, len(whole) - 5)
    assert cut.left_out.retrieved == 1 and cut.answer.count(mark(2)) == 2 and len(cut) <= len(whole) - 5
    assert what_else_is_learnt(cut, cut.answer, prompt) is None
    asked = encode_questions([one], [passages], prompt, 2000)[0]
    assert asked.prompt_ids == whole.prompt_ids


def test_a_row_that_loses_gold_passages_fits_with_the_marks_that_are_left(family, style):
    prompt = make_prompt(family.tokenizer, PromptArguments(**flags(style), citations=TAUGHT))
    passages = (Passage(SHIPS), Passage(COSTS))
    (whole,) = encode_rows([EXAMPLE], [passages], prompt, 4000)
    (cut,) = encode_rows([EXAMPLE], [passages], prompt, len(whole) - 1, shorten=True)
    assert whole.answer == taught(EXAMPLE, [SHIPS, COSTS]) and whole.answer.count(mark(2)) == 1
    assert cut.left_out.gold == 1 and cut.answer == taught(EXAMPLE, [SHIPS]) and len(cut) < len(whole)
    assert what_else_is_learnt(cut, cut.answer, prompt) is None
    unanswered = replace(EXAMPLE, answer=" ".join(f"Whales number {n} sing all night long." for n in range(20)))
    (whole,) = encode_rows([unanswered], [passages], prompt, 4000)
    (alone,) = encode_rows([unanswered], [passages[:1]], prompt, 4000)
    assert whole.answer == alone.answer == unanswered.answer  # no passage supports it


def flags(style):
    from conftest import HISTORICAL_PREFIXES

    return HISTORICAL_PREFIXES if style == "prefix" else {}


def test_without_the_flag_prompts_and_rows_are_as_ever(family, style):
    prompts = [
        make_prompt(family.tokenizer, PromptArguments(**flags(style), citations=citations))
        for citations in (OFF, AFTERWARDS)
    ]
    off, afterwards = (encode_rows([EXAMPLE], [(Passage(SHIPS), Passage(COSTS))], prompt, 2000) for prompt in prompts)
    assert off == afterwards and off[0].answer == ANSWER
    assert mark(1) not in family.tokenizer.decode(off[0].prompt_ids + off[0].answer_ids)


def test_a_tokenizer_that_cannot_write_marks_is_named_with_the_way_out(families, monkeypatch):
    from groundtune.prompts import prompt

    monkeypatch.setattr(prompt._Tokens, "spelt_out", lambda tokens, text: text.replace("⟦", ""))
    with pytest.raises(ModelError, match="cannot write ⟦12⟧; with --citations afterwards"):
        make_prompt(families["llama"].tokenizer, PromptArguments(citations=TAUGHT))


def test_precision_and_recall_are_counted_by_sentence_where_gold_was_read():
    read, one = [OTHER, SHIPS, COSTS], replace(EXAMPLE, gold_documents=(SHIPS,))
    said = "Parcels travel overnight by ship. ⟦2⟧ A parcel of two kilograms costs nine euros. ⟦3⟧⟦2⟧ It smells of soup."
    scores = citation_scores(marked(said, read, TAUGHT), one, read)
    assert scores["citations/precision"] == pytest.approx(2 / 3) and scores["citations/recall"] == pytest.approx(2 / 3)
    assert scores["citations/afterwards_precision"] == 0.5  # sentences 2 and 3
    assert scores["citations/afterwards_recall"] == pytest.approx(1 / 3)
    assert (scores["citations/always_first"], scores["citations/most_similar"]) == (0, 0)
    assert scores["citations/at_random"] == pytest.approx(1 / 3)
    assert set(scores) <= set(METRICS) and all(map(greater_is_better, scores))
    assert citation_scores(marked(said, [OTHER], TAUGHT), one, [OTHER]) == {}  # nothing right could be cited
    silent = citation_scores(marked("It smells of soup here.", read, TAUGHT), one, read)
    assert silent["citations/recall"] == 0 and "citations/precision" not in silent


def test_a_passage_with_the_text_of_gold_is_as_right_as_gold():
    twin = Document(f"Once more: {SHIPS.text} That is all.")
    scores = citation_scores(marked("Parcels travel overnight by ship. ⟦1⟧", [twin], TAUGHT), EXAMPLE, [twin])
    assert scores["citations/precision"] == scores["citations/recall"] == 1


def scored(citations, text):
    hits = tuple(Hit(document, 1.0) for document in (OTHER, SHIPS, COSTS))
    read = [[hit.document for hit in hits]]
    return score_replies([EXAMPLE], [hits], read, [Reply(text, True, 9, 9)], "retrieved", 0, 0, citations=citations)


def test_marks_are_off_an_answer_before_it_is_scored_and_kept_beside_it(tmp_path):
    text = f"{ANSWER.replace('. A', '. ⟦2⟧ A')} ⟦3⟧"
    (prediction,) = made = scored(TAUGHT, text)
    assert prediction.answer == ANSWER and prediction.cited == text
    assert prediction.scores["generation/f1"] == prediction.scores["citations/precision"] == 1
    assert token_f1(text, ANSWER) < 1
    write_predictions(tmp_path / "p.jsonl", evaluation_of(made, 100))
    assert read_predictions(tmp_path / "p.jsonl")[0].cited == text


def test_any_answer_gets_its_citations_afterwards_and_none_where_they_are_off():
    (prediction,) = scored(AFTERWARDS, ANSWER)
    assert prediction.answer == ANSWER and prediction.cited == (
        "Parcels travel overnight by ship. ⟦2⟧ A parcel of two kilograms costs nine euros. ⟦3⟧"
    )
    assert prediction.scores["citations/precision"] == prediction.scores["citations/afterwards_precision"] == 1
    (off,) = scored(OFF, ANSWER)
    assert off.cited == "" and not [name for name in off.scores if name.startswith("citations/")]


def test_a_dialogue_remembers_answers_without_marks_and_shows_them_with(capsys):
    from groundtune.commands import ask
    from groundtune.serving.dialogue import Dialogue
    from groundtune.serving.telling import Manner

    class Retriever:
        limit = None

        def search(self, queries, k):
            return [tuple(Hit(document, 0.5) for document in (OTHER, SHIPS))]

    def words():
        yield from ["Parcels travel ", "overnight by ship. ⟦2⟧"]
        return Ended(True)

    dialogue = Dialogue(
        Retriever(), 2, "none", lambda example, passages: ([OTHER, SHIPS], words()), manner=Manner(TAUGHT)
    )  # fmt: skip
    ask._show_json(dialogue, "How?")
    shown = json.loads(capsys.readouterr().out)
    assert shown["answer"] == dialogue.turns[-1].message == "Parcels travel overnight by ship."
    assert shown["cited"] == "Parcels travel overnight by ship. ⟦2⟧"
    dialogue.manner = Manner(AFTERWARDS)
    ask._show(dialogue, "How?")
    assert "⟦1⟧ 0.500" in (out := capsys.readouterr().out) and "overnight by ship. ⟦2⟧" in out


def test_the_documents_of_the_tests_have_no_marks():
    assert not [text for text in (d.text for d in tiny_documents()) if without_marks(text) != text] and tiny_examples()
