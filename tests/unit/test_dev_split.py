"""The dev split: by article, the same whatever the order, with nothing of dev left in train."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path

import pytest

from groundtune.data.files import read_examples
from groundtune.errors import DataError
from groundtune.schema import Document, Example

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "dev_split.py"))
FAIRE = Path(__file__).parents[3] / "shared" / "data" / "faire"


def example(number: int, *sources: str) -> Example:
    documents = tuple(Document(f"text of {source}", metadata={"source": source}) for source in sources)
    return Example(f"Question {number}?", "Answer.", documents, source=f"t.jsonl:{number}")


def many() -> list[Example]:
    return [example(i, f"article {i % 40}") for i in range(200)]


def test_dev_has_its_share_of_the_articles_and_train_knows_none_of_them():
    found = SCRIPT["split"](many())
    articles = {name: SCRIPT["_articles"](examples) for name, examples in found.items()}
    assert len(articles["dev"]) == 6 and len(articles["train"]) == 34
    assert len(found["dev"]) == 30 and len(found["train"]) == 170 and not articles["dev"] & articles["train"]


def test_the_order_of_the_file_does_not_matter_but_is_kept():
    examples = many()
    shuffled = random.Random(0).sample(examples, len(examples))
    first, second = SCRIPT["split"](examples)["dev"], SCRIPT["split"](shuffled)["dev"]
    assert {e.source for e in first} == {e.source for e in second}
    assert first == [e for e in examples if e in first] and second == [e for e in shuffled if e in second]


def test_articles_that_an_example_connects_stay_together():
    examples = many()
    dev = sorted(SCRIPT["_articles"](SCRIPT["split"](examples)["dev"]))
    connected = [*examples, example(500, dev[0], "article of train"), example(501, "article of train")]
    found = {name: SCRIPT["_articles"](these) for name, these in SCRIPT["split"](connected).items()}
    assert any({dev[0], "article of train"} <= articles for articles in found.values())
    assert not found["dev"] & found["train"]


def test_examples_whose_articles_are_not_known_or_too_few_are_refused():
    bare = Example("Why?", "So.", (Document("text"),), source="t.jsonl:7")
    with pytest.raises(DataError, match="t.jsonl:7: no gold passage with a source"):
        SCRIPT["split"]([bare])
    with pytest.raises(DataError, match="too few articles"):
        SCRIPT["split"]([example(1, "only one")])


def test_the_lines_are_copied_as_they_are_and_the_eval_file_is_only_counted(tmp_path, capsys):
    train, other = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    lines = [json.dumps(e.to_dict() | {"kept": i}) + " " * (i % 3) for i, e in enumerate(many())]
    train.write_text("\n".join(["", *lines]) + "\n", "utf-8")
    other.write_text("\n".join(lines[:3]) + "\n", "utf-8")
    assert SCRIPT["main"]([str(train), str(other), "-o", str(tmp_path / "out")]) == 0
    written = [(tmp_path / "out" / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("train", "dev")]
    assert sorted(sum(written, [])) == sorted(lines) and len(written[1]) == 30
    assert json.loads(capsys.readouterr().out)["eval"]["questions"] == 3
    assert not (tmp_path / "out" / "eval.jsonl").exists()
    assert SCRIPT["main"]([str(tmp_path / "none.jsonl"), "-o", str(tmp_path)]) == 2


def test_twins_are_passages_that_say_most_of_the_same():
    text = " ".join(f"word{i}" for i in range(40))
    train = [Example("q", "a", (Document(text, metadata={"source": "a"}),))]
    twin = Example("r", "b", (Document(f"A title. {text}", metadata={"source": "b"}),))
    other = f"{text[:60]} and quite another text on other matters"
    stranger = Example("s", "c", (Document(other, metadata={"source": "c"}),))
    found = SCRIPT["counts"]([twin, stranger, *train], train)
    assert found["questions on twins of passages of train"] == 1 and found["questions on passages of train"] == 1


@pytest.mark.skipif(not FAIRE.exists(), reason="the Faire data is not part of the project")
def test_the_dev_split_of_faire_is_the_one_that_results_name(tmp_path):
    found = SCRIPT["split"](read_examples(FAIRE / "train_w_qa.jsonl"))
    dev = SCRIPT["counts"](found["dev"], found["train"])
    assert (dev["questions"], dev["passages"], dev["articles"]) == (80, 40, 16)
    assert len(found["train"]) == 494 and dev["questions on articles of train"] == 0
