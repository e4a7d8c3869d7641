"""`groundtune retriever`: what it learns from, how it is compared, what it keeps, and that it stops and resumes."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import FACTS, FakeEmbedder, tiny_documents, tiny_examples, write_data

from groundtune.cli import main
from groundtune.commands.parsing import given
from groundtune.commands.retriever import run_of, whole_parser
from groundtune.data.files import scan_questions, write_jsonl
from groundtune.errors import DataError
from groundtune.evaluation.retriever_verdicts import Compared
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever
from groundtune.retrieval.stores.local import Index
from groundtune.schema import Document, Example
from groundtune.training.negatives import Pair, found_negatives
from groundtune.training.retriever import EmbeddingKind, _columns, refused_arguments
from groundtune.training.safe_trainer import SafeTrainer

pytest.importorskip("datasets", reason="sentence-transformers trains with it: the extra `retriever`")
ROOT = Path(__file__).parents[2]


# Lines of files


def questions(tmp_path: Path, *rows: dict[str, Any]) -> Any:
    write_jsonl(tmp_path / "q.jsonl", rows)
    return scan_questions(tmp_path / "q.jsonl")


def test_a_line_may_have_several_questions_and_no_answer(tmp_path):
    gold = [{"page_content": "The desk."}]
    found = questions(
        tmp_path, {"questions": ["Where?", "And when?"], "gold_docs": gold}, {"question": "Who?", "gold_docs": gold}
    )
    assert [example.question for _, example in found.entries] == ["Where?", "And when?", "Who?"]
    assert {example.gold_documents for _, example in found.entries} == {(Document("The desk."),)}
    assert [where[-2:] for where, _ in found.entries] == [":1", ":1", ":2"] and not found.problems + found.suspicions


@pytest.mark.parametrize("row, word", [
    ({"gold_docs": []}, 'question: missing; every line needs a "question", or "questions"'),
    ({"questions": "Where?", "gold_docs": []}, "questions: is 'Where?', not a list"),
    ({"question": "Where?"}, "gold_docs: missing"),
])  # fmt: skip
def test_a_line_without_a_question_or_a_passage_is_named(tmp_path, row, word):
    (problem, *_) = questions(tmp_path, row).problems
    assert problem.startswith(f"{tmp_path}/q.jsonl:1: {word}")


# Negatives


def mix_over(documents: list[Document]) -> MixRetriever:
    embedder = FakeEmbedder()
    index = Index(documents, embedder.embed_documents([d.text for d in documents]))
    return MixRetriever(DenseRetriever(embedder, index), BM25Retriever(documents))


GOLD = "A card costs four coins a year, and two coins for guests who stay for a month or less."
OTHERS = {
    "twin": GOLD.replace("A card", "One card") + " It is sold at the desk.",
    "overlap": "Every pass costs a lot, but two coins for guests who stay for a month or less. "
    + "Ask at the desk. " * 3,
    "far": "Dogs wait at the red door until their owners come back with what they borrowed.",
}


def negatives(example: Example, wanted: int = 3, *more: str) -> tuple[list[str], Counter]:
    documents = [Document(text) for text in (GOLD, *OTHERS.values(), *more)]
    ((found,), counts) = found_negatives([example], mix_over(documents), "none", wanted)
    return [document.text for document in found], counts


def test_passages_with_the_text_of_gold_are_no_negatives_and_are_counted():
    question = Example("What does a card cost for guests?", "", (Document(GOLD),))
    found, counts = negatives(question)
    assert found == [OTHERS["far"]]
    assert (counts["twin"], counts["overlap"], counts["mined"], counts["given"]) == (1, 1, 1, 0)


def test_given_negatives_come_first_and_are_examined_as_well():
    given_ones = (Document(OTHERS["twin"]), Document("Headphones are lent on floor two."))
    question = Example("What does a card cost?", "", (Document(GOLD),), hard_negatives=given_ones)
    found, counts = negatives(question, 1)
    assert found == ["Headphones are lent on floor two."] and counts == {"twin": 1, "given": 1}


def test_what_a_search_likes_nearly_as_much_as_gold_is_no_negative():
    """It may hold the answer, too: nobody said that it does not."""
    better = "What does a card cost for guests? What does a card cost for guests?"
    found, counts = negatives(Example("What does a card cost for guests?", "", (Document(GOLD),)), 3, better)
    assert better not in found and counts["close"] == 1


def test_no_search_is_made_for_no_negatives():
    assert found_negatives(tiny_examples(), None, "none", 0) == ([()] * 6, {})


def test_a_batch_holds_no_two_passages_that_say_the_same():
    twins = [Document(GOLD), Document(OTHERS["twin"]), Document(OTHERS["far"])]
    texts, kinds = _columns([Pair(f"Q{i}?", document, ()) for i, document in enumerate(twins)], 0)
    assert texts["positive"] == [document.text for document in twins]
    assert kinds["positive"][0] == kinds["positive"][1] != kinds["positive"][2]
    assert len(set(kinds["anchor"])) == 3


def test_every_row_has_as_many_negatives_as_the_longest():
    far, music = Document(OTHERS["far"]), Document("Headphones are lent on floor two.")
    pairs = [Pair("Q1?", Document(GOLD), (far, music)), Pair("Q2?", music, (far,)), Pair("Q3?", far, ())]
    texts, _ = _columns(pairs, 2)
    assert texts["negative_1"] == [far.text, far.text, GOLD]  # of another question, for one that has none
    assert texts["negative_2"] == [music.text, far.text, GOLD]


# Arguments


def run_with(*words: str):
    return run_of(given(whole_parser(), words))


def test_all_arguments_of_transformers_are_accepted():
    run = run_with(
        "-o", "x", "--gradient_accumulation_steps", "2", "--evaluation_strategy", "epoch", "--max_grad_norm", "3"
    )
    assert run.more == {"gradient_accumulation_steps": 2, "max_grad_norm": 3.0}
    assert (run.training.output_dir, run.training.eval_strategy) == ("x", "epoch")


@pytest.mark.parametrize("words, line", [
    (["--save_steps", "3"], "--save_steps: follows from --eval_steps here; remove it"),
    (["--nonsense", "3"], "--nonsense: no such argument"),
    (["--folds", "many"], "--folds: invalid int value: 'many'"),
])  # fmt: skip
def test_what_cannot_be_set_is_named(words, line):
    with pytest.raises(DataError) as error:
        run_with(*words)
    assert error.value.problems[0].startswith(line)


@pytest.mark.parametrize("words, line", [
    ([], "--train_file: missing; name the questions to train on"),
    ([], "--full_dataset_file_path: missing; name the document database"),
    ([], "--embedding_model: missing"),
    ([], "--output_dir: missing"),
    (["--train_file", "no.jsonl"], "--train_file: no such file: no.jsonl"),
    (["--retriever", "bm25"], "--retriever bm25: compares words only, so there is nothing to train; use mix or dense"),
    (["--folds", "1"], "--folds: 1; give 2 or more, or 0 for no cross-validation"),
    (["--folds", "0"], "--folds 0: leaves nothing to compare on"),
    (["--temperature", "0"], "--temperature: 0.0; give a number above 0"),
    (["--learning_rate", "nan"], "--learning_rate: nan; give a number above 0"),
    (["--per_device_train_batch_size", "1"], "--per_device_train_batch_size: 1 is too small; the minimum is 2"),
    (["--push_to_hub", "true"], "--push_to_hub: not supported here"),
    (["--embedding_model", "openai:http://x"], "--embedding_model: a server cannot be trained"),
])  # fmt: skip
def test_problems_are_found_before_anything_is_read(words, line):
    assert any(problem.startswith(line) for problem in run_with(*words).check())


@pytest.mark.parametrize("words, line", [
    (["--lr_scheduler_type", "steep"], "--lr_scheduler_type: steep is not a valid SchedulerType"),
    (["--report_to", "paper"], "--report_to: no tracker is called paper"),
])  # fmt: skip
def test_what_the_library_would_refuse_later_is_named_at_the_start(words, line):
    (problem,) = refused_arguments(run_with("-o", "x", *words))
    assert problem.startswith(line)


def test_torchrun_and_a_missing_package_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = "\n".join(run_with().check())
    assert "needs the package datasets; pip install" in problems and "start it without torchrun" in problems


# Runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, with two questions about each article."""
    folder = write_data(tmp_path_factory.mktemp("retriever"))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    twice = [
        {**row, "question": question} for row in rows for question in (row["question"], f"Please: {row['question']}")
    ]
    write_jsonl(folder / "train.jsonl", twice)
    return folder


