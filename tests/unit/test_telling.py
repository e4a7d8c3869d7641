"""What people are told: answers without marks, however a stream cuts them, and abstentions in place of unlikely ones.

The same in `groundtune evaluate`, `ask` and `serve`.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import openai
import pytest
from conftest import tiny_documents, tiny_examples
from fake_server import FakeServer
from serving import arguments_of, running, tiny_flags

from groundtune.arguments import AFTERWARDS, OFF, TAUGHT
from groundtune.commands import evaluate as evaluating
from groundtune.commands.evaluate import inference_arguments
from groundtune.commands.parsing import given
from groundtune.commands.serve import open_serving
from groundtune.data.files import sha256_of, write_documents, write_jsonl
from groundtune.errors import DataError
from groundtune.evaluation.citations import marked
from groundtune.evaluation.confidence import KEPT, Thresholds, signals
from groundtune.prompts.citations import CITE
from groundtune.recipes.evaluate import evaluate
from groundtune.schema import UNANSWERABLE, Document, Ended, Hit, Sampling
from groundtune.serving.chat import url_citations
from groundtune.serving.dialogue import Source, open_dialogue
from groundtune.serving.telling import telling, told_of, withholding

HIT = Hit(tiny_documents()[0], 0.5)
SHIPS = "Parcels travel overnight by ship."
COSTS = "A parcel of two kilograms 😀 costs nine euros."
READ = [Document(COSTS, "", {"title": "Costs", "source": "c.md"}), Document(SHIPS, "", {"title": "Ships"})]


def words(*pieces, ended=None):
    yield from pieces
    return ended or Ended(True)


def heard(stream):
    said = []
    while True:
        try:
            said.append(next(stream))
        except StopIteration as end:
            return said, end.value


def cut(text, rng):
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]


# Marks


PARTS = [
    "⟦",
    "⟧",
    "⟦1⟧",
    " ⟦2⟧",
    "⟦ 3 ⟧",
    "⟦x⟧",
    "1",
    " ",
    "\n",
    "So it is.",
    " And so on",
    "x" * 41,
    "\N{NO-BREAK SPACE}",
]


def test_a_stream_shows_the_answer_without_marks_wherever_it_is_cut():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice(PARTS) for _ in range(rng.randrange(9)))
        pieces, told = heard(telling(words(*cut(text, rng)), READ, TAUGHT))
        assert "".join(pieces) == told.said.answer == marked(text, READ, TAUGHT).answer
        assert told.said.marked == text and not any(set("⟦⟧") & set(piece) for piece in pieces)


def test_words_are_shown_as_soon_as_they_are_sure():
    pieces, _ = heard(telling(words("So it", " is", ". ", "⟦", "1", "⟧", " And"), READ, TAUGHT))
    assert pieces[:4] == ["So it", " is", ".", ""] and pieces[-2:] == [" And", ""]
    for citations in (OFF, AFTERWARDS):
        assert heard(telling(words(" So", " ⟦1"), READ, citations))[0][:2] == [" So", " ⟦1"]


def test_places_of_citations_are_those_of_the_sentences_in_the_answer():
    said = marked(f"😀 {SHIPS} ⟦2⟧  {COSTS} ⟦1⟧⟦2⟧\nNothing says so.", READ, TAUGHT)
    shown = [(said.answer[begin:end], number) for begin, end, number in said.places]
    assert shown == [(f"😀 {SHIPS}", 2), (COSTS, 1), (COSTS, 2)]
    found = marked(f"{SHIPS} {COSTS}", READ, AFTERWARDS)
    assert [(found.answer[b:e], number) for b, e, number in found.places] == [(SHIPS, 2), (COSTS, 1)]


@pytest.fixture
def served(tmp_path):
    """A server with documents, behind which another one says `text`, and the dialogue of `ask` with the same flags."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(text, **more):
            write_documents(tmp_path / "documents.jsonl", READ)
            behind = stack.enter_context(FakeServer(lambda body: text))
            remote = {"generator": f"openai:{behind.url}", "generator_model": "m", "endpoint_retries": 0}
            flags = {"full_dataset_file_path": tmp_path / "documents.jsonl", "retriever": "bm25"} | remote | more
            server = stack.enter_context(
                running(open_serving(*arguments_of(**flags, feedback_file=tmp_path / "votes.jsonl")))
            )
            return server, behind, open_dialogue(arguments_of(**flags)[0])

        yield start


