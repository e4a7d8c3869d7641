"""The passages in each context: gold passages only if the context is named after them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.prompts.policies import CONTEXTS, draw, kept
from groundtune.schema import Document, Hit

EXAMPLE = tiny_examples()[0]
GOLD, *OTHERS = tiny_documents()
HITS = tuple(Hit(document, 1.0) for document in (OTHERS[0], GOLD, OTHERS[1], OTHERS[0]))


def passages(context, example, hits):
    return CONTEXTS[context](example, hits, draw(0, 0, example.question))


def read(context, example, hits) -> list[Document]:
    return list(kept(passages(context, example, hits)))


def texts(documents) -> list[str]:
    return sorted(document.text for document in documents)


@pytest.mark.parametrize(
    "context, expected",
    [
        ("closed_book", []),
        ("retrieved", [OTHERS[0], GOLD, OTHERS[1]]),
        ("gold", [GOLD]),
        ("gold_and_distractors", [GOLD, OTHERS[0], OTHERS[1]]),
    ],
)
def test_a_context_is_what_its_name_says(context, expected):
    found = read(context, EXAMPLE, HITS)
    assert found == expected or (context == "gold_and_distractors" and texts(found) == texts(expected))


def test_gold_cannot_be_cut_and_everything_else_can():
    for context in CONTEXTS:
        stay = [passage.document for passage in passages(context, EXAMPLE, HITS) if not passage.droppable]
        assert stay == ([GOLD] if context.startswith("gold") else [])


def test_distractors_are_hard_negatives_first_and_as_many_in_all_as_were_retrieved():
    negative = Document("A hard negative.")
    example = replace(EXAMPLE, hard_negatives=(negative, GOLD))
    for k, expected in ((4, [GOLD, negative, OTHERS[0], OTHERS[1]]), (2, [GOLD, negative]), (1, [GOLD]), (0, [GOLD])):
        hits = [Hit(document, 1.0) for document in (OTHERS[0], GOLD, OTHERS[1], OTHERS[2])][:k]
        assert texts(read("gold_and_distractors", example, hits)) == texts(expected)
    two = replace(EXAMPLE, gold_documents=(GOLD, OTHERS[3]))
    assert read("gold_and_distractors", two, HITS[:1]) == [GOLD, OTHERS[3]]  # gold is never cut


def test_gold_among_distractors_stands_anywhere_as_one_block_and_in_the_same_place_for_every_model():
    places = set()
    for number in range(40):
        example = replace(EXAMPLE, question=f"Question {number}?", gold_documents=(GOLD, OTHERS[3]))
        found = read("gold_and_distractors", example, [Hit(document, 1.0) for document in [*OTHERS[:3], GOLD]])
        assert found == read("gold_and_distractors", example, [Hit(document, 1.0) for document in [*OTHERS[:3], GOLD]])
        places.add(found.index(GOLD))
        assert found[found.index(GOLD) + 1] == OTHERS[3]
    assert places == {0, 1, 2}


def test_a_passage_that_repeats_gold_is_no_distractor():
    twin = Document(f"{GOLD.body} And so on.")
    found = read("gold_and_distractors", replace(EXAMPLE, hard_negatives=(twin,)), HITS)
    assert twin not in found and len(found) == 3


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_evaluator_reads_its_context_and_says_so(family, context):
    from test_evaluation import evaluator

    made = evaluator(family, context=context)
    prompts = [family.tokenizer.decode(question.prompt_ids) for question in made.questions]
    evaluation = made(family.model())
    for prompt, prediction in zip(prompts, evaluation.predictions, strict=True):
        expected = read(context, prediction.example, prediction.hits)
        assert list(prediction.read) == expected and prediction.passages_read == len(expected)
        assert [d for d in tiny_documents() if d.text in prompt] == [d for d in tiny_documents() if d in expected]
        assert prediction.context == context
        assert ("retrieval/mrr" in prediction.scores) == (context == "retrieved")
        assert ("grounded/tokens" in prediction.scores) == (context != "closed_book")
