"""`groundtune export`: a verified export answers as its run, and every fault planted in one is found."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from fake_server import FakeServer
from safetensors.torch import load_file, save_file
from test_recipes import flags
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from groundtune.cli import main
from groundtune.commands.evaluate import inference_arguments, parser
from groundtune.commands.parsing import given
from groundtune.errors import ModelError
from groundtune.evaluation.predictions import read_predictions
from groundtune.export.about import read_about
from groundtune.export.checks import weights_differ
from groundtune.export.merging import merged
from groundtune.export.verifying import _compared, _evaluator, _not_finite
from groundtune.prompts.prompt import make_prompt
from groundtune.schema import Reply

pytest.importorskip("openai", reason="needs the extra [endpoint]")


@pytest.fixture(scope="module")
def run_folder(families, static_embedding_folder, data_folder, tmp_path_factory) -> Path:
    """A LoRA run whose answers differ from the base model's."""
    folder = tmp_path_factory.mktemp("run")
    arguments = flags(
        families["mistral"], static_embedding_folder, data_folder, folder, embedding_model=...,
        eval_embedding_model=static_embedding_folder, use_peft="true", lora_r=4, max_steps=4, learning_rate=5e-2,
        eval_strategy="no",
    )  # fmt: skip
    assert main(["sft", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    assert main(["export", str(run_folder), "-o", str(folder), "--verify", "--quiet"]) == 0
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def verify(run: Path, folder: Path, capsys, *words) -> tuple[int, dict]:
    capsys.readouterr()
    status = main(["export", str(run), "-o", str(folder), "--verify", "--json", *map(str, words)])
    return status, json.loads(capsys.readouterr().out)["verified"]


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


# A faithful export


def test_an_export_is_the_model_that_was_measured_and_opens_with_transformers_alone(run_folder, exported):
    about = read_about(exported)
    assert about.complete and about.kept == pytest.approx(1, abs=1e-3) and about.verified["status"] == "verified"
    assert about.verified["same"] == about.verified["n"] == 3 and "model.safetensors" in about.files
    assert not list(exported.glob("adapter*")) and str(run_folder) not in (exported / "config.json").read_text()
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    assert tokenizer.chat_template and tokenizer.eos_token_id in model.generation_config.eos_token_id
    card = (exported / "README.md").read_text("utf-8")
    assert "AutoModelForCausalLM" in card and "AutoPeft" not in card and "Serve it" in card
    if sys.platform != "win32":
        assert len({stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()}) == 1


def test_a_run_of_all_weights_in_the_prefix_style_is_exported(
    families, static_embedding_folder, data_folder, tmp_path, capsys
):
    arguments = flags(
        families["llama"], static_embedding_folder, data_folder, tmp_path / "run", embedding_model=...,
        eval_embedding_model=static_embedding_folder, max_steps=2, learning_rate=1e-2, eval_strategy="no",
        user_prefix="USER", assistant_prefix="ASSISTANT",
    )  # fmt: skip
    assert main(["sft", *arguments]) == 0
    status, found = verify(tmp_path / "run", tmp_path / "out", capsys)
    assert (status, found["faults"], found["same"]) == (0, [], 3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<s>S\n\nUSER: Q ASSISTANT:"


def test_an_export_is_scored_as_its_run_was(run_folder, tmp_path):
    (tmp_path / "wordings.txt").write_text("vet ej\n")
    words = [str(run_folder), "--citations", "taught", "--abstentions", str(tmp_path / "wordings.txt")]
    arguments = inference_arguments(given(parser(), words), for_questions=True, again=lambda more: "")
    tokenizer = arguments.answering_model().open_tokenizer()
    measured = read_predictions(run_folder / "predictions/test_tuned.jsonl")
    evaluator = _evaluator(arguments, measured, make_prompt(tokenizer, arguments.prompt), tokenizer.pad_token_id)
    said = evaluator.predictions([Reply("At nine. ⟦1⟧"), Reply("Vet ej."), Reply("No.")], seconds=1)
    assert said[0].answer == "At nine." and said[0].scores["citations/recall"] in (0, 1)
    assert [p.scores["errors/answerable_refused"] for p in said] == [0, 1, 0]


# Planted in the folder


def not_merged(folder: Path, times: int = 0) -> None:
    """The weights with the adapter added `times` times."""
    weights, plain = load_file(folder / "model.safetensors"), load_file(folder / "base.safetensors")
    changed = {n: plain[n] + times * (w - plain[n]) if n in plain else w for n, w in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def template(folder: Path, old: str, new: str) -> None:
    path = folder / "chat_template.jinja"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def other_tokenizer(folder: Path) -> None:
    kept = (folder / "chat_template.jinja").read_text("utf-8")
    make_tokenizer("phi").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(kept, "utf-8")


def infinite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("q_proj.weight"))
    weights[name] = (weights[name] * 1e6).half().float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_base(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {name: w * 1.001 if "embed" in name else w for name, w in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NOT_ONCE = "not the base model with the adapter added once: they differ by 1.00 times what the adapter changes"
FAULTS = {
    "wrong template": (lambda f: template(f, "[INST] ", "[INST]\n"), "prompt: 3 of 3 prompts are not the run's"),
    "lost BOS": (lambda f: template(f, "{{ bos_token }}", ""), "has lost its BOS token"),
    "doubled BOS": (
        lambda f: template(f, "{{ bos_token }}", "{{ bos_token + bos_token }}"),
        "begins with one BOS token too many",
    ),
    "changed instruction": (lambda f: change(f / "export.json", instruction="Be brief."), "prompt: 3 of 3 prompts"),
    "other tokenizer": (other_tokenizer, "tokenizer: "),
    "missing stop token": (
        lambda f: change(f / "generation_config.json", eos_token_id=[5]),
        "generation_config.json lacks </s>",
    ),
    "sampling": (lambda f: change(f / "generation_config.json", do_sample=True, temperature=0.7), "temperature is 0.7"),
    "adapter not merged": (lambda f: not_merged(f, 0), NOT_ONCE),
    "adapter merged twice": (lambda f: not_merged(f, 2), NOT_ONCE),
    "wrong base": (other_base, "not those of the base model that the run was trained on"),
    "float16 overflow": (infinite, "are not finite"),
    "truncated context": (
        lambda f: change(f / "config.json", max_position_embeddings=32),
        "max_position_embeddings is 32; the run's model has 2048",
    ),
    "other window": (lambda f: change(f / "config.json", sliding_window=2), "sliding_window is 2"),
}


@pytest.fixture(scope="module")
def base_weights(families):
    return families["mistral"].folder / "model.safetensors"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(run_folder, copy, base_weights, capsys, fault):
    plant, said = FAULTS[fault]
    shutil.copy(base_weights, copy / "base.safetensors")
    plant(copy)
    (copy / "base.safetensors").unlink()
    status, found = verify(run_folder, copy, capsys)
    assert status == 1 and found["status"] == "failed"
    assert any(said in fault for fault in found["faults"]), found["faults"]


def test_a_copy_without_a_fault_is_verified_again(run_folder, copy, capsys):
    status, found = verify(run_folder, copy, capsys, "--max_questions", 2)
    assert (status, found["same"], found["n"]) == (0, 2, 2)


def test_weights_that_are_saved_under_other_names_are_compared_too(tmp_path):
    """transformers joins the experts of a layer while it loads them, and parts them again while it saves."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_key_value_heads=1, num_local_experts=2, **shape))
    model.save_pretrained(tmp_path)
    assert list(load_file(tmp_path / "model.safetensors")) != sorted(model.state_dict())
    assert list(weights_differ(tmp_path, model)) == []
    model.lm_head.weight.data += 1
    (fault,) = weights_differ(tmp_path, model)
    assert "not those of the base model" in fault and "lm_head.weight" in fault


def test_weights_beyond_float16_are_refused_before_they_are_written(families):
    model = families["llama"].model()
    model.lm_head.weight.data *= 1e6
    with pytest.raises(ModelError, match="--dtype float16: lm_head.weight is beyond its largest number; use --dtype"):
        merged(model.half())


def test_a_dtype_that_overflows_only_while_it_computes_is_found(families, exported):
    model = families["llama"].model()
    model.model.norm.weight.data *= 6e4
    assert _not_finite(model, [5, 6, 7], read_about(exported)) == []
    (fault,) = _not_finite(model.half(), [5, 6, 7], read_about(exported))
    assert "overflows on the longest prompt" in fault


# Planted in a server


class Server:
    """The export behind a chat API, answered by transformers' own `generate`; `ask` and `ids` may plant a fault."""

    def __init__(self, folder: Path, ask=lambda messages: messages, ids=lambda ids: ids):
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        self.ask, self.ids = ask, ids

    def speak(self, body: dict) -> str:
        messages = self.ask(body["messages"])
        ids = self.ids(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        new = self.model.generate(torch.tensor([ids]), max_new_tokens=body["max_tokens"])[0, len(ids) :]
        return self.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def reordered(messages: list[dict]) -> list[dict]:
    instruction, *passages, question = messages[0]["content"].split("\n\n")
    return [{**messages[0], "content": "\n\n".join([instruction, *passages[::-1], question])}, *messages[1:]]


def with_words(messages: list[dict]) -> list[dict]:
    return [{**messages[0], "content": f"Be brief. {messages[0]['content']}"}, *messages[1:]]


IN_SERVER = {
    "other passage order": {"ask": reordered},
    "changed instruction": {"ask": with_words},
    "doubled BOS": {"ids": lambda ids: [ids[0], *ids]},
    "lost BOS": {"ids": lambda ids: ids[1:]},
    "truncated context": {"ids": lambda ids: ids[-24:]},
}


@pytest.mark.parametrize("fault", IN_SERVER)
def test_a_fault_in_the_server_is_found_by_its_answers(run_folder, copy, capsys, fault):
    with FakeServer(Server(copy, **IN_SERVER[fault]).speak) as server:
        words = ("--endpoint", f"openai:{server.url}", "--endpoint_model", "m", "--concurrency", 1)
        status, found = verify(run_folder, copy, capsys, *words)
    assert status == 1 and found["status"] != "verified" and found["same"] < found["n"] == 3


def test_a_server_that_answers_as_the_run_did_is_verified_however_it_counts_tokens(run_folder, copy, capsys):
    finished = [p.finished for p in read_predictions(run_folder / "predictions/test_tuned.jsonl")]
    with FakeServer(Server(copy).speak, finish_reason="stop" if all(finished) else "length") as server:
        words = ("--endpoint", f"openai:{server.url}", "--endpoint_model", "m", "--concurrency", 1)
        status, found = verify(run_folder, copy, capsys, *words)
    same = max(sum(finished), 3 - sum(finished))  # the fake server gives one reason for all answers
    assert found["same"] == same and status == (0 if same == 3 else 1)


# The verdict


def test_answers_that_differ_need_a_margin_and_enough_passages(run_folder):
    measured = read_predictions(run_folder / "predictions/test_tuned.jsonl")
    other = [replace(p, answer="x", scores={**p.scores, "generation/f1": 0.0}) for p in measured[:1]] + measured[1:]
    found = _compared("m", 0.02, measured, other, [])
    assert (found.status, found.same) == ("not verified", 2)
    assert "fewer than 20 passages (here 3)" in found.lines[0]


@pytest.mark.parametrize("reproduced", [True, False])
def test_an_answer_that_only_another_precision_changes_is_no_fault_if_the_run_still_gives_both(
    run_folder, copy, monkeypatch, capsys, reproduced
):
    asked = []

    def answered(opening, evaluator, about, on_done):
        """The export and, in its precision, the run answer one question in another way than was measured."""
        as_measured = opening.bf16 and reproduced
        asked.append(len(evaluator.examples))
        found = [p for e in evaluator.examples for p in measured if p.example.question == e.question]
        return [replace(p, answer="x") if p is measured[0] and not as_measured else p for p in found], []

    measured = read_predictions(run_folder / "predictions/test_tuned.jsonl")
    monkeypatch.setattr("groundtune.export.verifying._answers", answered)
    status, found = verify(run_folder, copy, capsys, "--bf16", "true")
    assert asked == [3, 3, 1] and (found["same"], found["n"], found["computed"]) == (2, 3, "float32")
    assert (found["alike"], status) == ((1, 0) if reproduced else (0, 1))


def test_a_run_whose_numbers_overflow_in_the_precision_of_the_export_explains_nothing(
    run_folder, copy, monkeypatch, capsys
):
    def answered(opening, evaluator, about, on_done):
        if opening.base and not opening.bf16:  # the run, in the precision of the export
            return [], ["computing: overflows"]
        return [replace(p, answer="x") if p is measured[0] and not opening.base else p for p in measured], []

    measured = read_predictions(run_folder / "predictions/test_tuned.jsonl")
    monkeypatch.setattr("groundtune.export.verifying._answers", answered)
    status, found = verify(run_folder, copy, capsys, "--bf16", "true")
    assert (found["same"], found["alike"], found["status"], status) == (2, 0, "not verified", 1)


# Other targets


def fake_llama_cpp(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(code)
    return folder


def test_gguf_is_converted_by_an_installed_llama_cpp_and_not_verified_without_a_server(run_folder, tmp_path, capsys):
    script = "import sys; a = sys.argv; open(a[a.index('--outfile') + 1], 'wb').write(b'GGUF')"
    tool = fake_llama_cpp(tmp_path / "llama.cpp", script)
    words = ["export", str(run_folder), "-o", str(tmp_path / "out"), "--to", "gguf", "--llama_cpp", str(tool)]
    assert main([*words, "--verify"]) == 1
    shown = capsys.readouterr().out
    assert (tmp_path / "out/model.gguf").read_bytes() == b"GGUF"
    assert "llama-server -m" in shown and "Not verified: llama.cpp, which nothing here runs" in shown


@pytest.mark.parametrize(
    "code, said",
    [
        (None, "convert_hf_to_gguf.py of llama.cpp is not installed; git clone https://github.com/ggml-org/llama.cpp"),
        ("", "it wrote nothing"),
        ("raise SystemExit('Model XForCausalLM is not supported')", "failed (Model XForCausalLM is not supported)"),
    ],
)
def test_gguf_without_a_converter_that_works_is_one_line_with_the_way_out(
    run_folder, tmp_path, capsys, monkeypatch, code, said
):
    monkeypatch.setenv("PATH", "")
    words = ["export", str(run_folder), "-o", str(tmp_path / "out"), "--to", "gguf"]
    if code is not None:
        words += ["--llama_cpp", str(fake_llama_cpp(tmp_path / "llama.cpp", code))]
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gguf" in line.lower()]
    assert said in line and not list((tmp_path / "out").glob("*.gguf"))


def test_a_modelfile_and_the_line_for_vllm_are_written(run_folder, tmp_path, capsys):
    for target, said in (("ollama", "ollama create"), ("vllm", "vllm serve")):
        assert main(["export", str(run_folder), "-o", str(tmp_path / target), "--to", target]) == 0
        assert f"To serve it: {said}" in capsys.readouterr().out
    assert "PARAMETER num_ctx 300" in (tmp_path / "ollama/Modelfile").read_text("utf-8")


# Mistakes


def test_a_folder_with_other_files_is_not_written_to_and_an_interrupted_export_is_written_again(
    run_folder, exported, tmp_path, capsys
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    assert main(["export", str(run_folder), "-o", str(tmp_path / "mine")]) == 2
    assert "is not empty (thesis.txt); name a new folder" in capsys.readouterr().err
    assert main(["export", str(run_folder), "-o", str(exported)]) == 2
    assert "holds a complete export; name another folder, or add --verify" in capsys.readouterr().err
    cut = Path(shutil.copytree(exported, tmp_path / "cut"))
    change(cut / "export.json", complete=False, files={})
    (cut / "tokenizer.json").unlink()
    assert main(["export", str(run_folder), "-o", str(cut), "--verify", "--quiet"]) == 0


def test_what_is_wrong_is_said_in_one_line(run_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["nowhere", "-o", "x"], "RUN: nowhere: no such folder; name the folder of a finished run"),
        ([str(tmp_path / "empty"), "-o", "x"], "holds no run.json"),
        ([str(run_folder), "-o", "x", "--margin", "-1", "--verify"], "--margin: is -1"),
        ([str(run_folder), "-o", "x", "--margin", "nan", "--verify"], "--margin: is nan"),
        ([str(run_folder), "-o", "x", "--endpoint", "openai:http://h/v1", "--endpoint_model", "m"], "add it"),
    ):
        assert main(["export", *words]) == 2
        assert said in capsys.readouterr().err
    assert not Path("x").exists()


def test_an_export_of_another_run_is_not_verified_as_this_ones(run_folder, copy, capsys):
    change(copy / "export.json", run_sha256="0" * 64)
    assert main(["export", str(run_folder), "-o", str(copy), "--verify"]) == 2
    assert "is not the run that was exported" in capsys.readouterr().err
