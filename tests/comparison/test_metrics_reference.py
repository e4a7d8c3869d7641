"""The metrics against the packages and the script that define them, on random cases in Latin script.

For other scripts they have no rule or a wrong one; `tests/unit/test_words.py` tests those.
"""

from __future__ import annotations

import random
import unicodedata

import pytest

from groundtune.evaluation import metrics

WORDS = """The the a an A theatre another Paris, paris! capital of (1889) U.S. don't re-use running runs
    ran “quoted” “the” naïve 12,5 % — a—b the-end a. retrieval retrieved retrieving question-answering
    Ünïcode Straße""".split()  # noqa: SIM905


def texts(count: int, seed: int, longest: int = 25) -> list[tuple[str, str]]:
    """Pairs of random texts; a third share most words, some are empty or the same."""
    rng, pairs = random.Random(seed), []
    for number in range(count):
        gold = rng.choices(WORDS, k=rng.randint(0, longest))
        answer = rng.choices(WORDS, k=rng.randint(0, longest))
        if number % 3 == 0:
            answer = [word for word in gold if rng.random() < 0.8] + answer[:3]
        elif number % 10 == 1:
            answer = gold
        pairs.append((" ".join(answer), rng.choice([" ", "\n", "\t "]).join(gold)))
    return pairs


def test_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the reference for ROUGE is rouge-score")
    for answer, gold in texts(200, seed=0):
        expected = {}
        for name in ("rouge1", "rouge2", "rougeL"):
            reference = scorer.RougeScorer([name], use_stemmer=True).score(target=gold, prediction=answer)
            expected[name] = reference[name].fmeasure
        assert metrics.rouge(answer, gold) == expected


def test_bleu_equals_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="the reference for BLEU is sacrebleu")
    for answer, gold in texts(300, seed=1):
        reference = sacrebleu.sentence_bleu(answer, [gold], use_effective_order=True)
        assert metrics.bleu(answer, gold) == pytest.approx(reference.score / 100, abs=1e-12)


def squad_tokens(text: str) -> list[str]:
    """The tokens that the SQuAD script compares, implemented separately, character by character."""
    ascii_marks = {chr(code) for code in range(33, 127) if not chr(code).isalnum()}
    kept = "".join(character for character in text.lower() if character not in ascii_marks)
    # The script removes articles at word boundaries, so one next to a surviving mark (dash, quote) is removed, too.
    pieces, word = [], ""
    for character in kept + " ":
        if character.isalnum() or character == "_" or unicodedata.category(character).startswith("M"):
            word += character
        else:
            pieces += ["" if word in {"a", "an", "the"} else word, character]
            word = ""
    return "".join(piece or " " for piece in pieces).split()


def squad_scores(answer: str, gold: str) -> tuple[float, float, float]:
    """Precision, recall, F1 by pairing off equal tokens."""
    predicted, left = squad_tokens(answer), squad_tokens(gold)
    size = len(left)
    if not predicted or not size:
        return (1.0, 1.0, 1.0) if not predicted and not size else (0.0, 0.0, 0.0)
    same = 0
    for token in predicted:
        if token in left:
            left.remove(token)
            same += 1
    if same == 0:
        return 0.0, 0.0, 0.0
    precision, recall = same / len(predicted), same / size
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_token_scores_equal_an_independent_squad_script():
    for answer, gold in texts(400, seed=2, longest=8):
        pair = (answer, gold)
        ours = (metrics.token_precision(*pair), metrics.token_recall(*pair), metrics.token_f1(*pair))
        assert ours == pytest.approx(squad_scores(*pair)), pair
        assert metrics.exact_match(*pair) == (squad_tokens(answer) == squad_tokens(gold)), pair


def test_retrieval_equals_pytrec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="the reference is pytrec-eval-terrier")
    rng, judged, runs, rankings = random.Random(3), {}, {}, {}
    for number in range(300):
        documents = [f"d{i}" for i in rng.sample(range(40), rng.randint(1, 20))]
        question = f"q{number}"
        rankings[question] = documents
        judged[question] = {f"d{i}": 1 for i in rng.sample(range(40), rng.randint(1, 8))}
        runs[question] = {document: float(-rank) for rank, document in enumerate(documents)}
    ks = (1, 3, 5, 10)
    cuts = ",".join(map(str, ks))
    measures = {f"ndcg_cut.{cuts}", f"recall.{cuts}", "recip_rank"}
    reference = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(runs)
    assert len(reference) == 300
    for question, expected in reference.items():
        ranked, relevant = rankings[question], set(judged[question])
        assert metrics.reciprocal_rank(ranked, relevant) == pytest.approx(expected["recip_rank"])
        for k in ks:
            assert metrics.ndcg_at_k(ranked, relevant, k) == pytest.approx(expected[f"ndcg_cut_{k}"])
            assert metrics.recall_at_k(ranked, relevant, k) == pytest.approx(expected[f"recall_{k}"])
