"""Each published data format, with small handmade files: conversion to examples, exclusions, and the way back."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from groundtune.cli import main
from groundtune.data.files import read_documents, read_examples
from groundtune.prepare.formats import FORMATS
from groundtune.schema import UNANSWERABLE

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Eiffel_Tower",
            "paragraphs": [
                {
                    "context": "The tower was built in 1889 in Paris.",
                    "qas": [
                        {
                            "id": "1",
                            "question": " When was it built? ",
                            "answers": [{"text": "1889", "answer_start": 23}, {"text": "in 1889", "answer_start": 20}],
                            "is_impossible": False,
                        },
                        {
                            "id": "2",
                            "question": "Who painted it?",
                            "answers": [],
                            "plausible_answers": [{"text": "Paris", "answer_start": 31}],
                            "is_impossible": True,
                        },
                        {"id": "3", "question": "A hidden test question?", "answers": []},
                    ],
                },
                {"context": "It is 330 metres tall.", "qas": []},
            ],
        }
    ],
}
SQUAD_ROWS = [
    {"id": "1", "title": "T", "context": "C one.", "question": "Q?", "answers": {"text": ["one"], "answer_start": [2]}},
    {"id": "2", "title": "T", "context": "C one.", "question": "R?", "answers": {"text": [], "answer_start": []}},
]
NQ_TEXT = (
    "<H1> Google </H1> <P> Google was founded by Larry Page and Sergey Brin ( in 1998 ) . </P> "
    '<Table> <Tr> <Th_colspan="2"> Type </Th> </Tr> <Tr> <Td> Public </Td> </Tr> </Table> <P> It is n\'t small . </P>'
)


def nq_span(first: str, last: str, text: str = NQ_TEXT) -> dict:
    """The span from the first token `first` up to and including the next token `last`."""
    tokens = text.split(" ")
    start = tokens.index(first)
    return {"start_token": start, "end_token": tokens.index(last, start) + 1}


def nq_row(*annotations: dict, **changes) -> dict:
    tokens = NQ_TEXT.split(" ")
    table = nq_span("<Table>", "</Table>")
    second = {"start_token": len(tokens) - tokens[::-1].index("<P>") - 1, "end_token": len(tokens)}
    candidates = [
        {**nq_span("<P>", "</P>"), "top_level": True},
        {**table, "top_level": True},
        {**nq_span("<Tr>", "</Tr>"), "top_level": False},
        {**second, "top_level": True},
    ]
    return {
        "example_id": 1,
        "question_text": "who founded google",
        "document_url": "https://en.wikipedia.org//w/index.php?title=Google_Inc&amp;oldid=1",
        "document_text": NQ_TEXT,
        "long_answer_candidates": candidates,
        "annotations": list(annotations),
    } | changes


NO_SPAN = {"start_token": -1, "end_token": -1, "candidate_index": -1}
FOUNDERS = {
    "long_answer": {**nq_span("<P>", "</P>"), "candidate_index": 0},
    "short_answers": [nq_span("Larry", "Page"), nq_span("Sergey", "Brin")],
    "yes_no_answer": "NONE",
}
NOTHING = {"long_answer": NO_SPAN, "short_answers": [], "yes_no_answer": "NONE"}
ONLY_LONG = {"long_answer": nq_span("<P>", "</P>"), "short_answers": [], "yes_no_answer": "NONE"}
IN_TABLE = {"long_answer": nq_span("<Tr>", "</Tr>"), "short_answers": [], "yes_no_answer": "YES"}
TRIVIA = {
    "Data": [
        {
            "Answer": {"Aliases": ["Sunset Blvd", "Sunset Boulevard"], "Value": "Sunset Boulevard"},
            "EntityPages": [{"DocSource": "TagMe", "Filename": "Webber.txt", "Title": "Andrew Lloyd Webber"}],
            "Question": "Which Lloyd Webber musical premiered in 1993?",
            "QuestionId": "tc_33",
            "SearchResults": [
                {"Filename": "35/35_995.txt", "Rank": 0, "Title": "Musicals", "Url": "http://x"},
                {"Filename": "35/not_there.txt", "Rank": 1, "Title": "Gone", "Url": "http://y"},
            ],
        },
        {"Answer": {"Aliases": [], "Value": "Nowhere"}, "EntityPages": [], "Question": "Where?", "QuestionId": "tc_34"},
    ],
    "Domain": "Web",
    "VerifiedEval": False,
    "Version": 1.0,
}
MARCO = [
    {
        "query": "how tall is the tower",
        "query_id": 1,
        "query_type": "NUMERIC",
        "answers": ["330 m", "330 metres"],
        "wellFormedAnswers": ["The tower is 330 metres tall."],
        "passages": [
            {"is_selected": 0, "passage_text": "The tower is in Paris.", "url": "http://a"},
            {"is_selected": 1, "passage_text": "It is 330 metres tall.", "url": "http://b"},
        ],
    },
    {
        "query": "who sang it",
        "query_id": 2,
        "query_type": "PERSON",
        "answers": ["No Answer Present."],
        "wellFormedAnswers": "[]",
        "passages": [
            {"is_selected": 0, "passage_text": "A song.", "url": "http://c"},
            {"is_selected": 0, "passage_text": "Another song.", "url": "http://d"},
        ],
    },
]
HOTPOT = [
    {
        "_id": "5a7a",
        "answer": "yes",
        "question": "Are both towers in Europe?",
        "supporting_facts": [["Eiffel", 0], ["Pisa", 1]],
        "context": [
            ["Eiffel", ["The tower is in Paris.", " It is tall."]],
            ["Tokyo", ["A tower in Japan."]],
            ["Pisa", ["It leans.", " It is in Italy."]],
        ],
        "type": "comparison",
        "level": "hard",
    },
    {
        "_id": "5a7b",
        "answer": "no",
        "question": "Is one missing?",
        "supporting_facts": [["Eiffel", 0], ["Missing", 0]],
        "context": [["Eiffel", ["The tower is in Paris.", " It is tall."]]],
    },
]
RAFT = {
    "id": "seed_task_0",
    "type": "general",
    "question": "When does it open?",
    "context": {"title": [["placeholder_title"] * 3], "sentences": [["It is red.", "It opens at nine.", "Dogs wait."]]},
    "oracle_context": "It opens at nine.",
    "cot_answer": "##Reason: ##begin_quote##It opens at nine.##end_quote## <ANSWER>: At nine.",
    "instruction": "<DOCUMENT>It is red.</DOCUMENT>\n...When does it open?",
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "When does it open?"},
        {"role": "assistant", "content": "At nine."},
        {"role": "user", "content": [{"type": "text", "text": "And on Sunday?"}]},
        {"role": "assistant", "content": "At ten."},
    ],
    "documents": [{"title": "Hours", "text": "Nine, on Sunday ten."}, "Dogs wait."],
}


def write(path: Path, value) -> Path:
    """Write one JSON value, or lines if the name ends in .jsonl; compressed if it ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ".jsonl" in path.suffixes
    data = ("\n".join(map(json.dumps, value)) + "\n" if lines else json.dumps(value, indent=1)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def run(*words: object) -> int:
    try:
        return main(["convert", *map(str, words)])
    except SystemExit as ended:
        return ended.code


def converted(tmp_path: Path, name: str, *words: object, file: str = "in") -> tuple[list, list]:
    """The resulting examples and documents."""
    assert run(name, *words, "-o", tmp_path / "out") == 0
    return read_examples(tmp_path / "out" / f"{file}.jsonl"), read_documents(tmp_path / "out" / "documents.jsonl")


def gold(example) -> list[str]:
    return [document.page_content for document in example.gold_documents]


def negatives(example) -> list[str]:
    return [document.page_content for document in example.hard_negatives]


# What comes out of each layout


def test_squad_keeps_impossible_questions_and_several_answers(tmp_path, capsys):
    (built, painted), documents = converted(tmp_path, "squad", write(tmp_path / "in.json", SQUAD))
    assert (built.question, built.answer, built.gold_answers) == ("When was it built?", "1889", ("1889", "in 1889"))
    assert built.gold_documents[0].text == "Title: Eiffel Tower\nContent:\nThe tower was built in 1889 in Paris."
    assert (painted.answer, painted.answerable, painted.gold_documents) == (UNANSWERABLE, False, built.gold_documents)
    assert len(documents) == 1
    said = capsys.readouterr().out
    assert re.search(r"in.jsonl\W+2\W+1\W+1\W", said)  # examples, unanswerable, several answers
    assert "left out: 1 questions without an answer" in said and "Wrote 2 examples and 1 documents" in said


def test_squad_is_read_on_one_line_and_from_flat_rows_too(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(SQUAD))
    assert len(converted(tmp_path, "squad", tmp_path / "in.json")[0]) == 2
    (one, two), documents = converted(tmp_path, "squad", write(tmp_path / "in.jsonl", SQUAD_ROWS), file="in")
    assert (one.answer, two.answer, two.answerable) == ("one", UNANSWERABLE, False) and len(documents) == 1


def test_the_answer_to_an_unanswerable_question_can_be_chosen(tmp_path):
    words = (write(tmp_path / "in.json", SQUAD), "--unanswerable", "I don't know.")
    assert converted(tmp_path, "squad", *words)[0][1].answer == "I don't know."


def test_natural_questions_takes_short_answers_and_every_candidate_as_a_document(tmp_path, capsys):
    rows = [nq_row(FOUNDERS), nq_row(NOTHING), nq_row(ONLY_LONG), nq_row(IN_TABLE)]
    (who, unanswerable, yes), documents = converted(
        tmp_path, "natural_questions", write(tmp_path / "in.jsonl.gz", rows)
    )
    paragraph = "Google was founded by Larry Page and Sergey Brin (in 1998)."
    assert (who.answer, gold(who)) == ("Larry Page, Sergey Brin", [paragraph])
    assert who.gold_documents[0].metadata["title"] == "Google Inc"
    assert (unanswerable.answer, unanswerable.answerable, gold(unanswerable)) == (UNANSWERABLE, False, [paragraph])
    assert (yes.answer, gold(yes)) == ("yes", ["Type\nPublic"])  # the table around the row
    assert [d.page_content for d in documents] == [paragraph, "Type\nPublic", "It isn't small."]


def test_of_five_annotators_two_must_have_found_an_answer(tmp_path):
    other = FOUNDERS | {"short_answers": [nq_span("Sergey", "Brin")]}
    rows = [nq_row(FOUNDERS, other, NOTHING, NOTHING, NOTHING), nq_row(FOUNDERS, *[NOTHING] * 4)]
    two, one = converted(tmp_path, "natural_questions", write(tmp_path / "in.jsonl", rows))[0]
    assert two.gold_answers == ("Larry Page, Sergey Brin", "Sergey Brin") and two.answerable
    assert not one.answerable and one.answer == UNANSWERABLE


def test_the_original_layout_of_natural_questions_is_read_as_the_simplified_one(tmp_path):
    tokens = [{"token": t, "html_token": t.startswith("<")} for t in NQ_TEXT.split(" ")]
    original = nq_row(FOUNDERS, document_tokens=tokens, document_title="Google")
    del original["document_text"]
    (who,), documents = converted(tmp_path, "natural_questions", write(tmp_path / "in.jsonl", [original]))
    assert who.answer == "Larry Page, Sergey Brin" and len(documents) == 3
    assert who.gold_documents[0].metadata["title"] == "Google"


def test_triviaqa_finds_the_likeliest_passage_in_the_evidence(tmp_path, capsys):
    filler = "\n\n".join("Sunset Boulevard is a street. " * 30 for _ in range(2))
    for name, text in {
        "wikipedia/Webber.txt": f"{filler}\n\n{'The Lloyd Webber musical sunset blvd premiered late in 1993. ' * 20}",
        "web/35/35_995.txt": "Sunset Boulevards are many.",
    }.items():
        (tmp_path / "evidence" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "evidence" / name).write_text(text)
    words = (write(tmp_path / "in.json", TRIVIA), "--evidence", tmp_path / "evidence")
    (musical,), documents = converted(tmp_path, "triviaqa", *words)
    assert (musical.answer, musical.gold_answers) == ("Sunset Boulevard", ("Sunset Boulevard", "Sunset Blvd"))
    assert "premiered late in 1993" in gold(musical)[0] and len(musical.gold_documents) == 1
    assert musical.gold_documents[0].metadata["source"] == "Webber.txt"
    assert {d.metadata["title"] for d in documents} == {"Andrew Lloyd Webber", "Musicals"} and len(documents) == 3
    assert "left out: 1 questions without a passage" in capsys.readouterr().out


def test_triviaqa_rows_of_the_hub_hold_their_evidence(tmp_path):
    row = {
        "question": "Where is the tower?",
        "question_id": "tc_1",
        "answer": {"value": "Paris", "aliases": ["Paris, France"]},
        "entity_pages": {"title": ["Eiffel"], "filename": ["E.txt"], "wiki_context": ["The tower is in Paris."]},
        "search_results": {"title": [], "url": [], "search_context": []},
    }
    (where,), _ = converted(tmp_path, "triviaqa", write(tmp_path / "in.jsonl", [row]))
    assert gold(where) == ["The tower is in Paris."] and where.gold_answers == ("Paris", "Paris, France")


MARCO_LAYOUTS = {
    "lines.json": MARCO,
    "rows.jsonl": [
        row | {"passages": {name: [p[name] for p in row["passages"]] for name in row["passages"][0]}} for row in MARCO
    ],
    "columns.json": {name: {str(i): row[name] for i, row in enumerate(MARCO)} for name in MARCO[0]},
}


@pytest.mark.parametrize("name", MARCO_LAYOUTS)
def test_ms_marco_has_selected_passages_and_hard_negatives(tmp_path, name):
    path = write(tmp_path / name, MARCO_LAYOUTS[name])
    if name == "lines.json":  # 1.1 was published as lines, whatever its name says
        path.write_text("\n".join(map(json.dumps, MARCO)))
    (tall, sang), documents = converted(tmp_path, "ms_marco", path, file=path.stem)
    assert tall.answer == "The tower is 330 metres tall."
    assert tall.gold_answers == ("The tower is 330 metres tall.", "330 m", "330 metres")
    assert (gold(tall), negatives(tall)) == (["It is 330 metres tall."], ["The tower is in Paris."])
    assert tall.gold_documents[0].metadata == {"source": "http://b"}
    assert (sang.answer, sang.answerable, gold(sang)) == (UNANSWERABLE, False, ["A song."])
    assert negatives(sang) == ["Another song."] and len(documents) == 4


def test_hotpotqa_needs_all_of_its_supporting_paragraphs(tmp_path, capsys):
    rows = [
        row | {
            "context": dict(zip(("title", "sentences"), map(list, zip(*row["context"])))),
            "supporting_facts": dict(zip(("title", "sent_id"), map(list, zip(*row["supporting_facts"])))),
        }
        for row in HOTPOT
    ]  # fmt: skip
    for path in (write(tmp_path / "in.json", HOTPOT), write(tmp_path / "in.jsonl", rows)):
        (both,), documents = converted(tmp_path, "hotpotqa", path)
        assert (both.answer, gold(both)) == ("yes", ["The tower is in Paris. It is tall.", "It leans. It is in Italy."])
        assert negatives(both) == ["A tower in Japan."] and len(documents) == 3
        assert "left out: 1 questions without a passage" in capsys.readouterr().out


@pytest.mark.parametrize("words, answer", [((), "At nine."), (("--raft_answer", "reasoning"), RAFT["cot_answer"])])
def test_raft_has_an_oracle_and_distractors(tmp_path, words, answer):
    (example,), documents = converted(tmp_path, "raft", write(tmp_path / "in.jsonl", [RAFT]), *words)
    assert (example.answer, gold(example)) == (answer, ["It opens at nine."])
    assert negatives(example) == ["It is red.", "Dogs wait."] and len(documents) == 3
    assert documents[0].metadata == {}  # "placeholder_title" is none


def test_thoughts_are_no_part_of_a_gold_answer_or_of_the_history(tmp_path):
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "reasoning", "text": "b"}]
    parts.append({"type": "text", "text": "Ten."})
    in_channels = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>No."
    said = ["<think>\nHm.\n</think>\n\nYes.", parts, in_channels, "<think>It says ten"]
    asked = {"role": "user", "content": "Why?"}
    messages = [turn for answer in said for turn in (asked, {"role": "assistant", "content": answer})]
    rows = [{"messages": messages, "documents": ["Text."]}]
    examples, _ = converted(tmp_path, "messages", write(tmp_path / "in.jsonl", rows))
    assert [example.answer for example in examples] == ["Yes.", "Ten.", "No."]
    assert [turn.message for turn in examples[-1].chat_history] == ["Why?", "Yes.", "Why?", "Ten."]


