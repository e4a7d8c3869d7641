"""Fine-tune a local decoder LLM to answer from your own documents, and prove end to end whether it got better."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import groundtune` loads no torch.
_PUBLIC = {
    "Document": "schema",
    "Turn": "schema",
    "Example": "schema",
    "Hit": "schema",
    "Prediction": "schema",
    "DataError": "errors",
    "read_documents": "data.files",
    "read_examples": "data.files",
    "EndToEndEvaluator": "evaluation.evaluator",
    "METHODS": "methods",
    "QATrainer": "training.trainer",
    "train": "recipes.train",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'groundtune' has no attribute {name!r}")
    return getattr(import_module(f"groundtune.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
