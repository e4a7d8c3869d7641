"""Fine-tune a local decoder LLM to answer from your own documents, and measure end to end whether it got better."""

# ruff: noqa: F401  what editors are told below is imported by nobody

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers; the same names as below
    from groundtune.api import Answer, Run, compare, evaluate, load, open_retriever, train
    from groundtune.data.files import read_documents, read_examples
    from groundtune.errors import DataError, ModelError
    from groundtune.evaluation.comparison import Comparison
    from groundtune.evaluation.evaluator import EndToEndEvaluator
    from groundtune.evaluation.predictions import Evaluation
    from groundtune.methods import METHODS
    from groundtune.model.endpoint import EndpointError
    from groundtune.recipes.evaluate import Evaluated
    from groundtune.reporting.results import Results
    from groundtune.retrieval.retrievers import Retriever
    from groundtune.runs.hub import NotPushed
    from groundtune.schema import Document, Example, Hit, Prediction, Turn
    from groundtune.serving.dialogue import Source
    from groundtune.system.durable import DiskError
    from groundtune.system.out_of_memory import OutOfMemory
    from groundtune.training.safe_trainer import NonFiniteLoss
    from groundtune.training.trainer import QATrainer

# Public names and where they live; imported on first use, so that `import groundtune` loads no torch. No function may
# have the name of a package or module in this folder: importing that one would take the function's place.
_PUBLIC = {
    "train": "api",
    "load": "api",
    "Run": "api",
    "Answer": "api",
    "evaluate": "api",
    "compare": "api",
    "open_retriever": "api",
    "Results": "reporting.results",
    "Evaluated": "recipes.evaluate",
    "Evaluation": "evaluation.predictions",
    "Comparison": "evaluation.comparison",
    "Source": "serving.dialogue",
    "Retriever": "retrieval.retrievers",
    "Document": "schema",
    "Turn": "schema",
    "Example": "schema",
    "Hit": "schema",
    "Prediction": "schema",
    "DataError": "errors",
    "ModelError": "errors",
    "EndpointError": "model.endpoint",
    "DiskError": "system.durable",
    "OutOfMemory": "system.out_of_memory",
    "NonFiniteLoss": "training.safe_trainer",
    "NotPushed": "runs.hub",
    "read_documents": "data.files",
    "read_examples": "data.files",
    "METHODS": "methods",
    "EndToEndEvaluator": "evaluation.evaluator",
    "QATrainer": "training.trainer",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'groundtune' has no attribute {name!r}")
    return getattr(import_module(f"groundtune.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
