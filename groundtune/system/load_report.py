"""What is said of the weights of a model when it is loaded: in place of the table of transformers, one line.

A weight that is missing would be random, without a word where an embedding model is loaded. One that is left over from
a layer that the settings do not have means that model and settings do not belong together.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_A_LAYER = re.compile(r"(?:layers?|h|blocks?)\.(\d+)\.")


@contextmanager
def weights_complete() -> Iterator[None]:
    """Raise `ValueError` if a model that is loaded inside lacks weights, or has some of another shape or layer."""
    from transformers import modeling_utils

    told = modeling_utils.log_state_dict_report

    def report(model: Any, pretrained_model_name_or_path: str, **others: Any) -> None:
        info = others["loading_info"]
        if sys.exc_info()[0] is not None:  # loading failed already
            return
        if problem := _problem(model, info):
            raise ValueError(problem)
        if info.error_msgs or info.conversion_errors:
            told(model, pretrained_model_name_or_path, **others)
        elif info.unexpected_keys and model.device.type != "meta":  # weights are read: once is enough
            surplus = sorted(info.unexpected_keys)
            where = f"{len(surplus)} weights are not part of a {type(model).__name__} and are not used"
            logger.warning("%s: %s: %s", pretrained_model_name_or_path, where, _some(surplus))

    setattr(modeling_utils, "log_state_dict_report", report)  # noqa: B010  it is a function to mypy
    try:
        yield
    finally:
        setattr(modeling_utils, "log_state_dict_report", told)  # noqa: B010


def _problem(model: Any, info: Any) -> str:
    kind = f"name a folder with all weights of a {type(model).__name__}"
    if info.mismatched_keys:
        name, found, expected = min(info.mismatched_keys, key=lambda key: key[0])
        sizes = f"{name} is {_shape(found)} in place of {_shape(expected)}"
        return f"{len(info.mismatched_keys)} weights have another shape than config.json says: {sizes}; {kind}"
    # A pooler is a layer that an embedding model does not read, and many are saved without it; a classifier reads it.
    reads_it = type(model).__name__.endswith("ForSequenceClassification")
    if missing := sorted(key for key in info.missing_keys if reads_it or not re.search(r"(^|\.)pooler\.", key)):
        return f"{len(missing)} weights are missing and would be random: {_some(missing)}; {kind}"
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    beyond = [key for key in sorted(info.unexpected_keys) if layers is not None and _layer(key) >= layers]
    if beyond:
        found = f"{len(beyond)} weights belong to layers beyond the {layers} of config.json: {_some(beyond)}"
        return f"{found}; correct num_hidden_layers"
    return ""


def _layer(key: str) -> int:
    found = _A_LAYER.search(key)
    return int(found[1]) if found else -1


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape))