def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).chat.completions.create


QUESTION = [{"role": "user", "content": "What does a parcel of two kilograms cost, and how do parcels travel?"}]


@pytest.mark.parametrize(
    ("citations", "text"),
    [(TAUGHT, f"{COSTS} ⟦1⟧ {SHIPS} ⟦2⟧⟦9⟧"), (AFTERWARDS, f"{COSTS} {SHIPS}"), (OFF, f"{COSTS} {SHIPS}")],
)
def test_clients_get_clean_text_and_the_places_of_its_citations_and_another_server_is_told_to_cite(
    served, citations, text
):
    server, behind, dialogue = served(text, citations=citations)
    reply = client(server)(model="", messages=QUESTION)
    message = reply.choices[0].message
    assert message.content == f"{COSTS} {SHIPS}"
    cited = [one.url_citation for one in message.annotations]
    places = [(message.content[one.start_index : one.end_index], one.title, one.number) for one in cited]
    whole = message.content
    expected = [(COSTS, "Costs", 1), (SHIPS, "Ships", 2)]
    assert places == (expected if citations != OFF else [(whole, "Costs", 1), (whole, "Ships", 2)])
    chunks = list(client(server)(model="", messages=QUESTION, stream=True))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(said) == whole and not set("⟦⟧") & set("".join(said))
    assert chunks[-1].choices[0].delta.annotations == [one.to_dict() for one in message.annotations]
    told = behind.bodies[-1]["messages"][-1]["content"]
    assert (CITE in told) == ("⟦1⟧ " in told) == (citations == TAUGHT)
    # As `ask` does
    list(dialogue.ask(QUESTION[0]["content"])[1])
    assert dialogue.told.said.answer == whole == dialogue.turns[-1].message
    assert dialogue.told.said.marked == getattr(reply, "cited", "")
    assert behind.bodies[-1]["messages"] == behind.bodies[0]["messages"]


# Unlikely answers


@pytest.mark.parametrize(
    ("least", "logprob", "score", "withheld"),
    [
        (Thresholds(), -9.0, 0.1, False),
        (Thresholds(score=0.6), -0.1, 0.5, True),
        (Thresholds(score=0.5), -9.0, 0.5, False),
        (Thresholds(logprob=-0.5), -0.6, 0.9, True),
        (Thresholds(logprob=-0.5), -0.5, 0.1, False),
        (Thresholds(logprob=-0.5), None, 0.1, False),
        (Thresholds(-0.5, 0.6), -0.4, 0.7, False),
        (Thresholds(-0.5, 0.6), -0.6, 0.7, True),
    ],
)
def test_an_answer_below_a_threshold_is_never_shown(least, logprob, score, withheld):
    stream = withholding(words("At ", "nine.", ended=Ended(False, logprob)), [replace(HIT, score=score)], least)
    pieces, ended = heard(stream)
    assert pieces == ([UNANSWERABLE] if withheld else ["At ", "nine."])
    assert (ended.withheld, ended.finished) == (withheld, withheld)


def test_an_answer_whose_passages_are_too_bad_is_not_even_written():
    begun = []

    def late():
        begun.append(True)
        yield "At nine."
        return Ended(True)

    assert heard(withholding(late(), [HIT], Thresholds(score=0.6)))[0] == [UNANSWERABLE] and not begun


