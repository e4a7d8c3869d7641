"""The loss is plain cross-entropy on answer tokens, whatever the shortcuts and however a step is split."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import pytest
import torch
from conftest import make_family, random_documents, random_history, random_text

from groundtune.arguments import ModelArguments, PassageArguments
from groundtune.methods import METHODS
from groundtune.model.loading import add_lora
from groundtune.prompts.policies import required_first
from groundtune.prompts.rows import EpochRows, Row, encode_rows
from groundtune.schema import Document, Example
from groundtune.training.arguments import QATrainingArguments
from groundtune.training.batching import IGNORED, EpochOrder, collate, prefix_order
from groundtune.training.loss import answer_loss
from groundtune.training.safe_trainer import NonFiniteLoss
from groundtune.training.trainer import QATrainer


def rows_for(family, n: int = 4, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    examples = [Example(random_text(rng), random_text(rng, 5), (), random_history(rng)) for _ in range(n)]
    passages = [required_first(random_documents(rng, 2)) for _ in examples]
    rows = encode_rows(examples, passages, family.prompt(), 10_000)
    assert len({len(row) for row in rows}) > 1  # so that a batch is padded
    return rows


def plain_loss(model, batch) -> torch.Tensor:
    """The loss as transformers computes it: all logits, labels shifted by the model."""
    return model(**batch).loss


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_loss_and_gradients_are_those_of_the_plain_computation(family):
    model, batch = family.model(), collate(rows_for(family), family.tokenizer.pad_token_id)
    assert (batch["attention_mask"] == 0).any()
    plain = plain_loss(model, batch)
    plain.backward()
    expected = gradients(model)
    loss = answer_loss(model, batch)
    loss.backward()
    found = gradients(model)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6 * max(1, plain.item()))
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_of_a_row_does_not_depend_on_its_batch(family):
    """Padding changes nothing, even if it is the end token."""
    model, rows = family.model(), rows_for(family, 5)
    pad = family.tokenizer.pad_token_id
    alone = sum(answer_loss(model, collate([row], pad), answer_tokens=1).item() for row in rows)
    assert answer_loss(model, collate(rows, pad), answer_tokens=1).item() == pytest.approx(alone, rel=1e-5)
    other_padding = collate(rows, 5 if pad != 5 else 6)
    assert answer_loss(model, other_padding, answer_tokens=1).item() == pytest.approx(alone, rel=1e-5)


def test_the_head_reads_answer_positions_only(family):
    model, rows = family.model(), rows_for(family)
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    answer_loss(model, collate(rows, family.tokenizer.pad_token_id))
    hook.remove()
    assert seen == [(sum(len(row.answer_ids) for row in rows), len(family.tokenizer))]


def test_the_model_is_left_as_it_was(family):
    """The hook is removed even if the forward pass fails, because generation needs all logits."""
    model, batch = family.model(), collate(rows_for(family), family.tokenizer.pad_token_id)
    before = model(batch["input_ids"]).logits
    answer_loss(model, batch)
    with pytest.raises(RuntimeError):
        answer_loss(model, {**batch, "attention_mask": batch["attention_mask"][:, :-3]})
    torch.testing.assert_close(model(batch["input_ids"]).logits, before)


def test_the_first_position_is_never_learnt(families):
    """Nothing predicts it; a row without a prompt loses only that label."""
    family = families["llama"]
    model, batch = family.model(), collate([Row([], [5, 6, 2], "")], 0)
    loss = answer_loss(model, batch)
    logits = model(torch.tensor([[5, 6, 2]])).logits[0, :2]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([6, 2])).item(), abs=1e-5
    )


def test_softcapped_logits_are_capped_here_too(tmp_path):
    capped = make_family("gemma", tmp_path, final_logit_softcapping=2.0)
    model, batch = capped.model(), collate(rows_for(capped), capped.tokenizer.pad_token_id)
    assert model(**batch).logits.abs().max() <= 2
    assert answer_loss(model, batch).item() == pytest.approx(plain_loss(model, batch).item(), abs=1e-5)


def test_with_lora_the_gradients_of_the_adapter_are_those_of_the_plain_computation(family):
    model = add_lora(family.model(), ModelArguments(use_peft=True, lora_r=2)).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # or only B would have gradients
    batch = collate(rows_for(family), family.tokenizer.pad_token_id)
    plain_loss(model, batch).backward()
    expected = gradients(model)
    answer_loss(model, batch).backward()
    found = gradients(model)
    assert found.keys() == expected.keys() and all("lora_" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# Through the trainer


def train(
    family, rows, folder, kind=QATrainer, method=METHODS["sft"], model=None, seed: int = 0, **options
) -> QATrainer:
    """SGD on the rows without warm-up, decay or clipping, so that weights move only by the gradients."""
    arguments = QATrainingArguments(
        output_dir=str(folder),
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0,
        eval_strategy="no",
        eval_on_start=False,
        bf16=False,
        disable_tqdm=True,
        seed=seed,
        logging_steps=1,
        **options,
    )
    trainer = kind(
        model=model or family.model(),
        args=arguments,
        train_dataset=rows,
        method=method,
        evaluator=None,
        pad_id=family.tokenizer.pad_token_id,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("epochs", [1, 2])
def test_accumulation_moves_the_weights_as_one_large_batch_does(families, tmp_path, epochs):
    """11 rows in batches of 8 are steps of 8 and 3; in micro-batches of 2 the last window is 2 and 1."""
    family = families["llama"]
    rows = rows_for(family, 11)
    assert len({len(row.answer_ids) for row in rows}) > 3  # so that a mean of means would be another loss

    class InOrder(QATrainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = train(
            family, rows, tmp_path, InOrder, num_train_epochs=epochs, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        results.append((trainer.state.global_step, losses, dict(trainer.model.named_parameters())))
    (steps, losses, whole), (cut_steps, cut_losses, cut) = results
    assert steps == cut_steps == 2 * epochs
    assert cut_losses == pytest.approx(losses, abs=1e-3)
    before = dict(family.model().named_parameters())
    for name, parameter in whole.items():
        assert not torch.equal(parameter, before[name]), name
        torch.testing.assert_close(cut[name], parameter, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("peft", [False, True], ids=["all weights", "LoRA"])
def test_gradient_checkpointing_moves_the_weights_as_without(families, tmp_path, peft):
    """With frozen embeddings, some ways of checkpointing train nothing and say so in a warning only."""
    family, moved = families["llama"], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = family.model()
        model = add_lora(model, ModelArguments(use_peft=True, lora_r=2)) if peft else model
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        trainer = train(
            family, rows_for(family, 6), tmp_path, model=model, per_device_train_batch_size=3, num_train_epochs=2,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        after = dict(trainer.model.named_parameters())
        assert not any(torch.equal(before[name], after[name]) for name in before)
        moved.append({name: after[name].detach() for name in before})
    for name, parameter in moved[0].items():
        torch.testing.assert_close(moved[1][name], parameter, rtol=1e-5, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(families, tmp_path):
    family = families["llama"]
    model = family.model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    before = model.model.embed_tokens.weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match="step 1: the loss is nan, stopped before the weights changed"):
        train(family, rows_for(family), tmp_path, model=model)
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_the_logged_loss_is_the_mean_over_the_step_s_answer_tokens(families, tmp_path):
    family = families["llama"]
    rows = rows_for(family, 6)
    trainer = train(family, rows, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    (logged,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    expected = plain_loss(family.model(), collate(rows, family.tokenizer.pad_token_id)).item()
    assert logged == pytest.approx(expected, abs=1e-3)


def test_the_order_of_training_is_the_sampler_s_and_changes_with_the_epoch(families, tmp_path):
    family = families["llama"]
    rows, seen = rows_for(family, 12), []

    def collate_and_note(batch, pad_id, **how):
        seen.append([rows.index(row) for row in batch])
        return collate(batch, pad_id, **how)

    method = replace(METHODS["sft"], collate=collate_and_note)
    train(family, rows, tmp_path, method=method, seed=3, num_train_epochs=2, per_device_train_batch_size=2)
    sampler = EpochOrder(rows[:12], prefix_order(2, apart=True), seed=3)
    expected = list(sampler)
    sampler.set_epoch(1)
    assert [i for batch in seen for i in batch] == [*expected, *sampler]
    assert expected != list(sampler)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_reads_its_own_rows_also_in_workers_that_would_stay(families, tmp_path, workers):
    family, seen = families["llama"], []

    def drawn(example, hits, rng):
        return required_first([Document(str(rng.random()))])

    def encoded(examples, passages, prompt, max_length):
        (of_row,) = zip(*passages, strict=True)
        return [Row([int(1000 * float(one.document.text)) % 90 + 5] * 3, [7], "") for one in of_row]

    def loss(model, batch, **options):
        seen.extend(batch["input_ids"][batch["labels"].roll(-1) == 7].tolist())
        return answer_loss(model, batch, **options)

    examples = [Example("Why?", "So.", ())] * 6
    rows = EpochRows(encoded, drawn, examples, [()] * 6, None, 100, seed=0)
    method = replace(METHODS["sft"], loss=loss)
    flags = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    train(family, rows, tmp_path, method=method, num_train_epochs=3, per_device_train_batch_size=2, **flags)
    expected = []
    for epoch in range(3):
        rows.set_epoch(epoch)
        expected.append(sorted(row.prompt_ids[0] for row in rows))
    assert [sorted(seen[6 * epoch : 6 * epoch + 6]) for epoch in range(3)] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_process_that_loads_data_gets_the_rows_of_any_method_and_how_to_batch_them(families, tmp_path, name):
    family, method = families["llama"], METHODS[name]
    rows, gold = rows_for(family, 2), Document("gold")
    draws = method.draws(PassageArguments(**method.defaults), 1, [gold])
    made = EpochRows(lambda *given: rows, method.policy, [Example("Q", "A", (gold,))], [()], None, 9, 0, draws)
    loader = train(family, made, tmp_path, method=method).get_train_dataloader()
    dataset, collate_rows = pickle.loads(pickle.dumps([loader.dataset, loader.collate_fn]))  # noqa: S301  our own
    assert list(dataset) == list(made) == rows and torch.equal(
        collate_rows(rows)["labels"], loader.collate_fn(rows)["labels"]
    )


def test_the_loss_with_gold_is_the_mean_over_all_answer_tokens_of_the_file(families, tmp_path):
    """It is not the mean over batches, which differ in their numbers of answer tokens."""
    family = families["llama"]
    rows = rows_for(family, 7)
    trainer = train(family, rows, tmp_path, per_device_eval_batch_size=3, max_steps=1)
    metrics = trainer.evaluate(rows)
    with torch.no_grad():
        losses = []
        for row in rows:
            logits = trainer.model(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0]
            at = slice(len(row.prompt_ids) - 1, len(row) - 1)
            losses += torch.nn.functional.cross_entropy(logits[at], torch.tensor(row.answer_ids), reduction="none")
    assert metrics["eval_loss_with_gold_passage"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    assert IGNORED == -100  # what Trainer counts the answer tokens of a step by
