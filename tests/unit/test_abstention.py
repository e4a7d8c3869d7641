"""Unanswerable questions: an abstention is right, retrieval means exclude them, and they are counted."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.arguments import EvaluationArguments
from groundtune.errors import DataError
from groundtune.evaluation import abstention
from groundtune.evaluation.abstention import ANSWERED, REFUSED, abstains, answer_scores, unknown_texts
from groundtune.evaluation.arguments import GROUPS, InferenceArguments
from groundtune.evaluation.comparison import compare
from groundtune.evaluation.evaluator import score_replies
from groundtune.evaluation.metrics import generation_scores, greater_is_better
from groundtune.evaluation.outcomes import INVENTED, KNEW, MISSED, RIGHT, WRONG, Rightness, with_outcomes
from groundtune.evaluation.predictions import evaluation_of, read_predictions, write_predictions
from groundtune.reporting.comparison_page import comparison_table, outcomes_table, write_comparisons
from groundtune.reporting.report import write_results
from groundtune.reporting.results import Results, comparison, notes
from groundtune.schema import UNANSWERABLE as SENTENCE
from groundtune.schema import Hit, Reply

ROOT = Path(__file__).parents[2]
F1, RECALL = "generation/f1", "retrieval/recall@1"


@pytest.mark.parametrize(
    "answer",
    [
        SENTENCE,
        "the passages do not answer this question",
        f"{SENTENCE} They are about lamps.",
        "I don't know.",
        "Sorry, I cannot answer this from what is given.",
        "The provided passages do not mention the price of a lamp.",
        "The passage doesn't say who wrote it.",
        "The price is not mentioned in the passages.",
        "There is no information about lamps in the given context.",
        "This cannot be determined.",
        "Unanswerable",
        "I'm unable to answer this question.",
        "I'm unable to find any information about that in the passages.",
        "I'm not able to answer that.",
        "No information found.",
        "No information available.",
        "No relevant information found.",
        "The information is not available.",
        "There's no information about this.",
        "There\u2019s not enough information.",
        "It's not mentioned.",
        "It's unclear from the passages.",
        "It's impossible to say.",
        "The answer isn't in the passages.",
        "The passages are not relevant to the question.",
        "None of the passages is relevant.",
        "Question cannot be answered.",
        "Information unavailable.",
        "I'm not certain.",
        "I'm sorry, but I can't help with that.",
        "That's not something the documents cover.",
        "The passages do not mention the price, but they do mention the size.",
        "I could not find the answer in the passages. However, you can contact support.",
        "We do not know whether it is sold.",
        "It is not possible to determine the answer from the given context.",
        "Based on the provided context, it is not possible to determine the exact number.",
        "It is impossible to determine the exact date.",
        "The passages do not mention the MA program.",
        "The passages do not mention any product but the lamp.",
        "The passages don't mention the price, but they list the size.",
        "The passages do not mention the price. However, they provide the size.",
        "Le texte ne mentionne pas le but de la réunion.",
        "Le texte n'indique pas le prix, mais il mentionne la taille.",
        "Die Texte sagen nichts darüber, aber sie erwähnen die Farbe.",
        "El texto no menciona el precio, pero menciona el tamaño.",
        "文中没有提到但丁的出生日期。",
        "文章没有提到价格，但文章提到了颜色。",
        "I don't know the exact date.",
    ],
)
def test_an_answer_that_says_there_is_none_is_seen_in_many_words(answer):
    assert abstains(answer, {SENTENCE})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "At nine.",
        "The price does not include shipping.",
        "Guests do not have to pay.",
        "It is not included.",
        "Lamps are sold in the shop. I do not know more.",
        "No, only water.",
        "The document must be signed.",
        "The passage does not mention Tesla, but the inventor was Edison.",
        "The passages do not state the exact date. However, it was founded in 1990.",
        "I am not sure, but I think it is Paris.",
        "I'm not sure but it's 1985.",
        "The passages do not mention the inventor, but I know that it was Edison.",
        "The passages do not mention the inventor. However, it is likely Edison.",
        "The passage does not give the date, but it states that the company was founded in 1990.",
        "I'm sorry, but the shop is closed.",
        "Le texte ne mentionne pas le prix, mais la lampe coûte 5 euros.",
        "We have no data centres in Asia.",
        "We do not have data centres in Asia.",
        "We don't know your password; it is stored as a hash.",
        "It is not possible to know who has read your message.",
        "We cannot tell you the delivery date in advance.",
        "ND",
        "SO",
        "KA",
        "Das steht nicht im Text, aber der Preis beträgt 5 Euro.",
        "El texto no menciona el precio, pero cuesta 5 euros.",
        "\u6587\u4e2d\u6ca1\u6709\u63d0\u5230\u4ef7\u683c\uff0c\u4f46\u662f\u53d1\u7968\u4e0a\u5199\u7740\u4e94\u5341\u5143\u3002",
    ],
)
def test_an_answer_that_merely_denies_something_is_an_answer(answer):
    assert not abstains(answer, {SENTENCE})


CASES = [line for line in (ROOT / "tests/abstentions.txt").read_text("utf-8").splitlines() if line[:2] in ("+ ", "- ")]


@pytest.mark.parametrize("line", CASES)
def test_an_abstention_and_what_looks_like_one_are_told_apart_in_eight_languages(line):
    assert abstains(line[2:], ()) == (line[0] == "+")


@pytest.mark.parametrize(
    "repeated", ["I apologize again ", "As an AI developed by ", "Sorry but ", "I am sorry for that "]
)
def test_an_answer_that_begins_over_and_over_is_read_in_no_time(repeated, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("+ again\n+ i apologize again\n+ as an ai developed by *\n+ sorry but *")  # two ways to read each
    begin = time.process_time()
    for answer in (repeated * 40 + "x " * 60 + ". Yes.", repeated * 400 + ", but x. Yes."):
        assert not any(abstains(answer, (), wordings) for wordings in ("", str(own)))
    assert time.process_time() - begin < 5


def test_there_are_twenty_wordings_and_twenty_near_misses_in_each_of_eight_languages():
    text = (ROOT / "tests/abstentions.txt").read_text("utf-8")
    sections = re.split(r"^# (?=[a-z]{2}$)", text, flags=re.MULTILINE)[1:]
    assert [section[:2] for section in sections] == ["en", "de", "fr", "es", "it", "pt", "zh", "ja"]
    for section in sections:
        assert section.count("\n+ ") >= 20 and section.count("\n- ") >= 20


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("None", "None of the lamps may be returned.", False),
        ("No", "No, lamps cannot be returned.", False),
        ("Unknown", "Unknown Pleasures was their first album.", False),
        ("Nobody says", "Nobody says. The pages are about lamps.", True),
        ("Nobody says", "nobody says", True),
        ("The pages do not say.", "The pages do not say who it was.", True),
        ("\u6ca1\u6709\u8bf4\u660e", "\u6ca1\u6709\u8bf4\u660e\uff0c\u6240\u4ee5\u4e0d\u77e5\u9053", True),
    ],
)
def test_a_short_text_that_teaches_to_abstain_is_the_whole_sentence(gold, answer, same):
    assert abstains(answer, {gold}) == same


def test_an_answer_that_is_its_gold_answer_is_no_refusal():
    declines = replace(examples()[0], answer="The document does not say.", gold_answers=(), answerable=True)
    assert answer_scores("The document does not say.", declines, {SENTENCE})[REFUSED] == 0
    assert answer_scores("The passages do not say.", declines, {SENTENCE})[REFUSED] == 1


def test_words_with_which_an_answer_follows_come_from_the_file_too(tmp_path):
    path = tmp_path / "svenska.txt"
    path.write_text("det står inte *\n! men\n& men du *\n", "utf-8")
    assert abstains("Det står inte i texten.", (), str(path)) and abstains(
        "Det står inte, men du kan ringa.", (), str(path)
    )
    assert not abstains("Det står inte i texten, men priset är fem.", (), str(path))
    assert not abstains("Det står inte i texten. Men priset är fem.", (), str(path))


def test_users_extend_the_wordings_with_a_file(tmp_path):
    path = tmp_path / "svenska.txt"
    path.write_text("# Swedish\ntext = (texten|texterna)\n(det|svaret) står inte i {text} *\n+ tyvärr\n", "utf-8")
    assert abstains("Det står inte i texterna.", (), str(path)) and not abstains("Det står inte i texterna.", ())
    assert abstains("Tyvärr, svaret står inte i texten alls.", (), str(path))
    assert abstains("I don't know.", (), str(path)) and not abstains("Det står i texten.", (), str(path))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("(a|b", "a bracket is missing"),
        ("a)", "a bracket is missing"),
        ("{what} b", "{what} is not defined above"),
        ("! (men|)", "has no word that must be there"),
        ("& *", "has no word that must be there"),
        ("(a|)", "has no word that must be there"),
    ],
)
def test_a_line_that_is_no_wording_is_named(tmp_path, line, problem):
    path = tmp_path / "mine.txt"
    path.write_text(f"fine\n{line}\n", "utf-8")
    with pytest.raises(DataError, match=f"{re.escape(str(path))}:2: .*{re.escape(problem)}"):
        abstains("x", (), str(path))


def test_a_file_of_wordings_that_is_not_there_is_named():
    problems = InferenceArguments(*(group() for group in GROUPS)).check()
    assert not [line for line in problems if line.startswith("--abstentions")]
    groups = [EvaluationArguments(abstentions="no/such.txt") if g is EvaluationArguments else g() for g in GROUPS]
    assert "--abstentions: no such file: no/such.txt" in "\n".join(InferenceArguments(*groups).check())


def test_the_file_of_wordings_decides_what_counts_as_right(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("pass\n", "utf-8")
    example = examples()[-1]
    assert answer_scores("Pass.", example, {SENTENCE})[F1] == 0
    assert answer_scores("Pass.", example, {SENTENCE}, str(path))[F1] == 1


def test_what_the_data_teach_to_say_is_seen_in_any_language():
    assert abstains("Das steht nicht in den Texten. Mehr weiß ich nicht.", {"Das steht nicht in den Texten."})
    assert abstains("Det står inte i texterna.", {"Det står inte i texterna."})
    assert not abstains("Det står inte i texterna.", {SENTENCE})
    assert not abstains("Um neun.", {"."})  # of which nothing is left to compare


def examples():
    """Six examples, of which the last two are unanswerable."""
    made = tiny_examples()
    return made[:4] + [replace(e, answer=SENTENCE, answerable=False) for e in made[4:]]


def predictions(answers):
    """Predictions in which every second question retrieves its passage first."""
    documents = tiny_documents()
    hits = [(Hit(documents[i if i % 2 else i - 1], 1.0),) for i in range(6)]
    read = [[hit.document for hit in found] for found in hits]
    return score_replies(examples(), hits, read, [Reply(a, True, 9, 3) for a in answers], "retrieved", 0.6, 0.6)


GOOD = [*(e.answer for e in tiny_examples()[:4]), "I don't know.", SENTENCE]
BAD = [SENTENCE, *(e.answer for e in tiny_examples()[1:4]), "The passages at the door.", "On floor two."]


def test_unanswerable_questions_are_in_no_mean_of_retrieval_and_are_scored_by_what_they_say():
    found = evaluation_of(predictions(GOOD), samples=100)
    assert found.n == 6 and found.scored(RECALL) == found.scored("retrieval/mrr") == 4
    assert found.metrics[RECALL].value == 0.5
    assert found.scored(F1) == 6 and found.metrics[F1].value == found.metrics["generation/exact_match"].value == 1
    assert found.metrics[ANSWERED].value == 0 and found.scored(ANSWERED) == 2
    assert found.metrics[REFUSED].value == 0 and found.scored(REFUSED) == 4
    assert found.to_dict()[RECALL]["scored"] == 4 and "scored" not in found.to_dict()[F1]
    bad = evaluation_of(predictions(BAD), samples=100)
    assert bad.metrics[ANSWERED].value == 1 and bad.metrics[REFUSED].value == 0.25
    # Words shared with the abstention text score nothing.
    assert bad.predictions[4].scores[F1] == 0 < bad.predictions[4].scores["generation/rouge1"]


def test_where_every_question_has_an_answer_the_scores_are_as_ever():
    example = tiny_examples()[0]
    assert unknown_texts(tiny_examples()) == frozenset() and abstention.note(tiny_examples()) == ""
    scores = answer_scores("I don't know.", example, frozenset())
    assert scores == generation_scores("I don't know.", example.answer) | {REFUSED: 1.0}


def test_fewer_errors_of_either_kind_are_better():
    assert not any(greater_is_better(f"{begin}{name}") for begin in ("", "eval_") for name in (ANSWERED, REFUSED))


def test_an_unanswerable_question_has_an_outcome_of_its_own():
    outcomes = [p.outcome for p in with_outcomes(predictions(GOOD), Rightness())]
    assert outcomes == ["right without evidence", RIGHT] * 2 + [KNEW] * 2
    outcomes = [p.outcome for p in with_outcomes(predictions(BAD), Rightness())]
    assert outcomes[0] == MISSED and outcomes[4:] == [INVENTED] * 2 and WRONG not in outcomes


@pytest.mark.parametrize("metric", ["generation/rougeL", "generation/bleu", "grounded/tokens"])
def test_whichever_metric_says_what_is_right_an_abstention_is_known_by_its_words(metric):
    for said, expected in (("I don't know.", KNEW), ("Lamps may be returned to any shop.", INVENTED)):
        (found,) = [
            replace(p, scores=p.scores | {metric: float(expected == INVENTED)}) for p in predictions([said] * 6)[5:]
        ]
        (told,) = with_outcomes([found], Rightness(metric))
        assert told.outcome == expected
        assert (
            with_outcomes([replace(found, scores=found.scores | {"judge/x": 1.0})], Rightness("judge/x"))[0].outcome
            == KNEW
        )


def test_predictions_come_back_from_their_file_as_unanswerable(tmp_path):
    write_predictions(tmp_path / "p.jsonl", evaluation_of(with_outcomes(predictions(GOOD), Rightness()), samples=100))
    read = read_predictions(tmp_path / "p.jsonl")
    assert [p.example.answerable for p in read] == [True] * 4 + [False] * 2
    assert [p.scores for p in read] == [p.scores for p in predictions(GOOD)]
    rows = (tmp_path / "p.jsonl").read_text().splitlines()
    assert ["answerable" in json.loads(row) for row in rows] == [False] * 4 + [True] * 2


def test_a_comparison_pairs_retrieval_on_what_has_an_answer_and_says_so(tmp_path):
    from rich.console import Console

    systems = {name: with_outcomes(predictions(said), Rightness()) for name, said in (("bad", BAD), ("good", GOOD))}
    found = compare("both", systems)
    differences = found.differences["good"]
    assert differences[RECALL].n == 4 and differences[F1].n == 6 and differences[ANSWERED].n == 2
    (note,) = found.notes
    assert note.startswith("2 of 6 questions are unanswerable: they are excluded from the retrieval means")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(found), outcomes_table(found))
    said = console.export_text()
    assert (
        "Unanswerable, answered" in said
        and "Answerable, refused" in said
        and " of 4" in said
        and KNEW in said
        and INVENTED in said
    )
    write_comparisons(tmp_path / "page.html", "comparison", "both", [found], {}, found.notes, {})
    page = (tmp_path / "page.html").read_text()
    assert "2 of 6 questions are unanswerable" in page and "the model abstained" in page


def test_the_report_of_a_run_says_of_how_many_each_mean_is(tmp_path):
    base, tuned = (evaluation_of(predictions(said), samples=100) for said in (BAD, GOOD))
    made = Results("sft", base, tuned, [], None, None, False, [], {"arguments": {}})
    rows = {row.label: row for row in comparison(made)}
    assert rows["Recall@1 (n = 4)"].base[0] == "0.50"
    assert rows["Unanswerable, answered (n = 2)"].tuned[0] == "0.00"
    assert rows["Answerable, refused (n = 4)"].difference[0] == "-0.25"
    assert rows["Token F1"].tuned[0] == "1.00"
    assert notes(made)[0].startswith("2 of 6 questions are unanswerable")
    write_results(tmp_path, made)
    assert json.loads((tmp_path / "metrics.json").read_text())["difference"][RECALL]["n"] == 4
    for name in ("report.md", "report.html", "README.md"):
        assert "2 of 6 questions are unanswerable" in (tmp_path / name).read_text(), name


def test_only_unanswerable_questions_leave_no_retrieval_to_report():
    alone = [p for p in predictions(GOOD) if not p.example.answerable]
    found = evaluation_of(alone, samples=100)
    assert not any(name.startswith("retrieval/") for name in found.metrics)
    rows = comparison(Results("sft", found, found, [], None, None, False, [], {}))
    assert rows[0].label == "Token F1" and not any(row.group == "Retrieval" for row in rows)
