"""`groundtune doctor`: findings from tokens, its output, and that training refuses the same data."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.arguments import GROUPS, Arguments, DataArguments
from groundtune.cli import main
from groundtune.data.files import write_documents, write_jsonl
from groundtune.prompts.rows import LeftOut, Row
from groundtune.schema import Document
from groundtune.training import doctor as training_doctor
from groundtune.training.doctor import diagnose, doctor_command, harmless, row_counts, shown


def arguments_for(data: Path, method: str = "sft", **changes) -> Arguments:
    """Arguments for the tiny data: defaults except for `changes`."""
    groups = [group() for group in GROUPS]
    values = {
        "train_file": str(data / "train.jsonl"), "eval_file": str(data / "eval.jsonl"),
        "test_file": str(data / "test.jsonl"), "full_dataset_file_path": str(data / "documents.jsonl"),
        "max_new_tokens": 64, **changes,
    }  # fmt: skip
    for name, value in values.items():
        (group,) = [group for group in groups if hasattr(group, name)]
        setattr(group, name, str(value) if isinstance(value, Path) else value)
    return Arguments(method, *groups, SimpleNamespace(output_dir="out", seed=0))


def row_of(example, **changes) -> dict:
    turns = [{"speaker": t.speaker, "message": t.message} for t in example.chat_history]
    fields = {"question": example.question, "gold_answer": example.answer, "chat_history": turns}
    return {**fields, "gold_docs": [d.to_dict() for d in example.gold_documents], **changes}


@pytest.fixture
def data(tmp_path) -> Path:
    """Three training examples, two for eval, one for test, without problems."""
    folder = tmp_path / "data"
    write_documents(folder / "documents.jsonl", tiny_documents())
    rows = [row_of(example) for example in tiny_examples()]
    for name, part in {"train": rows[:3], "eval": rows[3:5], "test": rows[5:]}.items():
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


def found(diagnosis) -> list[tuple[str, str, str, str]]:
    return [(f.severity, f.check, Path(f.where).name, f.field) for f in diagnosis.findings]


# Tokens


@pytest.mark.parametrize("method", ["sft", "swr"])
def test_clean_data_has_a_token_table_and_no_findings(data, family, method):
    diagnosis = diagnose(arguments_for(data, method, model_name_or_path=family.folder))
    assert diagnosis.findings == []
    assert list(diagnosis.table) == ["train", "eval"] and diagnosis.estimated == (method == "swr")
    train = diagnosis.table["train"]
    assert (train.rows, train.ends_on_stop_token, train.doubled_bos, train.passages_dropped) == (3, 1.0, 0, 0)
    assert list(train.row_tokens.values()) == sorted(train.row_tokens.values())
    answers = [len(diagnosis.prompt.answer_ids(example.answer)) for example in tiny_examples()[:3]]
    assert (train.answer_tokens["10 %"], train.answer_tokens["longest"]) == (min(answers), max(answers))


def test_stand_ins_of_retrieval_are_counted_and_dropped_like_the_real_ones(data, families):
    model = families["gemma"].folder
    sft = diagnose(arguments_for(data, model_name_or_path=model)).table["train"]
    swr = diagnose(arguments_for(data, "swr", model_name_or_path=model)).table["train"]
    assert swr.row_tokens["median"] > sft.row_tokens["median"]
    tight = arguments_for(
        data, "swr", model_name_or_path=model, max_seq_length=sft.row_tokens["longest"], max_new_tokens=8
    )
    dropped = diagnose(tight).table["train"]
    assert swr.passages_dropped == swr.rows_shortened == 0
    assert 1 <= dropped.rows_shortened <= dropped.passages_dropped
    assert dropped.row_tokens["longest"] <= sft.row_tokens["longest"]


def test_the_shown_row_is_the_first_with_its_learnt_text_apart(data, family):
    diagnosis = diagnose(arguments_for(data, model_name_or_path=family.folder))
    source, before, learnt = diagnosis.shown_row()
    example, prompt = tiny_examples()[0], diagnosis.prompt
    assert source == str(data / "train.jsonl:1")
    assert example.question in before and example.gold_documents[0].page_content in before
    assert example.answer in learnt and example.answer not in before
    end = diagnosis.tokenizer.convert_ids_to_tokens(prompt.stop_ids[0])
    assert learnt.rstrip().endswith(end)  # special tokens are spelt out


def test_rows_over_the_budget_are_all_named_and_the_others_still_counted(data, families):
    rows = [row_of(e) for e in tiny_examples()[:3]]
    rows[1]["gold_docs"][0]["fmt_content"] = "nine " * 400
    rows[2]["gold_answer"] = "To the desk. " * 100
    write_jsonl(data / "train.jsonl", rows)
    arguments = arguments_for(data, model_name_or_path=families["llama"].folder, max_seq_length=300)
    diagnosis = diagnose(arguments)
    errors = [(where, field) for severity, check, where, field in found(diagnosis) if check == "too-long"]
    assert errors == [("train.jsonl:2", "row"), ("train.jsonl:3", "row")]
    assert all("raise --max_seq_length" in f.message for f in diagnosis.errors)
    assert diagnosis.table["train"].rows == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_row_is_too_long_in_no_epoch_if_it_may_lose_its_gold(data, families, seed):
    rows = [row_of(e) for e in tiny_examples()[:3]]
    rows[1]["gold_docs"][0]["fmt_content"] = "nine " * 400
    write_jsonl(data / "train.jsonl", rows)
    arguments = arguments_for(
        data, "raft", model_name_or_path=families["llama"].folder, gold_dropout=0.5, passage_order="shuffled",
        max_seq_length=300, embedding_max_num_to_retrieve=1,
    )  # fmt: skip
    arguments.training.seed = seed
    diagnosis = diagnose(arguments)
    assert [f for f in found(diagnosis) if f[1] == "too-long"] == [("error", "too-long", "train.jsonl:2", "row")]


def test_questions_that_leave_no_room_for_an_answer_and_answers_that_cannot_be_given_are_named(data, families):
    rows = [row_of(tiny_examples()[5], question="Where? " * 60, gold_answer="On floor two. " * 30)]
    write_jsonl(data / "test.jsonl", rows)
    arguments = arguments_for(data, model_name_or_path=families["llama"].folder, max_seq_length=250)
    assert found(diagnose(arguments)) == [
        ("error", "too-long", "test.jsonl:1", "question"), ("warning", "long-answer", "test.jsonl:1", "gold_answer"),
    ]  # fmt: skip


def test_rows_that_do_not_end_or_begin_with_two_bos_are_errors(data, families, monkeypatch):
    """As from a broken prompt: one never ends an answer, one begins twice."""
    from groundtune.prompts.prompt import ChatPrompt

    whole, begin = ChatPrompt.answer_ids, ChatPrompt.prompt_ids
    monkeypatch.setattr(ChatPrompt, "answer_ids", lambda self, answer: whole(self, answer)[:-1])
    monkeypatch.setattr(ChatPrompt, "prompt_ids", lambda self, *given: [begin(self, *given)[0], *begin(self, *given)])
    diagnosis = diagnose(arguments_for(data, model_name_or_path=families["mistral"].folder))
    assert found(diagnosis) == [
        ("error", check, f"{split}.jsonl", "row")
        for split in ("train", "eval")
        for check in ("unfinished-row", "doubled-bos")
    ]
    assert "3 of 3 rows do not end with an end token" in diagnosis.findings[0].message


def test_rows_that_teach_something_else_than_the_answer_are_errors(data, families, monkeypatch):
    """For example, a template that puts an empty thought before the answer."""
    from groundtune.prompts.prompt import ChatPrompt

    whole = ChatPrompt.answer_ids
    monkeypatch.setattr(ChatPrompt, "answer_ids", lambda self, answer: whole(self, f"<think></think>{answer}"))
    diagnosis = diagnose(arguments_for(data, model_name_or_path=families["qwen"].folder))
    assert found(diagnosis) == [
        ("error", "other-answer", f"{file}.jsonl:{i}", "row")
        for file, n in (("train", 3), ("eval", 2))
        for i in range(1, n + 1)
    ]
    assert "would teach '<think></think>At nine.' instead of the gold answer" in str(diagnosis.findings[0])


def test_counts_of_rows_are_exact():
    prompt, tokenizer = SimpleNamespace(stop_ids=(2, 9)), SimpleNamespace(bos_token_id=1)
    rows = [
        Row([1, 5], [6, 2], ""),
        Row([1, 1, 5], [9], "", LeftOut(retrieved=2)),
        Row([5, 1, 1], [2, 6, 7], "", LeftOut(turns=1, retrieved=3)),
        Row([], [], ""),
    ]
    counted = row_counts(iter(rows), prompt, tokenizer)
    assert (counted.rows, counted.rows_shortened, counted.passages_dropped, counted.turns_dropped) == (4, 2, 5, 1)
    assert (counted.ends_on_stop_token, counted.doubled_bos) == (0.5, 1)
    assert counted.row_tokens == {"10 %": 0, "median": 4, "90 %": 6, "longest": 6}
    assert row_counts([], prompt, tokenizer) is None


def test_a_template_without_the_beginning_that_the_tokenizer_adds_is_a_warning(data, families, tmp_path):
    family = families["gemma"]
    shutil.copytree(family.folder, tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("{{ bos_token }}", ""), "utf-8")
    assert diagnose(arguments_for(data, model_name_or_path=family.folder)).findings == []
    (finding,) = diagnose(arguments_for(data, model_name_or_path=tmp_path / "model")).findings
    assert (finding.severity, finding.check) == ("warning", "no-bos") and "begins a text with <bos>" in finding.message


def test_a_gold_answer_that_declines_is_named_unless_the_question_has_no_answer(data):
    rows = [example.to_dict() for example in tiny_examples()[:3]]
    rows[0]["gold_answer"] = rows[1]["gold_answer"] = "The passages do not mention the opening hours."
    rows[1]["answerable"] = False
    write_jsonl(data / "train.jsonl", rows)
    found = [f for f in diagnose(arguments_for(data)).findings if f.check == "declining-answer"]
    assert [(f.where, f.field) for f in found] == [(f"{data / 'train.jsonl'}:1", "gold_answer")]


# The embedding model


def test_documents_longer_than_the_embedding_model_reads_are_named(data, bert_embedding_folder):
    documents = [
        *tiny_documents(),
        *[replace(tiny_documents()[0], page_content="book " * n, fmt_content="") for n in (22, 23)],
    ]
    write_documents(data / "documents.jsonl", documents)
    diagnosis = diagnose(arguments_for(data, embedding_model=bert_embedding_folder))
    long = [f for f in diagnosis.findings if f.check == "long-passage"]
    assert long[-1].where.endswith("documents.jsonl:8") and long[-1].field == "page_content"
    assert "has 25 tokens" in long[-1].message and "reads only 24; " in long[-1].message
    assert not any(f.where.endswith(":7") for f in long)  # 24 tokens with the two that the model adds
    without = diagnose(arguments_for(data, embedding_model=bert_embedding_folder, retriever="bm25"))
    assert {finding.check for finding in without.findings} == {"contained-passage"}


@pytest.mark.parametrize(
    "method, models, expected",
    [
        ("sft", {"embedding_model": True}, {"eval": 1, "test": 1}),
        ("sft", {"eval_embedding_model": True}, {"eval": 1, "test": 1}),
        ("swr", {"embedding_model": True}, {"train": 1, "eval": 1, "test": 1}),
        ("swr", {"embedding_model": True, "eval_embedding_model": True}, {"train": 1, "eval": 1, "test": 1}),
        ("swr", {"embedding_model": True, "retriever": "bm25"}, {}),
        ("swr", {"embedding_model": True, "query_history": "none"}, {}),
        ("swr", {"embedding_model": True, "query_history": "fused"}, {}),  # the question alone is short
    ],
)
def test_queries_that_are_shortened_are_named_in_the_splits_that_are_searched(
    data, bert_embedding_folder, method, models, expected
):
    long = [{"speaker": "user", "message": "book " * 99}, {"speaker": "assistant", "message": "Yes."}]
    for split in ("train", "eval", "test"):
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text("utf-8").splitlines()]
        short = [{**row, "question": f"{split} {i}", "chat_history": []} for i, row in enumerate(rows)]
        write_jsonl(data / f"{split}.jsonl", [{**short[0], "chat_history": long}, *short[1:]])
    named = {name: bert_embedding_folder if value is True else value for name, value in models.items()}
    diagnosis = diagnose(arguments_for(data, method, **{"query_history": "user", **named}))
    found = [f for f in diagnosis.findings if f.check == "long-query"]
    assert {Path(f.where).name.partition(".")[0]: 1 for f in found} == expected and len(found) == len(expected)
    assert all(
        ":1" in f.where and f.field == "chat_history" and "reads only 24; its beginning" in f.message for f in found
    )


def test_many_documents_that_are_too_long_are_one_line_with_the_longest_and_each_is_in_the_json(
    data, bert_embedding_folder, capsys
):
    lengths = [80, 91, 85, 79, 102, 94, 81]
    documents = [Document(f"{'book ' * (n - 2)}") for n in lengths]
    write_documents(data / "documents.jsonl", [*tiny_documents(), *documents])
    file, flags = data / "documents.jsonl", ["--embedding_model", str(bert_embedding_folder)]
    assert doctor(data, *flags, "--json") == 0
    every = json.loads(capsys.readouterr().out)["findings"]
    found = [f for f in every if f["check"] == "long-passage"]
    already = len(found) - len(lengths)  # the tiny documents that are too long for 24 tokens
    assert [f["tokens"] for f in found][already:] == lengths
    assert doctor(data, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if " x document longer" in line]
    assert line == (
        f"warning: {file}: {len(found)} x document longer than the embedding model reads "
        f"({100 * len(found) / 13:.0f} % of 13 documents); the longest: {file}:11: page_content: has 102 tokens, but "
        f"{bert_embedding_folder} reads only 24; split it, or a search will not see its end; then lines 12 "
        "(94 tokens) and 8 (91 tokens)"
    )
    assert lines[-2:] == [
        f"{len(every)} warnings in 13 documents, 3 train examples, 2 eval examples, 1 test examples",
        "--json lists every warning that is summarised here",
    ]


def test_a_model_of_static_vectors_reads_everything(data, static_embedding_folder):
    assert diagnose(arguments_for(data, eval_embedding_model=static_embedding_folder)).findings == []


@pytest.mark.parametrize("flag", ["model_name_or_path", "embedding_model", "eval_embedding_model"])
def test_a_tokenizer_that_cannot_be_loaded_is_one_error_beside_those_of_the_data(data, tmp_path, flag):
    (tmp_path / "empty").mkdir()
    (data / "train.jsonl").write_text("{\n")
    diagnosis = diagnose(arguments_for(data, **{flag: tmp_path / "empty"}))
    assert [(f.check, f.where) for f in diagnosis.errors] == [
        ("model", f"--{flag}"), ("format", str(data / "train.jsonl:1")),
    ]  # fmt: skip


def test_a_damaged_tokenizer_is_an_error_and_no_traceback(data, families, tmp_path):
    import shutil

    shutil.copytree(families["llama"].folder, tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text('{"version": ')
    (error,) = diagnose(arguments_for(data, model_name_or_path=tmp_path / "model")).errors
    assert error.check == "model" and "\n" not in str(error)


# The command


def doctor(data: Path, *words: str) -> int:
    files = {"train": "train_file", "eval": "eval_file", "test": "test_file", "documents": "full_dataset_file_path"}
    flags = [word for name, flag in files.items() for word in (f"--{flag}", str(data / f"{name}.jsonl"))]
    return main(["doctor", *words, *flags, "--output_dir", "out", "--learning_rate", "1e-4"])


def test_clean_data_exit_0_with_table_and_row(data, families, capsys):
    assert doctor(data, "swr", "--model_name_or_path", str(families["gemma"].folder)) == 0
    out = capsys.readouterr().out
    assert "training rows                       train     eval" in out
    assert "rows ending with an end token       100 %    100 %" in out and "estimated" in out
    assert ">>>" in out and "At nine.<end_of_turn><<<" in out
    assert out.endswith("no problems in 6 documents, 3 train examples, 2 eval examples, 1 test examples\n")


def test_warnings_alone_exit_0_and_errors_exit_2(data, capsys):
    rows = [row_of(e) for e in tiny_examples()[:3]]
    write_jsonl(data / "train.jsonl", [*rows, rows[0]])
    assert doctor(data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"warning: {data / 'train.jsonl'}:4: question: is also asked in")
    assert lines[-1].startswith("1 warning in 6 documents, 4 train examples")
    with open(data / "train.jsonl", "a") as file:
        file.write("{}\n")
    assert doctor(data) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [*["error"] * 3, "warning", "", lines[-1]]
    assert lines[-1].startswith("3 errors and 1 warning in ")


def test_machines_get_the_same_as_one_json_object(data, families, capsys):
    rows = [row_of(e) for e in tiny_examples()[:3]]
    write_jsonl(data / "train.jsonl", [*rows, {**rows[0], "question": 7}])
    assert doctor(data, "--json", "--model_name_or_path", str(families["llama"].folder)) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["errors"], answer["warnings"]) == (1, 0)
    (finding,) = answer["findings"]
    assert finding == {
        "file": str(data / "train.jsonl"), "line": 4, "severity": "error", "check": "format",
        "where": str(data / "train.jsonl:4"), "field": "question", "message": finding["message"],
        "tokens": None,
    }  # fmt: skip
    assert answer["token_table"]["train"]["rows"] == 3 and answer["examples"] == {"train": 3, "eval": 2, "test": 1}
    assert answer["row"]["supervised"].strip().startswith("At nine.")


def test_a_file_that_is_not_given_is_not_missed_but_a_wrong_flag_is(data, capsys):
    assert main(["doctor", "--train_file", str(data / "train.jsonl")]) == 0
    assert main(["doctor", "--train_file", str(data / "train.jsonl"), "--max_seq_length", "3"]) == 2
    assert "--max_seq_length: 3 is too small" in capsys.readouterr().err
    assert main(["doctor", "--train_file", "nowhere.jsonl"]) == 2
    assert main(["doctor", "--trian_file", "x"]) == 2
    assert main(["doctor", "-h"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit status" in told and "Problems with the flags, or with an argument file, go to standard error" in told


@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["text", "json"])
def test_findings_go_to_standard_output_and_wrong_flags_to_standard_error(data, capsys, json_flag):
    (data / "train.jsonl").write_text("{")
    assert main(["doctor", "--train_file", str(data / "train.jsonl"), *json_flag]) == 2
    out, err = capsys.readouterr()
    assert "train.jsonl" in out and err == ""
    assert main(["doctor", "--train_file", str(data / "train.jsonl"), "--max_seq_length", "3", *json_flag]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("--max_seq_length: 3 is too small")


def test_what_a_file_holds_cannot_write_on_the_terminal(data, families, capsys):
    evil = "Bring\x1b[2J\x07 books\u202e back.\nYes"
    write_jsonl(data / "train.jsonl", [row_of(tiny_examples()[1], gold_answer=evil, question=evil)])
    doctor(data, "--model_name_or_path", str(families["llama"].folder))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    assert "\\x1b[2J" in out and harmless("a\tb\n") == "a\\tb\n"


def test_the_command_that_shows_everything_holds_every_flag_that_is_set_and_no_password(data):
    arguments = arguments_for(
        data, "swr", embedding_model="https://me:SECRET@host/model", sep_user=" ", lora_target_modules=["q", "v"]
    )
    words = doctor_command(arguments)
    assert words.startswith("groundtune doctor swr --train_file ") and "SECRET" not in words
    assert "--sep_user ' '" in words and "--lora_target_modules q v" in words and "--lora_r" not in words


def test_without_data_there_is_nothing_wrong():
    diagnosis = diagnose(Arguments("sft", *(group() for group in GROUPS), None))
    assert diagnosis.findings == [] and shown(diagnosis) == "no problems in no data"


# Training


def test_training_refuses_every_error_at_once_and_before_any_model_loads(data, families, capsys, monkeypatch, tmp_path):
    import groundtune.recipes.train

    monkeypatch.setattr(groundtune.recipes.train, "open_retriever_with", lambda *args: pytest.fail("it went on"))
    write_jsonl(data / "train.jsonl", [row_of(tiny_examples()[0], gold_answer="nine " * 600), {"question": "When?"}])
    write_jsonl(data / "eval.jsonl", [row_of(tiny_examples()[3], chat_history="none")])
    status = main([
        "sft", "--train_file", str(data / "train.jsonl"), "--eval_file", str(data / "eval.jsonl"),
        "--full_dataset_file_path", str(data / "documents.jsonl"), "--output_dir", str(tmp_path / "out"),
        "--model_name_or_path", str(families["llama"].folder), "--retriever", "bm25", "--max_seq_length", "400",
    ])  # fmt: skip
    assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(data))]
    assert [line.removeprefix(f"{data}/").split(": ")[:2] for line in lines] == [
        ["train.jsonl:1", "row"], ["train.jsonl:2", "gold_answer"], ["train.jsonl:2", "gold_docs"],
        ["eval.jsonl:1", "chat_history"],
    ]  # fmt: skip


def test_a_run_counts_its_warnings_and_says_how_to_see_them(data, families, caplog):
    from groundtune.recipes.train import _tell

    write_jsonl(
        data / "train.jsonl", [row_of(e, hard_neg_docs=[e.gold_documents[0].to_dict()]) for e in tiny_examples()[:3]]
    )
    arguments = arguments_for(data, model_name_or_path=families["llama"].folder)
    with caplog.at_level(logging.INFO, "groundtune"):
        notes = _tell(diagnose(arguments), arguments)
    assert notes == [f"{data / 'train.jsonl'}: 3 x hard negative that is also a gold passage (first in line 1)"]
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == [
        "checked:",
        f"{data / 'train.jsonl'}:",
        "to",
    ]
    assert f"groundtune doctor sft --train_file {data / 'train.jsonl'}" in caplog.text


def test_the_test_split_is_eval_where_it_has_no_file_and_is_never_cut(data):
    from groundtune.recipes.train import _splits, _tested_on_eval

    arguments = arguments_for(data, test_file="", eval_max_samples=1)
    splits = _splits(diagnose(arguments), arguments)
    assert (len(splits["eval"]), len(splits["test"])) == (1, 2)
    assert _tested_on_eval(arguments.data)
    assert _tested_on_eval(DataArguments(eval_file="a/b.jsonl", test_file="a/../a/b.jsonl"))
    assert not _tested_on_eval(DataArguments(eval_file="a.jsonl", test_file="b.jsonl"))


# Hardware


@pytest.mark.parametrize(("bf16", "native", "told"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_bfloat16_that_the_hardware_does_not_compute_is_named(data, monkeypatch, bf16, native, told):
    monkeypatch.setattr(training_doctor, "computes_bf16", lambda: native)
    arguments = arguments_for(data)
    arguments.training.bf16 = bf16
    assert [finding.check for finding in diagnose(arguments).findings].count("emulated-bf16") == told


# Languages


def german(folder: Path) -> None:
    """Write the documents and gold answers in German."""
    documents = [Document(f"Die Lampe {i} ist nicht im Lager, und der Versand kostet {i} Euro.") for i in range(6)]
    write_documents(folder / "documents.jsonl", documents)
    for name in ("train", "eval", "test"):
        path = folder / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        changed = {"gold_answer": "Das ist nicht im Lager.", "gold_docs": [documents[0].to_dict()]}
        write_jsonl(path, [{**row, **changed} for row in rows])


@pytest.mark.parametrize(("retriever", "told"), [("bm25", True), ("hybrid", True), ("dense", False)])
def test_what_a_language_prevents_is_noted_once(data, retriever, told):
    german(data)
    notes = [f for f in diagnose(arguments_for(data, retriever=retriever)).findings if f.check == "language"]
    assert len(notes) == 1 and notes[0].severity == "note" and "contains German" in notes[0].message
    assert ("compounds" in notes[0].message) == told


def test_a_note_is_shown_and_is_no_warning(data):
    german(data)
    diagnosis = diagnose(arguments_for(data, retriever="bm25"))
    assert "note: " in shown(diagnosis) and not [f for f in diagnosis.warnings if f.check == "language"]


def test_english_data_get_no_note(data):
    assert not [f for f in diagnose(arguments_for(data, retriever="bm25")).findings if f.check == "language"]