def test_every_answer_of_a_chat_is_an_example_with_what_came_before(tmp_path, capsys):
    rows = [CHAT, {"messages": CHAT["messages"]}, {"messages": [{"role": "user", "content": "Hello?"}]}]
    (first, second), documents = converted(tmp_path, "messages", write(tmp_path / "in.jsonl", rows))
    assert (first.question, first.answer, first.chat_history) == ("When does it open?", "At nine.", ())
    assert second.question == "And on Sunday?"
    assert [t.message for t in second.chat_history] == ["When does it open?", "At nine."]
    assert gold(second) == ["Nine, on Sunday ten.", "Dogs wait."] and len(documents) == 2
    said = capsys.readouterr().out
    assert "left out: 2 questions without a passage" in said and "left out: 1 questions without a question" in said


PATTERN = r"Context: (?P<passage>.*?)\nQuestion: (?P<question>.*)"


@pytest.mark.parametrize(
    "name, row",
    [
        ("prompt_completion", {"prompt": "Context: It opens\nat nine.\nQuestion: When?", "completion": " At nine."}),
        (
            "prompt_completion",
            {
                "prompt": [{"role": "user", "content": "Context: It opens\nat nine.\nQuestion: When?"}],
                "completion": [{"role": "assistant", "content": "At nine."}],
            },
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "system", "content": "Context: It opens\nat nine."},
                    {"role": "user", "content": "Question: When?"},
                    {"role": "assistant", "content": "At nine."},
                ]
            },
        ),
    ],
)
def test_a_pattern_finds_passage_and_question_in_a_prompt(tmp_path, name, row):
    pattern = PATTERN if name == "prompt_completion" else PATTERN.replace(r"\n", r"\s+")
    path = write(tmp_path / "in.jsonl", [row])
    (example,), _ = converted(tmp_path, name, path, "--prompt_pattern", pattern)
    assert (example.question, example.answer, gold(example)) == ("When?", "At nine.", ["It opens\nat nine."])