def test_an_answer_from_no_passage_at_all_is_below_every_threshold_on_scores():
    assert heard(withholding(words("At nine."), [], Thresholds(score=-99.0)))[0] == [UNANSWERABLE]
    assert heard(withholding(words("At nine."), [], Thresholds(logprob=-99.0)))[0] == ["At nine."]


def test_an_answer_that_was_withheld_has_no_annotations():
    sources = [Source(document, 0.9) for document in READ]
    for withheld, number in ((True, 0), (False, len(READ))):
        told = told_of(UNANSWERABLE, Ended(True, withheld=withheld), READ, OFF)
        assert len(url_citations(told, sources)) == number


def test_an_abstention_cites_no_passage():
    for citations in (TAUGHT, AFTERWARDS):
        _, told = heard(telling(words(UNANSWERABLE, ended=Ended(True, withheld=True)), READ, citations))
        assert told.said.answer == UNANSWERABLE and told.said.marked == "" and told.said.places == []


@pytest.fixture(scope="module")
def run(families, tmp_path_factory):
    """A folder that a run is said to have made."""
    folder = tmp_path_factory.mktemp("run") / "model"
    shutil.copytree(families["qwen"].folder, folder)
    (folder / "run.json").write_text('{"arguments": {}}', "utf-8")
    return folder


@pytest.fixture(scope="module")
def flags(families, static_embedding_folder, data_folder, tmp_path_factory):
    index = tmp_path_factory.mktemp("index")
    rows = [
        {"question": e.question, "gold_docs": [d.to_dict() for d in e.gold_documents], "gold_answer": e.answer}
        for e in tiny_examples()
    ]
    for row in rows[3:]:
        row |= {"gold_docs": [], "gold_answer": UNANSWERABLE, "answerable": False}
    write_jsonl(index / "dev.jsonl", rows)
    return tiny_flags(families["qwen"], static_embedding_folder, data_folder, index / "index") | {
        "eval_file": index / "dev.jsonl",
        "retriever": "dense",  # whose best scores differ between questions
    }


def evaluated(model, flags, output_dir, **more):
    named = {**flags, "output_dir": output_dir, "bootstrap_samples": 100, **more}
    argv = [str(model), *(part for name, value in named.items() for part in (f"--{name}", str(value)))]
    arguments = inference_arguments(given(evaluating.parser(), argv), True, lambda more: "")
    return evaluate(arguments, lambda what, total: lambda done: None).of_model["retrieved"]


def answers_of_ask_and_serve(model, flags, questions, tmp_path, **more):
    named = {name: value for name, value in flags.items() if name != "eval_file"} | more
    dialogue, asked = open_dialogue(arguments_of(model, **named)[0]), []
    for question in questions:
        dialogue.turns = []
        list(dialogue.ask(question)[1])
        asked.append(dialogue.told.said.answer)
    with running(open_serving(*arguments_of(model, **named, feedback_file=tmp_path / "v.jsonl"))) as server:
        served = [
            client(server)(model="", messages=[{"role": "user", "content": question}]).choices[0].message.content
            for question in questions
        ]
        streamed = [
            "".join(
                chunk.choices[0].delta.content or ""
                for chunk in client(server)(model="", messages=[{"role": "user", "content": question}], stream=True)
            )
            for question in questions
        ]
    assert served == streamed
    return asked, served


def test_evaluate_ask_and_serve_withhold_the_same_answers(run, flags, tmp_path):
    plain = evaluated(run, flags, tmp_path / "plain")
    questions = [p.example.question for p in plain]
    likely, scores = zip(*map(signals, plain))
    middle = [(min(values) + max(values)) / 2 for values in (likely, scores)]
    for least in (f"{middle[0]}", f"{middle[0]},{middle[1]}", f"-99,{middle[1]}"):
        found = evaluated(run, flags, tmp_path / "found", abstain_below=least)
        expected = [p.answer for p in found]
        assert 0 < expected.count(UNANSWERABLE) < len(expected)
        asked, served = answers_of_ask_and_serve(run, flags, questions, tmp_path, abstain_below=least)
        assert [text.strip() for text in asked] == [text.strip() for text in served] == expected


