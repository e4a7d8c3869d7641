"""Plants silent training failures one by one: each must be caught by a guard.

    python tests/faults/silent_failures.py

A failure is planted into the running code, or into what it reads. It counts as caught if the check finds what it is to
find, and the same check finds nothing in the code as it is. Most guards are the product's own and stop a run or warn in
it; where a failure can only come from a change of this code, a unit test is the guard, and is called here. Then twenty
whole runs with nothing wrong go through the same guards: none may say a word.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "unit")]

import conftest
import pytest
import test_cli
import test_embedding
import test_evaluation
import test_generation
import test_judge
import test_prompt
import torch
import transformers
from conftest import FAMILIES, HISTORICAL_PREFIXES, INSTRUCTION, STYLES, FakeEmbedder, tiny_documents, tiny_examples

from groundtune.arguments import GROUPS, Arguments, ModelArguments
from groundtune.commands import parsing
from groundtune.data.files import write_documents, write_jsonl
from groundtune.evaluation import evaluator as evaluation
from groundtune.evaluation.predictions import Evaluation
from groundtune.methods import METHODS
from groundtune.model import attention
from groundtune.model.continuing import ByCache
from groundtune.model.limits import check_vocabulary
from groundtune.model.loading import add_lora
from groundtune.model.opening import _with_adapter
from groundtune.prompts import prompt
from groundtune.prompts import rows as examples
from groundtune.prompts.policies import CONTEXTS, Passages, gold_passages, required_first
from groundtune.recipes.train import train
from groundtune.retrieval import embedder as embedding
from groundtune.retrieval.stores import local as index
from groundtune.schema import Document
from groundtune.training import batching, safe_trainer
from groundtune.training.arguments import QATrainingArguments, metric_problems
from groundtune.training.doctor import diagnose
from groundtune.training.trainer import QATrainer, _collate

Patch = pytest.MonkeyPatch


class World:
    """Correct tiny models and data, each made at its first use; a failure may change `flags`."""

    def __init__(self, folder: Path):
        self.folder, self.flags = folder, {}
        seamless = conftest.Family("seamless", folder, conftest.seamless_tokenizer(), None)  # without a model
        self._families = {"seamless": seamless}
        self.documents = [Document("A book"), Document("The library")]

    def new(self, name: str) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=self.folder))

    def family(self, name: str) -> conftest.Family:
        if name not in self._families:
            self._families[name] = conftest.make_family(name, self.new(name))
        return self._families[name]

    @cached_property
    def data(self) -> Path:
        """Three training examples, two for eval, one for test, without a common passage."""
        folder = self.new("data")
        write_documents(folder / "documents.jsonl", tiny_documents())
        rows = [
            {
                "question": e.question, "gold_answer": e.answer, "gold_docs": [d.to_dict() for d in e.gold_documents],
                "chat_history": [{"speaker": t.speaker, "message": t.message} for t in e.chat_history],
            }
            for e in tiny_examples()
        ]  # fmt: skip
        for name, part in {"train": rows[:3], "eval": rows[3:5], "test": rows[5:]}.items():
            write_jsonl(folder / f"{name}.jsonl", part)
        return folder

    @cached_property
    def static(self) -> Path:
        return conftest.save_static_embedder(self.new("static"))

    @cached_property
    def bert(self) -> Path:
        return conftest.save_bert_embedder(self.new("bert"))

    @cached_property
    def adapter(self) -> Path:
        """An adapter on Llama that changes something."""
        model = add_lora(self.family("llama").model(), ModelArguments(use_peft=True, lora_r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder := self.new("adapter"))
        return folder

    def rows(self, family: str, style: str = "chat template") -> list[examples.Row]:
        these = tiny_examples()
        passages = [gold_passages(example) for example in these]
        return examples.encode_rows(these, passages, self.family(family).prompt(style), 600)

    def arguments(self, method: str, **changes: Any) -> Arguments:
        """Arguments for the doctor, with these changes."""
        groups = [group() for group in GROUPS]
        for name, value in changes.items():
            (group,) = [group for group in groups if hasattr(group, name)]
            setattr(group, name, value)
        return Arguments(method, *groups, SimpleNamespace(output_dir="out", seed=42))

    def files(self) -> dict[str, str]:
        splits = {f"{split}_file": str(self.data / f"{split}.jsonl") for split in ("train", "eval", "test")}
        return {**splits, "full_dataset_file_path": str(self.data / "documents.jsonl")}


@dataclass(frozen=True)
class Failure:
    """`plant(patch, world)` plants what its docstring says. `check(world)` is the guard that its docstring names: it
    returns what it finds, "" if nothing, or raises; `sign` is in what it is to find.
    """

    number: str
    plant: Callable[[Patch, World], None]
    check: Callable[[World], Any]
    sign: str


# Guards


def by_doctor(family: str) -> Callable[[World], str]:
    def check(world: World) -> str:
        """the doctor, at the start of every run"""
        flags = {"model_name_or_path": str(world.family(family).folder), "max_new_tokens": 64, **world.files()}
        return "; ".join(map(str, diagnose(world.arguments("sft", **flags)).findings))

    return check


def by_doctor_where_passages_are_dropped(world: World) -> str:
    """the doctor, at the start of every run"""
    flags = {"model_name_or_path": str(world.family("gemma").folder), "max_new_tokens": 8, **world.files()}
    table = diagnose(world.arguments("sft", **flags)).table
    longest = max(column.row_tokens["longest"] for column in table.values())
    diagnosis = diagnose(world.arguments("swr", max_seq_length=longest, **flags))
    return "; ".join(map(str, diagnosis.errors))


def by_doctor_of_documents(world: World) -> str:
    """the doctor, at the start of every run"""
    write_documents(path := world.new("documents") / "documents.jsonl", world.documents)
    arguments = world.arguments("sft", full_dataset_file_path=str(path), embedding_model=str(world.bert))
    return "; ".join(map(str, diagnose(arguments).findings))


def by_labels(world: World) -> None:
    """check_labels, on every batch"""
    family = world.family("llama")
    assert family.tokenizer.pad_token_id == family.tokenizer.eos_token_id
    _collate(METHODS["sft"], family.tokenizer.pad_token_id, world.rows("llama"))


def by_training(world: World, trainer: type[QATrainer] = QATrainer, share_prefix: str = "auto", **options: Any) -> str:
    """the trainer, at the step or the evaluation"""
    family = world.family("llama")
    torch.manual_seed(0)
    defaults = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "eval_steps": 1,
        "eval_on_start": False, "bf16": False, "disable_tqdm": True, "load_best_model_at_end": False,
        "metric_for_best_model": "loss_with_gold_passage", "save_strategy": "no", "learning_rate": 1e-2,
    }  # fmt: skip
    made = trainer(
        model=add_lora(family.model(), ModelArguments(use_peft=True, lora_r=2)),
        args=QATrainingArguments(output_dir=str(world.new("run")), **defaults | options | world.flags),
        train_dataset=world.rows("llama")[:4], eval_dataset=world.rows("llama")[4:], method=METHODS["sft"],
        evaluator=None, pad_id=family.tokenizer.pad_token_id, share_prefix=share_prefix,
    )  # fmt: skip
    with said() as warned:
        made.train()
    return "; ".join(warned)


class ReadsOneRowAtOnce(QATrainer):
    """A trainer with memory for one row; counts the rows that each optimizer step reads."""

    steps: Counter[int] = Counter()

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        rows = len(inputs["layout"].segments)
        if rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.steps[self.state.global_step] += rows
        return super().compute_loss(model, inputs, *args, **kwargs)


def by_rows_of_a_step(world: World) -> str:
    """a test: every step reads the same number of rows"""
    ReadsOneRowAtOnce.steps.clear()
    by_training(world, ReadsOneRowAtOnce, share_prefix="off", auto_find_batch_size=True, eval_strategy="no")
    read = set(ReadsOneRowAtOnce.steps.values())
    return "" if read == {4} else f"steps of {read} rows instead of 4"


def by_manifest(world: World) -> str:
    """the manifest of the index, when it is read"""
    folder, documents = world.new("index"), tiny_documents()
    index.load_or_build_index(folder, documents, FakeEmbedder())
    with said() as warned:
        index.load_or_build_index(folder, documents, FakeEmbedder(settings={"weights": "2"}))
    return "; ".join(warned)


def by_embedder(world: World) -> None:
    """the embedder, at every text"""
    made = embedding.Embedder(str(world.bert))
    made.embed_documents(["a book", "library"])
    made.embed_questions(["a book"])


def by_arguments(world: World) -> str:
    """the arguments, before anything is read"""
    words = [word for name, value in world.flags.items() for word in (f"--{name}", str(value))]
    return "; ".join(metric_problems(test_cli.parse(*words).training))


def by_mean(world: World) -> None:
    """the mean of every evaluation"""
    test_evaluation.evaluator(world.family("llama"))(world.family("llama").model())


def by_opening_an_adapter(world: World) -> None:
    """whatever opens an adapter"""
    _with_adapter(world.family("llama").model(), str(world.adapter), None)


def by_vocabulary(world: World) -> None:
    """check_vocabulary, before training"""
    texts = [row.prompt_ids + row.answer_ids for row in world.rows("llama")]
    check_vocabulary(texts, world.family("llama").model(), "tiny")


def by_trial_of_packing(world: World) -> str:
    """the trial before rows are packed, in every run"""
    return attention.use_packed_attention(world.family("gemma").model()) or ""


def by_test(test: Callable[..., None], family: str = "", **given: Any) -> Callable[[World], None]:
    def check(world: World) -> None:
        test(**({"family": world.family(family)} if family else {}), **given)

    check.__doc__ = f"a test: {test.__name__.removeprefix('test_').replace('_', ' ')}"
    return check


def by_test_of_question_prompts(world: World) -> None:
    """a test: a prompt is put in front and the model's default prompt is not"""
    test_embedding.test_a_prompt_is_put_in_front_and_the_model_s_default_prompt_is_not(world.new("prompts"))


