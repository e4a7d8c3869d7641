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
RNG = draw(0, 0, 0)


def read(context, example, hits) -> list[Document]:
    return list(kept(CONTEXTS[context](example, hits, RNG)))


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
    assert read(context, EXAMPLE, HITS) == expected


def test_gold_cannot_be_cut_and_everything_else_can():
    for context, make in CONTEXTS.items():
        stay = [passage.document for passage in make(EXAMPLE, HITS, RNG) if not passage.droppable]
        assert stay == ([GOLD] if context.startswith("gold") else [])


def test_distractors_are_hard_negatives_first_and_as_many_in_all_as_were_retrieved():
    negative = Document("A hard negative.")
    example = replace(EXAMPLE, hard_negatives=(negative, GOLD))
    for k, expected in ((4, [GOLD, negative, OTHERS[0], OTHERS[1]]), (2, [GOLD, negative]), (1, [GOLD]), (0, [GOLD])):
        hits = [Hit(document, 1.0) for document in (OTHERS[0], GOLD, OTHERS[1], OTHERS[2])][:k]
        assert read("gold_and_distractors", example, hits) == expected
    two = replace(EXAMPLE, gold_documents=(GOLD, OTHERS[3]))
    assert read("gold_and_distractors", two, HITS[:1]) == [GOLD, OTHERS[3]]  # gold is never cut


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