def flags(folder: Path, model: Path, output: Path, *more: str) -> list[str]:
    return [
        "retriever", "--train_file", str(folder / "train.jsonl"), "--embedding_model", str(model), "-o", str(output),
        "--full_dataset_file_path", str(folder / "documents.jsonl"), "--eval_num_to_retrieve", "1", "--quiet",
        "--full_dataset_index_path", str(folder / "index"), "--per_device_train_batch_size", "3", "--folds", "2",
        "--learning_rate", "0.02", *more,
    ]  # fmt: skip


def metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def test_a_model_that_is_no_better_is_not_kept_and_the_run_says_so(folder, bert_embedding_folder, tmp_path, capsys):
    assert main(flags(folder, bert_embedding_folder, tmp_path / "out")) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("No clear difference: inside the retriever mix, recall@1 is ")
    assert said.endswith(
        "on 12 questions about 6 passages (cross-validation, 2 parts by article); the untrained model is kept"
    )
    kept, base = Embedder(str(tmp_path / "out")), Embedder(str(bert_embedding_folder))
    assert (kept.embed_questions(["library"]) == base.embed_questions(["library"])).all()
    found = metrics(tmp_path / "out")
    assert found["kept"] == "untrained" and list(found["compared"][0]["retrievers"]) == ["dense", "mix"]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["identity"]["--embedding_model"].startswith("sha256 ") and record["inputs"]["train_file"]["sha256"]
    assert all((tmp_path / "out" / name).stat().st_size for name in ("report.html", "report.md", "README.md"))


