"""SafeTrainer knows nothing about questions: with it, any Trainer resumes, stops, and reports what exceeds memory."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FACTS
from test_safe_trainer import At, Killed, kill, losses, same, terminate, weights
from test_structure import PACKAGE, imported, inside
from transformers import TrainingArguments

from groundtune.runs.checkpoints import newest_checkpoint, read_checkpoint
from groundtune.system.out_of_memory import OutOfMemory
from groundtune.system.signals import Stopped, watched
from groundtune.training.safe_trainer import NonFiniteLoss, SafeTrainer

PAIRS = [(question, passage) for passage, question, _ in FACTS.values()]
PAIRS += [(answer, passage) for passage, _, answer in FACTS.values()][:4]  # ten in batches of four: a third of two
ARGUMENTS = {
    "max_steps": 7, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True,
    "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "report_to": "none",
    "load_best_model_at_end": True, "use_cpu": True, "dataloader_pin_memory": False,
}  # fmt: skip


@functools.cache
def retriever_trainer() -> type:
    """A trainer as for a retriever: sentence-transformers' trainer, with in-batch negatives."""
    pytest.importorskip("datasets", reason="sentence-transformers trains with it: the extra `retriever`")
    from sentence_transformers import SentenceTransformerTrainer

    class RetrieverTrainer(SafeTrainer, SentenceTransformerTrainer):
        pass

    return RetrieverTrainer


class Scaled(torch.nn.Module):
    """A loss with its own trained weight, which is not part of the model."""

    def __init__(self, model: Any):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        super().__init__()
        self.ranking, self.scale = MultipleNegativesRankingLoss(model), torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, features: Any, labels: Any) -> torch.Tensor:
        return self.ranking(features, labels) * self.scale.exp()


def retriever(embedder: Path, folder: Path, *callbacks: Any, trainer: type | None = None, loss: Any = None, **options):
    trainer = trainer or retriever_trainer()
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(0)
    model = SentenceTransformer(str(embedder), device="cpu")  # its BERT has a dropout of 0.1
    model._create_model_card = lambda *args, **kwargs: None  # takes more time than all the rest
    data = Dataset.from_dict({"anchor": [pair[0] for pair in PAIRS], "positive": [pair[1] for pair in PAIRS]})
    arguments = SentenceTransformerTrainingArguments(str(folder), **ARGUMENTS | options)
    return trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data.select(range(4)),
        loss=(loss or MultipleNegativesRankingLoss)(model), callbacks=list(callbacks),
    )  # fmt: skip


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def forward(self, input: Any, target: Any) -> dict[str, Any]:
        return {"loss": (self.layers(input)[:, 0] - target).square().sum()}


class Cuttable(SafeTrainer):
    """A trainer of a toy model whose loss is a sum over rows, which it knows."""

    def rows_of(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"input": x, "target": y} for x, y in zip(inputs["input"], inputs["target"], strict=True)]


def toy(folder: Path, *callbacks: Any, trainer: type = SafeTrainer, **options: Any):
    torch.manual_seed(0)
    data = [{"input": torch.randn(3), "target": torch.randn(())} for _ in range(10)]
    options = ARGUMENTS | {"remove_unused_columns": False, "label_names": ["target"]} | options
    return trainer(
        model=Toy(), args=TrainingArguments(str(folder), **options), train_dataset=data, eval_dataset=data[:4],
        callbacks=list(callbacks),
    )  # fmt: skip


@pytest.fixture(scope="module")
def makers(bert_embedding_folder):
    return {"retriever": functools.partial(retriever, bert_embedding_folder), "toy": toy}