def by_test_of_old_flags(world: World) -> None:
    """a test: old spellings mean what they meant"""
    old = (("--warmup_ratio 0.1", "warmup_steps", 0.1), ("--evaluation_strategy epoch", "eval_strategy", "epoch"))
    for words, name, value in old:
        with Patch.context() as patch:
            test_cli.test_old_spellings_mean_what_they_meant(patch, words, "training", name, value)


# Failures


def masked_by_padding(patch: Patch, world: World) -> None:
    """padding is the end token, and labels are masked by ids == pad"""
    pad_rows = batching._pad_rows

    def masked(rows: Any, pad_id: int) -> dict:
        batch = pad_rows(rows, pad_id)
        batch["labels"][batch["input_ids"] == pad_id] = batching.IGNORED
        return batch

    patch.setattr(batching, "_pad_rows", masked)


def mask_of_zeros(patch: Patch, world: World) -> None:
    """the assistant mask of a template without {% generation %}: all zeros"""
    pad_rows = batching._pad_rows

    def masked(rows: Any, pad_id: int) -> dict:
        batch = pad_rows(rows, pad_id)
        return {**batch, "labels": torch.full_like(batch["labels"], batching.IGNORED)}

    patch.setattr(batching, "_pad_rows", masked)


def only_eos_stops(patch: Patch, world: World) -> None:
    """stop ids without the template's end of turn"""
    patch.setattr(prompt.ChatPrompt, "stop_ids", property(lambda self: (self.tokens.eos_id,)))