def test_a_model_that_finds_more_is_kept(folder, bert_embedding_folder, tmp_path, monkeypatch):
    """Verdicts need twenty passages; here six must do."""
    monkeypatch.setattr(Compared, "better", property(lambda self: self.decisive.value > 0))
    train = str(folder / "train.jsonl")
    words = flags(folder, bert_embedding_folder, tmp_path / "out", "--retriever", "dense", "--folds", "0")
    assert main([*words, "--eval_file", train, "--num_train_epochs", "8", "--eval_steps", "0.25"]) == 0
    found = metrics(tmp_path / "out")
    measured = [row for row in found["history"] if "eval_retrieval/recall@1" in row]
    steps, recalls = [row["step"] for row in measured], [row["eval_retrieval/recall@1"] for row in measured]
    assert steps[0] == 0 and recalls[0] < max(recalls)  # measured before the first step, too
    assert found["kept"] == "tuned" and found["best_step"] == steps[recalls.index(max(recalls))]
    shown = found["compared"][0]["retrievers"]["dense"]["retrieval/recall@1"]
    assert (shown["untrained"]["value"], shown["tuned"]["value"]) == (recalls[0], max(recalls))
    assert Embedder(str(tmp_path / "out")).embed_questions(["library"]).shape == (1, 16)


def test_a_model_with_static_vectors_can_be_trained(folder, static_embedding_folder, tmp_path):
    words = flags(folder, static_embedding_folder, tmp_path / "out", "--keep", "tuned", "--max_steps", "1")
    assert main(words) == 0 and metrics(tmp_path / "out")["kept"] == "tuned"


def test_prompts_are_trained_with_and_saved(folder, bert_embedding_folder, tmp_path):
    from groundtune.retrieval.embedder import Embedder

    run = run_with(
        *flags(folder, bert_embedding_folder, tmp_path / "out", "--query_prompt", "q: ", "--document_prompt", "d: ")[1:]
    )
    kind = EmbeddingKind(run, tiny_documents())
    pairs = [Pair(example.question, example.gold_documents[0], ()) for example in tiny_examples()]
    trainer = kind.trainer(kind.untrained, pairs, tmp_path / "out", None, {})
    assert trainer.args.prompts == {"anchor": "q: ", "positive": "d: "}
    kind.save(kind.untrained, tmp_path / "saved")
    saved = Embedder(str(tmp_path / "saved"))
    assert (saved.query_prompt, saved.document_prompt) == ("q: ", "d: ")


def test_a_batch_reads_no_more_tokens_than_asked_for(folder, bert_embedding_folder, tmp_path):
    run = run_with(*flags(folder, bert_embedding_folder, tmp_path / "out", "--max_seq_length", "8")[1:])
    kind = EmbeddingKind(run, tiny_documents())
    pairs = [Pair(example.question, example.gold_documents[0], ()) for example in tiny_examples()]
    trainer = kind.trainer(kind.untrained, pairs, tmp_path / "out", None, {})
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["positive_input_ids"].shape[1] == 8 and kind.untrained.model.max_seq_length == 24


