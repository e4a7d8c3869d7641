"""Nothing is written through a link: the author of a folder could choose which file is overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import FakeEmbedder, make_tokenizer, tiny_documents, write_data

import groundtune.runs.hub
from groundtune.arguments import DataArguments
from groundtune.cli import main
from groundtune.data.files import in_the_way, write_jsonl, write_text
from groundtune.errors import DataError
from groundtune.prepare.journal import Journal
from groundtune.retrieval.opening import index_folder
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.runs.checkpoints import newest_checkpoint, save_state, writing
from groundtune.runs.resume import locked
from groundtune.system.durable import Damaged, discard, read_manifest, write_manifest
from groundtune.system.model_folders import embedding_problems, model_problems, why_not_loaded
from groundtune.system.outputs import in_place_of, inside, links_in, usual_modes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")

MINE = "alias ls='ls --color'\n"


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder that contains only a file that no command may touch."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".bashrc").write_text(MINE)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def nothing_of_mine_was_touched(home):
    yield
    assert (home / ".bashrc").read_text() == MINE
    assert [path.name for path in home.iterdir()] == [".bashrc"]


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


# In `home`: a file, a folder, and a missing path.
TARGETS = (".bashrc", ".", "not there")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: write_jsonl(path, [{}])])
def test_a_file_is_not_written_through_a_link(home, tmp_path, target, write):
    made = link(tmp_path / "out" / "run.json", home / target)
    with pytest.raises(DataError) as caught:
        write(made)
    (line,) = caught.value.problems
    assert line.startswith(f"{made} is a link to {(home / target).resolve()}") and "remove" in line
    assert [path.name for path in made.parent.iterdir()] == ["run.json"]  # and no partial file


def test_a_terminal_shows_the_name_of_a_link_and_does_nothing_else(home, tmp_path):
    made = link(tmp_path / "a\n\x1b[2Jb", home / "c\x1b[2Jd")
    with pytest.raises(DataError) as caught:
        write_text(made, "x")
    assert caught.value.problems[0].isprintable()


@pytest.mark.parametrize("target", TARGETS)
def test_no_folder_on_the_way_to_an_output_is_a_link(home, tmp_path, target):
    (tmp_path / "run").mkdir()
    assert inside(tmp_path / "run", "predictions", "a.jsonl") == tmp_path / "run/predictions/a.jsonl"
    link(tmp_path / "run" / "predictions", home / target)
    with pytest.raises(DataError, match="predictions is a link to"):
        inside(tmp_path / "run", "predictions", "a.jsonl")


def test_a_folder_that_is_named_may_be_a_link(tmp_path):
    (tmp_path / "big disk").mkdir()
    made = link(tmp_path / "run", tmp_path / "big disk")
    write_text(inside(made, "predictions", "a.jsonl"), "x")
    assert (tmp_path / "big disk/predictions/a.jsonl").read_text() == "x"
    assert links_in(made, "predictions") == [] and in_the_way("output_dir", made, folder=True) == []


def test_links_are_found_in_a_folder_and_in_the_subfolders_that_are_named(home, tmp_path):
    run = tmp_path / "run"
    for name in ("a", "checkpoint-2/b/c", "checkpoint-3", "data/mine"):
        link(run / name, home / ".bashrc")
    found = links_in(run, "checkpoint-*", flag="output_dir")
    assert [line.split(" is a link")[0] for line in found] == [
        f"--output_dir: {run / name}" for name in ("a", "checkpoint-2/b/c", "checkpoint-3")
    ]
    assert links_in(tmp_path / "none") == []


def test_a_file_that_is_named_is_no_link_and_a_folder_leads_somewhere(home, tmp_path):
    (line,) = in_the_way("output", link(tmp_path / "a.html", home / ".bashrc"))
    assert line.startswith(f"--output: {tmp_path / 'a.html'} is a link to {home / '.bashrc'}")
    (line,) = in_the_way("output_dir", link(tmp_path / "b", home / "not there"), folder=True)
    assert line.startswith(f"--output_dir: {tmp_path / 'b'} is a link to {home / 'not there'}")


# Folders with a manifest


def test_temporary_files_have_no_name_that_can_be_foreseen(home, tmp_path):
    planted = link(tmp_path / "folder" / ".manifest.json.tmp", home / ".bashrc")
    (tmp_path / "folder" / "a").write_text("x")
    write_manifest(tmp_path / "folder", {})
    planted.unlink()
    assert read_manifest(tmp_path / "folder")["files"].keys() == {"a"}


def test_a_folder_with_a_link_in_it_cannot_be_believed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights").write_text("x")
    write_manifest(folder, {})
    (folder / "weights").rename(tmp_path / "weights")
    link(folder / "weights", tmp_path / "weights")
    with pytest.raises(Damaged, match="weights is a link"):
        read_manifest(folder)


def test_a_link_to_a_folder_is_removed_and_not_the_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("x")
    discard(link(tmp_path / "checkpoint-2", tmp_path / "mine"))
    discard(link(tmp_path / "checkpoint-2", tmp_path / "not there"))
    assert not (tmp_path / "checkpoint-2").is_symlink() and (tmp_path / "mine" / "manifest.json").exists()


def test_a_checkpoint_is_neither_written_nor_finished_through_a_link(tmp_path):
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "a").write_text("x")
    write_manifest(mine, {"step": 2, "resumable": True})
    before = sorted(path.name for path in mine.iterdir())
    made = link(out / ".writing-checkpoint-2", mine)
    assert newest_checkpoint(out) is None and not made.is_symlink()
    link(out / ".writing-checkpoint-2", mine)
    link(out / "checkpoint-2", mine)
    with writing(out / "checkpoint-2", {"step": 2}, needed=1) as folder:
        (folder / "b").write_text("y")
    assert sorted(path.name for path in mine.iterdir()) == before and not (out / "checkpoint-2").is_symlink()


# The index


@pytest.fixture
def store(tmp_path) -> Path:
    """The subfolder of an index with one document."""
    load_or_build_index(tmp_path / "index", tiny_documents()[:1], FakeEmbedder())
    (found,) = (tmp_path / "index").iterdir()
    return found


@pytest.mark.parametrize("name", [".vectors.npy.tmp", ".lock", "vectors.npy", "manifest.json", "more"])
def test_an_index_with_a_link_in_it_is_not_written(home, tmp_path, store, name):
    (store / name).unlink(missing_ok=True)
    made, embedder = link(store / name, home / ".bashrc"), FakeEmbedder()
    with pytest.raises(DataError) as caught:
        load_or_build_index(tmp_path / "index", tiny_documents(), embedder)
    assert caught.value.problems[0].startswith(f"{made} is a link to {home / '.bashrc'}")
    assert embedder.documents == []  # reported before any work


def test_an_index_is_not_written_into_a_linked_subfolder(home, tmp_path, store):
    store.rename(tmp_path / "store")
    (tmp_path / "store" / "vectors.npy").unlink()
    link(store, home)
    with pytest.raises(DataError, match="is a link"):
        load_or_build_index(tmp_path / "index", tiny_documents(), FakeEmbedder())


def test_the_index_beside_the_documents_is_no_link_unless_it_is_named(home, tmp_path):
    made, documents = link(tmp_path / "data" / "index", home), str(tmp_path / "data" / "documents.jsonl")
    with pytest.raises(DataError, match="index is a link"):
        index_folder(DataArguments(full_dataset_file_path=documents))
    assert index_folder(DataArguments(full_dataset_file_path=documents, full_dataset_index_path=str(made))) == made


def test_what_a_killed_run_had_begun_in_an_index_is_removed(tmp_path, store):
    (store / ".vectors.npy.0badcafe.tmp").write_text("x")
    load_or_build_index(tmp_path / "index", tiny_documents(), FakeEmbedder())
    assert not list(store.glob(".*.tmp"))


# Locks, journals and the hub


@pytest.mark.parametrize("name", [".run.lock", ".run.holder"])
@pytest.mark.parametrize("target", [".bashrc", "not there"])
def test_the_lock_of_a_run_is_no_link(home, tmp_path, name, target):
    link(tmp_path / "out" / name, home / target)
    with pytest.raises(DataError, match=f"{name} is a link"), locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("target", [".bashrc", "not there"])
def test_a_journal_is_no_link(home, tmp_path, target):
    with pytest.raises(DataError, match="is a link"):
        Journal(link(tmp_path / "generated.jsonl", home / target), {}, lambda row: "").add([{"a": 1}])


def test_a_link_planted_before_a_row_is_added_to_a_journal_is_not_followed(home, tmp_path):
    journal = Journal(tmp_path / "generated.jsonl", {}, lambda row: "")
    link(tmp_path / "generated.jsonl", home / ".bashrc")
    with pytest.raises((DataError, OSError)):
        journal.add([{"a": 1}])


def test_a_file_behind_a_link_is_not_pushed(home, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "staged").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    link(tmp_path / "run" / "README.md", home / ".bashrc")
    groundtune.runs.hub._stage(tmp_path / "run", ("config.json", "README.md"), tmp_path / "staged")
    assert [path.name for path in (tmp_path / "staged").iterdir()] == ["config.json"]


# Modes: those of the umask for new files, and kept for files that are replaced


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def usual(request) -> int:
    """The mode of a new file."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o644, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode_and_a_new_one_has_the_usual_one(home, tmp_path, usual, kept):
    write_text(tmp_path / "new", "x")
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(kept)
    seen = []
    with in_place_of(tmp_path / "old") as file:
        (temporary,) = tmp_path.glob(".old.*.tmp")
        seen.append((mode(temporary), temporary.stat().st_size))
        file.write(b"private")
    assert (mode(tmp_path / "new"), mode(tmp_path / "old"), seen) == (usual, kept, [(kept, 0)])


