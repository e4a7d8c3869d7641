"""Retrievers side by side on questions with known gold passages, without a language model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from groundtune.data.overlap import HOLDS, grams_of, share_of
from groundtune.evaluation.metrics import retrieval_scores
from groundtune.evaluation.statistics import Interval, PairedDifference, aggregate, clusters_of, paired_difference
from groundtune.retrieval.queries import queries_of
from groundtune.retrieval.reranking import RerankedRetriever, Reranker
from groundtune.retrieval.retrievers import DenseRetriever, HybridRetriever, MixRetriever, Retriever, Rewrite
from groundtune.schema import Document, Example, Hit
from groundtune.system.text import hide_secrets

WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the vectors in the mix
DEPTH = 10  # passages behind nDCG


@dataclass(frozen=True)
class Measured:
    """The scores of one retriever on one set of questions; `flags` select it."""

    name: str
    flags: str
    scores: dict[str, Interval]
    seconds: float  # a question, embedding and reranking included
    recalls: tuple[float, ...] = ()  # of each question at k

    def to_dict(self) -> dict[str, object]:
        means = {name: interval.to_dict() for name, interval in self.scores.items()}
        return {"name": self.name, "flags": self.flags, "seconds_per_question": round(self.seconds, 5), **means}


def all_retrievers(mix: MixRetriever) -> dict[str, tuple[str, Retriever]]:
    """Name -> the flags that select it, and the retriever: all that share the vectors and words of `mix`."""
    alone: dict[str, tuple[str, Retriever]] = {
        "dense": ("--retriever dense", DenseRetriever(mix.dense.embedder, mix.dense.index)),
        "bm25": ("--retriever bm25", mix.bm25),
        "hybrid (rank fusion)": ("--retriever hybrid", HybridRetriever([mix.dense, mix.bm25])),
    }
    mixes = {
        f"mix, weight {weight}": (f"--retriever mix --mix_weight {weight}", replace(mix, weight=weight))
        for weight in WEIGHTS
    }
    return alone | mixes


def reranked_retrievers(
    mix: MixRetriever, name: str, reranker: Reranker, depth: int, weights: Sequence[float]
) -> dict[str, tuple[str, Retriever]]:
    """The mix with its first `depth` passages reranked, the reranker's score having each of these weights."""
    found: dict[str, tuple[str, Retriever]] = {}
    name = hide_secrets(name)
    for weight in weights:
        flags = f"--retriever mix --mix_weight {mix.weight} --reranker {name} --rerank_weight {weight}"
        shown = f"mix, weight {mix.weight}, reranked by {name}, weight {weight}"
        found[shown] = f"{flags} --rerank_depth {depth}", RerankedRetriever(mix, reranker, depth, weight)
    return found


def difference(one: Measured, other: Measured, examples: Sequence[Example]) -> PairedDifference:
    """How much higher the recall at k of `one` is than that of `other`, question by question."""
    return paired_difference(other.recalls, one.recalls, clusters_of(examples))


def measured(
    name: str,
    flags: str,
    retriever: Retriever,
    examples: Sequence[Example],
    k: int,
    history: str,
    rewrite: Rewrite | None = None,
) -> Measured:
    """Recall and text recall at k, recall at 1, MRR and nDCG@10 of the questions, with 95 % intervals by passage.

    A gold passage counts for *text recall* if one of the k passages has at least 60 % of its text ("likely accuracy" in
    LocalRQA): another passage with the same text serves a reader as well.
    """
    queries = rewrite(examples) if rewrite else queries_of(examples, history)
    begin = time.perf_counter()
    hits = retriever.search(queries, max(k, DEPTH))
    seconds = (time.perf_counter() - begin) / len(examples)
    rows = [scores_of(example, found, k) for example, found in zip(examples, hits, strict=True)]
    recalls = tuple(row[f"retrieval/recall@{k}"] for row in rows)
    return Measured(name, flags, aggregate(rows, clusters_of(examples)), seconds, recalls)


def best_of(found: Sequence[Measured], k: int) -> Measured:
    """The retriever with the highest recall at k; of equal ones, the one with the higher MRR."""
    return max(found, key=lambda one: (one.scores[f"retrieval/recall@{k}"].value, one.scores["retrieval/mrr"].value))


def scores_of(example: Example, found: Sequence[Hit], k: int) -> dict[str, float]:
    """The scores of one question, from its max(k, DEPTH) best hits."""
    gold = {document.id for document in example.gold_documents}
    ranked = [hit.document.id for hit in found]
    held = [any(_holds(hit.document, document) for hit in found[:k]) for document in example.gold_documents]
    first, deep = retrieval_scores(ranked, gold, ks=(1, k)), retrieval_scores(ranked, gold, ks=(DEPTH,))
    return {
        "retrieval/recall@1": first["retrieval/recall@1"],
        f"retrieval/recall@{k}": first[f"retrieval/recall@{k}"],
        f"retrieval/text_recall@{k}": sum(held) / len(held),
        "retrieval/mrr": deep["retrieval/mrr"],
        f"retrieval/ndcg@{DEPTH}": deep[f"retrieval/ndcg@{DEPTH}"],
    }


def _holds(passage: Document, gold: Document) -> bool:
    return passage.id == gold.id or share_of(grams_of(gold.body), grams_of(passage.body)) >= HOLDS
