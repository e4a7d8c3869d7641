"""A file for a person survives hands and editors; what was done in it is counted, and what is wrong has its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from groundtune.errors import DataError
from groundtune.prepare import review
from groundtune.prepare.gates import GateResult, example_of
from groundtune.prepare.questions import Settings
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document

SETTINGS = Settings("", "", "", retrieved_within=2, eval_share=0.2, test_share=0.2)
DOCUMENTS = [
    Document(f"The {thing} costs {i + 100} coins.\nQuestion: Why?\nAnswer: So.\r## Passage\x0bAnswer: evil\u2028> end")
    for i, thing in enumerate(("lamp", "chair", "table", "carpet"))
]
LAMP, CHAIR, TABLE, CARPET = DOCUMENTS
KEPT = [
    (LAMP, "What does the lamp cost?", "It costs 100 coins."),
    (LAMP, "Which thing costs 100 coins?", "The lamp.\n\n- Question: really\n# yes\n> indeed\n    code()"),
    (CHAIR, "What does the chair cost?", "**It** costs:\nAnswer: 101 coins\x0bin all."),
    (TABLE, "What does the table cost?", "It costs 102 coins."),
]


def result() -> GateResult:
    made = GateResult(2)
    for passage, question, answer in KEPT:
        made.keep(example_of(passage, question, answer, (), SETTINGS), SETTINGS)
    made.rejected = [
        {"why": "not answered by its passage", "question": "Who?", "answer": "", "passage": CARPET.to_dict()},
        {"why": "passage not retrieved for it", "question": "xyzzy?", "answer": "", "passage": None},
    ]
    return made


@pytest.fixture
def edited(tmp_path) -> Callable[..., GateResult]:
    """What follows from a file after an edit of its text."""

    def apply(*edits: Callable[[str], str], encoding: str = "utf-8") -> GateResult:
        path = tmp_path / "review.md"
        path.unlink(missing_ok=True)
        review.write(result(), DOCUMENTS, path, "groundtune questions {x} --resume")
        text = path.read_bytes().decode()
        for edit in edits:
            assert (changed := edit(text)) != text
            text = changed
        path.write_bytes(text.encode(encoding))
        entries = review.read(path, DOCUMENTS)
        return review.apply(result(), entries, SETTINGS, BM25Retriever(DOCUMENTS))

    return apply


def counts(**changes: int) -> dict[str, int]:
    return {"unchanged": 4, "changed": 0, "added": 0, "deleted": 0} | changes


def pairs(made: GateResult) -> set[tuple[str, str, str]]:
    return {(e.gold_documents[0].id, e.question, e.answer) for e in made.kept}


ALL = {(passage.id, question, answer) for passage, question, answer in KEPT}


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("costs 100", "costs\n  100"),  # an editor that breaks lines
        lambda text: text.replace("Question: What", "**Question:** What").replace("Answer: It", "- **Answer**: It"),
        lambda text: text.replace("Question: What", "question : What").replace("Answer: It", "ANSWER\uff1a It"),
        lambda text: text.replace("\nAnswer: It", "\n\n\nAnswer:\nIt"),
        lambda text: text.replace("\n## Passage", "\n---\n\n### passage"),
        lambda text: text[text.index("## Passage") :],
        lambda text: "\n".join(line for line in text.split("\n") if not line.startswith(">")),
        lambda text: text.replace("xyz", "xyz").replace("> The", "> Only for show: the"),
        lambda text: text.replace("\n", "  \n"),
    ],
)
def test_what_editors_do_to_a_file_changes_no_question(edited, edit):
    made = edited(edit)
    assert made.reviewed == counts() and pairs(made) == ALL
    assert made.rejected == result().rejected and made.counts["kept"] == 4


def test_a_file_that_nobody_edited_gives_the_examples_that_there_were(edited):
    made = edited()
    assert made.reviewed == counts() and pairs(made) == ALL
    assert {name: len(these) for name, these in made.splits.items()} == {
        name: len(these) for name, these in result().splits.items()
    }
    assert all(example.hard_negatives for example in made.kept)


def test_changed_deleted_added_and_moved_questions_are_counted_and_used(edited):
    made = edited(replaced("It costs 100 coins.", "A hundred\ncoins."))
    assert made.reviewed == counts(unchanged=3, changed=1)
    assert (LAMP.id, KEPT[0][1], "A hundred\ncoins.") in pairs(made)

    made = edited(replaced("What does the chair cost?", "What is the price of the chair?"))
    assert made.reviewed == counts(unchanged=3, changed=1) and len(made.rejected) == 2

    made = edited(replaced("Question: What does the table cost?\nAnswer: It costs 102 coins.\n", ""))
    assert made.reviewed == counts(unchanged=3, deleted=1)
    assert made.rejected[-1]["why"] == "deleted in the review" and made.rejected[-1]["question"] == KEPT[3][1]

    made = edited(lambda text: f"{text}\nQuestion: Is it a\ncarpet?\nAnswer: Yes.")
    assert made.reviewed == counts(added=1) and (CARPET.id, "Is it a carpet?", "Yes.") in pairs(made)

    table = "Question: What does the table cost?\nAnswer: It costs 102 coins.\n"
    made = edited(replaced(table, ""), lambda text: f"{text}\n{table}")
    assert made.reviewed == counts(unchanged=3, **{"moved to another passage": 1}) and len(made.rejected) == 2
    assert (CARPET.id, *KEPT[3][1:]) in pairs(made)


def test_a_rejected_question_counts_once_a_person_accepts_it_and_answers_it(edited):
    made = edited(replaced("Rejected (not answered by its passage): Who?\nAnswer:", "Question: Who?\nAnswer: Nobody."))
    assert made.reviewed == counts(added=1) and (CARPET.id, "Who?", "Nobody.") in pairs(made)
    assert [row["question"] for row in made.rejected] == ["xyzzy?"]
    assert json.dumps(made.rejected)


@pytest.mark.parametrize(
    "edit, line, said",
    [
        (replaced("Answer: It costs 100 coins.\n", ""), "Question: What does the lamp", "the question has no answer"),
        (replaced("Answer: It costs 100 coins.", "Answer:"), "Answer:", "the answer is blank"),
        (replaced("Question: What does the lamp cost?", "Question:"), "Question:", "the question is blank"),
        (replaced("Question: What does the lamp cost?\n", ""), "Answer: It costs 100", "the answer has no question"),
        (replaced("Question: What does the lamp cost?", "What?"), "What?", "'What?' belongs to no question"),
        (replaced("Which thing costs 100 coins?", "What does the lamp cost?"), None, "repeats the question of"),
        (replaced(f"## Passage {CHAIR.id}", "## Passage 0123456789abcdef"), "## Passage 01", "is not in the documents"),
        (replaced(f"## Passage {CHAIR.id}", "## Chair"), "## Chair", "'## Chair' is below a question; indent it"),
        (replaced(f"\n## Passage {CHAIR.id}\n", ""), "> The chair", "is below a question; indent it by two spaces"),
        (replaced(f"## Passage {LAMP.id}\n", ""), "Question: What does the lamp", "stands above the first passage"),
    ],
)
def test_what_is_wrong_is_reported_with_its_line(edited, tmp_path, edit, line, said):
    with pytest.raises(DataError) as refused:
        edited(edit)
    problem = next(problem for problem in refused.value.problems if said in problem)
    path, number, _ = problem.split(":", 2)
    assert path == str(tmp_path / "review.md")
    seen = Path(path).read_text("utf-8").splitlines()[int(number) - 1]
    assert line is None or seen.startswith(line)


def test_a_file_without_questions_or_in_another_encoding_is_one_line(edited):
    with pytest.raises(DataError, match="every question was deleted"):
        edited(lambda text: text[: text.index("## Passage")])
    with pytest.raises(DataError, match="save it as text in UTF-8"):
        edited(replaced("It costs", "Er kostet für"), encoding="latin-1")
