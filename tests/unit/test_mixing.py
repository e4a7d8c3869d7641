"""Passages of a training row as flags choose them: order, distractors, rows without gold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from groundtune.arguments import DISTRACTORS, GOLD_FIRST, RANKED, SHUFFLED, PassageArguments
from groundtune.data.evidence import gives_away, likeness, repeats
from groundtune.evaluation.abstention import abstains
from groundtune.methods import METHODS, SFT, SWR
from groundtune.prompts.mixing import Mixing
from groundtune.prompts.policies import augmented_passages, draw, gold_passages, kept
from groundtune.schema import UNANSWERABLE, Document, Example, Hit


def passage(name: str) -> Document:
    return Document(" ".join(f"{name}{word}" for word in "abcdefghijklmnop"))


GOLD, SECOND = passage("gold"), passage("second")
TWIN = Document(f"{GOLD.body[:60]} and other words that are new here, at the end of it all")  # some 30 % of gold
SAYS_IT = Document("Elsewhere it says that parcels travel overnight by sea, without any delay.")
EXAMPLE = Example(
    "How do they travel?", "Parcels travel overnight by sea.", (GOLD,),
    hard_negatives=(passage("given"), passage("wrong")),
)  # fmt: skip
RETRIEVED = [passage(f"hit{n}x") for n in range(12)]
HITS = [Hit(document, 1.0) for document in [*RETRIEVED[:2], GOLD, TWIN, SAYS_IT, *RETRIEVED[2:]]]
ELSEWHERE = [passage(f"other{n}x") for n in range(50)]


def rows(mixing: Mixing, example: Example = EXAMPLE, hits=HITS, n: int = 200):
    """(example, documents) of many draws."""
    for number in range(n):
        drawn, passages = mixing(example, hits, draw(0, 0, number))
        yield drawn, list(kept(passages))


def test_without_flags_a_method_reads_what_it_always_did():
    flags = PassageArguments()
    for method, policy in ((SFT, gold_passages), (SWR, augmented_passages)):
        drawn = method.draws(flags, 3, ELSEWHERE)(EXAMPLE, HITS[:3], draw(0, 0, 0))
        assert drawn == (EXAMPLE, policy(EXAMPLE, HITS[:3])) and flags.searched(3) == 3
    assert not SFT.searches(flags) and SWR.searches(flags)


@pytest.mark.parametrize("order", (GOLD_FIRST, SHUFFLED, RANKED))
@pytest.mark.parametrize("kind", DISTRACTORS)
def test_a_row_has_its_gold_and_as_many_distractors_as_asked_for_none_of_which_repeats_gold(order, kind):
    mixing = Mixing(3, [*ELSEWHERE, GOLD, TWIN], order, 5, [kind])
    for example, documents in rows(mixing, n=40):
        assert example == EXAMPLE and documents.count(GOLD) == 1
        assert len(documents) == len(set(documents)) == 6 and TWIN not in documents


def test_distractors_are_of_every_kind_that_is_named_and_their_draw_changes():
    pools = {"retrieved": RETRIEVED, "given": EXAMPLE.hard_negatives, "random": ELSEWHERE}
    found = [documents for _, documents in rows(Mixing(2, ELSEWHERE, SHUFFLED, 3, DISTRACTORS), n=60)]
    seen = {kind for documents in found for kind, pool in pools.items() if set(pool) & set(documents)}
    assert seen == set(pools) and len(set(map(tuple, found))) > 30


def test_mined_passages_were_retrieved_below_the_others_and_do_not_have_the_answer():
    mixing = Mixing(3, (), GOLD_FIRST, 3, ["mined"])
    for _, documents in rows(mixing):
        assert set(documents[1:]) <= set(RETRIEVED[1:]) and SAYS_IT not in documents


@pytest.mark.parametrize("number, total", [(None, 4), (0, 2), (2, 4)])
def test_several_gold_passages_stay_side_by_side_in_their_order(number, total):
    example = replace(EXAMPLE, gold_documents=(GOLD, SECOND))
    places = set()
    for _, documents in rows(Mixing(3, ELSEWHERE, SHUFFLED, number), example):
        places.add(documents.index(GOLD))
        assert documents[documents.index(GOLD) + 1] == SECOND and len(documents) == total
    assert places == set(range(total - 1))


def test_shuffled_gold_is_as_often_in_one_place_as_in_another():
    found = [documents.index(GOLD) for _, documents in rows(Mixing(3, ELSEWHERE, SHUFFLED), n=800)]
    assert all(140 < found.count(place) < 260 for place in range(4))


def test_ranked_gold_stands_where_it_was_retrieved_and_anywhere_if_it_was_not():
    for _, documents in rows(Mixing(3, ELSEWHERE, RANKED)):
        assert documents == [RETRIEVED[0], RETRIEVED[1], GOLD, SAYS_IT]
    missed = [hit for hit in HITS if hit.document != GOLD]
    assert {documents.index(GOLD) for _, documents in rows(Mixing(3, ELSEWHERE, RANKED), hits=missed)} == {0, 1, 2, 3}


@pytest.mark.parametrize("kinds", [["retrieved"], list(DISTRACTORS)])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_row_that_loses_gold_has_nothing_of_the_answer_left_and_says_so_and_is_as_long_as_the_others(method, kinds):
    flags = PassageArguments(SHUFFLED, 3, kinds, 0.5)
    assert method.searches(flags) and flags.searched(3) >= len(HITS)
    example = replace(EXAMPLE, hard_negatives=(TWIN, SAYS_IT, passage("given")))
    lost = 0
    for drawn, documents in rows(method.draws(flags, 3, [*ELSEWHERE, GOLD, SAYS_IT]), example):
        assert len(documents) == 4
        if drawn == example:
            assert GOLD in documents
            continue
        lost += 1
        assert drawn.answer == UNANSWERABLE and not drawn.answerable and abstains(drawn.answer, ())
        assert not any(gives_away(document, example) for document in documents)
        assert drawn.acceptable_answers == (UNANSWERABLE,)
    assert 70 < lost < 130


def test_a_row_without_gold_is_as_long_as_the_others_although_most_passages_have_the_answer():
    yes = [Document(f"Parcels travel by sea, that is {name}.") for name in range(400)]
    example = Example("Do parcels travel by sea?", "Yes.", (yes[0],))
    hits = [Hit(document, 1.0) for document in yes[:30]]
    flags = PassageArguments(SHUFFLED, None, list(DISTRACTORS), 0.5)
    draws = METHODS["raft"].draws(flags, 7, [*yes, *ELSEWHERE])
    lengths = [(drawn.answerable, len(documents)) for drawn, documents in rows(draws, example, hits, n=40)]
    assert set(lengths) == {(True, 8), (False, 8)}


def test_random_distractors_are_random_however_many():
    mixing = Mixing(3, ELSEWHERE, SHUFFLED, 40, ["random"])
    found = [documents for _, documents in rows(mixing, n=30)]
    assert all(len(set(documents)) == 41 and set(documents) <= {GOLD, *ELSEWHERE} for documents in found)
    assert {document for documents in found for document in documents} == {GOLD, *ELSEWHERE}


def test_rows_that_only_measure_the_loss_keep_their_gold_and_are_as_long_as_those_of_training():
    flags = PassageArguments(gold_dropout=0.9)
    for method, length in ((SWR, 4), (SFT, 1)):
        for drawn, documents in rows(method.draws(flags, 3, ELSEWHERE, keep_gold=True), n=30):
            assert drawn == EXAMPLE and documents[0] == GOLD and len(documents) == length


def test_without_distractors_a_question_that_nothing_answers_reads_what_its_method_gives_it():
    unanswerable = replace(EXAMPLE, gold_documents=(), answerable=False)
    hard = list(EXAMPLE.hard_negatives)
    for flags in (PassageArguments(SHUFFLED), PassageArguments(gold_dropout=0.5)):
        for drawn, documents in rows(SFT.draws(flags, 3, ELSEWHERE), unanswerable, n=5):
            assert drawn == unanswerable and documents == hard
    searched = replace(unanswerable, hard_negatives=())
    for _, documents in rows(SFT.draws(PassageArguments(gold_dropout=0.5), 3, ELSEWHERE), searched, n=5):
        assert documents == [hit.document for hit in HITS[:3]]


def test_a_question_that_nothing_answers_is_left_as_it_is_and_so_is_one_without_any_other_passage():
    unanswerable = replace(EXAMPLE, answer="Not known.", answerable=False)
    dropping = Mixing(3, (), gold_dropout=0.99)
    assert all(drawn == unanswerable for drawn, _ in rows(dropping, unanswerable, n=20))
    alone = replace(EXAMPLE, hard_negatives=())
    assert all(row == (alone, [GOLD, SAYS_IT]) for row in rows(dropping, alone, HITS[2:5], n=20))


def test_texts_of_the_same_place_repeat_each_other_in_either_direction():
    part, whole = Document(GOLD.body[:80]), Document(f"{GOLD.body} {SECOND.body} {' '.join(d.body for d in RETRIEVED)}")
    assert repeats(part, [whole]) and repeats(whole, [part]) and repeats(GOLD, [GOLD])
    assert not repeats(GOLD, [SECOND]) and not repeats(GOLD, [])
    assert likeness(part, [SECOND, whole]) == likeness(whole, [part]) > 0.8 and likeness(GOLD, [GOLD]) == 1
    assert likeness(GOLD, [SECOND]) < 0.3 and likeness(GOLD, []) == 0


def test_what_an_example_says_in_other_words_is_its_answer_too():
    example = replace(EXAMPLE, answer="Quite slowly.", gold_answers=("Parcels travel overnight by sea.",))
    assert gives_away(SAYS_IT, example) and not gives_away(SAYS_IT, replace(example, gold_answers=()))
