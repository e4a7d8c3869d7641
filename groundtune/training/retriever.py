"""Trainers of retrievers: sentence-transformers' own, which resume and stop like every run (`SafeTrainer`).

The loss compares each question with the passages of all others in its batch, so a batch is never cut, and holds no two
passages that say the same.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PrinterCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from groundtune.arguments import MAXSIM, NO_RERANKER, reranked_by
from groundtune.errors import DataError, ModelError
from groundtune.evaluation.retrievers_compared import DEPTH, scores_of
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.opening import index_folder, open_embedder, open_retriever_with, with_words
from groundtune.retrieval.reranking import CrossEncoderReranker, open_reranker, reranked
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever, Retriever, retrieve
from groundtune.retrieval.stores.local import Index, load_or_build_index
from groundtune.schema import Document, Example
from groundtune.system.model_folders import cannot_load, embedding_problems, hub_problems, nothing_unpickled
from groundtune.system.model_settings import read_json
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.outputs import usual_modes
from groundtune.system.text import one_line
from groundtune.training.arguments import tracker_problems
from groundtune.training.callbacks import EvaluateAtTheEnd, Progress
from groundtune.training.negatives import Pair, kinds_of
from groundtune.training.retriever_arguments import RetrieverRun, output_of
from groundtune.training.safe_trainer import SafeTrainer

logger = logging.getLogger(__name__)

Measure = Callable[[int], Mapping[str, float]]  # step -> the scores of the model as it is now
Scores = dict[str, list[dict[str, float]]]  # retriever -> the scores of each question
_NAMES = ("anchor", "positive")  # columns of pairs; negatives follow


class _Recall(BaseEvaluator):
    """What sentence-transformers calls at each evaluation."""

    def __init__(self, measure: Measure):
        super().__init__()
        self.measure = measure

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        if output_path is not None:
            with suppress(OSError):
                Path(output_path).rmdir()  # the library makes a folder for files that are not written
        return dict(self.measure(steps))


class _OneGpu:
    """With several GPUs, the libraries would use `DataParallel`, which splits a batch into smaller ones."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)  # type: ignore[misc]


class _EmbeddingArguments(_OneGpu, SentenceTransformerTrainingArguments):
    pass


class _CrossEncoderArguments(_OneGpu, CrossEncoderTrainingArguments):
    pass


