"""A study's losses are those of transformers, shares of rows are nested, and gold stands where it is said to."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path

import pytest
import torch
from conftest import tiny_documents, tiny_examples
from rich.console import Console

from groundtune.arguments import no_such_file
from groundtune.errors import DataError
from groundtune.evaluation.arguments import AnswerArguments
from groundtune.evaluation.forgetting import Forgetting, Measured, measure, read_texts
from groundtune.evaluation.learning_curve import nested_share, read_curve
from groundtune.evaluation.predictions import evaluation_of, write_predictions
from groundtune.evaluation.statistics import clusters_of
from groundtune.evaluation.study import Study, cells_of, studied
from groundtune.prompts.policies import DISTRACTORS, RANKS, STUDIED, draw, kept
from groundtune.reporting.study_page import forgetting_lines, html_study, study_tables
from groundtune.schema import Document, Example, Hit, Prediction

# Passages


def test_gold_is_first_or_fourth_among_the_same_passages_and_distractors_are_nested():
    example, documents = tiny_examples()[0], tiny_documents()
    hits = [Hit(document, 1.0) for document in [*documents[1:], *(Document(f"Another {i}.") for i in range(6))]]
    hits.insert(2, Hit(example.gold_documents[0], 1.0))
    gold = example.gold_documents[0]
    read = {name: kept(policy(example, hits, draw(0, 0, example.question))) for name, policy in STUDIED.items()}
    first, fourth = (read[f"gold_at_{rank}"] for rank in RANKS)
    assert first[0] == fourth[3] == gold and first[1:] == fourth[:3] and gold not in first[1:]
    before: set[Document] = set()
    for number in DISTRACTORS:
        others = {d.text for d in read[f"gold_with_{number}"] if d != gold}
        assert len(others) == number and before <= others and gold in read[f"gold_with_{number}"]
        before = others


def asked_k(usual: int, passages: int) -> tuple[list[int], str]:
    """The points of the part k, and the one that the others are compared with."""
    hits = [tuple(Hit(Document(f"passage {i}"), 1.0) for i in range(passages))] * 3

    def ask(context, examples, their):
        return len(their[0])

    cells = cells_of(["k"], rows(3), hits, ask, [], usual)
    assert [cell.asked for cell in cells] == [min(cell.at, passages) for cell in cells]
    evaluation = evaluation_of([Prediction(e, (), "x", True, 0, 1, 1, {"generation/f1": 0.5}) for e in rows(3)], 100)
    (part,) = studied(cells, {cell.name: {"model": evaluation} for cell in cells}, {}, ["k"], usual)
    return [cell.at for cell in cells], part.reference.label


def test_the_usual_number_of_passages_is_a_point_of_the_study_and_the_others_are_compared_with_it():
    to_eight = [*range(1, 9)]
    assert asked_k(4, 12) == (to_eight, "4 passages")
    assert asked_k(10, 12) == ([*to_eight, 10], "10 passages")
    assert asked_k(10, 9) == ([*to_eight, 9], "9 passages")  # of a small database, all
    assert asked_k(10, 3) == ([1, 2, 3], "3 passages")
    assert asked_k(4, 0) == ([1], "1 passage")


def test_a_study_of_thresholds_alone_has_no_section_of_tables():
    assert html_study(Study(abstention={"retrieved": {}})) == ""
    noted = html_study(Study(notes=["No threshold is chosen"]))
    assert "No threshold is chosen" in noted and "second column" not in noted


def test_a_long_label_of_a_point_is_whole_on_a_terminal_of_80_columns():
    predictions = [Prediction(e, (), "x", True, 0, 1, 1, {"generation/f1": 0.5}) for e in rows(30)]
    by_system = dict.fromkeys(("base", "model"), evaluation_of(predictions, 100))
    in_contexts = dict.fromkeys(("retrieved", "gold_and_distractors"), by_system)
    (table,) = study_tables(Study(studied([], {}, in_contexts, ["contexts"], 4)))
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    shown = console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and "gold and" in shown and "distractors" in shown


# Shares of the rows


def rows(n: int, per_passage: int = 3) -> list[Example]:
    return [Example(f"q{i}", "a", (Document(f"passage {i // per_passage}"),)) for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 7, 100, 1001])
def test_smaller_shares_are_part_of_larger_ones_and_no_passage_is_split(n, seed):
    examples = rows(n)
    before: list[Example] = []
    for share in (0.01, 0.25, 0.5, 0.75, 1.0):
        chosen = nested_share(examples, share, seed)
        assert {e.question for e in before} <= {e.question for e in chosen}
        assert chosen == [e for e in examples if e in chosen] and chosen == nested_share(examples, share, seed)
        assert abs(len(chosen) - share * n) <= 3
        inside = {c for e, c in zip(examples, clusters_of(examples)) if e in chosen}
        assert sum(c in inside for c in clusters_of(examples)) == len(chosen) > 0
        before = chosen
    assert chosen == examples
    if n == 1001:
        assert nested_share(examples, 0.5, seed) != nested_share(examples, 0.5, seed + 1)


# The learning curve


def run_folder(folder, number: int, f1: list[float], base: list[float]):
    (folder / "predictions").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"training_rows": number}))
    for name, values in (("test_base", base), ("test_tuned", f1)):
        predictions = [
            Prediction(e, (), "x", True, 0, 1, 1, {"generation/f1": value}) for e, value in zip(rows(60, 1), values)
        ]
        write_predictions(folder / f"predictions/{name}.jsonl", evaluation_of(predictions))
    return str(folder)


def test_the_curve_is_measured_points_and_the_last_slope_is_per_doubling(tmp_path):
    rng = random.Random(0)
    base = [rng.random() / 4 for _ in range(60)]
    runs = [
        run_folder(tmp_path / str(number), number, [value + gain for value in base], base)
        for number, gain in ((400, 0.3), (100, 0.1), (200, 0.2))
    ]
    curve = read_curve(runs)
    assert [rows for rows, _, _ in curve.points] == [0, 100, 200, 400]
    assert [found.value - sum(base) / 60 for _, _, found in curve.points] == pytest.approx([0, 0.1, 0.2, 0.3])
    change, doublings = curve.last()
    assert (change.value, doublings) == (pytest.approx(0.1), 1.0) and "200 to 400 rows: +0.100" in curve.slope()
    four = read_curve([runs[0], runs[1]])
    assert four.last()[1] == 2.0 and "+0.100" in four.slope()  # 0.2 in two doublings


def test_runs_that_make_no_curve_are_named(tmp_path):
    one = run_folder(tmp_path / "one", 5, [0.1] * 60, [0.1] * 60)
    two = run_folder(tmp_path / "two", 5, [0.1] * 60, [0.1] * 60)
    with pytest.raises(DataError, match="5, 5 rows"):
        read_curve([one, two])
    for rows, folder, identity in (
        (5, one, {"--learning_rate": 0.01, "--train_share": 0.5, "versions": "1", "--new": 1}),
        (9, two, {"--learning_rate": 0.1, "--train_share": 1.0, "versions": "2"}),
    ):
        (Path(folder) / "run.json").write_text(json.dumps({"training_rows": rows, "identity": identity}))
    with pytest.raises(DataError) as error:
        read_curve([one, two])
    (problem,) = error.value.problems
    assert "two: --learning_rate: 0.1, and 0.01 in " in problem and "rows alone" in problem
    values = ("true", "-1", '"9"', "1e400", "null")
    for wrong in ("{}", "[]", "[" * 100_000, *(f'{{"training_rows": {value}}}' for value in values)):
        (tmp_path / "two/run.json").write_text(wrong)
        with pytest.raises(DataError, match="does not say how many rows"):
            read_curve([one, two])


# Other text


def test_losses_are_those_of_transformers_token_by_token(family, tmp_path):
    model, tokenizer = family.model().eval(), family.tokenizer
    path = tmp_path / "other.txt"
    path.write_text("The library opens at nine in the morning.\n\nHow do I return a book?\r\n\r\n\n\nNothing at all.")
    texts = read_texts(str(path), tokenizer, 500)
    assert [text.source for text in texts] == [f"{path}, paragraph {i}" for i in (1, 2, 3)]
    found = measure(model, texts, tokenizer, batch_size=2)
    for text, losses in zip(texts, found.losses, strict=True):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=ids).loss.item()
        assert len(losses) == len(text.ids) - 1 and sum(losses) / len(losses) == pytest.approx(theirs, rel=1e-4)
    assert len(found.answers) == 3


def test_the_loss_of_an_answer_begins_after_its_prompt_and_long_texts_are_read_in_windows(family, tmp_path):
    model, tokenizer = family.model().eval(), family.tokenizer
    path = tmp_path / "other.jsonl"
    lines = [{"prompt": "Where do dogs wait?", "answer": "At the red door."}, {"prompt": "May guests bring food?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, {"text": "nine to six. " * 300}]))
    asked, alone, long = read_texts(str(path), tokenizer, 500)
    found = measure(model, [asked, alone, long], tokenizer, batch_size=2)
    assert len(found.losses[0]) == len(asked.ids) - asked.learnt_from > 0 and not found.losses[1]
    windows = math.ceil(len(long.ids) / 512)
    assert windows > 1 and len(found.losses[2]) == len(long.ids) - windows
    assert asked.prompt == "Where do dogs wait?" and asked.expected == "At the red door."
    with pytest.raises(DataError, match="other.jsonl:1: more than"):
        read_texts(str(path), tokenizer, 70)


def test_means_are_over_tokens_and_intervals_over_texts():
    base = Measured([[1.0] * 10, [3.0] * 30], [])
    tuned = Measured([[1.5] * 10, [3.5] * 30], [])
    found = Forgetting("x", [], {"base": base, "tuned": tuned})
    assert found.loss("base").value == pytest.approx(2.5) and found.change().value == pytest.approx(0.5)
    assert found.change().passages == 2 and found.change().losses == 40  # higher is worse
    alone = Forgetting("x", [], {"base": Measured([[8.0, 9.0]], []), "tuned": Measured([[8.25, 9.25]], [])})
    base, _, change = forgetting_lines(alone)
    assert base == "base: 8.500 nats per token [unknown], perplexity 4914.77"
    assert "tuned - base +0.250 [unknown], no verdict on fewer than 20 texts" in change


def test_the_loss_of_a_model_that_diverged_is_shown_too():
    found = Forgetting("x", [], {"base": Measured([[2.0]], []), "tuned": Measured([[900.0]], [])})
    _, tuned, _ = forgetting_lines(found)
    assert tuned == "tuned: 900.000 nats per token [unknown], perplexity 1.0e+304"
    assert found.to_dict()["perplexity"]["tuned"] < math.inf


def test_texts_with_nothing_to_predict_are_said_to_have_no_loss(family, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    texts = read_texts(str(tmp_path / "prompts.jsonl"), family.tokenizer, 500)
    found = Forgetting("prompts.jsonl", texts, {"base": Measured([[]], ["Hi."]), "model": Measured([[]], ["Ho."])})
    assert list(forgetting_lines(found)) == [
        "prompts.jsonl: no text has a token to predict, so there is no loss, but 1 continuation"
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", b"\x00\xff\xff"])
def test_a_file_without_text_is_an_error_of_one_line(family, tmp_path, content):
    for name in ("other.txt", "other.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_texts(str(tmp_path / name), family.tokenizer, 500)
        assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    "row", [{"text": "a \ud800"}, {"prompt": "\ud800"}, {"prompt": "a", "answer": "\udfff"}], ids=ascii
)
def test_half_a_character_is_named_with_its_line(family, tmp_path, row):
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"text": "Dogs wait at the door."}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match="other.jsonl:2: contains half of a surrogate pair"):
        read_texts(str(path), family.tokenizer, 500)


def test_a_folder_in_place_of_a_file_is_said_to_be_one(tmp_path):
    (problem,) = no_such_file(AnswerArguments(forgetting=str(tmp_path)), ["forgetting"])
    assert problem == f"--forgetting: {tmp_path} is a folder; name a file in it"
