"""End to end: gold never reaches a prompt, scores match the predictions, and a repetition changes nothing."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import INSTRUCTION, FakeEmbedder, tiny_documents, tiny_examples

from groundtune.errors import DataError
from groundtune.evaluation.evaluator import EndToEndEvaluator
from groundtune.evaluation.metrics import generation_scores
from groundtune.evaluation.predictions import write_predictions
from groundtune.model.attention import use_packed_attention
from groundtune.retrieval.retrievers import DenseRetriever, retrieve
from groundtune.retrieval.stores.local import Index
from groundtune.schema import Document

TIMES = ("latency/retrieval_s", "latency/generation_s")


def hits_for(examples, k: int = 3):
    embedder, documents = FakeEmbedder(), tiny_documents()
    index = Index(documents, embedder.embed_documents([d.text for d in documents]))
    return retrieve(DenseRetriever(embedder, index), examples, k, "user")


def evaluator(family, examples=None, hits=None, **options) -> EndToEndEvaluator:
    examples = examples or tiny_examples()
    settings = {
        "name": "eval", "examples": examples, "hits": hits or hits_for(examples), "prompt": family.prompt(),
        "pad_id": family.tokenizer.pad_token_id, "max_length": 600, "max_new_tokens": 12, "batch_size": 4,
        "retrieval_seconds": 0.6, "bootstrap_samples": 200,
    }  # fmt: skip
    return EndToEndEvaluator(**settings | options)


def without_times(evaluation) -> str:
    rows = [p.to_dict() for p in evaluation.predictions]
    for row in rows:
        row["scores"] = {name: value for name, value in row["scores"].items() if name not in TIMES}
    metrics = {name: i.to_dict() for name, i in evaluation.metrics.items() if name not in TIMES}
    return json.dumps([rows, metrics], ensure_ascii=False)


def test_gold_passages_and_answers_never_enter_a_prompt(family):
    secret = Document("SESAME")
    examples = [
        replace(e, gold_documents=(secret,), answer="SESAME", hard_negatives=(secret,)) for e in tiny_examples()
    ]
    made = evaluator(family, examples, hits_for(tiny_examples()))
    assert [q.prompt_ids for q in made.questions] == [q.prompt_ids for q in evaluator(family).questions]
    prompts = [family.tokenizer.decode(question.prompt_ids) for question in made.questions]
    assert not any("SESAME" in prompt for prompt in prompts)
    for prompt, example, hits in zip(
        prompts, examples, made.hits, strict=True
    ):  # but what was retrieved does, in order
        parts = [INSTRUCTION, *(hit.document.text for hit in hits), *(t.message for t in example.chat_history)]
        places = [prompt.index(part) for part in [*parts, example.question]]
        assert places == sorted(places)


def test_scores_are_those_of_the_predictions(family):
    examples = tiny_examples()
    made = evaluator(family)
    evaluation = made(family.model())
    assert evaluation.n == len(examples) == len(evaluation.predictions)
    for example, prediction, hits in zip(examples, evaluation.predictions, made.hits, strict=True):
        assert prediction.example is made.examples[examples.index(example)] and prediction.hits == tuple(hits)
        for name, value in generation_scores(prediction.answer, example.answer).items():
            assert prediction.scores[name] == value
        rank = [hit.document.id for hit in hits].index(example.gold_documents[0].id) + 1
        assert prediction.scores["retrieval/mrr"] == 1 / rank
        assert prediction.scores["retrieval/recall@3"] == 1 and prediction.scores["retrieval/recall@1"] == (rank == 1)
        assert prediction.scores["retrieval/ndcg@3"] == pytest.approx(1 / np.log2(1 + rank))
        assert prediction.scores["generation/unfinished"] == (not prediction.finished)
        assert prediction.scores["generation/new_tokens"] == prediction.new_tokens <= 12
        assert prediction.scores["latency/retrieval_s"] == pytest.approx(0.1)
    assert evaluation.metrics.keys() == evaluation.predictions[0].scores.keys()
    for name, interval in evaluation.metrics.items():
        values = evaluation.values(name)
        assert values == [p.scores[name] for p in evaluation.predictions]
        assert interval.value == pytest.approx(np.mean(values))
        assert interval.low <= interval.value <= interval.high


def test_perfect_answers_score_one_and_empty_ones_zero(family, monkeypatch):
    from groundtune.evaluation import evaluator as evaluation
    from groundtune.model.generation import Generated

    made = evaluator(family)
    gold = {tuple(q.prompt_ids): made.prompt.answer_ids(e.answer) for q, e in zip(made.questions, made.examples)}

    def speak(answer):
        def generate(model, prompts, **options):
            return [Generated(answer(prompt), True) for prompt in prompts]

        monkeypatch.setattr(evaluation, "answer_all", generate)
        return made(None).metrics

    scores = ("exact_match", "f1", "precision", "recall", "rouge1", "rougeL", "bleu")
    perfect = speak(lambda prompt: gold[tuple(prompt)])
    assert [perfect[f"generation/{name}"].value for name in scores] == [1.0] * len(scores)
    silent = speak(lambda prompt: [made.prompt.stop_ids[0]])
    assert [silent[f"generation/{name}"].value for name in scores] == [0.0] * len(scores)
    assert silent["generation/new_tokens"].value == 1 and silent["generation/unfinished"].value == 0


def test_a_repetition_finds_exactly_the_same(family):
    made, model = evaluator(family), family.model()
    assert without_times(made(model)) == without_times(made(model)) == without_times(evaluator(family)(model))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_predictions_do_not_depend_on_the_batch_size(family, batch_size):
    model = family.model()
    assert without_times(evaluator(family, batch_size=batch_size)(model)) == without_times(evaluator(family)(model))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_file_of_predictions_is_byte_for_byte_the_same_again_and_with_batches_of_1_4_and_8(
    family, tmp_path, packed
):
    """In float32 on a CPU, except for the times."""
    model = family.model()
    assert not packed or use_packed_attention(model) is None
    examples = [replace(e, source=f"eval.jsonl:{i}") for i, e in enumerate(tiny_examples() * 3)]  # more than a batch
    files = []
    for batch_size in (1, 4, 8, 8):
        made = evaluator(family, examples, batch_size=batch_size)
        write_predictions(path := tmp_path / f"{len(files)}.jsonl", made(model))
        files.append(re.sub(rb'("latency/[a-z_]+": )[0-9.e-]+', rb"\1_", path.read_bytes()))
    assert files[0].count(b"_,") == 18 and len(files[0].splitlines()) == 18
    assert len(set(files)) == 1


def test_the_model_that_is_called_with_decides(family):
    import torch

    made, model = evaluator(family), family.model()
    first = made(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert [p.answer for p in made(model).predictions] != [p.answer for p in first.predictions]
    assert [p.prompt_tokens for p in made(model).predictions] == [p.prompt_tokens for p in first.predictions]


def test_a_prompt_leaves_room_for_the_longest_answer_and_the_loss_of_passages_is_said(family, caplog):
    longest = max(len(q.prompt_ids) for q in evaluator(family).questions)
    with caplog.at_level(logging.WARNING, "groundtune"):
        fits = evaluator(family, max_length=longest + 12)
        assert not caplog.records and all(len(q.read) == 3 for q in fits.questions)
        short = evaluator(family, max_length=longest + 11)
    cut = [q for q in short.questions if len(q.read) < 3]
    assert cut and all(len(q.prompt_ids) + 12 <= longest + 11 for q in short.questions)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"eval questions: {len(cut)} of 6 prompts left out ")
    read = [p.passages_read for p in short(family.model()).predictions]
    assert read == [len(q.read) for q in short.questions]


def test_questions_that_leave_no_room_for_an_answer_are_all_named(family):
    with pytest.raises(DataError) as caught:
        evaluator(family, max_length=20)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [e.source for e in tiny_examples()]