def cut_on_the_right(patch: Patch, world: World) -> None:
    """rows cut on the right"""

    def encode(these: Any, passages: Any, prompt: Any, max_length: int, shorten: bool = False) -> list[examples.Row]:
        return [
            replace(
                row,
                prompt_ids=row.prompt_ids[:max_length],
                answer_ids=row.answer_ids[: max(max_length - len(row.prompt_ids), 0)],
            )
            for row in examples.encode_rows(these, passages, prompt, 10**6)
        ]

    patch.setitem(METHODS, "swr", replace(METHODS["swr"], encode=encode))


def tokenised_together(patch: Patch, world: World) -> None:
    """prompt and answer tokenised together"""
    tokenizer, row = world.family("seamless").tokenizer, examples.Row

    def together(prompt_ids: list[int], answer_ids: list[int], *others: Any) -> examples.Row:
        text = tokenizer.decode([*prompt_ids, *answer_ids])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return row(ids[: len(prompt_ids)], ids[len(prompt_ids) :], *others)

    patch.setattr(examples, "Row", together)


def keys_of_a_dictionary(patch: Patch, world: World) -> None:
    """the keys of the dictionary that apply_chat_template returns, as ids"""

    def prompt_ids(self: Any, passages: Any, history: Any, question: str) -> list:
        messages = prompt.chat_messages(self.instruction, passages, history, question)
        return list(self.tokens.tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    patch.setattr(prompt.ChatPrompt, "prompt_ids", prompt_ids)


def two_beginnings(patch: Patch, world: World) -> None:
    """two BOS tokens"""
    prompt_ids = prompt.ChatPrompt.prompt_ids
    patch.setattr(prompt.ChatPrompt, "prompt_ids", lambda self, *asked: [*self.tokens.bos, *prompt_ids(self, *asked)])


def padded_on_the_right(patch: Patch, world: World) -> None:
    """prompts padded on the right in generation"""
    # The trial of cached steps would see it, and read everything again for each token.
    patch.setattr("groundtune.model.continuing.way_of", lambda model: ByCache("past_key_values", True, True))

    def right(prompts: Any, pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, prompts))
        ids = [[*p, *[pad_id] * (longest - len(p))] for p in prompts]
        mask = [[1] * len(p) + [0] * (longest - len(p)) for p in prompts]
        return torch.tensor(ids), torch.tensor(mask)

    patch.setattr("groundtune.model.continuing._left_padded", right)


