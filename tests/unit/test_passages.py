"""The passages in a prompt: gold only, gold and retrieved, or retrieved only."""

from __future__ import annotations

import random

import pytest

from groundtune.prompts.policies import (
    Passage,
    augmented_passages,
    draw,
    gold_passages,
    kept,
    reads_hits,
    retrieved_passages,
)
from groundtune.schema import Document, Example, Hit


def document(n: int, spelling: int = 0) -> Document:
    """The same text in several spellings: page content, padded page content, formatted content."""
    return [Document(f"text {n}"), Document(f" text {n}\n"), Document("other", f"text {n} ")][spelling]


def cases(n: int = 300):
    """(example, hits, k) with few distinct texts, so that gold and retrieved ones often coincide, in any spelling."""
    rng = random.Random(0)
    for _ in range(n):
        texts = [document(rng.randrange(6), rng.randrange(3)) for _ in range(12)]
        gold = tuple(texts[: rng.randint(1, 4)])
        hits = [Hit(d, 1 - i / 10) for i, d in enumerate(texts[4 : 4 + rng.randint(0, 8)])]
        yield Example("Why?", "So.", gold, hard_negatives=(document(99),)), hits, rng.randint(0, 5)


def texts(documents) -> list[str]:
    return [d.text for d in documents]


def parts(passages) -> tuple[list[str], list[str]]:
    """Texts of the passages that must stay, and of those that may be dropped."""
    stay, go = ([p.document for p in passages if p.droppable is droppable] for droppable in (False, True))
    assert [*stay, *go] == list(kept(passages))
    return texts(stay), texts(go)


def in_order_without_repeats(documents) -> list[str]:
    return list(dict.fromkeys(texts(documents)))


def test_sft_holds_the_gold_passages_and_nothing_else():
    for example, hits, _ in cases():
        assert parts(gold_passages(example, hits)) == (in_order_without_repeats(example.gold_documents), [])


def test_swr_holds_at_most_k_and_one_passages_each_text_once_gold_first():
    for example, hits, k in cases():
        stay, go = parts(augmented_passages(example, hits[:k]))
        assert 1 <= len([*stay, *go]) <= k + 1
        assert len({*stay, *go}) == len([*stay, *go])
        gold = in_order_without_repeats(example.gold_documents)
        assert stay == gold[: len(hits[:k]) + 1]
        assert not set(go) & set(gold)


def test_swr_adds_the_best_retrieved_passages_in_the_order_of_their_rank():
    for example, hits, k in cases():
        stay, go = parts(augmented_passages(example, hits[:k]))
        gold = set(texts(example.gold_documents))
        found = [text for text in in_order_without_repeats(hit.document for hit in hits[:k]) if text not in gold]
        assert go == found[: len(hits[:k]) + 1 - len(stay)]


def test_a_gold_passage_that_was_retrieved_makes_no_room_for_a_hit_beyond_k():
    gold, *others = [document(n) for n in range(5)]
    hits = [Hit(d, 0.0) for d in (others[0], gold, *others[1:])]
    passages = augmented_passages(Example("Why?", "So.", (gold,)), hits[:3])
    assert texts(kept(passages)) == ["text 0", "text 1", "text 2"]


def test_end_to_end_passages_are_the_retrieved_ones_and_only_those():
    for example, hits, _ in cases():
        assert parts(retrieved_passages(example, hits)) == ([], in_order_without_repeats(h.document for h in hits))


def test_a_question_that_no_passage_answers_reads_what_a_search_would_give():
    negatives, hits = (document(7), document(8, 1)), [Hit(document(n), 1.0) for n in (1, 2, 1)]
    given, none = (Example("Why?", "Unknown.", (), hard_negatives=n, answerable=False) for n in (negatives, ()))
    assert parts(gold_passages(given, hits)) == ([], ["text 7", "text 8"])
    assert parts(gold_passages(none, hits)) == ([], ["text 1", "text 2"])
    assert parts(augmented_passages(given, hits)) == parts(augmented_passages(none, hits)) == ([], ["text 1", "text 2"])
    assert parts(augmented_passages(given, [])) == ([], ["text 7", "text 8"])
    assert reads_hits(none) and not reads_hits(given)


@pytest.mark.parametrize("policy", [gold_passages, augmented_passages])
def test_hard_negatives_are_not_trained_on(policy):
    for example, hits, k in cases(30):
        assert "text 99" not in texts(kept(policy(example, hits[:k])))


def test_what_is_dropped_is_the_last_that_may_be_wherever_it_stands():
    a, b, c, d = map(document, range(4))
    passages = (Passage(a, droppable=True), Passage(b), Passage(c, droppable=True), Passage(d))
    assert [kept(passages, n) for n in range(3)] == [(a, b, c, d), (a, b, d), (b, d)]


def test_a_draw_depends_on_seed_epoch_and_example_and_on_nothing_else():
    first = {(s, e, i): draw(s, e, i).random() for s in range(3) for e in range(3) for i in range(3)}
    assert len(set(first.values())) == len(first)
    assert all(draw(*key).random() == value for key, value in first.items())
