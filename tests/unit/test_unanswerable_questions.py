"""Questions whose answer is taken away: nothing of it is left in the documents, and no other question loses its own."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import pytest

pytest.importorskip("openai", reason="needs the extra [endpoint]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from fake_server import FakeServer

from groundtune.cli import main
from groundtune.data.evidence import gives_away
from groundtune.data.files import read_documents, read_examples, write_documents
from groundtune.prepare.unanswerable import Evidence, take_answers_away
from groundtune.schema import UNANSWERABLE, Document, Example

ENDS = ["bel", "dor", "fin", "gas"]
WORDS = [begin + end for begin in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "tu") for end in ENDS]


def world(n: int = 40):
    """Documents of made-up words, some of which repeat others, and two questions on each of the first 30."""
    rng = random.Random(1)
    texts = [" ".join(rng.choice(WORDS) + str(rng.randrange(30)) for _ in range(25)) for _ in range(n)]
    documents = [Document(text) for text in texts] + [Document(f"{text[:90]} and more beside it") for text in texts[:5]]
    examples = [
        Example(f"What of {i} {part}?", " ".join(texts[i].split()[part * 4 : part * 4 + 4]), (documents[i],))
        for i in range(30)
        for part in range(2)
    ]
    return documents, {"train": examples[:40], "eval": examples[40:]}


def test_the_index_finds_what_comparing_each_document_finds():
    documents, splits = world()
    evidence = Evidence(documents)
    for example in splits["train"]:
        assert evidence.of(example) == {i for i, document in enumerate(documents) if gives_away(document, example)}


def test_the_index_compares_no_passage_with_another(monkeypatch):
    from groundtune.data import evidence as compared

    documents, splits = world()
    documents += [Document(f"All passages of this book begin like this, {word}.") for word in WORDS]
    example = Example("How does it begin?", "Like this", (documents[-1],))
    expected = [{i for i, d in enumerate(documents) if gives_away(d, e)} for e in (example, *splits["train"][:5])]
    index = Evidence(documents)
    for name in ("likeness", "held_by"):
        monkeypatch.setattr(compared, name, lambda *texts: pytest.fail("slow"))
    assert [index.of(e) for e in (example, *splits["train"][:5])] == expected and len(expected[0]) >= len(WORDS)


def test_every_copy_of_a_passage_goes_however_many_there_are():
    body = "Members may bring one companion to every evening screening in the garden without any fee"
    documents = [Document(body, f"Title: Branch {n}\n{body}") for n in range(100)]
    wordless = Document("?!", "Title: nothing\n?!")
    example = Example("Is a guest admitted free?", "Guests enter at no cost.", (documents[80], wordless))
    assert Evidence([*documents, wordless]).of(example) == set(range(101))
    made = take_answers_away({"train": [example]}, [*documents, wordless], 0.9, seed=0)
    assert made.documents == [] and made.unanswerable == 1


@pytest.mark.parametrize(
    ("question", "answer", "passage", "away"),
    [
        ("Can lamps be returned?", "Yes.", "Returns: yes, lamps can be returned.", True),
        ("Can lamps be returned?", "Yes.", "Carpets are sold on Mondays.", False),
        ("When do courses start?", "In May.", "All courses start in May.", True),
        ("What does a licence cost?", "1,000 euros", "Licence per year: 1000 euros.", True),
        ("What does a licence cost?", "1,000 euros", "Licence per year: 500 euros.", False),
        ("What does a licence cost?", "1.000 Euro", "Licence per year: 1000 Euro.", True),
        ("How long is the warranty?", "Three years", "Warranty: 3 years.", True),
        ("How long is the return window?", "14 calendar days, see 3", "It is 14 calendar days.", True),
        ("How many are there?", "?", "Nothing.", False),
        ("Who was it?", "One of the founders was Thomas Edison.", "Thomas Edison was among its founders.", True),
        ("Ist der Laden am Montag offen?", "Ja.", "Am Montag ist der Laden offen.", True),
        ("La boutique est-elle ouverte lundi ?", "Oui.", "La boutique est ouverte lundi.", True),
        ("商店星期一开门吗？", "是的。", "商店星期一开门。", True),
        ("Is the lamp blue?", "No, it isn't.", "The lamp is red, not blue.", True),
    ],
)
def test_an_answer_is_taken_away_however_it_is_written(question, answer, passage, away):
    gold, other = Document("Nothing of this."), Document(passage)
    example = Example(question, answer, (gold,))
    assert gives_away(other, example) == away
    assert Evidence([gold, other]).of(example) == ({0, 1} if away else {0})
    left = take_answers_away({"eval": [example]}, [gold, other], 1.0, seed=0).documents
    assert (other in left) != away


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_answers_of_a_share_are_gone_from_the_documents_and_all_others_are_still_there(share):
    documents, splits = world()
    splits["train"][0] = replace(splits["train"][0], hard_negatives=tuple(documents[20:]))
    found = take_answers_away(splits, documents, share, seed=0)
    ids, lost = {document.id for document in found.documents}, 0
    assert found.removed == len(documents) - len(found.documents)
    for before, after in zip(sum(splits.values(), []), sum(found.splits.values(), []), strict=True):
        assert after.question == before.question and {d.id for d in after.hard_negatives} <= ids
        if after.answerable:
            assert after.gold_documents == before.gold_documents and after.gold_documents[0].id in ids
        else:
            lost += 1
            assert (after.answer, after.gold_documents) == (UNANSWERABLE, ())
            assert not any(gives_away(document, before) for document in found.documents)
    assert lost == found.unanswerable and f"{lost} of 60 questions are unanswerable" in found.note
    for name, examples in found.splits.items():
        assert sum(not e.answerable for e in examples) == pytest.approx(share * len(examples), abs=2), name


def test_the_same_seed_takes_the_same_and_another_seed_other_ones():
    documents, splits = world()
    one, same, other = (take_answers_away(splits, documents, 0.2, seed).splits for seed in (0, 0, 1))
    assert one == same != other


def test_a_passage_that_another_question_needs_stays():
    documents, _ = world()
    shared = Document(f"{documents[0].body} {documents[1].body}")
    one = Example("What?", " ".join(documents[0].body.split()[:4]), (documents[0],))
    two = Example("Which?", "Something else entirely, by hand.", (shared,))
    found = take_answers_away({"train": [one], "eval": [two]}, [documents[0], shared], 0.9, seed=0)
    assert found.splits["train"] == [one] and shared in found.documents


def test_a_question_that_is_there_twice_counts_twice():
    documents, _ = world()
    twice = [Example("What?", " ".join(documents[9].body.split()[:4]), (documents[9],))] * 2
    found = take_answers_away({"train": twice}, documents, 0.9, seed=0)
    assert found.unanswerable == 2 == sum(not example.answerable for example in found.splits["train"])


def test_the_work_grows_with_the_number_of_questions_and_not_with_its_square(monkeypatch):
    documents = [Document(f"{WORDS[i % 32]}{i} {WORDS[i % 31]}{i} lies on shelf {i}.") for i in range(200)]
    examples = [
        Example(f"What is {i}?", f"{WORDS[i % 32]}{i} of course", (document,), source=f"a:{i}")
        for i, document in enumerate(documents)
    ]
    counted, hash_of = [], Example.__hash__
    monkeypatch.setattr(Example, "__hash__", lambda example: counted.append(1) or hash_of(example))
    assert take_answers_away({"train": examples}, documents, 0.5, seed=0).unanswerable == 100
    assert len(counted) <= 4 * len(examples)


def speak(body: dict) -> str:
    """A model that asks about the first words of a passage, and answers with the next ones."""
    (said,) = re.findall(r"(?:\w+?\d+ ){10,}", json.dumps(body))[:1]
    words = said.split()
    asked = "Question:" in json.dumps(body)
    return f"{' '.join(words[3:9])}." if asked else f"1. What comes after {words[0]} {words[1]} {words[2]}?"


@pytest.mark.parametrize("share", [0, 0.4])
def test_the_command_prints_how_many_and_writes_the_documents_that_are_left(share, tmp_path, capsys):
    documents, _ = world()
    write_documents(tmp_path / "documents.jsonl", documents[:30])
    with FakeServer(speak) as server:
        words = ["questions", str(tmp_path / "documents.jsonl"), "-o", str(tmp_path / "qa"), "--generator",
                 f"openai:{server.url}", "--generator_model", "m", "--min_words", "5", "--questions_per_passage", "1",
                 "--min_support", "0.1", "--unanswerable_share", str(share), "--json"]  # fmt: skip
        assert main(words) == 0
    said = capsys.readouterr().out
    left = tmp_path / "qa" / "documents_left.jsonl"
    assert left.exists() == bool(share) and ("questions are unanswerable" in said) == bool(share)
    examples = read_examples(tmp_path / "qa" / "train.jsonl")
    lost = [example for example in examples if not example.answerable]
    assert bool(lost) == bool(share)
    if share:
        assert len(read_documents(left)) < 30 and json.loads(said)["counts"]["unanswerable"] >= len(lost)
        assert main([*words[:-2], "1.5"]) == 2
        assert "--unanswerable_share: 1.5 is not below 1" in capsys.readouterr().err
