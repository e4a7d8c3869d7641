"""Opens a folder, an adapter or a hub name as a model that is ready to answer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.arguments import ModelArguments, PromptArguments, check_model_name
from groundtune.errors import ModelError
from groundtune.model.attention import no_blocks, use_packed_attention
from groundtune.model.endpoint import endpoint_at, is_server
from groundtune.model.generators import LocalModel, Writer, to_device
from groundtune.model.limits import check_vocabulary
from groundtune.model.loading import computes_bf16, end_ids, load_model, load_tokenizer
from groundtune.prompts.prompt import Prompt, make_prompt
from groundtune.system.hub_access import HubError, cache_if_no_hub
from groundtune.system.model_folders import (
    adapter_base_of,
    base_named_in,
    hub_problems,
    loading,
    model_problems,
    why_not_loaded,
)
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.patterns import pattern_problem

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnsweringModel:
    """A model to be opened: `arguments` name it, `base` is the base model of an adapter (empty: not an adapter).

    `bf16`: compute in bfloat16. `by_run`: a run saved the full model. `trained_whole`: all weights were trained, so
    they are float32. `load` is the model-loading function of the run's method.
    """

    arguments: ModelArguments
    bf16: bool
    base: str = ""
    by_run: bool = False
    trained_whole: bool = False
    load: Callable[..., Model] = load_model

    def open_tokenizer(self) -> Tokenizer:
        """The model's tokenizer; an adapter saved without one uses its base model's. Raises `ModelError`."""
        if not self.base:
            return load_tokenizer(self._as_saved())
        of_adapter, of_base = self._revisions()
        base = replace(self.arguments, model_name_or_path=self.base, model_revision=of_base)
        try:
            tokenizer = load_tokenizer(replace(self.arguments, gguf_file=None, model_revision=of_adapter))
        except ModelError:
            return load_tokenizer(base)
        known = [*tokenizer.model_end_ids, *(id for id in end_ids(base) if id < len(tokenizer))]
        tokenizer.model_end_ids = tuple(dict.fromkeys(known))
        return tokenizer

    def open(self, prompt: Prompt, pad_id: int) -> Model:
        """The model ready to answer, an adapter on its base model.

        Weights have the dtype in which training evaluated them, else the smallest that the hardware supports. Raises
        `ModelError` if anything cannot be loaded, if any weight is missing, or if passages are to be read by themselves
        and that would not be exact.
        """
        model = self.open_to_merge(prompt, pad_id)
        check_vocabulary([[pad_id, prompt.stop_ids[0]]], model, self.arguments.model_name_or_path)
        return _ready(model, prompt.blocks)

    def open_to_merge(self, prompt: Prompt, pad_id: int) -> Model:
        """The model as it is saved, an adapter still beside its base model; it is not made ready to answer."""
        return self._open({"bf16": self.bf16, "stop_ids": prompt.stop_ids, "pad_id": pad_id})

    def _open(self, settings: dict[str, Any]) -> Model:
        if not self.base:
            return self.load(replace(self._as_saved(), dtype=self.weights_dtype, use_peft=False), **settings)
        of_adapter, of_base = self._revisions()
        base = replace(
            self.arguments,
            model_name_or_path=self.base,
            model_revision=of_base,
            dtype=self.weights_dtype,
            use_peft=False,
        )
        return _with_adapter(self.load(base, **settings), self.arguments.model_name_or_path, of_adapter)

    def _as_saved(self) -> ModelArguments:
        """The arguments for a full model saved by a run: no GGUF file or hub revision, whatever the run began with.

        Its custom code, if any, is still that of the pinned commit.
        """
        if not self.by_run:
            return self.arguments
        revision = self.arguments.model_revision if self.arguments.trust_remote_code else None
        return replace(self.arguments, gguf_file=None, model_revision=revision)

    @property
    def weights_dtype(self) -> str:
        """The dtype of the weights, as of `--dtype`."""
        if self.arguments.dtype != "auto":
            return self.arguments.dtype
        return "bfloat16" if self.bf16 and not self.trained_whole else "float32"

    def _revisions(self) -> tuple[str | None, str | None]:
        """Revisions of the adapter and its base model: a local adapter has none, so a given one is the base's."""
        if os.path.isdir(self.arguments.model_name_or_path):
            return None, self.arguments.model_revision
        return self.arguments.model_revision, None


def writing_model(name: str, bf16: bool) -> AnsweringModel:
    """A model (folder, adapter or hub name) for conversations: a judge, or a question generator."""
    model = ModelArguments(model_name_or_path=name)
    return AnsweringModel(model, bf16, adapter_base(model))


def open_writer(
    name: str, model: str = "", options: str = "", *, bf16: bool | None = None, batch_size: int = 4, **limits: Any
) -> Writer:
    """A text generator: the server at `name` ("openai:URL") with its `model`, `options` (JSON) and `limits` (fields of
    `Endpoint`); or else the model `name`, loaded here, with `batch_size` conversations per batch.

    Raises `ModelError`.
    """
    if is_server(name):
        return endpoint_at(name, model, options, **limits)
    return _local_writer(name, computes_bf16() if bf16 is None else bf16, batch_size)