def beir_folder(folder: Path) -> Path:
    write(folder / "corpus.jsonl", [
        {"_id": "d1", "title": "Hours", "text": "It opens at nine."},
        {"_id": "d2", "title": "", "text": "Dogs wait."},
        {"_id": "d3", "title": "Rest", "text": "Nobody asks for this."},
        {"_id": "d4", "title": "", "text": ""},
    ])  # fmt: skip
    write(folder / "queries.jsonl", [
        {"_id": "q1", "text": "When?", "metadata": {"answer": "At nine."}},
        {"_id": "q2", "text": "Who waits?", "metadata": {}},
        {"_id": "q3", "text": "Never judged?"},
    ])  # fmt: skip
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\nq9\td1\t1\nq1\tgone\t1\n")
    return folder


def test_a_beir_folder_keeps_its_splits_and_judgements(tmp_path, capsys):
    (when,), documents = converted(tmp_path, "beir", beir_folder(tmp_path / "beir"), file="train")
    assert (when.question, when.answer, gold(when)) == ("When?", "At nine.", ["It opens at nine."])
    assert when.gold_documents[0].text == "Title: Hours\nContent:\nIt opens at nine."
    assert negatives(when) == ["Dogs wait."]
    assert [d.page_content for d in documents] == ["It opens at nine.", "Dogs wait.", "Nobody asks for this."]
    (row,) = (tmp_path / "out" / "test.jsonl").read_text().splitlines()
    assert json.loads(row)["gold_answer"] == ""
    said = capsys.readouterr().out
    assert "left out: 1 questions without a query" in said and "left out: 1 questions without a passage" in said
    assert "training skips them" in said


