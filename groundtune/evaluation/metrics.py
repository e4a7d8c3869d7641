"""Scores of single questions: pure functions, no models and no files.

Generation and retrieval scores lie in [0, 1].
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from groundtune.data.numbers import has_decimal_comma, with_values
from groundtune.data.words import folded, has_other_script, in_segments, other_words, spaced
from groundtune.schema import nfc

METRICS: dict[str, str] = {
    "generation/exact_match": "share of answers equal to the gold answer after SQuAD normalisation",
    "generation/numeric_match": "exact match with numbers compared by value: 1,000 is 1000, but 3.5 is not 35",
    "generation/f1": "token F1 of answer and gold answer (SQuAD)",
    "generation/precision": "share of the answer's tokens that are in the gold answer",
    "generation/recall": "share of the gold answer's tokens that are in the answer",
    "generation/rouge1": "ROUGE-1 F-measure: words in common, stemmed",
    "generation/rouge2": "ROUGE-2 F-measure: pairs of neighbouring words in common, stemmed",
    "generation/rougeL": "ROUGE-L F-measure: longest common subsequence of words, stemmed",
    "generation/bleu": "sentence BLEU with effective order, on a scale of 0 to 1",
    "generation/contradiction": "share of answers that contradict the gold answer, by rule: yes or no, a negation, "
    "number, unit or date; lower is better",
    "generation/unfinished": "share of answers cut at the token limit; lower is better",
    "generation/new_tokens": "tokens generated for an answer; a cost, so lower counts as better",
    "errors/unanswerable_answered": "share of unanswerable questions that the model answered; lower is better",
    "errors/answerable_refused": "share of answerable questions on which it said that it does not know; lower is "
    "better",
    "grounded/tokens": "share of the answer's tokens that are in the passages it read",
    "grounded/quotes": "share of the spans quoted in the answer that occur verbatim in the passages it read",
    "citations/precision": "share of the passages cited, sentence by sentence, that are gold or hold its text, where "
    "such a passage was read",
    "citations/recall": "share of sentences that cite such a passage",
    "citations/afterwards_precision": "precision of citations that are found afterwards, by words in common",
    "citations/afterwards_recall": "their recall",
    "citations/always_first": "precision and recall if every sentence cited the first passage",
    "citations/at_random": "the same for a passage drawn at random, as an expectation",
    "citations/most_similar": "the same for the passage that has most words of the answer",
    "people/correct": "share of raters who said that the answer is correct; so for the next three",
    "people/helpful": "that it helps",
    "people/grounded": "that all of it is in the passages",
    "people/harmful": "that it could do harm; lower is better",
    "judge/*": "a language model's grade of the answer, from 0 to 1",
    "retrieval/recall@k": "share of a question's gold documents among the first k retrieved",
    "retrieval/mrr": "mean reciprocal rank of the first gold document",
    "retrieval/ndcg@k": "normalised discounted cumulative gain of the first k retrieved",
    "latency/retrieval_s": "seconds to retrieve for a question; lower is better",
    "latency/generation_s": "seconds to generate an answer; lower is better",
    "loss": "cross-entropy on answer tokens in nats per token; lower is better",
    "loss_with_gold_passage": "the same with the gold passage in the prompt, so not end to end; lower is better",
}
_LOWER_IS_BETTER = (
    "generation/unfinished", "generation/new_tokens", "generation/contradiction", "errors/unanswerable_answered",
    "errors/answerable_refused", "people/harmful",
)  # fmt: skip


def greater_is_better(metric: str) -> bool:
    """Whether higher values of a metric are better, by its name, which may start with `eval_` or `test_`.

    `@k` stands for any integer from 1, `judge/*` for any judge prompt. Names under `latency/`, ending in `loss` or
    containing `loss_` are accepted; any other name that is not in `METRICS` raises ValueError.
    """
    name = re.sub(r"@[1-9][0-9]*$", "@k", re.sub(r"^(eval|test)_", "", metric))
    name = re.sub(r"^judge/\w+$", "judge/*", name)
    if name.startswith("latency/") or name.endswith("loss") or "loss_" in name:
        return False
    if name not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known, also after eval_ or test_: {', '.join(METRICS)}")
    return name not in _LOWER_IS_BETTER


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1], by its name: all but times, losses and numbers of tokens do."""
    name = re.sub(r"^judge/\w+$", "judge/*", re.sub(r"^(eval|test)_", "", metric))
    return not (name.startswith("latency/") or "loss" in name or name == "generation/new_tokens")


