"""Arguments -> what is asked and who answers: prompts, retriever, tokenizer, model or adapter on its base, judge."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from groundtune.arguments import ModelArguments, PromptArguments, check_model_name
from groundtune.attention import use_packed_attention
from groundtune.endpoint import EndpointError
from groundtune.evaluation import EndToEndEvaluator
from groundtune.index import index_folder
from groundtune.inference.answering import Asked, LocalModel, to_device
from groundtune.inference.arguments import SERVER, InferenceArguments
from groundtune.lora import fuse
from groundtune.models import ModelError, computes_bf16, load_model, load_tokenizer, why_not_loaded
from groundtune.models_on_disk import adapter_base_of, base_named_in
from groundtune.prompt import Prompt, make_prompt
from groundtune.retrieval import Retriever, retrieve
from groundtune.schema import Document, Example
from groundtune.train import make_retriever
from groundtune.weights import model_problems, nothing_unpickled

logger = logging.getLogger(__name__)


def open_retriever(arguments: InferenceArguments, documents: list[Document]) -> Retriever:
    """The retriever of the arguments, over all documents."""
    data, retrieval = arguments.data, arguments.retrieval
    folder = index_folder(data.full_dataset_index_path, data.full_dataset_file_path)
    return make_retriever(retrieval.eval_embedding_model or retrieval.embedding_model, retrieval, documents, folder)


def open_questions(
    arguments: InferenceArguments, examples: list[Example], documents: list[Document]
) -> tuple[list[Asked], Any | None]:
    """The questions of each context with what was retrieved and, where a tokenizer is known, their prompts.

    Raises `DataError` for questions too long to be answered, `ModelError` without tokenizer or embedding model.
    """
    tokenizer = None
    if arguments.api != "chat":
        tokenizer = open_tokenizer(arguments)
    hits, seconds = [()] * len(examples), 0.0
    if arguments.searches:
        retriever = open_retriever(arguments, documents)
        begin = time.perf_counter()
        k, history = arguments.retrieval.eval_num_to_retrieve, arguments.retrieval.query_history
        hits = retrieve(retriever, examples, k, history)
        seconds = time.perf_counter() - begin
    return [_asked(arguments, context, examples, hits, seconds, tokenizer) for context in arguments.contexts], tokenizer


def _instruction(arguments: InferenceArguments, context: str) -> str:
    """The sentence that opens a prompt: the usual one speaks of passages."""
    return arguments.answers.closed_book_instruction if context == "closed_book" else arguments.prompt.instruction


def _asked(
    arguments: InferenceArguments, context: str, examples: list[Example], hits: Any, seconds: float, tokenizer: Any
) -> Asked:
    instruction, evaluation = _instruction(arguments, context), arguments.evaluation
    evaluator = None
    if tokenizer is not None:
        evaluator = EndToEndEvaluator(
            name=context,
            examples=examples,
            hits=hits,
            prompt=make_prompt(tokenizer, replace(arguments.prompt, instruction=instruction)),
            pad_id=tokenizer.pad_token_id,
            max_length=arguments.data.max_seq_length,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=arguments.answers.per_device_eval_batch_size,
            retrieval_seconds=seconds,
            bootstrap_samples=evaluation.bootstrap_samples,
            context=context,
        )
    new, samples = evaluation.max_new_tokens, evaluation.bootstrap_samples
    return Asked(context, examples, hits, instruction, new, seconds, samples, evaluator)


def computes_in_bf16(arguments: InferenceArguments) -> bool:
    """What `--bf16` says, else what the hardware does."""
    return computes_bf16() if arguments.answers.bf16 is None else arguments.answers.bf16


def open_tokenizer(arguments: InferenceArguments) -> Any:
    """The tokenizer of MODEL; raises `ModelError`."""
    base = base_of(arguments)
    return _load_tokenizer(_as_saved(arguments, base), base)


def open_model(arguments: InferenceArguments, prompt: Prompt, pad_id: int) -> Any:
    """MODEL ready to answer: an adapter comes on its base.

    Its weights have the type in which training evaluated them, else the smallest that is computed here. Raises
    `ModelError` if anything cannot be loaded, or any weight is missing.
    """
    base, bf16 = base_of(arguments), computes_in_bf16(arguments)
    model = replace(_as_saved(arguments, base), dtype=_weights_type(arguments))
    return _load(model, base, prompt, pad_id, bf16)


def open_untouched(arguments: InferenceArguments, prompt: Prompt, pad_id: int) -> Any:
    """The model that the run of MODEL began with; raises `ModelError`."""
    model = replace(arguments.model, model_name_or_path=arguments.base, dtype=_weights_type(arguments))
    return _load(model, "", prompt, pad_id, computes_in_bf16(arguments))


def open_judge(arguments: InferenceArguments) -> Callable[..., list]:
    """`complete` of the server or model that grades; raises `ModelError`."""
    if arguments.judge.judge.startswith(SERVER):
        return arguments.judge_endpoint().complete
    model, base, tokenizer = _judge_here(arguments)
    prompt, bf16 = make_prompt(tokenizer, PromptArguments()), computes_in_bf16(arguments)
    return LocalModel(_load(model, base, prompt, tokenizer.pad_token_id, bf16), tokenizer, bf16).complete


def probe_judge(arguments: InferenceArguments) -> None:
    """Ask a server for a word, find a model's tokenizer: a wrong name is said before hours of work, and not after.

    Raises `ModelError` and `EndpointError`.
    """
    if arguments.judge.judge.startswith(SERVER):
        messages = [{"role": "user", "content": "Answer with one word: are you there?"}]
        (reply,) = arguments.judge_endpoint().complete([messages], arguments.judge.judge_max_new_tokens)
        if reply.failure:
            raise EndpointError(f"--judge: {reply.failure}; {_way_out(arguments, reply.failure)}")
    elif arguments.judge.judge:
        _judge_here(arguments)


def _way_out(arguments: InferenceArguments, failure: str) -> str:
    judge = arguments.judge
    if "max_completion_tokens" in failure:  # what OpenAI's newer models want, and say so
        options = {"max_tokens": None, "max_completion_tokens": judge.judge_max_new_tokens}
        return f"add --judge_options '{json.dumps(options)}'"
    return f"see what the server logged: has it a model {judge.judge_model!r}, or does it need other --judge_options?"


def _judge_here(arguments: InferenceArguments) -> tuple[ModelArguments, str, Any]:
    """How the judge is loaded, its base if it is an adapter, and its tokenizer."""
    dtype = "bfloat16" if computes_in_bf16(arguments) else "float32"
    model = ModelArguments(model_name_or_path=arguments.judge.judge, dtype=dtype)
    base = adapter_base(model)
    return model, base, _load_tokenizer(model, base)


def base_of(arguments: InferenceArguments) -> str:
    """The base of MODEL's adapter, empty if it is none; `InferenceArguments.check` has seen that it may be used.

    Raises `ModelError` where an adapter from the hub names a folder of this machine.
    """
    base, given = adapter_base(arguments.model), arguments.answers.base_model
    name = arguments.model.model_name_or_path
    if not base or given or os.path.isdir(name):
        return base and arguments.base
    if os.path.exists(base) or check_model_name("base_model", base):
        raise ModelError(f"{name}: its adapter names the base model {base}, a folder; name it with --base_model")
    return base


def adapter_base(model: ModelArguments) -> str:
    """The base model of an adapter (folder or hub name) as its configuration names it; empty if it is no adapter."""
    from transformers.utils import find_adapter_config_file

    if os.path.isdir(model.model_name_or_path):
        return adapter_base_of(Path(model.model_name_or_path))
    try:
        path = find_adapter_config_file(model.model_name_or_path, revision=model.model_revision)
    except (OSError, ValueError):  # no such model: loading it says so, with the ways out
        return ""
    return base_named_in(Path(path)) if path else ""


def _as_saved(arguments: InferenceArguments, base: str) -> ModelArguments:
    """What a run saves in full is no GGUF file, and no revision of a hub model, whatever it began with.

    Its code, if it runs any, is still that of the commit.
    """
    if base or arguments.run is None:
        return arguments.model
    revision = arguments.model.model_revision if arguments.model.trust_remote_code else None
    return replace(arguments.model, gguf_file=None, model_revision=revision)


def _weights_type(arguments: InferenceArguments) -> str:
    if arguments.model.dtype != "auto":
        return arguments.model.dtype
    trained_in_full = arguments.run is not None and not arguments.run.settings.get("use_peft")
    return "bfloat16" if computes_in_bf16(arguments) and not trained_in_full else "float32"


def _load_tokenizer(model: ModelArguments, base: str) -> Any:
    """An adapter that was saved without a tokenizer has its base's."""
    if not base:
        return load_tokenizer(model)
    try:
        return load_tokenizer(replace(model, gguf_file=None, model_revision=_revisions(model)[0]))
    except ModelError:
        return load_tokenizer(replace(model, model_name_or_path=base, model_revision=_revisions(model)[1]))