# The way back


@pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")
@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
def test_no_file_of_a_beir_folder_is_a_link_that_leads_out_of_it(tmp_path, capsys, name):
    folder = beir_folder(tmp_path / "beir")
    (folder / name).rename(tmp_path / "mine")
    (folder / name).symlink_to(tmp_path / "mine")
    assert run("beir", folder, "-o", tmp_path / "out") == 2
    assert f"mine, outside {folder}" in capsys.readouterr().err


def test_beir_comes_back_as_it_was(tmp_path):
    examples, documents = converted(tmp_path, "squad", write(tmp_path / "in.json", SQUAD))
    out = tmp_path / "out"
    assert run("to_beir", out / "in.jsonl", "--documents", out / "documents.jsonl", "-o", tmp_path / "beir") == 0
    assert (tmp_path / "beir/qrels/in.tsv").read_text().splitlines()[0] == "query-id\tcorpus-id\tscore"
    back, same = converted(tmp_path / "back", "beir", tmp_path / "beir")
    assert [(e.question, e.answer, e.gold_answers, e.answerable, gold(e)) for e in back] == [
        (e.question, e.answer, e.gold_answers, e.answerable, gold(e)) for e in examples
    ]
    assert same == documents


def test_a_dialogue_before_a_question_goes_into_its_metadata_and_is_counted(tmp_path, capsys):
    row = {"question": "And how?", "gold_docs": [{"page_content": "By hand."}], "gold_answer": "By hand."}
    turns = [{"speaker": "user", "message": "Can I undo it?"}, {"speaker": "assistant", "message": "Yes."}]
    path = write(tmp_path / "in.jsonl", [{**row, "chat_history": turns}, {**row, "question": "How is it made?"}])
    assert run("to_beir", path, "-o", tmp_path / "beir") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of the questions follow a dialogue" in said and "chat_history" in said
    queries = [json.loads(line) for line in (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()]
    assert [query["metadata"].get("chat_history") for query in queries] == [turns, None]
    back, _ = converted(tmp_path, "beir", tmp_path / "beir")
    assert [e.chat_history for e in back] == [e.chat_history for e in read_examples(path)]
    capsys.readouterr()
    assert run("to_messages", path, "-o", tmp_path / "chats") == 0
    assert "follow a dialogue" not in capsys.readouterr().out  # a chat has a place for it


@pytest.mark.parametrize("name", ["messages", "prompt_completion"])
def test_chats_come_back_as_they_were(tmp_path, name, data_folder):
    examples = [e for e in read_examples(data_folder / "train.jsonl") if not e.chat_history]
    assert run(f"to_{name}", data_folder / "train.jsonl", "-o", tmp_path / "chats", "--instruction", "Be brief.") == 0
    row = json.loads((tmp_path / "chats" / "train.jsonl").read_text().splitlines()[0])
    first = (row.get("messages") or row["prompt"])[0]
    passage = examples[0].gold_documents[0].text
    assert first == {"role": "user", "content": f"Be brief.\n\n{passage}\n\n{examples[0].question}"}
    back, _ = converted(tmp_path, name, tmp_path / "chats" / "train.jsonl", file="train")
    found = {(e.question, e.answer, e.gold_documents) for e in back}
    assert {(e.question, e.answer, e.gold_documents) for e in examples} <= found


# Chats and tables: what was said stays with its speaker

PARKING = "Parking is free for two hours."


def chat(*turns: tuple[str, str], **fields) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns], "documents": [PARKING], **fields}


