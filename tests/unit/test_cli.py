"""Old command lines still work, files and flags mix, and all problems are reported early and without a traceback."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import shlex
import subprocess
import sys
import types
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from groundtune.arguments import GROUPS
from groundtune.cli import COMMANDS, all_commands, main, run_command
from groundtune.commands import ask, documents
from groundtune.commands.parsing import RENAMED, WITHOUT_EFFECT, given, parse_arguments
from groundtune.errors import DataError

# The historical command lines, verbatim.
COMMON = """
  --use_flash_attention true --per_device_train_batch_size 4 --per_device_eval_batch_size 4
  --model_name_or_path mistralai/Mistral-7B-Instruct-v0.2
  --assistant_prefix [/INST] --user_prefix "<s>[INST]" --sep_user " " --sep_sys "</s>"
  --output_dir model_checkpoints/my_qa_model
  --train_file train_w_qa.jsonl --eval_file eval_w_qa.jsonl --test_file test_w_qa.jsonl
  --full_dataset_file_path documents.pkl --full_dataset_index_path index
"""
HISTORICAL = {
    "sft": f"{COMMON} --eval_embedding_model intfloat/e5-base-v2",
    "swr": f"{COMMON} --embedding_model intfloat/e5-base-v2 --embedding_max_num_to_retrieve 3",
}
# The flags of TrainingArguments when the scripts were written (transformers 4.36), but for four long deprecated.
TRAINING_FLAGS_OF_2023 = """
  output_dir overwrite_output_dir do_train do_eval do_predict evaluation_strategy prediction_loss_only
  per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size per_gpu_eval_batch_size
  gradient_accumulation_steps eval_accumulation_steps eval_delay learning_rate weight_decay adam_beta1 adam_beta2
  adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps
  log_level log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
  logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors save_on_each_node save_only_model
  no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval use_ipex bf16 fp16 fp16_opt_level half_precision_backend
  bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend tpu_num_cores tpu_metrics_debug debug dataloader_drop_last
  eval_steps dataloader_num_workers past_index run_name disable_tqdm remove_unused_columns label_names
  load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip fsdp fsdp_config deepspeed
  label_smoothing_factor optim optim_args adafactor group_by_length length_column_name report_to
  ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers dataloader_pin_memory
  dataloader_persistent_workers skip_memory_metrics use_legacy_prediction_loop push_to_hub resume_from_checkpoint
  hub_model_id hub_strategy hub_token hub_private_repo hub_always_push gradient_checkpointing
  gradient_checkpointing_kwargs include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_token
  mp_parameters auto_find_batch_size full_determinism ray_scope ddp_timeout torch_compile torch_compile_backend
  torch_compile_mode dispatch_batches split_batches include_tokens_per_second include_num_input_tokens_seen
  neftune_noise_alpha xpu_backend