def _revisions(model: ModelArguments) -> tuple[str | None, str | None]:
    """Of the adapter and of its base: a local adapter has none, so what is given is its base's."""
    if os.path.isdir(model.model_name_or_path):
        return None, model.model_revision
    return model.model_revision, None


def _load(model: ModelArguments, base: str, prompt: Prompt, pad_id: int, bf16: bool) -> Any:
    settings = {"bf16": bf16, "stop_ids": prompt.stop_ids, "pad_id": pad_id}
    if not base:
        return _ready(load_model(replace(model, use_peft=False), **settings))
    of_adapter, of_base = _revisions(model)
    on = replace(model, model_name_or_path=base, model_revision=of_base, use_peft=False)
    return _ready(_with_adapter(load_model(on, **settings), model.model_name_or_path, of_adapter))


def _ready(model: Any) -> Any:
    """On its device, and attending as in training: nothing is padded, and rounding is the same."""
    model.eval().requires_grad_(False)
    to_device(model)
    if why := use_packed_attention(model, to_train=False):
        logger.info("prompts are padded, not packed: %s", why)
    return model


def _with_adapter(model: Any, adapter: str, revision: str | None) -> Any:
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    if problems := model_problems(adapter, with_base=False):
        raise ModelError(problems[0])
    where = {"revision": revision} if revision else {}
    try:
        with nothing_unpickled():
            saved = load_peft_weights(adapter, device="cpu", **where)
            adapted = PeftModel.from_pretrained(model, adapter, **where)
    except (OSError, ValueError, RuntimeError) as error:
        reason = why_not_loaded(error)
        raise ModelError(f"{adapter}: cannot load the adapter on {model.config.name_or_path}: {reason}") from error
    # PEFT only warns, and an adapter of which half is missing answers nearly like the base model.
    loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    missing = sorted(set(loaded) - set(saved))
    if missing:
        raise ModelError(
            f"{adapter}: {len(missing)} of the adapter's weights are missing: {', '.join(missing[:3])} ...; "
            f"was it trained on {model.config.name_or_path}?"
        )
    other = sorted(name for name, w in loaded.items() if not torch.equal(w.cpu(), saved[name].to(w.dtype)))
    if other:
        raise ModelError(
            f"{adapter}: {len(other)} of the adapter's weights are not those of its file: {', '.join(other[:3])} ...; "
            "PEFT did not load them: update it"
        )
    fuse(adapted)  # as in training, or rounding differs
    return adapted
