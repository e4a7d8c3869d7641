"""Names for the types of other libraries that go through the whole package; importing them loads none of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Strings, so that they are names at run time too.
Model: TypeAlias = "PreTrainedModel | PeftModel"  # what trains and answers: whole, or with an adapter
Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
Config: TypeAlias = "PreTrainedConfig"
Batch: TypeAlias = "dict[str, Any]"  # what a model is called with, by the names of its arguments