def test_turns_of_one_speaker_are_joined_and_thoughts_are_no_part_of_an_answer(tmp_path):
    dialogue = chat(
        ("assistant", "Welcome."), ("user", "Hello."), ("user", "How long may I park?"),
        ("assistant", "<think>Two? Yes.</think>Two hours."), ("assistant", "It is free."),
        ("user", "And then?"), ("assistant", "</think>Ten euros."),
    )  # fmt: skip
    (first, second), _ = converted(tmp_path, "messages", write(tmp_path / "in.jsonl", [dialogue]))
    assert (first.question, first.answer) == ("Hello.\n\nHow long may I park?", "Two hours.\n\nIt is free.")
    assert [t.message for t in first.chat_history] == ["Welcome."]
    assert (second.question, second.answer) == ("And then?", "Ten euros.")
    assert [(t.speaker, t.message) for t in second.chat_history] == [
        ("assistant", "Welcome."), ("user", first.question), ("assistant", first.answer)
    ]  # fmt: skip


def test_instructions_and_messages_of_tools_are_said_to_be_left_out(tmp_path, capsys):
    rows = [
        chat(("system", "Be brief."), ("user", "Long?"), ("assistant", ""), ("tool", "2 h"), ("assistant", "Two.")),
        chat(("developer", "Be brief."), ("user", "Free?"), ("assistant", "Yes.")),
    ]
    examples, _ = converted(tmp_path, "messages", write(tmp_path / "in.jsonl", rows))
    assert [(e.question, e.answer, e.chat_history) for e in examples] == [("Long?", "Two.", ()), ("Free?", "Yes.", ())]
    said = capsys.readouterr().out
    assert "the instruction (system message) of 2 dialogues; it: --instruction 'Be brief.'" in said
    assert "left out: 1 messages from or to tools" in said


