"""Training teaches exactly the gold answer with its end token: anything else in a batch or row is an error."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_examples
from test_examples import cases

from groundtune.errors import ModelError
from groundtune.model.limits import check_positions, check_vocabulary
from groundtune.prompts.rows import Row, encode_rows
from groundtune.training.batching import IGNORED, collate
from groundtune.training.labels import WrongLabels, check_labels, what_else_is_learnt


def rows_of(family, style: str = "chat template") -> tuple[list, list[Row]]:
    examples, passages = cases(60)
    return examples, encode_rows(examples, passages, family.prompt(style), 10_000)


@pytest.mark.parametrize("packed", [{}, {"packed": True}, {"packed": True, "share_prefix": True}], ids=str)
def test_batches_of_every_kind_have_the_right_labels(family, packed):
    _, rows = rows_of(family)
    check_labels(collate(rows, family.tokenizer.pad_token_id, **packed), rows)


def end_unlearnt(labels, rows):
    labels[labels == rows[0].answer_ids[-1]] = IGNORED


def prompt_learnt(labels, rows):
    labels[0, 0] = rows[0].prompt_ids[0]


def one_exchanged(labels, rows):
    labels[0, len(rows[0].prompt_ids)] += 1


def nothing_learnt(labels, rows):
    labels[:] = IGNORED


@pytest.mark.parametrize("damage", [end_unlearnt, prompt_learnt, one_exchanged, nothing_learnt])
def test_labels_that_are_not_the_answers_are_an_error_that_names_the_rows(families, damage):
    family = families["llama"]
    _, rows = rows_of(family)
    batch = collate(rows[:3], family.tokenizer.pad_token_id)
    damage(batch["labels"], rows)
    with pytest.raises(WrongLabels, match="the rows are train.jsonl:1, train.jsonl:2, train.jsonl:3; correct"):
        check_labels(batch, rows[:3])


def test_a_row_teaches_its_answer_whatever_characters_it_holds(family, style):
    examples, rows = rows_of(family, style)
    spelt = [e.answer for e in examples] + [f"a{token}b" for token in family.tokenizer.all_special_tokens]
    spelt += ["Ends with </s>", "###", "x ###", "  two  spaces\n\nand lines "]
    prompt = family.prompt(style)
    for answer in spelt:
        row = Row([], prompt.answer_ids(answer), "")
        assert what_else_is_learnt(row, answer, prompt) is None
    assert len(rows) == 60


def test_a_row_that_teaches_more_or_less_than_its_answer_says_what(family, style):
    prompt = family.prompt(style)
    answer = tiny_examples()[2].answer
    ids = prompt.answer_ids(answer)
    for wrong, learnt in (
        (ids[:-3], None),
        (prompt.answer_ids("<think>\n\n</think>\n\n" + answer), "<think>"),
        (prompt.answer_ids("At nine."), "At nine."),
        ([], ""),
    ):
        found = what_else_is_learnt(Row([5], wrong, ""), answer, prompt)
        assert found is not None and (learnt is None or found.startswith(learnt))


def test_a_tokenizer_that_writes_another_form_of_a_letter_is_no_fault(families, monkeypatch):
    """Some lower-case or normalise: the model learns the tokenizer's version of the answer."""
    from tokenizers import normalizers

    family = families["llama"]
    monkeypatch.setattr(family.tokenizer.backend_tokenizer, "normalizer", normalizers.NFKC())
    prompt, answer = family.prompt(), "Room \u2167 \ufb01le"
    row = Row([5], prompt.answer_ids(answer), "")
    assert "\u2167" not in prompt.answer_text(row.answer_ids)
    assert what_else_is_learnt(row, answer, prompt) is None


def test_ids_that_the_model_has_no_embedding_for_are_an_error_before_training(families):
    family = families["qwen"]
    _, rows = rows_of(family)
    model = family.model()
    texts = [row.prompt_ids + row.answer_ids for row in rows]
    check_vocabulary(texts, model, "me/model")
    with pytest.raises(
        ModelError, match=r"me/model: the tokenizer produces ids up to 700, but the model has only \d+ embeddings"
    ):
        check_vocabulary([*texts, [700, 2]], model, "me/model")


def test_rows_longer_than_the_model_s_positions_are_an_error_or_are_said(families, caplog):
    model = families["llama"].model()
    known = model.config.max_position_embeddings
    assert check_positions(known, model, "me/model") == []
    (note,) = check_positions(known + 1, model, "me/model")
    assert f"{known + 1:,} tokens, but the model was made for {known:,}" in note and note in caplog.text
    model.config.rope_parameters = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": known,
    }  # fmt: skip
    assert check_positions(4 * known, model, "me/model") == []
    model.config.rope_parameters = None  # as in a model without positions
    assert check_positions(known + 1, model, "me/model") == [note]
    model.model.wpe = torch.nn.Embedding(known, 4)
    with pytest.raises(ModelError, match=f"but the model has only {known:,} positions; lower --max_seq_length"):
        check_positions(known + 1, model, "me/model")


def test_positions_that_change_with_the_longest_row_of_a_batch_are_said(families):
    model = families["llama"].model()
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    assert check_positions(32, model, "me/model") == []
    (note,) = check_positions(33, model, "me/model")
    assert "beyond 32 the rotary positions (longrope) change for all rows of a batch" in note
    by_layer = {"sliding_attention": {"rope_type": "default"}, "full_attention": model.config.rope_parameters}
    model.config.rope_parameters = by_layer
    assert check_positions(33, model, "me/model") == [note]
