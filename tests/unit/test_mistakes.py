"""Mistakes that people make at a terminal: each is named in its own line, with the command or flag that helps."""

from __future__ import annotations

import json

import pytest
from conftest import write_data

from groundtune.cli import main
from groundtune.errors import gathered

EXAMPLE = {"question": "Long?", "gold_docs": [{"page_content": "Two hours."}], "gold_answer": "Two."}
CHAT = {"messages": [{"role": "user", "content": "Long?"}, {"role": "assistant", "content": "Two."}]}
SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": []}]}]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the data of a run under its usual names."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def doctor(capsys, *words: str) -> list[str]:
    """The lines of the errors that the doctor prints for these changes to a good command."""
    good = ["--train_file", "train.jsonl", "--eval_file", "eval.jsonl", "--full_dataset_file_path", "documents.jsonl"]
    assert main(["doctor", "swr", *good, "--retriever", "bm25", *words]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return [line for line in said.out.splitlines() if line.startswith("error: ")]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ALPACA = [{"instruction": "a", "input": "", "output": "b"}]
OTHER_FILES = {
    "chats": ("in.jsonl", lines(CHAT, CHAT), "format messages; convert it: groundtune convert messages in.jsonl"),
    "ShareGPT": ("in.jsonl", lines({"conversations": []}), "groundtune convert sharegpt in.jsonl -o in"),
    "Alpaca in a list": ("in.json", json.dumps(ALPACA), "groundtune convert alpaca in.json -o in"),
    "prompts": ("in.jsonl", lines({"prompt": "a", "completion": "b"}), "groundtune convert prompt_completion in.jsonl"),
    "SQuAD": ("in.json", json.dumps(SQUAD), "groundtune convert squad in.json -o in"),
    "a table": ("my qa.csv", "question,answer\na,b\n", "groundtune convert csv 'my qa.csv' -o 'my qa'"),
    "one list": ("in.jsonl", json.dumps([EXAMPLE] * 2), "is one JSON list; write one object per line, such as by"),
    "documents": ("in.jsonl", lines({"page_content": "a"}), "holds documents, not examples; it may belong to --full_"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_as_examples_is_one_line_with_the_command_that_helps(folder, capsys, name):
    file, text, said = OTHER_FILES[name]
    (folder / file).write_text(text)
    (problem,) = doctor(capsys, "--train_file", file)
    assert problem.startswith(f"error: {file}: ") and said in problem


@pytest.mark.parametrize(
    "row, said",
    [
        (EXAMPLE, "in.jsonl: holds examples, not documents; it may belong to --train_file or --eval_file"),
        (
            {"text": "a"},
            "in.jsonl: its rows have no page_content but text; split them into passages: groundtune documents",
        ),
    ],
)
def test_a_file_of_another_kind_as_documents_is_one_line(folder, capsys, row, said):
    (folder / "in.jsonl").write_text(lines(*[row] * 9))
    (problem,) = doctor(capsys, "--full_dataset_file_path", "in.jsonl")
    assert said in problem


def test_two_files_that_are_swapped_are_two_lines(folder, capsys):
    problems = doctor(capsys, "--train_file", "documents.jsonl", "--full_dataset_file_path", "train.jsonl")
    assert len(problems) == 2


def test_many_problems_of_one_kind_are_one_line_with_their_number_and_a_few_are_a_line_each(folder, capsys):
    rows = [EXAMPLE] * 3 + [{**EXAMPLE, "question": n} for n in range(12)] + [{**EXAMPLE, "gold_answer": 5}]
    (folder / "in.jsonl").write_text(lines(*rows))
    many, one = doctor(capsys, "--train_file", "in.jsonl")
    assert many.startswith("error: in.jsonl:4: question: is 0, not text; ")
    assert many.endswith("(12 such problems, the last in in.jsonl:15)") and one.startswith(
        "error: in.jsonl:16: gold_answer"
    )
    few = [f"in.jsonl:{n}: question: is {n}, not text" for n in range(5)]
    assert gathered(few) == few and gathered(["one", "two"] * 4) == ["one", "two"] * 4


@pytest.mark.parametrize(
    "words, said",
    [
        ("swr --lr 1e-4", "--lr: no such argument; here it is --learning_rate"),
        ("sft --model m", "--model: no such argument; here it is --model_name_or_path"),
        ("swr --lora_rank 8", "--lora_rank: no such argument; here it is --lora_r"),
        ("swr --batch-size 8", "--batch-size: no such argument; here it is --per_device_train_batch_size"),
        ("swr --epochs=3", "--epochs: no such argument; here it is --num_train_epochs"),
        ("swr --cutoff_len 512", "--cutoff_len: no such argument; here it is --max_seq_length"),
        ("swr --device cuda", "--device: no such argument; devices are found by themselves; CUDA_VISIBLE_DEVICES"),
        ("ask m --temperature 0.7 Why?", "--temperature: no such argument; answers are greedy"),
        ("ask m --top_k 3 Why?", "--top_k: no such argument; here it is --eval_num_to_retrieve"),
        ("evaluate m --batch_size 8", "--batch_size: no such argument; here it is --per_device_eval_batch_size"),
        (
            "swr run.yaml",
            "run.yaml: not expected here; if it is a file of arguments, write: groundtune swr --config run.yaml",
        ),
        (
            "swr --train_file my.jsonl",
            "--eval_file: missing; to hold examples out of training: groundtune split my.jsonl -o my",
        ),
        ("evaluate runs/nope", "MODEL: no such folder: runs/nope; check the path"),
    ],
)
def test_what_is_called_otherwise_here_or_is_missing_is_said_first(folder, capsys, words, said):
    (folder / "run.yaml").write_text("max_seq_length: 300\n")
    assert main(words.split()) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(said)


@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "QUIT", "/quit"])
def test_a_dialogue_is_left_by_the_words_that_people_try(monkeypatch, word, capsys):
    from groundtune.commands import ask

    typed = iter([word, "never asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    ask._converse(None)
    assert next(typed) == "never asked"