@pytest.fixture(params=["retriever", "toy"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def make(makers, tmp_path):
    """Make a trainer of a kind, in a folder of the test."""
    return lambda kind, *callbacks, folder="run", **options: makers[kind](tmp_path / folder, *callbacks, **options)


@pytest.fixture(scope="module")
def whole(makers, tmp_path_factory):
    """A trainer after an uninterrupted run, made once for all tests that compare with it."""

    @functools.cache
    def whole(kind: str, **options: Any):
        trainer = makers[kind](tmp_path_factory.mktemp("whole") / "run", **options)
        before = weights(trainer)
        trainer.train()
        assert not same(weights(trainer), before) and len(set(evaluations(trainer).values())) > 1
        return trainer

    return whole


def evaluations(trainer) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}


def assert_goes_on(resumed, whole) -> None:
    """The resumed run ends with the state of the uninterrupted one."""
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert same(weights(resumed), weights(whole))
    assert losses(resumed) == losses(whole) and evaluations(resumed) == evaluations(whole)
    of_resumed, of_whole = (Path(trainer.state.best_model_checkpoint).name for trainer in (resumed, whole))
    assert of_resumed == of_whole


@pytest.mark.parametrize("event, step", [("on_step_begin", 5), ("on_save", 6)])
def test_a_killed_run_goes_on_to_the_same_weights(kind, make, whole, event, step):
    """In the second epoch (three steps each), and at its end."""
    with pytest.raises(Killed):
        make(kind, At(event, step, kill)).train()
    assert_goes_on(make(kind), whole(kind))


@pytest.mark.parametrize("options", [{"loss": Scaled}, {"batch_sampler": "no_duplicates"}], ids=repr)
def test_a_retriever_goes_on_with_any_sampler_and_with_the_weights_of_its_loss(make, whole, options):
    with pytest.raises(Killed):
        make("retriever", At("on_step_end", 5, kill), **options).train()
    resumed = make("retriever", **options)
    assert_goes_on(resumed, whole("retriever", **options))
    if "loss" in options:
        assert resumed.loss.scale.item() == whole("retriever", **options).loss.scale.item() != 1


def test_after_a_signal_the_step_is_finished_and_saved_and_the_run_goes_on(kind, make, whole, tmp_path):
    with pytest.raises(Stopped, match="SIGTERM after step 5, which is saved in "), watched():
        make(kind, At("on_step_end", 5, terminate)).train()
    assert newest_checkpoint(tmp_path / "run").step == 5
    assert_goes_on(make(kind), whole(kind))


def test_a_signal_stops_an_evaluation_which_is_made_up_for(kind, make, whole, tmp_path):
    with pytest.raises(Stopped), watched():
        make(kind, At("on_prediction_step", 4, terminate)).train()
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint.step == 4 and checkpoint.about["unfinished"] == {"evaluate": True, "save": True}
    assert_goes_on(make(kind), whole(kind))


def test_a_damaged_best_checkpoint_is_replaced_by_the_next_best(kind, make, caplog):
    def damage() -> None:
        (Path(trainer.state.best_model_checkpoint) / "model.safetensors").write_bytes(b"")

    trainer = make(kind, At("on_save", 7, damage), save_steps=1, eval_steps=1)
    trainer.train()
    assert "would have been the best checkpoint, but model.safetensors has 0 bytes" in caplog.text
    seen = evaluations(trainer)
    best = read_checkpoint(Path(trainer.state.best_model_checkpoint), to_resume=False)
    assert best.step == sorted(seen, key=seen.__getitem__)[1]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_drawn_while_saving_changes_no_weight(make, whole):
    """For example, a model card draws the examples that it shows."""

    class Draws(SafeTrainer):
        def _save(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(3)
            super()._save(*args, **kwargs)

    trainer = make("toy", trainer=Draws)
    trainer.train()
    assert same(weights(trainer), weights(whole("toy")))
    with pytest.raises(Killed):
        make("toy", At("on_step_end", 5, kill), trainer=Draws, folder="killed").train()
    assert_goes_on(make("toy", trainer=Draws, folder="killed"), whole("toy"))


# What does not fit


def small(trainer: type, most: int) -> type:
    """The trainer on a machine that holds `most` rows."""

    class Small(trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training and len(next(v for v in inputs.values() if isinstance(v, torch.Tensor))) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Small


def test_a_batch_whose_rows_are_each_other_s_negatives_is_never_cut(make):
    trainer = make("retriever", trainer=small(retriever_trainer(), 3), max_steps=2)
    before = weights(trainer)
    checkpointing = "activation" if hasattr(trainer.args, "activation_checkpointing") else "gradient"
    with pytest.raises(OutOfMemory) as stopped:
        trainer.train()
    assert str(stopped.value) == (
        "a batch does not fit into memory, and is not computed in smaller parts, because the loss of a batch is not "
        "the sum of its parts; step 1 was not taken, there is no checkpoint yet. Lower --per_device_train_batch_size, "
        f"or give --{checkpointing}_checkpointing true (CUDA out of memory. Tried to allocate 2.00 GiB)"
    )
    assert same(weights(trainer), before)


def test_a_batch_whose_rows_are_known_is_cut(make, caplog):
    with caplog.at_level(logging.WARNING, "groundtune"):
        cut = make("toy", trainer=small(Cuttable, 2))
        cut.train()
    enough = make("toy", folder="enough", trainer=Cuttable)
    enough.train()
    assert cut.micro_batch["train"].size == 2 and caplog.text.count("out of memory with 4 rows per pass") == 1
    assert cut.state.global_step == 7 and not same(weights(cut), weights(enough))  # dropout draws in another order
    with pytest.raises(OutOfMemory, match="^a row does not fit into memory by itself; step 1 was not taken, there is"):
        make("toy", folder="none", trainer=small(Cuttable, 0)).train()


def test_a_loss_that_is_not_finite_is_said_without_names(make):
    class Sick(SafeTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * float("nan")

    with pytest.raises(NonFiniteLoss, match=r"^step 1: the loss is nan, stopped before the weights changed; there is "):
        make("toy", trainer=Sick).train()


# Standing alone


def test_it_knows_no_rows_of_questions_and_answers():
    seen = {inside(path) for path in imported(PACKAGE / "training" / "safe_trainer.py")}
    assert {name.split("/")[0] for name in seen} <= {"runs", "system", "training", "errors.py"}
    assert {name for name in seen if name.startswith(("runs/", "training/"))} == {
        "runs/checkpoints.py",
        "training/sharding.py",
        "training/trackers.py",
    }
    text = (PACKAGE / "training" / "safe_trainer.py").read_text("utf-8")
    theirs = ("max_seq_length", "use_peft", ".source", "answer", "PeftModel", "Hub(")
    assert not [word for word in theirs if word in text]