def test_what_a_library_writes_has_the_usual_mode_and_what_it_replaces_keeps_its_own(home, tmp_path, usual):
    (tmp_path / "kept").touch()
    (tmp_path / "kept").chmod(0o640)
    (tmp_path / "other").touch()
    (tmp_path / "other").chmod(0o400)
    with usual_modes(tmp_path):
        save_file({"w": torch.zeros(2)}, tmp_path / "new")
        (tmp_path / "inner").mkdir()
        save_file({"w": torch.zeros(2)}, tmp_path / "inner" / "new")
        save_file({"w": torch.zeros(2)}, tmp_path / "kept")
    found = {name: mode(tmp_path / name) for name in ("new", "inner/new", "kept", "other")}
    assert found == {"new": usual, "inner/new": usual, "kept": 0o640, "other": 0o400}


def test_every_file_of_a_checkpoint_has_the_usual_mode(home, tmp_path, usual):
    with writing(tmp_path / "run" / "checkpoint-1", {"step": 1}, needed=0) as folder:
        save_state(folder, "optimizer", {"weights": torch.zeros(3)})
    found = {path.name: mode(path) for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    assert found.keys() == {"optimizer.json", "optimizer.safetensors", "manifest.json"}
    assert set(found.values()) == {usual}


# Permissions


def test_a_file_of_a_model_that_may_not_be_read_is_named_as_such(home, tmp_path, monkeypatch):
    for name in ("decoder", "embedder"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors", "notes.md"):
            (tmp_path / name / file).write_text("{}")
    refused = {tmp_path / "decoder" / "model.safetensors", tmp_path / "embedder"}
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) not in refused)
    for problems in (model_problems(str(tmp_path / "decoder")), embedding_problems(str(tmp_path / "embedder"))):
        (line,) = problems
        assert "permission denied" in line and "pickle" not in line and str(tmp_path) in line