class Killed(BaseException):
    """As if the process ended here."""


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("how, at", [("kill", 5), ("signal", 8), ("kill", 17)], ids=str)
def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_weights(
    folder, bert_embedding_folder, tmp_path, monkeypatch, signals_of_a_terminal, how, at, whole_run
):
    steps, step = [], SafeTrainer.training_step

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.args.output_dir)
        if len(steps) == at and how == "kill":
            raise Killed
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SafeTrainer, "training_step", stopping)
    words = flags(folder, bert_embedding_folder, tmp_path / "out", "--keep", "tuned", "--eval_steps", "2")
    if how == "kill":
        with pytest.raises(Killed):
            main(words)
    else:
        assert main(words) == 143
    before = len(steps)
    assert not (tmp_path / "out/report.html").exists() and before == at
    assert main(words) == 0
    whole = whole_run["steps"]
    assert len(steps) - before < whole  # what was finished is not repeated
    assert weights(tmp_path / "out").keys() == whole_run["weights"].keys()
    assert all((weights(tmp_path / "out")[name] == value).all() for name, value in whole_run["weights"].items())
    assert metrics(tmp_path / "out")["compared"] == whole_run["metrics"]["compared"]


@pytest.fixture(scope="module")
def whole_run(folder, bert_embedding_folder, tmp_path_factory) -> dict[str, Any]:
    output, steps, step = tmp_path_factory.mktemp("whole") / "out", [], SafeTrainer.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafeTrainer, "training_step", lambda self, *a, **k: steps.append(1) or step(self, *a, **k))
        assert main(flags(folder, bert_embedding_folder, output, "--keep", "tuned", "--eval_steps", "2")) == 0
    return {"steps": len(steps), "weights": weights(output), "metrics": metrics(output), "folder": output}


def test_a_finished_run_is_not_repeated_and_other_settings_are_named(folder, bert_embedding_folder, whole_run, capsys):
    words = flags(folder, bert_embedding_folder, whole_run["folder"], "--keep", "tuned", "--eval_steps", "2")
    words.remove("--quiet")
    assert main(words) == 0
    assert "already holds this run, finished" in capsys.readouterr().out
    assert main([*words, "--temperature", "0.1"]) == 2
    assert "--temperature: null in the finished run, 0.1 now" in capsys.readouterr().err


def test_parts_of_another_run_are_not_used(folder, bert_embedding_folder, whole_run, tmp_path, capsys):
    import shutil

    shutil.copytree(whole_run["folder"] / "folds", tmp_path / "out/folds")
    words = flags(folder, bert_embedding_folder, tmp_path / "out", "--keep", "tuned", "--eval_steps", "2")
    assert main([*words, "--temperature", "0.1"]) == 2
    assert "--temperature: null when part-1.json was saved, 0.1 now" in capsys.readouterr().err
    (tmp_path / "out/folds/part-1.json").write_text("[]")
    assert main(words) == 2
    assert "part-1.json: was not written by this run" in capsys.readouterr().err


def test_output_says_nothing_but_json_if_asked(folder, bert_embedding_folder, whole_run, capsys):
    words = flags(folder, bert_embedding_folder, whole_run["folder"], "--keep", "tuned", "--eval_steps", "2", "--json")
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == "tuned" and found["report"].endswith("report.html") and "history" not in found


