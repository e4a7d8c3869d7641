"""What is pushed is the model, its tokenizer, card and metrics; a hub that cannot be reached costs nothing else."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_documents, tiny_examples
from huggingface_hub import HfApi
from test_recipes import SECRET, flags

import groundtune.recipes.train
from groundtune.cli import train_command

pytestmark = pytest.mark.usefixtures("no_drawing")

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json", *TOKENIZER}
WHOLE = {"model.safetensors", "config.json", "generation_config.json", *TOKENIZER}
RESULTS = {"README.md", "metrics.json", "generation_config.json"}


@dataclass
class Push:
    repo: str
    message: str
    path: str | None
    files: dict[str, bytes]
    token: str | None


@dataclass
class FakeHub:
    """Replaces the hub's client; `broken` names the calls that fail, and `gate` blocks pushes in the background."""

    broken: str = ""
    pushes: list[Push] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)

    def create_repo(self, api: HfApi, name: str, **options) -> SimpleNamespace:
        if self.broken == "create_repo":
            raise ConnectionError(f"no route to https://me:{SECRET}@huggingface.co\n(try later)")
        self.created.append({"name": name, "token": api.token, **options})
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def upload_folder(self, api: HfApi, *, repo_id, folder_path, commit_message, **options):
        def upload() -> str:
            if self.broken == "upload_folder":
                raise ConnectionError("the hub is gone")
            files = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in Path(folder_path).rglob("*")
                     if p.is_file()}  # fmt: skip
            self.pushes.append(Push(repo_id, commit_message, options.get("path_in_repo"), files, api.token))
            return "done"

        if not options.get("run_as_future"):
            return upload()
        future: Future = Future()

        def work() -> None:
            try:
                future.set_result(upload())
            except ConnectionError as error:
                future.set_exception(error)

        threading.Thread(target=work).start()
        return future


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(HfApi, "create_repo", lambda api, *a, **k: fake.create_repo(api, *a, **k))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **k: fake.upload_folder(api, **k))
    return fake


@pytest.fixture
def command(families, static_embedding_folder, data_folder, tmp_path):
    """The words of a short run that is pushed when it ends."""

    def words(**changes) -> list[str]:
        values = {
            "max_steps": 2, "eval_steps": 1, "max_new_tokens": 4, "push_to_hub": "true", "hub_token": SECRET,
            "hub_strategy": "end", "use_peft": "true", "lora_r": 2,
        }  # fmt: skip
        return flags(
            families["mistral"], static_embedding_folder, data_folder, tmp_path / "handbook-qa", **values | changes
        )

    return words


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".pushing-*"))


def names_on(card: str) -> set[str]:
    """The model names in the card's commands for asking and loading."""
    return {re.search(r"^groundtune ask (\S+) ", card, re.MULTILINE)[1], re.search(r"^name = '(.*?)'", card, re.M)[1]}


@pytest.mark.parametrize("peft", ["true", "false"])
def test_model_tokenizer_card_and_metrics_are_pushed_and_nothing_else(hub, command, tmp_path, capsys, peft):
    assert train_command("swr", command(use_peft=peft, hub_private_repo="true")) == 0
    (push,) = hub.pushes
    assert set(push.files) == (ADAPTER if peft == "true" else WHOLE) | RESULTS
    assert (push.repo, push.token) == ("me/handbook-qa", SECRET)
    assert all(made["private"] is True and made["exist_ok"] is True for made in hub.created)
    folder = tmp_path / "handbook-qa"
    assert all(content == (folder / name).read_bytes() for name, content in push.files.items())
    assert names_on(push.files["README.md"].decode()) == {"me/handbook-qa"}
    assert "Pushed: https://huggingface.co/me/handbook-qa" in capsys.readouterr().out
    assert leftovers(folder) == []


def test_the_card_names_the_repository_also_of_a_run_that_was_not_to_be_pushed_when_it_ended(hub, command, tmp_path):
    assert train_command("swr", command(push_to_hub="false")) == 0
    assert names_on((tmp_path / "handbook-qa" / "README.md").read_text()) == {"handbook-qa"} and hub.pushes == []
    for short, full in (("other", "me/other"), ("team/third", "team/third")):
        assert train_command("swr", command(hub_model_id=short)) == 0
        card = hub.pushes[-1].files["README.md"].decode()
        last = full.partition("/")[2]
        assert names_on(card) == {full} and f"# {last}\n" in card and f"- name: {last}\n" in card
        assert "handbook-qa" not in card
    assert json.loads((tmp_path / "handbook-qa" / "run.json").read_text())["hub_repository"] == "team/third"


def test_nothing_that_is_pushed_has_a_secret_a_question_a_passage_or_a_folder(hub, command, tmp_path):
    assert train_command("sft", command(use_peft="false", run_name=f"http://me:{SECRET}@host/run")) == 0
    said = [SECRET, str(tmp_path), *(e.question for e in tiny_examples()), *(d.page_content for d in tiny_documents())]
    (push,) = hub.pushes
    found = {(name, text) for name, content in push.files.items() for text in said if text.encode() in content}
    assert found == set()


