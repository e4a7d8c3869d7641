"""A path that is missing, empty, a folder or in the way gives one line, status 2, and no half-written file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import make_tokenizer, write_data

from groundtune.cli import main
from groundtune.commands.config import read_config
from groundtune.data.files import in_the_way
from groundtune.evaluation.judge import read_judge_prompts
from groundtune.prepare.questions import read_prompt

# `IN` stands for a path from which a file is read; {bad} are paths that cannot be read.
READS = {
    "documents": "documents IN.md -o out.jsonl --tokenizer tokenizer",
    "documents, tokenizer": "documents good.md -o out.jsonl --tokenizer IN",
    "documents, config": "documents good.md -o out.jsonl --tokenizer tokenizer --config IN.yaml",
    "questions": "questions IN.jsonl -o out --generator model --min_words 1",
    "questions, prompt": "questions documents.jsonl -o out --generator model --min_words 1 --question_prompt IN.txt",
    "questions, generator": "questions documents.jsonl -o out --generator IN --min_words 1",
    "questions, embedding model": "questions documents.jsonl -o out --generator model --min_words 1 "
    "--embedding_model IN",
    "convert": "convert squad IN.json -o out",
    "convert, beir": "convert beir IN -o out",
    "convert, back": "convert to_messages IN.jsonl -o out",
    "convert, documents": "convert to_beir test.jsonl --documents IN.jsonl -o out",
    "sft, train file": "sft --train_file IN.jsonl --eval_file eval.jsonl --full_dataset_file_path documents.jsonl "
    "--model_name_or_path model --retriever bm25 --output_dir out",
    "swr, documents": "swr --train_file train.jsonl --eval_file eval.jsonl --full_dataset_file_path IN.jsonl "
    "--model_name_or_path model --retriever bm25 --output_dir out",
    "swr, config": "swr --config IN.yaml",
    "doctor": "doctor swr --eval_file IN.jsonl",
    "evaluate, model": "evaluate IN --eval_file test.jsonl --contexts gold --output_dir out",
    "evaluate, questions": "evaluate model --eval_file IN.jsonl --contexts gold --output_dir out",
    "evaluate, documents": "evaluate model --eval_file test.jsonl --full_dataset_file_path IN.jsonl --retriever bm25 "
    "--output_dir out",
    "evaluate, judge prompt": "evaluate model --eval_file test.jsonl --contexts gold --output_dir out "
    "--judge model --judge_prompt IN.txt",
    "compare": "compare IN.jsonl IN.jsonl -o out.html",
    "index, documents": "index --full_dataset_file_path IN.jsonl --embedding_model bert --full_dataset_index_path out",
    "index, model": "index --full_dataset_file_path documents.jsonl --embedding_model IN --full_dataset_index_path out",
    "ask, model": "ask IN Why? --full_dataset_file_path documents.jsonl --retriever bm25",
    "ask, documents": "ask model Why? --full_dataset_file_path IN.jsonl --retriever bm25",
}
# Small files, read once: here a pipe, such as `<(command)`, is valid input.
ONCE = {"documents, config", "questions, prompt", "swr, config", "evaluate, judge prompt"}
# Here a folder, possibly empty, is valid input.
FINE = {("convert, beir", "folder")}
# `OUT` is written; a folder is in the way of a file, and a file in the way of a folder.
WRITES = {
    "documents": ("documents good.md -o OUT.jsonl --tokenizer tokenizer", "file"),
    "questions": ("questions documents.jsonl -o OUT --generator model --min_words 1", "folder"),
    "convert": ("convert squad squad.json -o OUT", "folder"),
    "convert, back": ("convert to_messages test.jsonl -o OUT", "folder"),
    "convert, beir": ("convert to_beir test.jsonl -o OUT", "folder"),
    "sft": (
        "sft --train_file train.jsonl --eval_file eval.jsonl --full_dataset_file_path documents.jsonl "
        "--model_name_or_path model --retriever bm25 --output_dir OUT",
        "folder",
    ),
    "evaluate": ("evaluate model --eval_file test.jsonl --contexts gold --output_dir OUT", "folder"),
    "compare": ("compare predictions.jsonl predictions.jsonl -o OUT.html", "file"),
    "index": (
        "index --full_dataset_file_path documents.jsonl --embedding_model bert --full_dataset_index_path OUT",
        "folder",
    ),
    "demo": ("demo --output_dir OUT", "folder"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, families, bert_embedding_folder) -> Path:
    """A folder with valid inputs, and one of each kind of bad path."""
    made = write_data(tmp_path_factory.mktemp("inputs"))
    (made / "good.md").write_text("# Dogs\n\nDogs wait at the red door.\n")
    make_tokenizer("qwen").save_pretrained(made / "tokenizer")
    (made / "model").symlink_to(families["qwen"].folder)
    (made / "bert").symlink_to(bert_embedding_folder)
    questions = [{"id": "1", "question": "Where?", "answers": [{"text": "Here", "answer_start": 0}]}]
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "Here.", "qas": questions}]}]}
    (made / "squad.json").write_text(json.dumps(squad))
    row = (
        '{"source": "a:1", "question": "Q?", "chat_history": [], "gold_answer": "A", "answer": "A", "finished": true, '
        '"gold_docs": [], "retrieved_docs": [], "passages_read": 0, "prompt_tokens": 1, "new_tokens": 1, '
        '"scores": {"generation/f1": 1.0}}\n'
    )
    (made / "predictions.jsonl").write_text(row)
    for suffix in ("", ".md", ".txt", ".json", ".jsonl", ".yaml"):
        (made / f"empty{suffix}").touch()
        (made / f"folder{suffix}").mkdir()
        if hasattr(os, "mkfifo"):
            os.mkfifo(made / f"pipe{suffix}")
            (made / f"device{suffix}").symlink_to("/dev/zero")
            (made / f"loop{suffix}").symlink_to(f"loop{suffix}")
    return made


def listing(folder: Path) -> dict[str, bytes]:
    """All folders, and files with their contents, except a run's lock and a folder that holds nothing else."""
    found = {p.relative_to(folder): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}
    locks = [path for path in found if path.name == ".run.lock"]
    alone = [path.parent for path in locks if sum(path.parent in other.parents for other in found) == 1]
    return {str(path): content for path, content in found.items() if path not in [*locks, *alone]}