def test_a_folder_that_was_trained_is_an_embedding_model_for_every_command(folder, whole_run, capsys):
    words = ["--full_dataset_file_path", str(folder / "documents.jsonl"), "--embedding_model", str(whole_run["folder"])]
    assert main(["index", *words, "--eval_file", str(folder / "eval.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dimensions"] == 16


@pytest.mark.parametrize("change, line", [
    ({"folds": "9"}, "--folds: 9, but the questions of {}/train.jsonl are about 6 articles; give fewer"),
    ({"embedding_model": "{}/documents.jsonl"}, "--embedding_model: {}/documents.jsonl is a file; name the folder"),
    ({"full_dataset_file_path": "{}/train.jsonl"}, "{}/train.jsonl: holds examples, not documents"),
    ({"train_file": "{}/other.jsonl"}, "{}/other.jsonl: no question has a gold passage among the documents"),
])  # fmt: skip
def test_problems_with_data_are_one_line_and_status_2(folder, bert_embedding_folder, tmp_path, capsys, change, line):
    write_jsonl(folder / "other.jsonl", [{"question": "Why?", "gold_docs": [{"page_content": "Because."}]}])
    words = flags(folder, bert_embedding_folder, tmp_path / "out")
    for name, value in change.items():
        words += [f"--{name}", value.format(folder)]
    assert main(words) == 2
    (said,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith(line.format(folder, folder)[:40])]
    assert said.startswith(line.format(folder, folder))


def test_questions_whose_passage_is_not_in_the_database_are_left_out_and_counted(
    folder, bert_embedding_folder, tmp_path, caplog
):
    rows = (folder / "train.jsonl").read_text() + json.dumps(
        {"question": "Why?", "gold_docs": [{"page_content": "No."}]}
    )
    (tmp_path / "train.jsonl").write_text(rows + "\n")
    with caplog.at_level(logging.WARNING, "groundtune"):
        words = flags(folder, bert_embedding_folder, tmp_path / "out", "--train_file", str(tmp_path / "train.jsonl"))
        assert main([*words, "--max_steps", "1"]) == 0
    assert (
        "train.jsonl: 1 of 13 questions have a gold passage that is not among the documents and are left out"
        in caplog.text
    )


# LocalRQA's scripts


def script(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    return ended.value.code


def test_the_training_script_takes_localrqa_s_flags(folder, bert_embedding_folder, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "q.jsonl", [
        {"questions": [question, f"{question}?"], "gold_docs": [document.to_dict()], "hard_neg_docs": []}
        for document, (_, question, _) in zip(tiny_documents(), FACTS.values())
    ])  # fmt: skip
    status = script(
        "train/retriever/train_ctl_retriever.py", "--pooling_type", "cls", "--learning_rate", "1e-5",
        "--hard_neg_ratio", "0.05", "--per_device_train_batch_size", "256", "--per_device_eval_batch_size", "128",
        "--temperature", "1.2", "--metric_for_best_model", "eval_retr/document_recall/recall4", "--run_group", "x",
        "--model_name_or_path", str(bert_embedding_folder), "--max_steps", "2", "--eval_steps", "1",
        "--save_steps", "1", "--logging_steps", "1", "--evaluation_strategy", "steps", "--warmup_ratio", "0.1",
        "--report_to", "none", "--do_train", "true", "--write_predictions", "true", "--output_dir",
        str(tmp_path / "out"), "--train_file", str(tmp_path / "q.jsonl"), "--eval_file", str(tmp_path / "q.jsonl"),
        "--test_file", str(tmp_path / "q.jsonl"),
        "--full_dataset_file_path", str(folder / "documents.jsonl"), "--quiet", monkeypatch=monkeypatch,
    )  # fmt: skip
    assert status == 0
    found = metrics(tmp_path / "out")
    assert found["kept"] == "tuned" and list(found["compared"][0]["retrievers"]) == ["dense"]
    assert [one["what"].split()[0] for one in found["compared"]] == ["--test_file", "--eval_file,"]
    assert json.loads((tmp_path / "out/1_Pooling/config.json").read_text())["pooling_mode"] == "cls"
    arguments = json.loads((tmp_path / "out/run.json").read_text())["arguments"]
    assert (arguments["retrieval"]["eval_num_to_retrieve"], arguments["retriever"]["hard_negatives"]) == (4, 1)


def test_the_training_script_only_trains(monkeypatch, capsys):
    words = ["--do_train", "false", "-o", "x"]
    assert script("train/retriever/train_ctl_retriever.py", *words, monkeypatch=monkeypatch) == 2
    assert "scripts/test/test_retriever.py measures a retriever" in capsys.readouterr().err


def test_the_test_script_takes_localrqa_s_flags(folder, bert_embedding_folder, tmp_path, monkeypatch, capsys):
    for kind in ("faiss", "BM25"):
        status = script(
            "test/test_retriever.py", "--embedding_model_name_or_path", str(bert_embedding_folder), "--document_path",
            str(folder / "documents.jsonl"), "--index_path", str(tmp_path / "index"), "--eval_data_path",
            str(folder / "eval.jsonl"), "--retriever_type", kind, "--test_bszv", "8", "--output_dir",
            str(tmp_path / kind), monkeypatch=monkeypatch,
        )  # fmt: skip
        assert status == 0
        scores = json.loads((tmp_path / kind / "score.json").read_text())
        assert scores["n"] == 4 and 0 <= scores["retrieval/recall@4"]["low"] <= scores["retrieval/recall@4"]["value"]
        rows = [json.loads(line) for line in (tmp_path / kind / "test-predictions.jsonl").read_text().splitlines()]
        assert len(rows) == 4 and rows[0]["retrieved_docs"][0]["score"] and rows[0]["source"].endswith("eval.jsonl:1")
    assert "4 questions on 4 passages; written to" in capsys.readouterr().out


def test_problems_of_the_test_script_are_named_by_its_flags(monkeypatch, capsys):
    assert script("test/test_retriever.py", "--retriever_type", "faiss", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert "--eval_data_path: missing; name the questions" in said and "--document_path: missing" in said
    assert script("test/test_retriever.py", "--retriever_type", "elastic", monkeypatch=monkeypatch) == 2
    assert "--retriever_type: elastic is unknown; use faiss, BM25, mix or hybrid" in capsys.readouterr().err


# Rerankers


def rerankers(folder: Path, model: Path, output: Path, *more: str) -> list[str]:
    more = ("--kind", "cross_encoder", "--reranker", str(model), "--hard_negatives", "2", *more)
    return flags(folder, model, output, *more)


@pytest.fixture(scope="module")
def reranker_run(folder, bert_embedding_folder, tmp_path_factory) -> Path:
    """A reranker made from an encoder."""
    output = tmp_path_factory.mktemp("reranker") / "out"
    assert main(rerankers(folder, bert_embedding_folder, output, "--keep", "tuned", "--max_steps", "4")) == 0
    return output


def test_a_reranker_is_compared_with_the_search_alone_too(reranker_run):
    found = metrics(reranker_run)
    assert found["kind"] == "cross_encoder" and list(found["compared"][0]["retrievers"]) == ["mix", "mix, reranked"]
    alone, tuned = found["compared"][0]["retrievers"].values()
    assert tuned["retrieval/recall@1"]["untrained"] == alone["retrieval/recall@1"]["untrained"]
    assert "compared with the search alone" in (reranker_run / "report.md").read_text()


def test_a_trained_reranker_is_a_reranker_for_every_command_and_can_be_trained_again(
    folder, bert_embedding_folder, reranker_run, tmp_path, capsys
):
    words = [
        "--full_dataset_file_path",
        str(folder / "documents.jsonl"),
        "--embedding_model",
        str(bert_embedding_folder),
    ]
    words += [
        "--reranker",
        str(reranker_run),
        "--retriever",
        "all",
        "--eval_file",
        str(folder / "eval.jsonl"),
        "--json",
    ]
    assert main(["index", *words]) == 0
    assert "reranked by" in capsys.readouterr().out
    words = rerankers(
        folder, bert_embedding_folder, tmp_path / "out", "--reranker", str(reranker_run), "--max_steps", "2"
    )
    assert main(words) == 0
    assert "_reranker_" not in capsys.readouterr().out and metrics(tmp_path / "out")["kept"] == "untrained"


def test_no_reranker_is_kept_if_the_search_finds_as_much_without(folder, bert_embedding_folder, tmp_path, capsys):
    assert main(rerankers(folder, bert_embedding_folder, tmp_path / "out", "--max_steps", "2")) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.endswith("no reranker is kept, because the retriever finds as much without one")
    assert not (tmp_path / "out/model.safetensors").exists() and metrics(tmp_path / "out")["kept"] == "untrained"


@pytest.mark.parametrize("words, line", [
    ([], "--reranker: missing; name the cross-encoder to train"),
    (["--reranker", "maxsim"], "--reranker: maxsim cannot be trained; name the cross-encoder to train"),
    (["--reranker", "tei:http://localhost:8"], "--reranker: tei:http://localhost:8 cannot be trained"),
    (["--reranker", "no/such/folder"], "--reranker: no such folder: no/such/folder"),
    (["--hard_negatives", "0"], "--hard_negatives: 0 is too small; the minimum is 1"),
])  # fmt: skip
def test_problems_with_a_reranker_are_found_before_anything_is_read(words, line):
    assert any(one.startswith(line) for one in run_with("--kind", "cross_encoder", *words).check())


def test_a_damaged_reranker_is_one_line(folder, bert_embedding_folder, tmp_path, capsys):
    import shutil

    shutil.copytree(bert_embedding_folder, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"no tensors")
    words = rerankers(folder, bert_embedding_folder, tmp_path / "out", "--reranker", str(tmp_path / "broken"))
    assert main(words) == 2
    assert len([one for one in capsys.readouterr().err.splitlines() if "broken" in one]) == 1


def test_an_embedding_model_can_be_compared_inside_a_reranked_search(folder, bert_embedding_folder, tmp_path):
    words = flags(folder, bert_embedding_folder, tmp_path / "out", "--reranker", "maxsim", "--max_steps", "1")
    assert main(words) == 0
    assert list(metrics(tmp_path / "out")["compared"][0]["retrievers"]) == ["dense", "mix, reranked by maxsim"]