""".split()  # noqa: SIM905


def parse(*argv: str, method: str = "sft"):
    return parse_arguments(method, ["--output_dir", "out", *argv])


def problems_of(*argv: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        parse(*argv)
    return caught.value.problems


def run(*argv: str) -> int:
    """The exit status of the command, however it ends."""
    try:
        return main([*map(str, argv)])
    except SystemExit as ended:
        return ended.code


# Old command lines


@pytest.mark.parametrize("method", HISTORICAL)
def test_the_historical_command_lines_parse_to_what_they_say(method):
    words = shlex.split(HISTORICAL[method])
    arguments = parse_arguments(method, words)
    assert (arguments.model.use_flash_attention, arguments.model.model_name_or_path) == (
        True, "mistralai/Mistral-7B-Instruct-v0.2",
    )  # fmt: skip
    prompt = arguments.prompt
    assert (prompt.user_prefix, prompt.assistant_prefix, prompt.sep_user, prompt.sep_sys) == (
        "<s>[INST]", "[/INST]", " ", "</s>",
    )  # fmt: skip
    training, retrieval = arguments.training, arguments.retrieval
    assert training.per_device_train_batch_size == training.per_device_eval_batch_size == 4
    assert training.output_dir == "model_checkpoints/my_qa_model"
    assert (arguments.data.full_dataset_file_path, arguments.data.full_dataset_index_path) == ("documents.pkl", "index")
    expected = ("", "intfloat/e5-base-v2") if method == "sft" else ("intfloat/e5-base-v2", "")
    assert (retrieval.embedding_model, retrieval.eval_embedding_model) == expected
    assert retrieval.embedding_max_num_to_retrieve == 3
    # What is wrong with it on this machine is said, and it is not its spelling.
    flags = {problem.split(":")[0] for problem in arguments.check()}
    assert flags == {"--train_file", "--eval_file", "--test_file", "--full_dataset_file_path"}


@pytest.mark.parametrize(
    "words, group, name, expected",
    [
        ("--evaluation_strategy epoch", "training", "eval_strategy", "epoch"),
        ("--evaluation_strategy=no", "training", "eval_strategy", "no"),
        ("--evaluation-strategy epoch", "training", "eval_strategy", "epoch"),
        ("--warmup_ratio 0.1", "training", "warmup_steps", 0.1),
        ("--warmup_steps 7", "training", "warmup_steps", 7),
        ("--no_cuda", "training", "use_cpu", True),
        ("--no_cuda true", "training", "use_cpu", True),
        ("--per_gpu_train_batch_size 3", "training", "per_device_train_batch_size", 3),
        ("--per_gpu_eval_batch_size 3", "training", "per_device_eval_batch_size", 3),
        ("--torch_dtype bfloat16", "model", "dtype", "bfloat16"),
        ("--push_to_hub_token secret", "training", "hub_token", "secret"),
        ("--push_to_hub_model_id me/model", "training", "hub_model_id", "me/model"),
        ("--max_seq_length 77", "data", "max_seq_length", 77),
        ("--run_group mine", "logger", "run_group", "mine"),
        ("--lr_scheduler_type linear", "training", "lr_scheduler_type", "linear"),
    ],
)
def test_old_spellings_mean_what_they_meant(monkeypatch, words, group, name, expected):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert getattr(getattr(parse(*words.split(), "--seed", "5"), group), name) == expected


def test_every_renaming_leads_to_a_flag_that_exists_and_no_flag_of_then_is_unknown():
    from groundtune.commands.parsing import training_parser

    known = {flag for action in training_parser("sft")._actions for flag in action.option_strings}
    others = {flag for made in LIGHT.values() for action in made()._actions for flag in action.option_strings}
    assert all(f"--{new}" in known | others for new in RENAMED.values())
    accepted = {flag.removeprefix("--") for flag in known} | RENAMED.keys() | set(WITHOUT_EFFECT)
    assert [flag for flag in TRAINING_FLAGS_OF_2023 if flag not in accepted] == []


LIGHT = {
    name: import_module(f"groundtune.commands.{name}").parser
    for name in ("ask", "compare", "convert", "documents", "evaluate", "index", "questions")
}


@pytest.mark.parametrize(
    "command, words, name, expected",
    [
        ("evaluate", "--endpoint_concurrency 3", "concurrency", 3),
        ("ask", "--endpoint-concurrency=3", "concurrency", 3),
        ("questions", "d.jsonl --generator x --output qa --index i", "output_dir", Path("qa")),
        ("questions", "d.jsonl --generator x --output qa --index i", "full_dataset_index_path", "i"),
        ("convert", "squad in.json --output qa", "output_dir", Path("qa")),
        ("compare", "a b --output_file c.html", "output", "c.html"),
        ("documents", "in --tokenizer t --output d.jsonl", "output", Path("d.jsonl")),
    ],
)
def test_old_spellings_work_in_every_command_and_in_its_files(tmp_path, caplog, command, words, name, expected):
    caplog.set_level("INFO", logger="groundtune")
    assert given(LIGHT[command](), words.split())[name] == expected
    old = {flag[2:].split("=")[0] for flag in words.split() if flag.startswith("--")} & {*RENAMED} - {name}
    assert all(f"--{flag} is now called --{RENAMED[flag]}" in caplog.text for flag in old)


def test_a_command_that_writes_a_folder_takes_output_dir_one_that_writes_a_file_output_and_both_are_o(tmp_path):
    flags = [(name, action.option_strings) for name, made in LIGHT.items() for action in made()._actions]
    spelt = {name: spellings[1:] for name, spellings in flags if "-o" in spellings}
    folders, files = dict.fromkeys(("convert", "evaluate", "questions"), ["--output_dir"]), ["--output"]
    assert spelt == folders | {"compare": files, "documents": files}
    for words in (["-o", str(tmp_path)], ["--output", str(tmp_path)], ["--past_index", "3", "-o", str(tmp_path)]):
        assert parse_arguments("sft", words).training.output_dir == str(tmp_path)


@pytest.mark.parametrize("value", [[], ["true"], ["False"]], ids=["bare", "true", "False"])
def test_flags_without_effect_are_ignored_with_their_value_and_with_a_line_each(caplog, value):
    from groundtune.training.arguments import QATrainingArguments

    known = {field.name for field in fields(QATrainingArguments)}  # early releases of transformers 5 have some still
    without = [name for name in WITHOUT_EFFECT if name not in known]
    words = [word for name in without for word in (f"--{name}", *value)]
    with caplog.at_level(logging.WARNING, "groundtune"):
        arguments = parse("--use_peft", *words, "--seed", "5")
    assert arguments.training.seed == 5 and arguments.model.use_peft
    assert [record.getMessage().split()[0] for record in caplog.records] == [f"--{name}" for name in without] != []


def test_a_value_with_an_equals_sign_is_ignored_with_its_flag():
    assert parse("--logging_dir=/somewhere", "--group_by_length=true", "--seed", "5").training.seed == 5


def test_the_run_group_reaches_trackers_but_does_not_overrule_the_environment(monkeypatch):
    import os

    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    parse("--run_group", "other")
    assert os.environ["WANDB_RUN_GROUP"] == "mine"
    monkeypatch.delenv("WANDB_RUN_GROUP")
    parse("--run_group", "other")
    assert os.environ["WANDB_RUN_GROUP"] == "other"


# What a terminal shows


NASTY = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202e"


def test_no_problem_whatever_it_quotes_writes_on_the_terminal(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps({NASTY: 1, "retriever": NASTY}))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": NASTY, "peft_type": NASTY}))
    for words in (
        ["swr", "--config", str(tmp_path / "c.yaml")], ["evaluate", "--config", str(tmp_path / "c.yaml")],
        ["evaluate", str(tmp_path)], ["compare", NASTY, "b"], ["sft", f"--{NASTY}"],
    ):  # fmt: skip
        assert main(words) == 2
        shown = "".join(capsys.readouterr())
        assert "\\x1b" in shown and not set("\x1b\x07\u202e") & set(shown), words


def test_no_line_of_a_log_writes_on_the_terminal():
    assert main(["ask", "a b", "Why?"]) == 2  # whichever the command
    make = logging.getLogRecordFactory()
    record = make("library", logging.WARNING, "", 0, "\x1b[1mread %s\tb\nc\x1b[0m", (NASTY,), None)
    assert record.getMessage() == "read \\x1b]52;c;ZXZpbA==\\x07\\x1b[2J\\u202e\tb\nc"


# Files of arguments


VALUES = {
    "output_dir": "from file", "learning_rate": 1e-4, "use_peft": True, "lora_target_modules": ["q_proj", "v_proj"],
    "sep_user": " ", "sep_sys": "--end ", "user_prefix": "<s>[INST]", "evaluation_strategy": "epoch", "run_name": None,
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "eval_max_samples": 3, "instruction": "Größe = 1: ja?",
    "logging_nan_inf_filter": False,
}  # fmt: skip


def check_values(arguments) -> None:
    training, model, prompt = arguments.training, arguments.model, arguments.prompt
    assert (training.output_dir, training.learning_rate, training.eval_strategy) == ("from file", 1e-4, "epoch")
    assert (model.use_peft, model.lora_target_modules) == (True, ["q_proj", "v_proj"])
    assert (prompt.sep_user, prompt.sep_sys, prompt.user_prefix) == (" ", "--end ", "<s>[INST]")
    assert prompt.instruction == "Größe = 1: ja?" and arguments.evaluation.eval_max_samples == 3
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert training.logging_nan_inf_filter is False


def test_one_json_file_is_all_arguments(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(VALUES), encoding="utf-8")
    check_values(parse_arguments("sft", [str(path)]))


def test_what_is_wrong_in_the_one_json_file_is_named_by_its_line(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text('{"seed": 1,\n "lora_r": 0}')
    for command in ("sft", "swr", "doctor"):
        assert run(command, path) == 2
        assert f"{path}:2: lora_r: 0 is too small" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, problem",
    [
        ("documents", "the following arguments are required: -o/--output, --tokenizer"),
        ("convert", "are required: -o"),
        ("questions", "the following arguments are required: -o/--output_dir, --generator"),
        ("index", "not expected here"),
        ("ask", "missing"),
    ],
)
def test_one_json_file_is_data_to_the_commands_that_do_not_train(tmp_path, capsys, command, problem):
    path = tmp_path / "data.json"
    path.write_text("[1]")
    assert run(command, path) == 2
    said = capsys.readouterr().err
    assert problem in said and "must map argument names" not in said
    assert run(command, "--config", path) == 2
    assert f"{path}:1: line: the file contains a list; it must map argument names" in capsys.readouterr().err


@pytest.mark.parametrize("suffix, write", [("yaml", yaml.safe_dump), ("json", json.dumps)])
def test_a_config_file_holds_arguments(tmp_path, suffix, write):
    path = tmp_path / f"run.{suffix}"
    path.write_text(write(VALUES), encoding="utf-8")
    check_values(parse_arguments("sft", ["--config", str(path)]))
    check_values(parse_arguments("sft", [f"--config={path}"]))


@pytest.mark.parametrize("before", [True, False])
def test_flags_win_over_the_file_wherever_they_stand(tmp_path, before):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: a\nlearning_rate: 1e-4\nuse_peft: true\nseed: 3\nevaluation_strategy: epoch\n")
    flags = ["--learning_rate", "0.5", "--use_peft", "false", "--eval_strategy", "no"]
    config = ["--config", str(path)]
    arguments = parse_arguments("sft", [*flags, *config] if before else [*config, *flags])
    assert (arguments.training.learning_rate, arguments.model.use_peft, arguments.training.seed) == (0.5, False, 3)
    assert arguments.training.eval_strategy == "no"


def test_a_file_says_off_and_no_as_help_does_whether_they_are_a_choice_or_a_boolean(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "share_prefix: off\nsave_strategy: no\neval_strategy: no\nuse_peft: on\neval_on_start: off\nbf16: no\n"
    )
    arguments = parse("--config", str(path))
    training = arguments.training
    assert (arguments.data.share_prefix, training.save_strategy, training.eval_strategy) == ("off", "no", "no")
    assert (arguments.model.use_peft, training.eval_on_start, training.bf16) == (True, False, False)
    found = words_of("evaluate", "with_base: on\nbf16: off\nquery_history: none\n", tmp_path)
    assert (found["with_base"], found["bf16"], found["query_history"]) == (True, False, "none")


def words_of(command: str, content: str, folder, *words: str) -> dict:
    """The arguments that a command parses from a file of arguments and other words."""
    (folder / "run.yaml").write_text(content)
    parser = import_module(f"groundtune.commands.{command}").parser()
    return given(parser, ["--config", str(folder / "run.yaml"), *words])


NEEDED = {
    "ask": [], "evaluate": [], "index": [], "compare": ["a", "b"], "convert": ["squad", "in", "-o", "out"],
    "documents": ["in", "-o", "out", "--tokenizer", "t"], "questions": ["in", "-o", "out", "--generator", "g"],
}  # fmt: skip


@pytest.mark.parametrize("command", NEEDED)
def test_a_file_turns_quiet_and_json_on_or_off_and_they_take_no_word_after_them(tmp_path, command):
    needed = NEEDED[command]
    found = words_of(command, "quiet: true\njson: false\n", tmp_path, *needed)
    assert (found["quiet"], found["json"]) == (True, False)
    assert words_of(command, "seed:\n", tmp_path, "--quiet", *needed) == found
    with pytest.raises(DataError) as caught:
        words_of(command, "# why\nquiet: perhaps\n", tmp_path, *needed)
    assert caught.value.problems == [
        f"{tmp_path / 'run.yaml'}:2: quiet: 'perhaps' is neither true nor false; -h describes it"
    ]


def test_of_two_files_the_later_one_wins_for_a_flag_without_a_value_too(tmp_path):
    (tmp_path / "first.yaml").write_text("quiet: true\n")
    assert words_of("evaluate", "quiet: false\n", tmp_path, "RUN")["quiet"] is False
    words = ["--config", str(tmp_path / "first.yaml"), "--config", str(tmp_path / "run.yaml"), "RUN"]
    assert given(import_module("groundtune.commands.evaluate").parser(), words)["quiet"] is False


def test_a_question_may_follow_flags_that_follow_the_model():
    for words in (["run", "Why?", "--quiet"], ["run", "--quiet", "Why?"], ["run", "--max_new_tokens", "5", "Why?"]):
        found = given(ask.parser(), words)
        assert (found["model"], found["question"]) == ("run", "Why?")
    with pytest.raises(DataError, match="--bogus: no such argument"):
        given(ask.parser(), ["run", "--bogus", "5", "Why?"])
    assert given(documents.parser(), ["-o", "out", "--tokenizer", "model", "--", "-a"])["inputs"] == ["-a"]


def test_a_list_at_the_end_of_a_file_takes_no_word_of_the_command_line(tmp_path):
    listed = "judge_prompt: [correctness, faithfulness]\n"
    for words in (["RUN"], ["RUN", "--quiet"], ["--quiet", "RUN"]):
        found = words_of("evaluate", listed, tmp_path, *words)
        assert (found["model"], found["judge_prompt"]) == ("RUN", ["correctness", "faithfulness"])
    found = words_of("compare", "names: [x, y]\n", tmp_path, "a", "b")
    assert (found["systems"], found["names"]) == (["a", "b"], ["x", "y"])
    assert words_of("evaluate", listed, tmp_path, "RUN", "--judge_prompt", "mine.txt")["judge_prompt"] == ["mine.txt"]


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, " No such file or directory; name a YAML or JSON file"),
        ("a: [1, 2", "1: line: not valid YAML: "),
        ("a:\n\t- b", "2: line: not valid YAML: "),
        ("- a\n- b", "1: line: the file contains a list; it must map"),
        ("", "1: line: the file contains nothing; it must map"),
        (b"\xff\xfe\x00", "1: line: not UTF-8"),
    ],
)
def test_a_bad_config_file_is_one_problem_that_names_it(tmp_path, capsys, content, problem):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (found,) = problems_of("--config", str(path))
    assert found.startswith(f"{path}:{problem}") and "\n" not in found
    assert run("sft", "--config", path) == 2
    assert capsys.readouterr().err.strip() == found


def test_a_config_flag_without_a_file_and_a_folder_as_one_are_problems(tmp_path):
    assert problems_of("--config") == ["--config: missing; name a YAML or JSON file"]
    assert problems_of("--config", str(tmp_path))[0].startswith(f"{tmp_path}: ")


def test_all_that_is_wrong_in_a_file_is_named_by_its_lines(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("lerning_rate: 1\nseed: many\nlora_r: 8\ntrain_file: [a, b]\nuse_peft: perhaps\nlogging_dir: x\n")
    starts = [
        "1: lerning_rate: no such argument; similar: --learning_rate", "2: seed: invalid int value: 'many'; ",
        "4: train_file: takes one value, not 2; ", "5: use_peft: 'perhaps' is neither true nor false",
    ]  # fmt: skip
    problems = problems_of("--config", str(path))
    assert [found.startswith(f"{path}:{start}") for found, start in zip(problems, starts, strict=True)] == [True] * 4
    assert run("sft", "--config", path) == 2
    assert capsys.readouterr().err.splitlines() == problems


@pytest.mark.parametrize(
    "line, start",
    [
        ("save_strategy: sometimes", "save_strategy: sometimes is not a valid SaveStrategy"),
        ("metric_for_best_model: generation/f2", "metric_for_best_model: unknown metric 'generation/f2'"),
        ("lora_r: 0", "lora_r: 0 is too small"),
        ("train_file: nowhere.jsonl", "train_file: no such file: nowhere.jsonl"),
        ("learning_rate: .nan", "learning_rate: nan is too small"),
    ],
)
def test_what_is_noticed_later_is_named_by_its_line_too(tmp_path, capsys, line, start):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: 1\n{line}\n")
    assert run("sft", "--output_dir", tmp_path / "out", "--config", path) == 2
    assert f"{path}:2: {start}" in [
        found[: len(f"{path}:2: {start}")] for found in capsys.readouterr().err.splitlines()
    ]


def test_a_flag_that_overrules_the_file_is_named_as_a_flag(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("lora_r: 8\nlora_alpha: 0\n")
    run("sft", "--config", path, "--lora_r", "0")
    lines = [line for line in capsys.readouterr().err.splitlines() if "too small" in line]
    assert [line.split(": ")[0] for line in lines] == ["--lora_r", f"{path}:2"]


# What is wrong


def test_unknown_flags_are_all_named_with_near_ones(capsys):
    words = ["--trian_file", "x", "--lerning-rate=1", "--zzzzzzzz", "3"]
    problems = problems_of(*words)
    assert len(problems) == 3
    assert problems[0].startswith("--trian_file: no such argument; similar: --train_file")
    assert "--learning_rate" in problems[1] and "--learning-rate" not in problems[1], "one spelling of each"
    assert problems[2] == "--zzzzzzzz: no such argument; -h lists all arguments"
    assert run("sft", "--output_dir", "out", *words) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == problems and captured.out == ""


def test_a_flag_may_not_be_abbreviated():
    assert problems_of("--train", "x")[0].startswith("--train: no such argument; similar: ")


def test_a_stray_word_is_refused():
    assert problems_of("--seed", "1", "stray") == [
        "stray: not expected here; every argument is a flag, and --config FILE reads a file of arguments"
    ]


@pytest.mark.parametrize(
    "words",
    ["--lora_r many", "--retriever magic", "--dtype float8", "--use_peft perhaps", "--learning_rate", "--seed 1.5"],
)
def test_a_bad_value_is_one_line_that_names_its_flag(capsys, words):
    assert run("sft", "--output_dir", "out", *words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words.split()[0] in line


def test_a_direction_that_is_not_the_metric_s_is_refused():
    """The worst checkpoint would be kept as the best."""
    from groundtune.training.arguments import metric_problems

    wrong = parse("--greater_is_better", "false").training
    assert metric_problems(wrong) == ["--greater_is_better: false, but higher generation/f1 is better; remove the flag"]
    wrong = parse("--metric_for_best_model", "loss_with_gold_passage", "--greater_is_better", "true").training
    assert "but lower loss_with_gold_passage is better" in metric_problems(wrong)[0]
    for words in ([], ["--greater_is_better", "true"], ["--metric_for_best_model", "eval_loss_with_gold_passage"]):
        assert metric_problems(parse(*words).training) == []


def test_an_unknown_metric_is_refused_with_those_there_are(capsys):
    assert run("sft", "--output_dir", "out", "--metric_for_best_model", "generation/f2") == 2
    assert "unknown metric 'generation/f2'; known" in capsys.readouterr().err


def test_index_advises_no_flag_that_it_does_not_have(capsys):
    assert run("index") == 2
    missing = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--embedding_model: ")]
    assert missing == ["--embedding_model: missing; name an embedding model such as intfloat/e5-base-v2"]


def test_all_that_can_be_seen_without_loading_a_model_is_said_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = run(
        "swr", "--output_dir", "out", "--train_file", "missing.jsonl", "--full_dataset_file_path", "none.pkl",
        "--model_name_or_path", "./no_folder", "--lora_r", "0", "--max_new_tokens", "4096", "--lora_dropout", "1",
        "--use_flash_attention",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "--eval_file", "--train_file", "--full_dataset_file_path", "--embedding_model", "--model_name_or_path",
        "--lora_r", "--lora_dropout", "--max_new_tokens",
    ]  # fmt: skip
    assert "missing.jsonl" in lines[1] and "none.pkl" in lines[2]
    assert not (tmp_path / "out").exists()


def test_problems_of_all_data_files_are_said_at_once(tmp_path, monkeypatch, capsys, families):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": 1}\n')
    (tmp_path / "eval.jsonl").write_text("{}\n")
    (tmp_path / "documents.jsonl").write_text("not json\n")
    status = run(
        "sft", "--output_dir", "out", "--train_file", "train.jsonl", "--eval_file", "eval.jsonl",
        "--full_dataset_file_path", "documents.jsonl", "--model_name_or_path", families["llama"].folder,
        "--retriever", "bm25",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert status == 2 and "Traceback" not in captured.err
    found = [":".join(line.split(":")[:3]) for line in captured.err.splitlines() if line[:1] in ("t", "d", "e")]
    assert found == ["documents.jsonl:1: line"] + [
        f"{file}.jsonl:1: {field}" for file in ("train", "eval") for field in ("question", "gold_answer", "gold_docs")
    ]


@pytest.mark.parametrize("what", ["model", "embedding model"])
def test_models_that_cannot_be_loaded_are_one_line_each(tmp_path, capsys, families, data_folder, what):
    empty = tmp_path / "empty"
    empty.mkdir()
    model, embedding = (empty, empty) if what == "model" else (families["llama"].folder, "nobody/nothing")
    status = run(
        "sft", "--output_dir", tmp_path / "out", "--train_file", data_folder / "train.jsonl",
        "--eval_file", data_folder / "eval.jsonl", "--full_dataset_file_path", data_folder / "documents.jsonl",
        "--model_name_or_path", model, "--eval_embedding_model", embedding, "--max_seq_length", "600",
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--")]
    assert status == 2
    why = f"cannot load {empty}" if what == "model" else "nobody/nothing: not a folder here, not in the cache"
    expected = [f"--eval_embedding_model: {why}"]
    expected += [f"--model_name_or_path: cannot load the tokenizer of {empty} "] if what == "model" else []
    assert [line.startswith(start) for line, start in zip(lines, expected, strict=True)] == [True] * len(expected)


# Help


@pytest.mark.parametrize("method", ["sft", "swr"])
def test_help_lists_every_argument_of_every_group(capsys, method):
    from groundtune.training.arguments import QATrainingArguments

    assert run(method, "-h") == 0
    words = set(capsys.readouterr().out.replace(",", " ").split())
    names = [field.name for group in (*GROUPS, QATrainingArguments) for field in fields(group) if field.init]
    assert len(names) > 100
    assert [name for name in names if f"--{name}" not in words] == []


def test_every_argument_of_our_own_has_a_help_text_and_fits_one_group():
    names = [field.name for group in GROUPS for field in fields(group)]
    assert len(names) == len(set(names))
    assert all(len(field.metadata["help"]) > 15 for group in GROUPS for field in fields(group))


def test_the_command_without_arguments_shows_its_commands(capsys):
    assert run() == run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in all_commands())
    assert run("--version") == 0 and "0." in capsys.readouterr().out
    assert run("train") == 2


# Defaults


@pytest.mark.parametrize("words, expected", [([], 2e-5), (["--use_peft"], 2e-4), (["--learning_rate", "0"], 0)])
def test_the_learning_rate_follows_what_is_trained_unless_given(words, expected):
    assert parse(*words).training.learning_rate == expected


@pytest.mark.parametrize(
    "words, save, best, better",
    [
        ("", "steps", True, True),
        ("--eval_strategy epoch", "epoch", True, True),
        ("--eval_strategy no", "no", False, True),
        ("--save_strategy no", "no", False, True),
        ("--save_steps 0.25 --eval_steps 0.5", "steps", False, True),
        ("--load_best_model_at_end false", "steps", False, True),
        ("--metric_for_best_model generation/unfinished", "steps", True, False),
        ("--metric_for_best_model eval_loss_with_gold_passage", "steps", True, False),
    ],
)
def test_the_best_checkpoint_is_kept_wherever_evaluation_and_saving_allow_it(words, save, best, better):
    training = parse(*words.split()).training
    assert (training.save_strategy, training.load_best_model_at_end, training.greater_is_better) == (save, best, better)


def test_what_would_change_trainer_s_own_loss_or_order_is_not_taken_in_silence(caplog):
    from groundtune.training.arguments import loss_problems

    assert loss_problems(parse().training) == []
    asked = parse("--label_smoothing_factor", "0.1", "--neftune_noise_alpha", "5").training
    named = [problem.partition(":")[0] for problem in loss_problems(asked)]
    assert named == ["--label_smoothing_factor", "--neftune_noise_alpha"] and not loss_problems(parse().training)
    assert "train_sampling_strategy" not in caplog.text
    asked.train_sampling_strategy = "group_by_length"
    asked.__post_init__()
    assert "--train_sampling_strategy has no effect" in caplog.text


@pytest.mark.parametrize("chosen", [False, True])
def test_a_pipe_that_cannot_hold_a_character_ends_no_command(monkeypatch, chosen):
    """On Windows redirected output uses the machine's code page, but answers may be in any script."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if chosen:
        monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    written = io.BytesIO()
    pipe = io.TextIOWrapper(written, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setitem(COMMANDS, "say", ("", "commands.say:main"))
    said = types.ModuleType("groundtune.commands.say")
    said.main = lambda argv: print("é 日本") or 0
    monkeypatch.setitem(sys.modules, said.__name__, said)
    assert run_command("say", []) == 0
    pipe.flush()
    assert written.getvalue().strip() == (b"\xe9 \\u65e5\\u672c" if chosen else "é 日本".encode())


def test_the_deepspeed_configuration_is_there_and_a_missing_package_is_one_line_with_the_command(capsys):
    path = Path(__file__).parents[2] / "scripts/train/ds_config.json"
    assert json.loads(path.read_text("utf-8"))["zero_optimization"]["stage"] == 2
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("deepspeed is installed")
    assert run("sft", "--deepspeed", path, "--output_dir", "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--deepspeed")]
    assert "pip install deepspeed" in line


def test_a_warning_of_transformers_is_shown_once_in_a_ci_job_too():
    """Where CI is set, transformers hands its messages to the root logger as well."""
    program = (
        "from groundtune.cli import _set_up_logging; _set_up_logging();"
        "from transformers.utils import logging; logging.get_logger('transformers.any').warning('heard')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"CI": "true"}
    )
    assert done.stderr.splitlines() == ["[transformers] heard"]