def test_an_error_of_a_library_that_lacks_permission_is_told_as_such():
    denied = PermissionError(13, "Permission denied", "/m/model.safetensors")
    wrapped = OSError("Unable to load weights from pytorch checkpoint, safetensors")
    wrapped.__cause__ = denied
    rust = Exception("Permission denied (os error 13) in safetensors")
    assert why_not_loaded(wrapped) == "permission denied for /m/model.safetensors"
    assert why_not_loaded(rust) == "permission denied"
    assert "pickle" in why_not_loaded(OSError("no safetensors"))


# The commands: each reports it before anything slow


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working folder with data; the model is only a name, because it is never loaded."""
    folder = tmp_path / "work"
    folder.mkdir()
    write_data(folder)
    make_tokenizer("qwen").save_pretrained(folder / "tokenizer")
    (folder / "good.md").write_text("# Dogs\n\nDogs wait at the red door.\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    questions = [{"id": "1", "question": "Where?", "answers": [{"text": "Here", "answer_start": 0}]}]
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "Here.", "qas": questions}]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    for name in ("a", "b"):
        row = {
            "source": "a:1", "question": "Q?", "chat_history": [], "gold_answer": "A", "answer": "A", "finished": True,
            "gold_docs": [], "retrieved_docs": [], "passages_read": 0, "prompt_tokens": 1, "new_tokens": 1,
            "scores": {"generation/f1": 1.0},
        }  # fmt: skip
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(folder)
    return folder


_TRAINED = "--train_file train.jsonl --eval_file eval.jsonl --full_dataset_file_path documents.jsonl --retriever bm25"
_SFT = f"sft --model_name_or_path model {_TRAINED} --output_dir out"
_EVALUATE = "evaluate model --eval_file test.jsonl --contexts gold"
_QUESTIONS = "questions documents.jsonl -o out --generator model --min_words 1"
COMMANDS = [
    *(
        (f"{_SFT} {more}".strip(), f"out/{name}")
        for name in (
            "adapter_model.safetensors", "trainer_state.json", "run.json", ".run.lock", ".run.holder", "predictions",
            "predictions/eval_step_000002.jsonl", "checkpoint-2", "checkpoint-2/model.safetensors", "runs/Jan01",
            ".writing-checkpoint-2", "additional_chat_templates/a.jinja", "evaluation/predictions", "thresholds.json",
        )
        for more in ("", "--overwrite_output_dir true")
    ),
    *(
        (_EVALUATE, f"model/evaluation{name}")
        for name in ("", "/metrics.json", "/predictions", "/predictions/gold.jsonl", "/evaluation.html")
    ),
    (f"{_EVALUATE} --output_dir out", "out/metrics.json"),
    *((_QUESTIONS, f"out/{name}.jsonl") for name in ("generated", "train", "eval", "test", "rejected")),
    ("documents good.md -o out.jsonl --tokenizer tokenizer", "out.jsonl"),
    ("convert squad squad.json -o out", "out/documents.jsonl"),
    ("convert squad squad.json -o out", "out/squad.jsonl"),
    ("convert to_messages test.jsonl -o out", "out/test.jsonl"),
    ("convert to_beir test.jsonl -o out", "out/qrels"),
    ("convert to_beir test.jsonl -o out", "out/qrels/test.tsv"),
    ("convert to_beir test.jsonl -o out", "out/corpus.jsonl"),
    ("compare a.jsonl b.jsonl -o out.html", "out.html"),
    ("compare a.jsonl b.jsonl -o out.html", "out.json"),
    ("demo --output_dir out", "out/data"),
    ("demo --output_dir out", "out/data/train.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_a_command_names_the_link_that_it_would_write_through(home, work, monkeypatch, capsys, command, name, target):
    monkeypatch.setattr("groundtune.demo._check_installed", lambda: None)
    link(work / name, home / target)
    if command.startswith("evaluate"):
        (work / "model" / "run.json").write_text('{"arguments": {"method": "sft"}}')
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if " is a link to " in line]
    assert len(lines) == 1 and name in lines[0] and str((home / target).resolve()) in lines[0], said
    assert "Traceback" not in said


def test_no_link_is_left_out_of_the_list_of_problems(home, work, capsys):
    for name in ("a.safetensors", "b.json"):
        link(work / "out" / name, home / ".bashrc")
    assert main(_SFT.split()) == 2
    assert capsys.readouterr().err.count(" is a link to ") == 2