def nan_behind_the_filter(patch: Patch, world: World) -> None:
    """a NaN loss behind logging_nan_inf_filter"""
    compute_loss = QATrainer.compute_loss

    def sick(self: QATrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        return compute_loss(self, *args, **kwargs) * (float("nan") if self.state.global_step == 1 else 1)

    patch.setattr(QATrainer, "compute_loss", sick)
    patch.setitem(world.flags, "logging_nan_inf_filter", True)


def no_question_prompt(patch: Patch, world: World) -> None:
    """questions embedded without their prompt"""
    plain = lambda self, texts: self._embed(texts, "", [len(text) for text in texts])  # noqa: E731
    patch.setattr(embedding.Embedder, "embed_questions", plain)


def keyed_by_text(patch: Patch, world: World) -> None:
    """vectors cached by text alone"""
    patch.setattr(index, "fingerprint", lambda settings: "texts")


def not_normalised(patch: Patch, world: World) -> None:
    """an inner product of vectors that are not normalised"""
    from sentence_transformers import SentenceTransformer

    encode = SentenceTransformer.encode

    def plain(self: Any, texts: Any, **options: Any) -> Any:
        return encode(self, texts, **options | {"normalize_embeddings": False})

    patch.setattr(SentenceTransformer, "encode", plain)


def too_long_to_be_read(patch: Patch, world: World) -> None:
    """a document longer than the embedding model reads"""
    patch.setattr(world, "documents", [*world.documents, Document("book " * 40)])


def sampled(patch: Patch, world: World) -> None:
    """answers sampled in an evaluation"""

    def draw(self: torch.Tensor, dim: int = -1, **options: Any) -> torch.Tensor:
        return torch.multinomial(self.float().softmax(dim), 1).squeeze(dim)

    patch.setattr(torch.Tensor, "argmax", draw)


def wrong_direction(patch: Patch, world: World) -> None:
    """the best checkpoint in the wrong direction"""
    patch.setitem(world.flags, "metric_for_best_model", "generation/f1")
    patch.setitem(world.flags, "greater_is_better", "false")


def metric_is_nan(patch: Patch, world: World) -> None:
    """NaN as the metric of the best checkpoint"""
    patch.setattr(QATrainer, "_gold_loss", lambda self, dataloader: float("nan"))


def gold_in_evaluation(patch: Patch, world: World) -> None:
    """gold passages in end-to-end prompts"""

    def leak(example: Any, hits: Any, rng: Any) -> Passages:
        return required_first([*example.gold_documents, *(hit.document for hit in hits)])

    patch.setitem(CONTEXTS, "retrieved", leak)


def failures_not_counted(patch: Patch, world: World) -> None:
    """failed judgements not counted"""
    patch.setattr(Evaluation, "scored", lambda self, metric: self.n)


def score_is_nan(patch: Patch, world: World) -> None:
    """a score that failed, as NaN"""
    scores = evaluation.answer_scores
    wrong = tiny_examples()[2].answer

    def one_nan(answer: str, example: Any, unknown: Any) -> dict[str, float]:
        found = scores(answer, example, unknown)
        return {**found, "generation/f1": float("nan")} if example.answer == wrong else found

    patch.setattr(evaluation, "answer_scores", one_nan)


def adapter_not_loaded(patch: Patch, world: World) -> None:
    """an adapter that did not load"""
    import peft.peft_model

    loaded = SimpleNamespace(missing_keys=[], unexpected_keys=[])
    patch.setattr(peft.peft_model, "set_peft_model_state_dict", lambda *args, **kwargs: loaded)


def token_without_embedding(patch: Patch, world: World) -> None:
    """a token without an embedding"""
    family = world.family("llama")
    tokenizer = type(family.tokenizer).from_pretrained(family.folder)
    tokenizer.add_tokens(["library"])
    patch.setitem(world._families, "llama", replace(family, tokenizer=tokenizer))


def effective_batch_changes(patch: Patch, world: World) -> None:
    """auto_find_batch_size begins again with a smaller batch"""
    post_init = QATrainingArguments.__post_init__

    def kept(self: QATrainingArguments) -> None:
        asked = self.auto_find_batch_size
        post_init(self)
        self.auto_find_batch_size = asked

    patch.setattr(QATrainingArguments, "__post_init__", kept)
    patch.setattr(safe_trainer, "halve_on_oom", lambda micro_batch, compute, *others: compute())


def thought_is_learnt(patch: Patch, world: World) -> None:
    """an empty thought that is learnt"""
    frame = prompt.ChatPrompt._frame.func
    with_thought = property(lambda self: replace(frame(self), lead="<think>\n\n</think>\n\n"))
    patch.setattr(prompt.ChatPrompt, "_frame", with_thought)


def packing_leaks(patch: Patch, world: World) -> None:
    """packed rows that read each other"""
    attend = attention.Packed.attend

    def leaking(self: attention.Packed, *args: Any) -> Any:
        if self.cache is not None:
            return attend(self, *args)
        all_before = [replace(s, path=tuple(range(i))) for i, s in enumerate(self.segments)]
        return attend(attention.Packed(all_before), *args)

    patch.setattr(attention.Packed, "attend", leaking)


def old_flag_ignored(patch: Patch, world: World) -> None:
    """warmup_ratio ignored"""
    patch.delitem(parsing.RENAMED, "warmup_ratio")
    patch.setattr(parsing, "WITHOUT_EFFECT", (*parsing.WITHOUT_EFFECT, "warmup_ratio"))


ROW_BEGINS = test_prompt.test_the_generation_prompt_is_the_beginning_of_the_training_row
ROW_SPELLS = test_prompt.test_the_row_spells_what_the_template_spells_for_the_whole_conversation
BATCH_IS_ALONE = test_generation.test_a_batch_equals_generating_alone_in_every_family_over_many_seeds
REPEATED = test_evaluation.test_a_repetition_finds_exactly_the_same
NO_GOLD = test_evaluation.test_gold_passages_and_answers_never_enter_a_prompt
COUNTED = test_judge.test_what_failed_is_counted_and_in_no_mean
FAILURES = (
    Failure("1", masked_by_padding, by_labels, "answer tokens"),
    Failure("2", only_eos_stops, by_doctor("gemma"), "do not end with an end token"),
    Failure("3", cut_on_the_right, by_doctor_where_passages_are_dropped, "do not end with an end token"),
    Failure("4", tokenised_together, by_test(ROW_BEGINS, "seamless", style="chat template"), "AssertionError"),
    Failure("5", keys_of_a_dictionary, by_test(ROW_SPELLS, "qwen"), "cannot be interpreted as an integer"),
    Failure("6", two_beginnings, by_doctor("gemma"), "begin with two BOS tokens"),
    Failure("7", padded_on_the_right, by_test(BATCH_IS_ALONE, "llama"), "AssertionError"),
    Failure("8", nan_behind_the_filter, by_training, "the loss is nan, stopped before the weights changed"),
    Failure("9", no_question_prompt, by_test_of_question_prompts, "AssertionError"),
    Failure("10", keyed_by_text, by_manifest, "made with other settings"),
    Failure("11", not_normalised, by_embedder, "its similarity is the cosine"),
    Failure("12", too_long_to_be_read, by_doctor_of_documents, "reads only 24"),
    Failure("13", sampled, by_test(REPEATED, "llama"), "AssertionError"),
    Failure("14a", wrong_direction, by_arguments, "but higher generation/f1 is better"),
    Failure("14b", metric_is_nan, by_training, "cannot be the best checkpoint"),
    Failure("14c", gold_in_evaluation, by_test(NO_GOLD, "llama"), "AssertionError"),
    Failure("15a", failures_not_counted, by_test(COUNTED), "AssertionError"),
    Failure("15b", score_is_nan, by_mean, "(?i)nan"),
    Failure("16a", adapter_not_loaded, by_opening_an_adapter, "are not those of its file"),
    Failure("16b", token_without_embedding, by_vocabulary, "the tokenizer produces ids up to"),
    Failure("17", effective_batch_changes, by_rows_of_a_step, "steps of"),
    Failure("18a", mask_of_zeros, by_labels, "answer tokens, 0 of them labels"),
    Failure("18b", thought_is_learnt, by_doctor("qwen"), "instead of the gold answer"),
    Failure("19", packing_leaks, by_trial_of_packing, "packed and separate rows differ"),
    Failure("20", old_flag_ignored, by_test_of_old_flags, "AssertionError"),
)


def found_by(failure: Failure, world: World) -> str:
    """What the check of a failure finds in the current code; "" if nothing."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return failure.check(world) or ""
        except Exception as error:
            text = " ".join(str(error).split())
            return f"{type(error).__name__}: {text}" if not text or isinstance(error, AssertionError) else text


def caught(failure: Failure, world: World) -> tuple[bool, str]:
    """Whether the failure is caught, and the message, or what went wrong."""
    if alarm := found_by(failure, world):
        return False, f"FALSE ALARM in the code as it is: {alarm}"
    with Patch.context() as patch:
        failure.plant(patch, world)
        found = found_by(failure, world)
    if not found:
        return False, "MISSED"
    return bool(re.search(failure.sign, found)), found


# Runs with nothing wrong


def clean_runs() -> list[tuple[str, dict[str, Any]]]:
    """Method and flags of twenty runs: every family, both prompt styles, both methods, and further options."""
    runs = []
    for i, (family, style, method) in enumerate(product(FAMILIES, STYLES, ("sft", "swr"))):
        flags = HISTORICAL_PREFIXES if style == "prefix" else {}
        runs.append((method, {"family": family, **flags, "use_peft": i % 2 == 1, "bf16": i // 2 % 2 == 1}))
    runs += [
        ("swr", {"family": "llama", "retriever": "bm25", "metric_for_best_model": "generation/unfinished"}),
        ("swr", {"family": "gemma", "retriever": "hybrid", "use_peft": True, "lora_dropout": 0.1}),
        ("sft", {"family": "qwen", "share_prefix": "off", "warmup_ratio": 0.5, "auto_find_batch_size": True}),
        (
            "swr",
            {"family": "mistral", "gradient_accumulation_steps": 2, "max_grad_norm": 0, "evaluation_strategy": "epoch"},
        ),
    ]
    return runs


def alarm_of(world: World, method: str, family: str, **changes: Any) -> str:
    """Warnings and errors of a correct run, and of opening its adapter; "" if there are none."""
    output = world.new("clean")
    flags = {
        **world.files(), "model_name_or_path": world.family(family).folder, "embedding_model": world.static,
        "output_dir": output, "full_dataset_index_path": output / "index", "instruction": INSTRUCTION,
        "max_seq_length": 600, "max_new_tokens": 64, "bootstrap_samples": 100, "eval_num_to_retrieve": 2,
        "per_device_train_batch_size": 2, "max_steps": 2, "eval_steps": 2, "eval_on_start": False, "bf16": False,
        "disable_tqdm": True, "lora_r": 2,
    } | changes  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with said() as warned, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            train(parsing.parse_arguments(method, words))
            if changes.get("use_peft"):
                _with_adapter(world.family(family).model(), str(output), None)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "; ".join(warned)


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """Groundtune's warnings inside the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    ours = logging.getLogger("groundtune")
    ours.addHandler(handler)
    try:
        yield messages
    finally:
        ours.removeHandler(handler)


def main() -> int:
    logging.getLogger("groundtune").addHandler(logging.NullHandler())
    logging.getLogger("groundtune").propagate = False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        world = World(Path(temporary))
        missed = 0
        for failure in FAILURES:
            right, found = caught(failure, world)
            missed += not right
            print(f"{failure.number:>3}  {failure.plant.__doc__}", flush=True)
            print(f"     {failure.check.__doc__ if right else 'NOT CAUGHT'}: {found[:150]}", flush=True)
        runs, alarms = clean_runs(), 0
        for method, flags in runs:
            if alarm := alarm_of(world, method, **flags):
                alarms += 1
                print(f"FALSE ALARM: {method} {flags}: {alarm}", flush=True)
    numbers = len({re.match(r"\d+", failure.number)[0] for failure in FAILURES})
    print(
        f"{len(FAILURES)} failures of {numbers} kinds planted, {missed} not caught; "
        f"{len(runs)} clean runs, {alarms} false alarms; {time.process_time() - begin:.0f} CPU seconds"
    )
    return bool(missed or alarms)


if __name__ == "__main__":
    sys.exit(main())
