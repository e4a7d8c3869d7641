"""Undocumented names of other libraries that Groundtune overrides or calls, each with the reason.

A new release may rename any of them. Missing names are then reported on one line, at import or first use, instead of
a traceback or, worse, an override that is never called.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from groundtune.errors import DataError

# First and last version that passed `make test`, by package.
TESTED = {
    "transformers": ("5.3", "5.24"), "accelerate": ("1.10", "1.15"), "peft": ("0.20", "0.21"),
    "torch": ("2.10", "2.13"), "python": ("3.10", "3.13"),
}  # fmt: skip


@dataclass(frozen=True)
class Guarded:
    """Names that `owner` ("module", "module:Class" or "module:function") must have, and the purpose of each.

    For a function, they are its arguments. `optional`: Groundtune works without them, a little slower.
    """

    package: str
    owner: str
    names: Mapping[str, str]
    optional: bool = False

    def missing(self) -> Iterator[str]:
        """The missing names, such as "Trainer._save"."""
        module, _, inside = self.owner.partition(":")
        try:
            owner = import_module(module)
            for part in filter(None, inside.split(".")):
                owner = getattr(owner, part)
        except (ImportError, AttributeError):
            yield self.owner.replace(":", ".")
            return
        there = names_in(owner)
        yield from (f"{inside or module}.{name}" for name in self.names if name not in there)


GUARDED = (
    Guarded("transformers", "transformers.trainer:Trainer", {
        # Overridden by SafeTrainer
        "_run_epoch": "a run that was stopped at its last step does not train another, and samplers know their epoch",
        "_get_grad_norm": "a gradient that is not finite stops the run before the weights change",
        "_determine_best_metric": "what is NaN or was not measured is never the best",
        "_maybe_log_save_evaluate": "after a signal the step is saved, and the run stops",
        "_save_checkpoint": "a checkpoint is written beside its place, with a manifest, and takes it as a whole",
        "_save": "no pickle of the arguments lies beside a model",
        "_save_optimizer_and_scheduler": "JSON and safetensors in place of pickles",
        "_save_scaler": "the same",
        "_save_rng_state": "the same, with every generator that training draws from",
        "_load_optimizer_and_scheduler": "what is resumed from holds no pickle",
        "_load_scaler": "the same",
        "_load_rng_state": "the same",
        "_load_from_checkpoint": "no pickle is read, and every parameter is compared with what was saved",
        "_load_best_model": "in place of a damaged checkpoint the next best is loaded",
        "_issue_warnings_after_load": "tied weights are not missing, and the comparison sees what is",
        # Overridden by QATrainer
        "_get_train_sampler": "the order of the rows is a function of seed and epoch",
        "_push_from_checkpoint": "what goes to the hub is the model, and no answers or passages",
        "_finish_current_push": "a run ends when all of it is on the hub",
        # Called
        "_evaluate": "an evaluation that a signal stopped is made up for",
        "_wrap_model": "the loss of an evaluation is computed as in training",
        "_prepare_inputs": "a batch goes to the device of the model",
        "model_accepts_loss_kwargs": "the answer tokens of a whole step divide its loss, once",
    }),
    Guarded("transformers", "transformers.trainer:Trainer.save_model", {
        "_internal_call": "a checkpoint is saved without being pushed",
    }),
    Guarded("transformers", "transformers.trainer", {
        "DEFAULT_PROGRESS_CALLBACK": "a progress bar of our own takes its place",
    }),
    Guarded("transformers", "transformers.trainer_callback", {
        "ExportableState": "callbacks with a state of their own go on with it",
    }),
    Guarded("transformers", "transformers.integrations.integration_utils", {
        "INTEGRATION_TO_CALLBACK": "which callbacks are trackers, whose failure ends no run",
    }),
    Guarded("transformers", "transformers.configuration_utils:PreTrainedConfig", {
        "_attn_implementation": "what a model attends by, in whose place packed attention is put",
    }),
    Guarded("transformers", "transformers.masking_utils", {
        "sdpa_mask": "rows that are not packed are masked as PyTorch's own attention wants it",
    }),
    Guarded("transformers", "transformers.modeling_utils", {
        "log_state_dict_report": "a weight that is missing is an error, and one line",
    }),
    Guarded("transformers", "transformers.utils.chat_template_utils", {
        "ImmutableSandboxedEnvironment": "a chat template takes a limited number of steps, and builds no endless text",
    }),
    Guarded("transformers", "transformers.hf_argparser", {
        "string_to_bool": "flags that take true and false also take on and off",
    }),
    Guarded("accelerate", "accelerate.accelerator:Accelerator", {
        "native_amp": "logits are not copied to float32, which the loss computes in anyway",
        "even_batches": "an evaluation reads no row twice",
        "gradient_accumulation_steps": "a loss that is divided already is not divided again",
    }),
    Guarded("peft", "peft.tuners.lora.layer:Linear", {
        "base_layer": "what the fused LoRA product is computed from, and whether a layer is plain LoRA",
        "lora_A": "the same", "lora_B": "the same", "scaling": "the same", "lora_dropout": "the same",
        "lora_variant": "the same", "active_adapters": "the same", "disable_adapters": "the same", "merged": "the same",
    }, optional=True),
    Guarded("torch", "torch", {
        "_dynamo": "a kernel of FlexAttention for each length, and none that is compiled away unnoticed",
    }),
    Guarded("torch", "torch.cpu", {
        "_is_avx512_bf16_supported": "whether this CPU computes bfloat16 by itself",
        "_is_amx_tile_supported": "the same",
    }, optional=True),
    Guarded("python", "argparse:ArgumentParser", {
        "_actions": "the flags of a parser, for old spellings and for what is closest to a wrong one",
        "_option_string_actions": "how a flag in a file is spelt on a command line",
        "_add_action": "retriever training takes the flags of TrainingArguments that its help does not show",
    }),
    Guarded("python", "argparse:HelpFormatter", {
        "_format_action_invocation": "one spelling of each flag in the help",
        "_get_help_string": "a default is told once",
    }),
)  # fmt: skip


def require(*packages: str) -> None:
    """Raise `DataError` with a line for each of these packages that lacks names that Groundtune needs."""
    if problems := problems_of(*packages):
        raise DataError(problems)


def problems_of(*packages: str) -> list[str]:
    """A line for each of these packages (default: all) that lacks names that Groundtune needs."""
    missing: dict[str, list[str]] = {}
    for guarded in GUARDED:
        if not guarded.optional and (not packages or guarded.package in packages):
            missing.setdefault(guarded.package, []).extend(guarded.missing())
    return [_line(package, names) for package, names in missing.items() if names]


def _line(package: str, names: list[str]) -> str:
    first, last = TESTED[package]
    version = platform.python_version() if package == "python" else metadata.version(package)
    way_out = f"use Python {last}" if package == "python" else f'pip install "{package}=={last}.*"'
    lacks = f"{package} {version} lacks {', '.join(names)}, which Groundtune needs"
    return f"{lacks}; it was tested with {first} to {last}: {way_out}"


def names_in(owner: Any) -> set[str]:
    """The names of `owner`: a function's arguments, else attributes, including those that constructors set."""
    if inspect.isfunction(owner):
        return set(inspect.signature(owner).parameters)
    names = set(dir(owner))
    for base in owner.__mro__ if inspect.isclass(owner) else ():
        if inspect.isfunction(made := vars(base).get("__init__")):
            names.update(inspect.unwrap(made).__code__.co_names)
    return names