def test_files_for_fine_tuning_at_openai_are_read_as_they_are(tmp_path):
    turns = [("user", "Long?"), ("assistant", "No."), ("user", "Sure?"), ("assistant", "Two hours.")]
    weighted = chat(*turns, parallel_tool_calls=False)
    weighted["messages"][1]["weight"] = 0
    preferred = {
        "input": {"messages": [{"role": "user", "content": "Free?"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "Yes."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
        "documents": [PARKING],
    }
    examples, _ = converted(tmp_path, "messages", write(tmp_path / "in.jsonl", [weighted, preferred]))
    assert [(e.question, e.answer, len(e.chat_history)) for e in examples] == [
        ("Sure?", "Two hours.", 2), ("Free?", "Yes.", 0)
    ]  # fmt: skip


def test_sharegpt_and_alpaca_are_read(tmp_path):
    said = (("system", "Be kind."), ("human", "Long?"), ("gpt", "Two."))
    row = {"conversations": [{"from": name, "value": text} for name, text in said], "context": PARKING}
    (example,), _ = converted(tmp_path, "sharegpt", write(tmp_path / "in.json", [row]))
    assert (example.question, example.answer, gold(example)) == ("Long?", "Two.", [PARKING])
    rows = [
        {"instruction": "Long?", "input": PARKING, "output": "Two.", "history": [["Hi.", "Hello."]], "system": "Kind."},
        {"instruction": "Write a poem.", "input": "", "output": "Roses."},
    ]
    (example,), _ = converted(tmp_path, "alpaca", write(tmp_path / "in.json", rows))
    assert (example.question, example.answer, gold(example)) == ("Long?", "Two.", [PARKING])
    assert [t.message for t in example.chat_history] == ["Hi.", "Hello."]


@pytest.mark.parametrize(
    "table",
    [
        "question,answer,passage\nLong?,Two.,{}\n",
        "\ufeffAnswer;Question;Context\r\nTwo.;Long?;{}\r\n",
        "prompt\tnotes\tresponse\tpassage\nLong?\tx\tTwo.\t{}\n\n",
        'sep=|\nquestion|answer|passage\nLong?|"Two."|"{}"\n',
    ],
)
def test_a_table_is_read_whatever_its_separator_and_order(tmp_path, table):
    path = tmp_path / "in.csv"
    path.write_bytes(table.format(PARKING).encode())
    (example,), _ = converted(tmp_path, "csv", path)
    assert (example.question, example.answer, gold(example)) == ("Long?", "Two.", [PARKING])


def test_a_table_that_is_no_csv_is_named_by_its_line(tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text('sep=;\nquestion;answer\nLong?;Two.\n"Free?;Yes.\n')
    assert run("csv", path, "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"{path}: line 4: is not valid CSV (")


def test_the_passage_of_an_example_without_one_is_found_in_the_documents(tmp_path, capsys):
    texts = [PARKING, "Dogs may enter on a lead.", "The shop opens at nine and closes at six."]
    documents = write(tmp_path / "database.jsonl", [{"page_content": text} for text in texts])
    table = tmp_path / "in.csv"
    table.write_text("question,answer\nMay I bring my dog?,Dogs may enter on a lead.\nWho?,Nobody knows her name.\n")
    (example,), found = converted(tmp_path, "csv", table, "--documents", documents)
    assert gold(example) == [texts[1]] and [d.text for d in found] == texts
    assert "left out: 1 questions without a passage" in capsys.readouterr().out


# What is wrong


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "beir"])
def test_a_file_of_another_format_is_refused_and_nothing_is_written(tmp_path, capsys, name):
    path = write(tmp_path / "in.jsonl", [{"something": "else"}, {"something": [1]}])
    assert run(name, path, "-o", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{path}:") and ("missing; a" in line or "no example" in line) for line in lines), lines
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_all_problems_of_all_files_are_said_with_their_place(tmp_path, capsys):
    broken = json.loads(json.dumps(SQUAD))
    broken["data"][0]["paragraphs"][1]["qas"] = [{"question": 7, "answers": [{"text": "a"}]}]
    one = write(tmp_path / "one.json", broken)
    two = tmp_path / "two.json"
    two.write_text('{"data": [\n  {"title": "x",}\n]}')
    three = tmp_path / "three.jsonl"
    three.write_text('{"context": "c", "question": "q", "answers": {"text": ["a"]}}\n[1]\nbroken\n')
    assert run("squad", one, three, "-o", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{one}: data[0].paragraphs[1].qas[0].question: is 7, not text; a SQuAD file is")
    assert lines[1].startswith(f"{three}:2: is [1], not an object")
    assert lines[2].startswith(f"{three}:3: not valid JSON")
    assert run("squad", two, "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"{two}:2: not valid JSON")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_a_packed_file_that_breaks_off_is_one_line(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl.gz", SQUAD_ROWS * 200)
    path.write_bytes(path.read_bytes()[:-20])
    assert run("squad", path, "-o", tmp_path / "out") == 2
    assert "cannot be unpacked" in capsys.readouterr().err
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    "words, said",
    [
        ("squad none.json -o out", "none.json: no such file"),
        ("beir in.json -o out", "in.json: is a file; name the BEIR folder"),
        ("squad folder -o out", "folder: is a folder; name the files in it"),
        ("squad in.json folder/in.json.gz -o out", "in: two inputs have this name"),
        ("messages in.jsonl -o .", "in.jsonl: would be overwritten; choose another --output_dir"),
        ("squad in.json -o out --evidence folder", "--evidence: has no effect for squad; it applies to triviaqa"),
        ("squad in.json -o out --limit 0", "--limit: is 0; give 1 or more"),
        ("messages in.jsonl -o out --prompt_pattern (", "--prompt_pattern: missing )"),
        ("triviaqa trivia.json -o out", "trivia.json: refers to evidence files; give their folder as --evidence"),
        ("squid in.json -o out", "FORMAT: invalid choice: 'squid'"),
        ("squad in.txt -o out", "in.txt: unsupported file type"),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.json", SQUAD)
    write(tmp_path / "in.jsonl", [CHAT])
    write(tmp_path / "trivia.json", TRIVIA)
    (tmp_path / "in.txt").touch()
    write(tmp_path / "folder" / "in.json.gz", SQUAD)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not any(p.is_file() for p in (tmp_path / "out").rglob("*")) and {*before} >= {"in.json", "in.jsonl"}


def test_a_limit_takes_the_first_examples(tmp_path):
    path = write(tmp_path / "in.jsonl", SQUAD_ROWS * 5)
    assert len(converted(tmp_path, "squad", path, "--limit", 3)[0]) == 3


def test_help_names_every_format(capsys):
    assert run("-h") == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in (*FORMATS, "to_messages", "to_beir")) and "example:" in said
