"""Which passages a prompt holds: gold only, gold and retrieved, or retrieved only."""

from __future__ import annotations

import random

import pytest

from groundtune.passages import augmented_passages, gold_passages, retrieved_passages
from groundtune.schema import Document, Example, Hit


def document(n: int, spelling: int = 0) -> Document:
    """The same text in several spellings: page content, padded page content, formatted content."""
    return [Document(f"text {n}"), Document(f" text {n}\n"), Document("other", f"text {n} ")][spelling]


def cases(n: int = 300):
    """(example, hits, k): few texts, so that gold and retrieved ones meet often, in any spelling."""
    rng = random.Random(0)
    for _ in range(n):
        texts = [document(rng.randrange(6), rng.randrange(3)) for _ in range(12)]
        gold = tuple(texts[: rng.randint(1, 4)])
        hits = [Hit(d, 1 - i / 10) for i, d in enumerate(texts[4 : 4 + rng.randint(0, 8)])]
        yield Example("Why?", "So.", gold, hard_negatives=(document(99),)), hits, rng.randint(0, 5)


def texts(documents) -> list[str]:
    return [d.text for d in documents]


def in_order_without_repeats(documents) -> list[str]:
    return list(dict.fromkeys(texts(documents)))


def test_sft_holds_the_gold_passages_and_nothing_else():
    for example, hits, k in cases():
        passages = gold_passages(example, hits, k)
        assert passages.optional == ()
        assert texts(passages.required) == in_order_without_repeats(example.gold_documents)


def test_swr_holds_at_most_k_and_one_passages_each_text_once_gold_first():
    for example, hits, k in cases():
        passages = augmented_passages(example, hits, k)
        together = texts([*passages.required, *passages.optional])
        assert 1 <= len(together) <= k + 1
        assert len(set(together)) == len(together)
        gold = in_order_without_repeats(example.gold_documents)
        assert texts(passages.required) == gold[: k + 1]
        assert not set(texts(passages.optional)) & set(gold)


def test_swr_adds_the_best_retrieved_passages_in_the_order_of_their_rank():
    for example, hits, k in cases():
        passages = augmented_passages(example, hits, k)
        gold = set(texts(example.gold_documents))
        found = [text for text in in_order_without_repeats(hit.document for hit in hits[:k]) if text not in gold]
        assert texts(passages.optional) == found[: max(0, k + 1 - len(passages.required))]


def test_a_gold_passage_that_was_retrieved_makes_no_room_for_a_hit_beyond_k():
    gold, *others = [document(n) for n in range(5)]
    hits = [Hit(d, 0.0) for d in (others[0], gold, *others[1:])]
    passages = augmented_passages(Example("Why?", "So.", (gold,)), hits, 3)
    assert texts([*passages.required, *passages.optional]) == ["text 0", "text 1", "text 2"]


def test_end_to_end_passages_are_the_retrieved_ones_and_only_those():
    for _, hits, _ in cases():
        passages = retrieved_passages(hits)
        assert passages.required == ()
        assert texts(passages.optional) == in_order_without_repeats(hit.document for hit in hits)


@pytest.mark.parametrize("policy", [gold_passages, augmented_passages])
def test_hard_negatives_are_not_trained_on(policy):
    for example, hits, k in cases(30):
        passages = policy(example, hits, k)
        assert "text 99" not in texts([*passages.required, *passages.optional])