def largest(metric: str) -> float:
    """The largest value of a metric that a file may have; the smallest is 0."""
    return 1.0 if is_share(metric) else 1e12


# Generation: (answer, gold) -> [0, 1]
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> list[str]:
    """SQuAD v1.1 normalisation: lower case, no ASCII punctuation, then no articles; split at whitespace.

    Tokens with letters of another script than Latin also lose their own punctuation and, if the script has no spaces
    between words, are cut into characters (as in KorQuAD and CMRC for Korean and Chinese).
    """
    other = has_other_script(text)
    text = folded(text) if other else nfc(text)
    tokens = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return [piece for token in tokens for piece in other_words(token)] if other else tokens


def exact_match(answer: str, gold: str) -> float:
    """1 if both texts are equal after SQuAD v1.1 normalisation, else 0 (Rajpurkar et al. 2016)."""
    return float(normalised(answer) == normalised(gold))


def numeric_match(answer: str, gold: str) -> float:
    """Exact match in which numbers are compared by value: 1,000 = 1000 = 1 000 and 3.50 = 3.5, but 3.5 is not 35.

    Only "1.000" and "1,000" depend on the language, which the texts' own words tell; without any, as in English.
    """
    pair = [(answer, gold), (gold, answer)]
    read = [with_values(text, has_decimal_comma(text, other)) for text, other in pair]
    said, wanted = ([[v] if v is not None else normalised(t) for t, v in pieces] for pieces in read)
    return float([token for piece in said for token in piece] == [token for piece in wanted for token in piece])


def token_precision(answer: str, gold: str) -> float:
    """Share of the answer's tokens that are in the gold answer, compared as multisets; see `token_f1`."""
    predicted, wanted = normalised(answer), normalised(gold)
    if not predicted or not wanted:
        return float(predicted == wanted)
    return (Counter(predicted) & Counter(wanted)).total() / len(predicted)


def token_recall(answer: str, gold: str) -> float:
    """Share of the gold answer's tokens that are in the answer, compared as multisets; see `token_f1`."""
    return token_precision(gold, answer)


def token_f1(answer: str, gold: str) -> float:
    """Harmonic mean of token precision and recall (the SQuAD v1.1 script of Rajpurkar et al. 2016).

    Two texts that are empty after normalisation score 1, and an empty text against a non-empty one scores 0, as in
    SQuAD 2.0 (Rajpurkar et al. 2018). Scripts without spaces, such as Chinese, are compared by characters.
    """
    predicted, wanted = normalised(answer), normalised(gold)
    if not predicted or not wanted:
        return float(predicted == wanted)
    # Not from precision and recall, which are rounded: equal token overlap must give exactly equal scores.
    return 2 * (Counter(predicted) & Counter(wanted)).total() / (len(predicted) + len(wanted))


@lru_cache(maxsize=1)
def _scorers() -> tuple[Any, Any]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    tokenizer = _RougeTokenizer()
    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer), BLEU(effective_order=True)