def test_report_and_predictions_are_pushed_if_they_are_asked_for(hub, command, capsys):
    assert train_command("swr", command(push_report="true")) == 0
    predictions = {"predictions/test_base.jsonl", "predictions/test_tuned.jsonl"}
    assert set(hub.pushes[0].files) == ADAPTER | RESULTS | predictions | {"report.html", "report.md", "answers.html"}
    assert train_command("swr", command(push_report="true", push_to_hub="false")) == 2
    assert "--push_report: nothing is pushed without --push_to_hub; add it" in capsys.readouterr().err


def test_an_adapter_on_a_local_folder_is_pushed_with_a_warning(hub, command, caplog):
    assert train_command("swr", command()) == 0
    assert "which others do not have" in caplog.text


def test_every_checkpoint_is_pushed_if_that_is_the_strategy(hub, command, tmp_path):
    """Trainer's default. While one push is under way, the next is skipped unless --hub_always_push is set."""
    assert train_command("swr", command(hub_strategy="every_save", hub_always_push="true", save_total_limit=1)) == 0
    *during, last = hub.pushes
    assert sorted(push.message for push in during) == [f"Training in progress, checkpoint-{n}" for n in (1, 2)]
    assert [(set(push.files) ^ ADAPTER, push.path) for push in during] == [(set(), None)] * 2
    assert set(last.files) == ADAPTER | RESULTS
    assert leftovers(tmp_path / "handbook-qa") == []
    assert not list((tmp_path / "handbook-qa").rglob("training_args.bin"))


def test_a_checkpoint_that_is_pushed_whole_can_be_resumed_from(hub, command, tmp_path):
    from groundtune.runs.checkpoints import read_checkpoint

    assert train_command("swr", command(hub_strategy="all_checkpoints", hub_always_push="true")) == 0
    (push,) = [push for push in hub.pushes if push.path == "checkpoint-1"]
    folder = tmp_path / "fetched" / "checkpoint-1"
    folder.mkdir(parents=True)
    for name, content in push.files.items():
        (folder / name).write_bytes(content)
    assert read_checkpoint(folder).step == 1
    assert SECRET.encode() not in b"".join(push.files.values())


def test_a_push_that_fails_during_training_is_a_warning_and_the_run_goes_on(
    hub, command, tmp_path, monkeypatch, caplog
):
    plain = hub.upload_folder

    def fails_at_first(api, **options):
        hub.broken = "upload_folder" if options.get("run_as_future") else ""
        return plain(api, **options)

    monkeypatch.setattr(hub, "upload_folder", fails_at_first)
    assert train_command("swr", command(hub_strategy="every_save", eval_steps=2)) == 0
    assert "checkpoint-2 was not pushed to the hub (the hub is gone); the run continues" in caplog.text
    assert [push.message for push in hub.pushes] == ["End of training"]
    assert leftovers(tmp_path / "handbook-qa") == []


@pytest.mark.parametrize("broken", ["upload_folder", "create_repo"])
def test_a_hub_that_is_gone_at_the_end_loses_nothing_and_the_same_command_pushes(
    hub, command, tmp_path, monkeypatch, capsys, broken
):
    def breaks(*args) -> None:
        hub.broken = broken
        plain(*args)

    plain = groundtune.recipes.train.write_results
    monkeypatch.setattr(groundtune.recipes.train, "write_results", breaks)
    assert train_command("swr", command()) == 4
    said = capsys.readouterr()
    folder = tmp_path / "handbook-qa"
    assert "Token F1" in said.out and (folder / "report.html").is_file() and (folder / "metrics.json").is_file()
    (line,) = [line for line in said.err.splitlines() if "not on the hub" in line]
    assert line.startswith("--push_to_hub: ") and str(folder) in line and SECRET not in line
    assert "run the same command again to push it without training" in line
    assert leftovers(folder) == [] and hub.pushes == []

    hub.broken = ""
    monkeypatch.setattr(groundtune.recipes.train, "QATrainer", lambda **options: pytest.fail("trained again"))
    assert train_command("swr", command()) == 0
    assert set(hub.pushes[0].files) == ADAPTER | RESULTS
    assert "Pushed: " in capsys.readouterr().out


def test_a_hub_that_cannot_be_used_is_said_before_anything_slow(hub, command, monkeypatch, capsys):
    hub.broken = "create_repo"
    monkeypatch.setattr(groundtune.recipes.train, "open_retriever_with", lambda *a: pytest.fail("embedded"))
    assert train_command("swr", command()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--push_to_hub: ")]
    assert "handbook-qa cannot be created on the hub (no route to https://***@huggingface.co (try later))" in line
    assert "; log in" in line


def test_with_json_the_address_is_in_the_object(hub, command, capsys):
    assert train_command("swr", command(json="true", hub_model_id="me/other")) == 0
    assert json.loads(capsys.readouterr().out)["pushed"] == "https://huggingface.co/me/other"


def test_without_the_flag_nothing_is_asked_of_the_hub(hub, command):
    assert train_command("swr", command(push_to_hub="false")) == 0
    assert hub.created == hub.pushes == []