def _local_writer(name: str, bf16: bool, batch_size: int) -> LocalModel:
    opening = writing_model(name, bf16)
    tokenizer = opening.open_tokenizer()
    opened = opening.open(make_prompt(tokenizer, PromptArguments()), tokenizer.pad_token_id)
    return LocalModel(opened, tokenizer, bf16, batch_size)


def adapter_base(model: ModelArguments) -> str:
    """The base model that an adapter's configuration names (folder or hub name); empty if `model` is not an adapter.

    Raises `DataError` for a configuration that cannot be read, and `ModelError` if an adapter from the hub names a
    folder on this machine.
    """
    from transformers.utils import find_adapter_config_file

    name = model.model_name_or_path
    if os.path.isdir(name):
        return adapter_base_of(Path(name))
    try:
        with cache_if_no_hub():
            path = find_adapter_config_file(name, revision=model.model_revision)
    except (OSError, ValueError):  # no such model: loading it gives the full error message
        return ""
    base = base_named_in(Path(path)) if path else ""
    if os.path.exists(base) or check_model_name("base_model", base):
        raise ModelError(f"{name}: its adapter names a folder as its base model, {base}; name it with --base_model")
    return base


def _ready(model: Model, blocks: bool) -> Model:
    """Move the model to its device and use training's attention: no padding, and the same rounding."""
    model.eval().requires_grad_(False)
    to_device(model)
    if why := use_packed_attention(model, to_train=False, blocks=blocks):
        if blocks:
            raise ModelError(no_blocks(model, why))
        logger.info("prompts are padded, not packed: %s", why)
    return model


def _with_adapter(model: Model, adapter: str, revision: str | None) -> PeftModel:
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    from groundtune.model.lora import fuse  # here, because it imports PEFT, and most models are not adapters

    if problems := model_problems(adapter, with_base=False) or hub_problems(adapter, revision):
        raise ModelError(problems[0])
    where: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        with loading(adapter), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about weights that are compared below
            config = PeftConfig.from_pretrained(adapter, **where)
            _check_patterns(config, model)
            saved = load_peft_weights(adapter, device="cpu", **where)
            _check_ranks(config, saved)
            adapted = PeftModel.from_pretrained(model, adapter, config=config, **where)
            loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except Exception as error:  # PEFT assumes that an adapter's configuration is valid
        if is_out_of_memory(error):
            raise
        if isinstance(error, HubError):
            raise ModelError(str(error)) from error
        reason = why_not_loaded(error)
        raise ModelError(f"{adapter}: cannot load the adapter on {model.config.name_or_path}: {reason}") from error
    # PEFT only warns about missing weights, and an adapter without half of its own answers nearly like the base model.
    missing = sorted(set(loaded) - set(saved))
    if missing:
        raise ModelError(
            f"{adapter}: {len(missing)} of the adapter's weights are missing: {', '.join(missing[:3])} ...; "
            f"was it trained on {model.config.name_or_path}?"
        )
    # Other names are of weights that were saved beside those of LoRA, such as the embedding.
    if surplus := sorted(name for name in set(saved) - set(loaded) if ".lora_" in name):
        raise ModelError(
            f"{adapter}: {len(surplus)} of the adapter's weights belong to no layer that its adapter_config.json "
            f"names: {', '.join(surplus[:3])} ...; correct target_modules"
        )
    other = sorted(name for name, w in loaded.items() if not torch.equal(w.cpu(), saved[name].to(w.dtype)))
    if other:
        raise ModelError(
            f"{adapter}: {len(other)} of the adapter's weights are not those of its file: {', '.join(other[:3])} ...; "
            "PEFT did not load them: update it"
        )
    fuse(adapted)  # as in training, so that rounding is the same
    return adapted


def _check_patterns(config: Any, model: Model) -> None:
    """Raise `ValueError` for a regular expression of an adapter that does not come to an end on this model."""
    patterns = [("fullmatch", value) for value in (config.target_modules, config.exclude_modules)]
    keys = [*config.rank_pattern, *config.alpha_pattern]
    patterns += [("match", rf"(.*\.)?({key})$") for key in keys]
    patterns += [("match", rf"(^|.*\.){name}($|\..*)") for name in config.modules_to_save or ()]
    layers = config.layers_pattern or ()
    layers = [layers] if isinstance(layers, str) else layers
    patterns += [("match", rf"(?:^|.*?\.){layer}\.(?P<idx>\d+)\.") for layer in layers]
    texts = [(how, pattern) for how, pattern in patterns if isinstance(pattern, str)]
    if problem := pattern_problem(texts, [name for name, _ in model.named_modules()]):
        raise ValueError(problem)


def _check_ranks(config: Any, saved: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` for ranks that no weight of the adapter has: PEFT would allocate them first."""
    largest = max((max(weight.shape, default=0) for weight in saved.values()), default=0)
    for rank in (config.r, *config.rank_pattern.values()):
        if type(rank) is not int or not 0 < rank <= largest:
            raise ValueError(f"adapter_config.json gives the rank {rank!r}, which none of its weights has")