class _RetrieverTrainer(SafeTrainer):
    """What both kinds have in common. `max_tokens` is how much of a text training reads."""

    def __init__(self, *args: Any, max_tokens: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.max_tokens = max_tokens
        if self.args.eval_strategy != "no":
            self.add_callback(EvaluateAtTheEnd())
        self.pop_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.pop_callback(DEFAULT_PROGRESS_CALLBACK)
            self.add_callback(Progress(("loss", f"eval_{self.args.metric_for_best_model}")))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it reads the data for a card, which would quote questions and passages."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model: Any = self.model
        model.save_pretrained = partial(type(model).save_pretrained, model, create_model_card=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    @contextmanager
    def _shortened(self) -> Iterator[None]:
        """Inside, the model reads at most `max_tokens` of a text."""
        model: Any = self.accelerator.unwrap_model(self.model)
        reads = model.max_seq_length
        if reads is None or math.isinf(reads) or reads <= self.max_tokens:  # static vectors read texts of any length
            yield
            return
        model.max_seq_length = self.max_tokens
        try:
            yield
        finally:
            model.max_seq_length = reads


class EmbeddingTrainer(_RetrieverTrainer, SentenceTransformerTrainer):  # type: ignore[misc]
    """Trains an embedding model on rows whose passages have `kinds`: a batch holds one passage of each kind."""

    def __init__(self, *args: Any, kinds: Any, **kwargs: Any):
        self.kinds = kinds
        super().__init__(*args, **kwargs)
        preprocess = self.data_collator.preprocess_fn

        def shortened(*texts: Any, **options: Any) -> Any:
            with self._shortened():
                return preprocess(*texts, **options)

        self.data_collator.preprocess_fn = shortened

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return NoDuplicatesBatchSampler(self.kinds, *args, **kwargs)


class RerankerTrainer(_RetrieverTrainer, CrossEncoderTrainer):  # type: ignore[misc]
    """Trains a cross-encoder on questions with one passage each, which holds the answer or not."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self._shortened():  # it tokenizes here
            return super().compute_loss(*args, **kwargs)


class Kind(Protocol):
    """What is trained, and how it takes part in a search. `untrained` is the model before training."""

    untrained: Any
    mix: MixRetriever

    def __init__(self, run: RetrieverRun, documents: Sequence[Document]): ...

    def open(self) -> Any: ...

    def searches(self, model: Any) -> dict[str, Retriever]: ...

    def against(self, scores: Scores) -> Scores:
        """The scores, of the untrained model, that a tuned one must surpass."""

    def notes(self) -> list[str]: ...

    def trainer(
        self, model: Any, pairs: Sequence[Pair], folder: Path, measure: Measure | None, identity: Any
    ) -> SafeTrainer:
        """The trainer of `model` on these rows; without `measure` nothing is evaluated, and the last step wins."""

    def save(self, model: Any, folder: Path) -> str:
        """Save the model; returns what was kept, in words."""


@dataclass
class EmbeddingKind:
    """Trains the embedding model, which is searched alone (`dense`) and inside the retriever of the run."""

    run: RetrieverRun
    documents: Sequence[Document]
    untrained: Embedder = field(init=False)
    mix: MixRetriever = field(init=False)  # of the untrained model, for negatives

    def __post_init__(self) -> None:
        self.untrained = self.open()
        index = load_or_build_index(index_folder(self.run.data), self.documents, self.untrained)
        dense, retrieval = DenseRetriever(self.untrained, index), self.run.retrieval
        self.mix = MixRetriever(dense, BM25Retriever(self.documents), retrieval.mix_weight)
        self.reranker = open_reranker(retrieval) if retrieval.reranker != MAXSIM else None

    def open(self) -> Embedder:
        """The untrained model."""
        retrieval, pooling = self.run.retrieval, self.run.retriever.pooling_type
        embedder = cast(Embedder, open_embedder(retrieval.embedding_model, retrieval))  # servers are refused
        if pooling != "model":
            _set_pooling(embedder.model, pooling)
        # The folder that is saved has another name, by which no prompts are known.
        embedder.model.prompts = {
            **embedder.model.prompts, "query": embedder.query_prompt or "", "document": embedder.document_prompt or ""
        }  # fmt: skip
        return embedder

    def searches(self, model: Embedder) -> dict[str, Retriever]:
        """The retrievers with this model; the last one decides."""
        dense = self.mix.dense
        if model is not self.untrained:
            vectors = model.embed_documents([document.text for document in self.documents])
            dense = DenseRetriever(model, Index(self.documents, vectors, model.similarity))
        retrieval = self.run.retrieval
        whole = dense if retrieval.retriever == "dense" else with_words(dense, self.mix.bm25, retrieval)
        reranker = open_reranker(retrieval, model) if retrieval.reranker == MAXSIM else self.reranker
        name = retrieval.retriever + reranked_by(retrieval.reranker)
        return {"dense": dense, name: reranked(whole, retrieval, reranker)}

    def against(self, scores: Scores) -> Scores:
        return scores

    def notes(self) -> list[str]:
        return []

    def trainer(
        self, model: Embedder, pairs: Sequence[Pair], folder: Path, measure: Measure | None, identity: Any
    ) -> EmbeddingTrainer:
        from datasets import Dataset

        columns, kinds = _columns(pairs, self.run.negatives)
        prompts = {name: model.query_prompt if name == _NAMES[0] else model.document_prompt for name in columns}
        arguments = _EmbeddingArguments(
            **_settings(self.run, folder, measure), prompts={name: prompt for name, prompt in prompts.items() if prompt}
        )
        flags = self.run.retriever
        return EmbeddingTrainer(
            model=model.model, args=arguments, train_dataset=Dataset.from_dict(columns),
            evaluator=measure and _Recall(measure), loss=ranking_loss(model.model, flags.temperature),
            kinds=Dataset.from_dict(kinds), max_tokens=flags.max_seq_length, run=identity,
        )  # fmt: skip

    def save(self, model: Embedder, folder: Path) -> str:
        _save(model.model, folder)
        return "the untrained model is kept" if model is self.untrained else "the tuned model is kept"


@dataclass
class CrossEncoderKind:
    """Trains the reranker of what the retriever finds. It must do better than no reranker, too."""

    run: RetrieverRun
    documents: Sequence[Document]
    untrained: CrossEncoderReranker = field(init=False)
    mix: Any = field(init=False)

    def __post_init__(self) -> None:
        self.untrained = self.open()
        retrieval, folder = replace(self.run.retrieval, reranker=NO_RERANKER), index_folder(self.run.data)
        documents = list(self.documents)
        self.first = open_retriever_with(retrieval.embedding_model, retrieval, documents, folder)
        self.mix = self.first
        if isinstance(self.first, DenseRetriever):
            self.mix = MixRetriever(self.first, BM25Retriever(documents), retrieval.mix_weight)
        self.without_is_better: bool | None = None  # decided on the first questions, those of training

    def open(self) -> CrossEncoderReranker:
        name, batch_size = self.run.retrieval.reranker, self.run.retrieval.embedding_batch_size
        if _rates(name):
            return cast(CrossEncoderReranker, open_reranker(self.run.retrieval))
        try:
            return NewReranker(name, batch_size)
        except Exception as error:  # libraries do not validate a model's settings, so anything may be raised
            if is_out_of_memory(error) or isinstance(error, DataError):
                raise
            raise ModelError(f"--reranker: {cannot_load(name, error)}") from error

    def searches(self, model: CrossEncoderReranker) -> dict[str, Retriever]:
        """Without the reranker and with it."""
        retrieval = self.run.retrieval
        return {
            retrieval.retriever: self.first,
            f"{retrieval.retriever}, reranked": reranked(self.first, retrieval, model),
        }

    def against(self, scores: Scores) -> Scores:
        """Of the untrained reranker, or if that finds less than none, of the search alone."""
        alone, _ = scores
        recall = self.run.recall
        found = [sum(row[recall] for row in rows) for rows in scores.values()]
        if self.without_is_better is None:
            self.without_is_better = isinstance(self.untrained, NewReranker) or found[0] >= found[1]
        return {name: scores[alone] for name in scores} if self.without_is_better else scores

    def notes(self) -> list[str]:
        if not self.without_is_better:
            return []
        return ["the untrained reranker finds no more than none, so the tuned one is compared with the search alone"]

    def trainer(
        self, model: CrossEncoderReranker, pairs: Sequence[Pair], folder: Path, measure: Measure | None, identity: Any
    ) -> RerankerTrainer:
        """Trains on each question with its gold passage, and with each of its negatives."""
        from datasets import Dataset

        rows = [(pair.question, pair.gold.text, 1.0) for pair in pairs]
        rows += [(pair.question, document.text, 0.0) for pair in pairs for document in pair.negatives]
        names = ("question", "passage", "label")
        data = Dataset.from_dict({name: list(values) for name, values in zip(names, zip(*rows))})
        return RerankerTrainer(
            model=model.model, args=_CrossEncoderArguments(**_settings(self.run, folder, measure)), train_dataset=data,
            evaluator=measure and _Recall(measure), loss=BinaryCrossEntropyLoss(model.model),
            max_tokens=self.run.retriever.max_seq_length, run=identity,
        )  # fmt: skip

    def save(self, model: CrossEncoderReranker, folder: Path) -> str:
        if model is self.untrained and self.without_is_better:
            return "no reranker is kept, because the retriever finds as much without one"
        _save(model.model, folder)
        return "the untrained reranker is kept" if model is self.untrained else "the tuned reranker is kept"


class NewReranker(CrossEncoderReranker):
    """A reranker made from an encoder: the layer that rates is random before training."""

    def __post_init__(self) -> None:
        if problems := embedding_problems(self.name, "reranker") or hub_problems(self.name, wanted="reranker"):
            raise ValueError(problems[0])
        options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        logger.info("%s rates no passages yet: it gets a new layer for that", self.name)
        with nothing_unpickled(), _without_warnings("transformers"), torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = CrossEncoder(self.name, num_labels=1, activation_fn=torch.nn.Identity(), **options).eval()


def _rates(name: str) -> bool:
    """Whether a model has a layer that rates passages; assumed of a name on the hub."""
    config = read_json(Path(name) / "config.json")
    return not isinstance(config, dict) or "Classification" in str(config.get("architectures"))


def _save(model: Any, folder: Path) -> None:
    with usual_modes(folder):
        model.save_pretrained(str(folder), create_model_card=False)


def scores_with(searches: Mapping[str, Retriever], examples: Sequence[Example], run: RetrieverRun) -> Scores:
    """The scores of each question, by retriever."""
    k, history = run.retrieval.eval_num_to_retrieve, run.retrieval.query_history
    found: Scores = {}
    for name, retriever in searches.items():
        hits = retrieve(retriever, examples, max(k, DEPTH), history)
        found[name] = [scores_of(example, these, k) for example, these in zip(examples, hits, strict=True)]
    return found


def tuned_scores(kind: Kind, model: Any, examples: Sequence[Example], run: RetrieverRun) -> Scores:
    """`scores_with` the model as it is now. What a search warns of was said when the untrained model searched."""
    with _without_warnings("groundtune.retrieval"):
        return scores_with(kind.searches(model), examples, run)


@contextmanager
def _without_warnings(package: str) -> Iterator[None]:
    of_package = logging.getLogger(package)
    level = of_package.level
    of_package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        of_package.setLevel(level)


def mean_of(scores: Scores) -> dict[str, float]:
    """The means of the retriever that decides."""
    rows = list(scores.values())[-1]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    """Replace the pooling of token vectors. Raises `ModelError` if the model has none."""
    for name, module in model.named_children():
        if isinstance(module, Pooling):
            setattr(model, name, Pooling(module.embedding_dimension, pooling_mode=mode))
            return
    raise ModelError(f"--pooling_type {mode}: the embedding model pools no token vectors; remove the flag")


def ranking_loss(model: SentenceTransformer, temperature: float | None) -> torch.nn.Module:
    """In-batch negatives by the similarity that the model is searched with."""
    if temperature is None:
        temperature = 0.05 if (model.similarity_fn_name or "cosine") == "cosine" else 1.0
    return MultipleNegativesRankingLoss(model, scale=1 / temperature, similarity_fct=model.similarity)


def _columns(pairs: Sequence[Pair], wanted: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The rows as columns of texts, and the same with the kind of each passage in place of its text.

    All rows need as many negatives as the longest: a row with fewer has its own again, or the gold passage of another
    kind.
    """
    distinct = {d.id: d for pair in pairs for d in (pair.gold, *pair.negatives)}
    kind = dict(zip(distinct, kinds_of(list(distinct.values()))))
    most = min(wanted, max((len(pair.negatives) for pair in pairs), default=0))
    names = [*_NAMES, *(f"negative_{i + 1}" for i in range(most))]
    texts: dict[str, list[str]] = {name: [] for name in names}
    kinds: dict[str, list[str]] = {name: [] for name in names}
    for number, pair in enumerate(pairs):
        others = (p.gold for p in (*pairs[number + 1 :], *pairs[:number]) if kind[p.gold.id] != kind[pair.gold.id])
        negatives = pair.negatives or ((other,) if most and (other := next(others, None)) else (pair.gold,))
        documents = [pair.gold, *(negatives[i % len(negatives)] for i in range(most))]
        texts[_NAMES[0]].append(pair.question)
        kinds[_NAMES[0]].append(f"question {pair.question}")
        for name, document in zip(names[1:], documents):
            texts[name].append(document.text)
            kinds[name].append(f"kind {kind[document.id]}")
    return texts, kinds


def refused_arguments(run: RetrieverRun) -> list[str]:
    """What the library refuses, found before anything is read; with its flag, if only one is wrong."""
    settings = _settings(run, output_of(run), lambda step: {})
    try:
        return tracker_problems(cast("list[str]", _EmbeddingArguments(**settings).report_to))
    except (ValueError, ImportError) as error:
        why = one_line(error)
    for name in (*vars(run.training), *run.more):
        with suppress(ValueError, ImportError):
            _EmbeddingArguments(**{other: value for other, value in settings.items() if other != name})
            return [f"--{name}: {why}; -h describes it"]
    return [f"arguments: {why}"]


def _settings(run: RetrieverRun, folder: Path, measure: Measure | None) -> dict[str, Any]:
    """The arguments of the library's trainer. Checkpoints are written where recall is measured, and resumed from."""
    flags, no_accelerator = run.training, not (torch.cuda.is_available() or torch.backends.mps.is_available())
    strategy = flags.eval_strategy if measure else "no"
    known = inspect.signature(SentenceTransformerTrainingArguments).parameters
    settings = {name: value for name, value in vars(flags).items() if name in known} | dict(run.more)
    settings |= {
        "output_dir": str(folder), "eval_strategy": strategy,
        "save_strategy": "steps" if flags.eval_strategy == "no" else flags.eval_strategy,
        "save_steps": flags.eval_steps, "load_best_model_at_end": strategy != "no", "eval_on_start": strategy != "no",
        "metric_for_best_model": run.recall, "greater_is_better": True, "logging_nan_inf_filter": False,
        "disable_tqdm": run.output.quiet or run.output.json, "resume_from_checkpoint": None,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    settings["use_cpu"] = bool(settings.get("use_cpu")) or no_accelerator
    return settings


KINDS: dict[str, type[Kind]] = {"embedding": EmbeddingKind, "cross_encoder": CrossEncoderKind}