def test_a_run_remembers_thresholds_until_it_is_told_never_to_abstain(run, flags, tmp_path, caplog):
    plain = evaluated(run, flags, tmp_path / "plain", keep_thresholds="true")
    kept = json.loads((run / KEPT).read_text("utf-8"))
    chosen = kept["abstention"]["retrieved"]["model"]["chosen"]
    assert (
        chosen
        == json.loads((tmp_path / "plain" / "metrics.json").read_text())["abstention"]["retrieved"]["model"]["chosen"]
    )
    assert kept["questions"] == sha256_of(flags["eval_file"])
    least = Thresholds(chosen["logprob"], chosen["score"])
    expected = [UNANSWERABLE if least.withhold(*signals(p)) else p.answer for p in plain]
    assert UNANSWERABLE in expected
    again = evaluated(run, flags, tmp_path / "again")
    assert [p.answer for p in again] == expected
    questions = [p.example.question for p in plain]
    asked, served = answers_of_ask_and_serve(run, flags, questions, tmp_path)
    assert [text.strip() for text in asked] == [text.strip() for text in served] == expected
    never = evaluated(run, flags, tmp_path / "never", abstain_below="never")
    assert [p.answer for p in never] == [p.answer for p in plain]
    other = arguments_of(run, **flags, mix_weight=0.9)[0]  # whose scores are of another scale
    assert other.least("model") == replace(least, score=None) and ("another retriever" in caplog.text) == (
        least.score is not None
    )
    (run / KEPT).write_text("[1]", "utf-8")
    with pytest.raises(DataError, match=f"no thresholds in .*{KEPT}"):
        open_dialogue(arguments_of(run, **flags)[0])
    (run / KEPT).unlink()


def test_thresholds_are_kept_only_in_a_run_and_only_where_some_were_chosen(run, flags, families, tmp_path, data_folder):
    with pytest.raises(DataError, match="--keep_thresholds: .* is no run's folder"):
        evaluated(families["qwen"].folder, flags, tmp_path / "e", keep_thresholds="true")
    evaluated(run, flags | {"eval_file": data_folder / "eval.jsonl"}, tmp_path / "e", keep_thresholds="true")
    assert not (run / KEPT).exists()


# Answers that are asked for again


def test_an_answer_asked_for_again_is_drawn_by_its_number_and_the_first_is_not(families, flags, tmp_path):
    named = {name: value for name, value in flags.items() if name != "eval_file"}
    model = families["qwen"].folder
    with running(open_serving(*arguments_of(model, **named, feedback_file=tmp_path / "v.jsonl"))) as server:

        def ask(again=0, **more):
            reply = client(server)(model="", messages=QUESTION, extra_body={"again": again}, **more)
            return reply.choices[0].message.content, getattr(reply, "sampled", None)

        plain = ask()
        assert plain == ask() == ask(temperature=1.5, seed=7) and plain[1] is None
        drawn = [ask(again) for again in range(1, 6)]
        assert drawn == [ask(again) for again in range(1, 6)]
        assert len({text for text, _ in drawn}) > 2 and plain[0] not in {text for text, _ in drawn}
        assert drawn[2][1] == {"temperature": 0.7, "seed": 3}


def test_another_server_is_told_how_to_draw(served):
    server, behind, _ = served("At nine.")
    client(server)(model="", messages=QUESTION)
    client(server)(model="", messages=QUESTION, extra_body={"again": 2})
    first, again = behind.bodies
    assert (first["temperature"], first.get("seed")) == (0.0, None)
    assert (again["temperature"], again["seed"]) == (0.7, 2)


def test_draws_follow_the_probabilities_of_the_temperature():
    import torch

    from groundtune.model.generation import _drawing

    logits = torch.tensor([2.0, 1.0, 0.0, -30.0])
    draw = _drawing(Sampling(0.7, 1))
    drawn = [draw(logits) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=0.025)
