"""Splitting examples: nothing is lost, nothing is shared, and the shares are kept."""

from __future__ import annotations

import json
import random

import pytest

from groundtune.cli import main
from groundtune.data.files import read_examples, write_jsonl
from groundtune.prepare.split import groups_of, split_examples
from groundtune.schema import Document, Example


def examples(n: int = 200, seed: int = 0) -> list[Example]:
    """Examples on 60 passages of 20 articles, some with two gold passages, the last ones with none."""
    rng = random.Random(seed)
    passages = [Document(f"Passage {i}.", metadata={"source": f"article {i // 3}"}) for i in range(60)]
    made = [Example(f"Question {i}?", "So.", (rng.choice(passages),), source=f"in:{i}") for i in range(n - 2)]
    made[0] = Example("Both?", "So.", (passages[0], passages[59]), source="in:0")
    return made + [Example(f"None {i}?", "Unknown.", (), answerable=False, source=f"in:none{i}") for i in range(2)]


def keys(these: list[Example], by: str) -> set[str]:
    return {d.id if by == "passage" else d.metadata["source"] for e in these for d in e.gold_documents}


@pytest.mark.parametrize("by", ["passage", "article"])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_shared_and_every_split_has_its_share(by, seed):
    made = examples(seed=seed)
    largest = max(map(len, groups_of(made, by)))
    splits = split_examples(made, by, {"eval": 0.2, "test": 0.1}, seed)
    assert sorted(e.question for these in splits.values() for e in these) == sorted(e.question for e in made)
    for name, share in (("eval", 0.2), ("test", 0.1)):
        assert share * len(made) <= len(splits[name]) < share * len(made) + largest
    names = list(splits)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            assert not keys(splits[name], by) & keys(splits[other], by)
    assert splits == split_examples(made, by, {"eval": 0.2, "test": 0.1}, seed)
    assert splits != split_examples(made, by, {"eval": 0.2, "test": 0.1}, seed + 1)


def test_passages_that_one_question_needs_are_one_group():
    a, b, c = (Document(text) for text in "abc")
    made = [Example("1", "", (a,)), Example("2", "", (c,)), Example("3", "", (b, a)), Example("4", "", (b,))]
    assert list(groups_of(made, "passage")) == [[0, 2, 3], [1]]


def test_the_command_writes_what_a_run_reads(tmp_path, capsys):
    write_jsonl(tmp_path / "in.jsonl", [example.to_dict() for example in examples()])
    assert main(["split", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"), "--by", "article", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["splits"]
    for name in ("train", "eval", "test"):
        assert len(read_examples(tmp_path / "out" / f"{name}.jsonl")) == counted[name]["examples"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--eval_share", "1"], "--eval_share: is 1.0; give a share from 0 to below 1"),
        (["--eval_share", "0.6", "--test_share", "0.4"], "leave nothing to train on"),
        (["--by", "article"], "in.jsonl:1: gold_docs: metadata has none of source, url, title; use --by passage"),
        ([], "train and test: nothing left; the examples form 1 groups by passage"),
    ],
)
def test_what_cannot_be_split_is_one_line(tmp_path, capsys, words, said):
    row = {"question": "Why?", "gold_docs": [{"page_content": "So."}], "gold_answer": "So."}
    write_jsonl(tmp_path / "in.jsonl", [row])
    assert main(["split", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