class _RougeTokenizer:
    """rouge-score's own tokenizer, which drops other scripts than Latin, and their words where they stand."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._latin = DefaultTokenizer(use_stemmer=True).tokenize

    def tokenize(self, text: str) -> list[str]:
        text = nfc(text)
        if not has_other_script(text):
            return list(self._latin(text))
        pieces = in_segments(folded(text.lower()))
        return [token for piece, other in pieces for token in ([piece] if other else self._latin(piece))]


def rouge(answer: str, gold: str) -> dict[str, float]:
    """F-measures `rouge1`, `rouge2`, `rougeL` (Lin 2004; the package rouge-score, Porter stemmer).

    rouge-score reads only digits and the letters a to z. Here words of other scripts count too, unstemmed, and single
    characters where a script has no spaces.
    """
    return {name: float(score.fmeasure) for name, score in _scorers()[0].score(gold, answer).items()}


def bleu(answer: str, gold: str) -> float:
    """Sentence BLEU (Papineni et al. 2002; sacrebleu, Post 2018) divided by 100; an empty text scores 0.

    Effective order skips the n-grams that an answer under four words cannot have; otherwise it would score 0.
    Characters of scripts without spaces count as words. `min` corrects rounding, which puts sacrebleu's perfect score
    slightly above 100.
    """
    return min(1.0, _scorers()[1].sentence_score(spaced(nfc(answer)), [spaced(nfc(gold))]).score / 100)


def generation_scores(answer: str, gold: str | Sequence[str]) -> dict[str, float]:
    """All generation scores of one answer, named as in `METRICS`.

    With several acceptable answers, each score is the maximum over them, as in the SQuAD script (Rajpurkar et al.
    2016); an empty list raises ValueError.
    """
    if isinstance(gold, str):
        return _scores_against(answer, gold)
    if not gold:
        raise ValueError("no gold answer to score against")
    of_each = [_scores_against(answer, one) for one in gold]
    return {name: max(scores[name] for scores in of_each) for name in of_each[0]}


def _scores_against(answer: str, gold: str) -> dict[str, float]:
    return {
        "generation/exact_match": exact_match(answer, gold),
        "generation/numeric_match": numeric_match(answer, gold),
        "generation/f1": token_f1(answer, gold),
        "generation/precision": token_precision(answer, gold),
        "generation/recall": token_recall(answer, gold),
        **{f"generation/{name}": score for name, score in rouge(answer, gold).items()},
        "generation/bleu": bleu(answer, gold),
    }


# Retrieval: (ranked document ids, relevant ids) -> [0, 1]
# A repeated id counts once, at its first rank; the repeat still occupies a rank, as it does in a prompt.
# Without a relevant document, no score is defined (0 or 1 would be made up): ValueError, as for k < 1.
def _found(ranked: Sequence[str], relevant: Collection[str], k: int | None = None) -> list[int]:
    """Ranks, from 1, at which relevant documents first occur among the first `k`."""
    if not relevant or (k is not None and k < 1):
        raise ValueError(f"need a relevant document and k >= 1; there are {len(relevant)} and k is {k}")
    first = {document: rank for rank, document in reversed(list(enumerate(ranked[:k], start=1)))}
    return sorted(first[document] for document in set(relevant) if document in first)


def recall_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant documents that are among the first `k`; below 1 where there are more than `k`."""
    return len(_found(ranked, relevant, k)) / len(set(relevant))


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """1 / rank of the first relevant document, 0 if there is none in `ranked` (Voorhees 1999)."""
    ranks = _found(ranked, relevant)
    return 1 / ranks[0] if ranks else 0.0


def ndcg_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Normalised discounted cumulative gain of the first `k` (Järvelin & Kekäläinen 2002), as in trec_eval.

    A relevant document gains 1 / log2(1 + rank); the ideal ranking starts with min(k, relevant) of them.
    """
    gain = math.fsum(1 / math.log2(1 + rank) for rank in _found(ranked, relevant, k))
    return gain / math.fsum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(set(relevant))) + 1))


def retrieval_scores(ranked: Sequence[str], relevant: Collection[str], ks: Sequence[int] = (1, 4)) -> dict[str, float]:
    """Recall at each of `ks`, reciprocal rank, and nDCG at the largest of them, named as in `METRICS`."""
    return {
        **{f"retrieval/recall@{k}": recall_at_k(ranked, relevant, k) for k in ks},
        "retrieval/mrr": reciprocal_rank(ranked, relevant),
        f"retrieval/ndcg@{max(ks)}": ndcg_at_k(ranked, relevant, max(ks)),
    }