def refused(words: str, capsys) -> list[str]:
    """Messages of a command that must exit with 2 without a traceback; the doctor prints them on standard output."""
    try:
        status = main(words.split())
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2, said.err
    return [*said.err.splitlines(), *(said.out.splitlines() if words.startswith("doctor") else [])]


@pytest.mark.parametrize("bad", ["missing", "empty", "folder"])
@pytest.mark.parametrize("case", READS)
def test_what_cannot_be_read_is_named_and_nothing_is_written(folder, monkeypatch, capsys, case, bad):
    if (case, bad) in FINE:
        pytest.skip("a folder is what is read")
    monkeypatch.chdir(folder)
    before = listing(folder)
    lines = refused(READS[case].replace("IN", bad), capsys)
    assert any(bad in line for line in lines), lines
    assert listing(folder) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("bad", ["pipe", "device", "loop"])
@pytest.mark.parametrize("case", READS)
def test_what_has_no_end_is_not_read(folder, monkeypatch, capsys, case, bad):
    if bad == "pipe" and case in ONCE:
        pytest.skip("a pipe is read")
    monkeypatch.chdir(folder)
    lines = refused(READS[case].replace("IN", bad), capsys)
    assert any(bad in line for line in lines), lines


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no names for open files")
def test_arguments_and_prompts_may_come_from_a_pipe():
    def piped(text: str) -> str:
        out, into = os.pipe()
        os.write(into, text.encode())
        os.close(into)
        return f"/dev/fd/{out}"

    assert read_config(piped("output_dir: runs/a"))[0].value == "runs/a"
    assert read_prompt(Path(piped("Ask {number} about {passage}")), "questions.txt").startswith("Ask")
    assert read_judge_prompts([piped("Grade $answer, as in [[3]].")])


@pytest.mark.parametrize("case", READS)
def test_a_name_that_no_file_can_have_is_a_problem_and_no_traceback(folder, monkeypatch, capsys, case):
    """Methods of `Path` raise for it, as they do for a path in another user's home."""
    monkeypatch.chdir(folder)
    long = "Why" * 100
    lines = refused(READS[case].replace("IN", long), capsys)
    assert any(long in line for line in lines), lines


def test_a_name_that_no_output_can_have_is_named_before_anything_slow(tmp_path):
    long = tmp_path / ("out" * 100)
    for path in (long, long / "below", tmp_path / "null\0"):
        (problem,) = in_the_way("output_dir", path, folder=True)
        assert problem.startswith(f"--output_dir: {path} cannot be created (") and problem.endswith(
            "name another folder"
        )


@pytest.mark.parametrize("case", WRITES)
def test_an_output_that_is_in_the_way_is_named_before_anything_slow(folder, monkeypatch, capsys, tmp_path, case):
    command, kind = WRITES[case]
    monkeypatch.chdir(folder)
    out = re.search(r"OUT\S*", command)[0]
    path = tmp_path / out
    path.mkdir() if kind == "file" else path.write_text("mine")
    before = listing(folder), listing(tmp_path)
    lines = refused(command.replace("OUT", str(tmp_path / "OUT")), capsys)
    assert any(out in line for line in lines), lines
    assert (listing(folder), listing(tmp_path)) == before
    # Below a file there can be neither a file nor a folder.
    (tmp_path / "file").write_text("mine")
    lines = refused(command.replace("OUT", str(tmp_path / "file" / "OUT")), capsys)
    assert any("file" in line for line in lines), lines
    assert (tmp_path / "file").read_text() == "mine"
