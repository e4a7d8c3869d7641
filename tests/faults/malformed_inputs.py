"""150 malformed inputs: each is one line that names file, line and field, with exit status 2, and never a traceback.

    python tests/faults/malformed_inputs.py

Valid files of every kind are damaged in one place each, and `groundtune sft` is started on them, in this process, with
a model folder that holds a tokenizer. What it prints is compared with the place that was damaged.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

MOST_SECONDS = 3.0
LINE = 3  # the line of an examples' or documents' file that is damaged; the others are valid


@dataclass(frozen=True)
class Case:
    """One damaged file, and the place that must be named; line 0 means the whole file."""

    name: str
    file: str
    content: bytes
    line: int
    field: str


# Valid files


def example(i: int) -> dict:
    return {
        "question": f"When does room {i} open?",
        "gold_docs": [document(i)],
        "gold_answer": f"Room {i} opens at nine.",
        "chat_history": [{"speaker": "user", "message": "Hello."}, {"speaker": "assistant", "message": "Good day."}],
        "hard_neg_docs": [document(i + 1)],
    }


def document(i: int) -> dict:
    text = f"Room {i} opens at nine and closes at six."
    return {"page_content": text, "fmt_content": f"Title: Rooms\n{text}", "metadata": {"n": i}}


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def arguments(model: Path | str) -> dict:
    return {
        "train_file": "train.jsonl", "eval_file": "eval.jsonl", "test_file": "test.jsonl",
        "full_dataset_file_path": "documents.jsonl", "model_name_or_path": str(model), "retriever": "bm25",
        "output_dir": "out", "max_seq_length": 400, "max_new_tokens": 32, "seed": 5, "use_peft": True,
    }  # fmt: skip


def valid_files(model: Path | str) -> dict[str, bytes]:
    numbers = {"train": range(0, 8), "eval": range(8, 13), "test": range(13, 18)}
    files = {f"{split}.jsonl": jsonl([example(i) for i in these]) for split, these in numbers.items()}
    files["documents.jsonl"] = jsonl([document(i) for i in range(20)])
    files["run.yaml"] = "".join(f"{name}: {json.dumps(value)}\n" for name, value in arguments(model).items()).encode()
    files["run.json"] = json.dumps(arguments(model), indent=0).encode()
    return files


# Damage to a whole line of JSON: what it becomes. The field is always "line".

LINES: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda line: line[: len(line) // 2],
    "without its last brace": lambda line: line[:-1],
    "without its first brace": lambda line: line[1:],
    "without a quote": lambda line: line.replace(b'": ', b": ", 1),
    "without a colon": lambda line: line.replace(b'": ', b'" ', 1),
    "without a comma": lambda line: line.replace(b", ", b" ", 1),
    "with a comma too many": lambda line: line[:-1] + b",}",
    "in single quotes": lambda line: line.replace(b'"', b"'"),
    "two objects": lambda line: line + line,
    "an array": lambda line: b"[" + line + b"]",
    "a string": lambda line: json.dumps(line.decode()).encode(),
    "a number": lambda line: b"42",
    "null": lambda line: b"null",
    "no JSON": lambda line: b"see above",
    "a comment": lambda line: b"// " + line,
    "an HTML page": lambda line: b"<!doctype html><title>404</title>",
    "Latin-1": lambda line: line.replace(b"nine", "n\u00e4chts".encode("latin-1"), 1),
    "half of a character at its end": lambda line: line.replace(b"nine", "\u00e9".encode()[:1], 1),
    "a control character": lambda line: line.replace(b"nine", b"ni\x01ne", 1),
    "a bad escape": lambda line: line.replace(b"nine", b"ni\\xne", 1),
    "a name given twice": lambda line: line[:-1] + b', "metadata": {}, "metadata": {}}',
    "a merge conflict": lambda line: b"<<<<<<< HEAD",
    "deep nesting": lambda line: b'{"a":' * 50_000,
    "a number of 5,000 digits": lambda line: line[:-1] + b', "n": ' + b"9" * 5000 + b"}",
}

# Damage to one field: how, and the field that must be named.


def put(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(row: dict) -> None:
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[dict], None]:
    def change(row: dict) -> None:
        for key in path[:-1]:
            row = row[key]
        del row[path[-1]]

    return change


EXAMPLE_FIELDS: dict[str, tuple[Callable[[dict], None], str]] = {
    "no question": (drop("question"), "question"),
    "null as question": (put("question", value=None), "question"),
    "a number as question": (put("question", value=7), "question"),
    "a list as question": (put("question", value=["When?"]), "question"),
    "half a character in the question": (put("question", value="When \ud800?"), "question"),
    "no answer": (drop("gold_answer"), "gold_answer"),
    "an object as answer": (put("gold_answer", value={"text": "nine"}), "gold_answer"),
    "true as answer": (put("gold_answer", value=True), "gold_answer"),
    "no gold": (drop("gold_docs"), "gold_docs"),
    "empty gold": (put("gold_docs", value=""), "gold_docs"),
    "an object as gold": (put("gold_docs", value=document(2)), "gold_docs"),
    "text in gold": (put("gold_docs", 0, value="Room 2"), "gold_docs[0]"),
    "null in gold": (put("gold_docs", 0, value=None), "gold_docs[0]"),
    "a number as text of gold": (put("gold_docs", 0, "page_content", value=1), "gold_docs[0].page_content"),
    "a list as formatted text": (put("gold_docs", 0, "fmt_content", value=["a"]), "gold_docs[0].fmt_content"),
    "gold without text": (put("gold_docs", 0, value={"metadata": {}}), "gold_docs[0].page_content"),
    "blank gold": (put("gold_docs", 0, value={"page_content": " \n"}), "gold_docs[0].page_content"),
    "a list as metadata": (put("gold_docs", 0, "metadata", value=[1]), "gold_docs[0].metadata"),
    "text as history": (put("chat_history", value="Hello."), "chat_history"),
    "an object as history": (put("chat_history", value={}), "chat_history"),
    "text as a turn": (put("chat_history", 1, value="Hello."), "chat_history[1]"),
    "a turn without speaker": (drop("chat_history", 1, "speaker"), "chat_history[1].speaker"),
    "an unknown speaker": (put("chat_history", 1, "speaker", value="narrator"), "chat_history[1].speaker"),
    "a turn without message": (drop("chat_history", 0, "message"), "chat_history[0].message"),
    "a blank message": (put("chat_history", 0, "message", value=""), "chat_history[0].message"),
    "a number as message": (put("chat_history", 0, "message", value=0), "chat_history[0].message"),
    "text for true or false": (put("answerable", value="no"), "answerable"),
    "text as negatives": (put("hard_neg_docs", value="Room"), "hard_neg_docs"),
    "a negative without text": (put("hard_neg_docs", 0, value={}), "hard_neg_docs[0].page_content"),
}  # fmt: skip
TRAINING_FIELDS = {
    "a gold passage over the budget": (put("gold_docs", 0, "fmt_content", value="nine " * 3000), "row"),
    "an answer over the budget": (put("gold_answer", value="nine " * 3000), "row"),
}
DOCUMENT_FIELDS = {
    "nothing": (lambda row: row.clear(), "page_content"),
    "blank text": (lambda row: row.update(page_content="\t", fmt_content=" "), "page_content"),
    "a number as text": (put("page_content", value=3), "page_content"),
    "a list as formatted text": (put("fmt_content", value=["a"]), "fmt_content"),
    "a list as metadata": (put("metadata", value=["a"]), "metadata"),
    "text as metadata": (put("metadata", value="{}"), "metadata"),
    "half a character in the text": (put("fmt_content", value="\udc00"), "fmt_content"),
    "half a character in the metadata": (put("metadata", value={"k": "\udc00"}), "metadata"),
}

# Damage to the file of arguments: added lines, and the field that must be named (on the last of them).

YAML_LINES = {
    "an unknown name": ("lerning_rate: 1", "lerning_rate"),
    "a word as integer": ("lora_r: many", "lora_r"),
    "a fraction as integer": ("lora_r: 1.5", "lora_r"),
    "a word as number": ("learning_rate: fast", "learning_rate"),
    "a word as truth value": ("trust_remote_code: perhaps", "trust_remote_code"),
    "an unknown choice": ("dtype: float8", "dtype"),
    "an unknown strategy": ("eval_strategy: sometimes", "eval_strategy"),
    "an old name with an unknown value": ("evaluation_strategy: sometimes", "evaluation_strategy"),
    "an unknown metric": ("metric_for_best_model: generation/f2", "metric_for_best_model"),
    "a number that is too small": ("lora_alpha: 0", "lora_alpha"),
    "a negative batch": ("per_device_train_batch_size: -1", "per_device_train_batch_size"),
    "not a number": ("learning_rate: .nan", "learning_rate"),
    "too much dropout": ("lora_dropout: 1.0", "lora_dropout"),
    "a list for one value": ("run_name: [a, b]", "run_name"),
    "lists in a list": ("lora_target_modules: [[q_proj]]", "lora_target_modules"),
    "a mapping for a number": ("lora_r: {a: 1}", "lora_r"),
    "an argument given twice": ("seed: 6", "seed"),
    "code from the hub without a commit": ("trust_remote_code: true", "trust_remote_code"),
    "a file for a folder": ("full_dataset_index_path: train.jsonl", "full_dataset_index_path"),
    "an embedding model that is not there": ("embedding_model: ./nowhere", "embedding_model"),
    "an impossible date": ("run_name: 2024-13-45", "run_name"),
    "no colon": ("just some words", "line"),
    "an open bracket": ("lora_target_modules: [q_proj", "line"),
    "an open quote": ('run_name: "a', "line"),
    "a tab": ("\trun_name: a", "line"),
    "an alias": ("run_name: &a x\nrun_group: *a", "line"),
    "a Python object": ("run_name: !!python/object/apply:os.system ['true']", "line"),
    "a second document": ("---\nrun_name: a", "line"),
    "a list as a name": ("? [a]\n: b", "line"),
}
YAML_WHOLE = {
    "not UTF-8": (lambda data: data + b"run_name: \xff\n", -1),
    "a null character": (lambda data: data + b"run_name: \x00\n", -1),
    "a list": (lambda data: b"- a\n- b\n", 1),
    "one word": (lambda data: b"train\n", 1),
    "empty": (lambda data: b"", 1),
    "only a comment": (lambda data: b"# nothing yet\n", 1),
    "deep nesting": (lambda data: b"[" * 2000, 1),
}
JSON_WHOLE = {
    "cut": (lambda data: data[:-2], -1),
    "a comma too many": (lambda data: data[:-2] + b",}", -1),
    "a comment": (lambda data: data.replace(b"{\n", b"{\n// mine\n", 1), 2),
    "single quotes": (lambda data: data.replace(b'"', b"'"), 2),
    "a list": (lambda data: b"[" + data + b"]", 1),
    "null": (lambda data: b"null", 1),
    "empty": (lambda data: b"", 1),
}
JSON_FIELDS = {
    "an unknown name": ({"lerning_rate": 1}, "lerning_rate"),
    "a word as integer": ({"lora_r": "many"}, "lora_r"),
    "an unknown strategy": ({"save_strategy": "sometimes"}, "save_strategy"),
    "a number that is too small": ({"eval_num_to_retrieve": 0}, "eval_num_to_retrieve"),
    "lists in a list": ({"lora_target_modules": [["q_proj"]]}, "lora_target_modules"),
}


def cases(model: Path | str) -> Iterator[Case]:
    files = valid_files(model)
    # Every kind of damage to the training file, and some of them to each other file.
    for file, every in (("train.jsonl", 1), ("eval.jsonl", 3), ("test.jsonl", 4), ("documents.jsonl", 2)):
        yield from _damaged_lines(file, files[file], every)
    fields = {"train.jsonl": EXAMPLE_FIELDS | TRAINING_FIELDS, "documents.jsonl": DOCUMENT_FIELDS}
    fields |= {
        "eval.jsonl": dict(list(EXAMPLE_FIELDS.items())[::3]),
        "test.jsonl": dict(list(EXAMPLE_FIELDS.items())[1::4]),
    }
    for file, damages in fields.items():
        yield from _damaged_fields(file, files[file], damages)
    for file in ("train.jsonl", "documents.jsonl"):
        yield Case(f"{file}: empty", file, b"", 0, "")
        yield Case(f"{file}: UTF-16", file, files[file].decode().encode("utf-16"), 1, "line")
        yield Case(f"{file}: compressed", file, b"\x1f\x8b\x08\x00" + files[file], 1, "line")
    for name, (lines, field) in YAML_LINES.items():
        content = files["run.yaml"] + lines.encode() + b"\n"
        last = content.count(b"\n") - (name == "a list as a name") - (name == "a second document")
        yield Case(f"run.yaml: {name}", "run.yaml", content, last, field)
    for file, wholes in (("run.yaml", YAML_WHOLE), ("run.json", JSON_WHOLE)):
        for name, (change, line) in wholes.items():
            content = change(files[file])
            last = content.count(b"\n") + (file == "run.json")
            yield Case(f"{file}: {name}", file, content, last if line < 0 else line, "line")
    for name, (extra, field) in JSON_FIELDS.items():
        content = json.dumps({**json.loads(files["run.json"]), **extra}, indent=0).encode()
        line = next(i for i, text in enumerate(content.splitlines(), 1) if f'"{field}"'.encode() in text)
        yield Case(f"run.json: {name}", "run.json", content, line, field)


def _damaged_lines(file: str, data: bytes, every: int) -> Iterator[Case]:
    for name, change in list(LINES.items())[::every]:
        lines = data.splitlines()
        lines[LINE - 1] = change(lines[LINE - 1])
        assert lines != data.splitlines(), name
        yield Case(f"{file}: {name}", file, b"\n".join(lines) + b"\n", LINE, "line")


def _damaged_fields(file: str, data: bytes, damages: dict[str, tuple[Callable[[dict], None], str]]) -> Iterator[Case]:
    for name, (change, field) in damages.items():
        rows = [json.loads(line) for line in data.splitlines()]
        change(rows[LINE - 1])
        lines = [json.dumps(row) for row in rows]
        yield Case(f"{file}: {name}", file, "\n".join(lines).encode(), LINE, field)


def run(command: list[str]) -> tuple[int | str, str, str]:
    """Exit status, standard output and standard error of a command, however it ends."""
    from transformers.utils.logging import disable_progress_bar

    from groundtune.cli import main

    disable_progress_bar()  # as in a process whose standard error has been a file from the start
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status: int | str = main(command)
        except BaseException as error:  # the user would see a traceback
            status = repr(error)
    return status, out.getvalue(), errors.getvalue()


def complaint(case: Case, folder: Path, model: Path | str, command: tuple[str, ...] = ("sft",)) -> str:
    """The problem with the reaction to one damaged file; empty if it was right. `folder` is the current folder."""
    for name, content in valid_files(model).items():
        (folder / name).write_bytes(case.content if name == case.file else content)
    begin = time.process_time()
    status, out, errors = run([*command, "--config", case.file if case.file.startswith("run.") else "run.yaml"])
    seconds = time.process_time() - begin
    lines = errors.splitlines() or [line.removeprefix("error: ") for line in out.splitlines() if line[:6] == "error:"]
    expected = ": ".join(part for part in (case.file + f":{case.line}" * bool(case.line), case.field) if part) + ": "
    problems = [
        "" if status == 2 else f"exit status {status}",
        "" if len(lines) == 1 else f"{len(lines)} lines",
        "" if lines and lines[0].startswith(expected) else f"not {expected!r}",
        "" if "; " in "".join(lines) else "no way out",
        "" if seconds < MOST_SECONDS else f"{seconds:.1f} seconds",
        "a traceback" if "Traceback" in errors + out else "",
    ]
    found = ", ".join(filter(None, problems))
    return f"{case.name}: {found}:\n{errors or out}" if found else ""


def main() -> int:
    from conftest import make_family

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_family("llama", folder / "model").folder
        next(model.glob("*.safetensors")).unlink()  # weights must never be loaded
        (folder / "data").mkdir()
        os.chdir(folder / "data")
        begin, wrong, n, slowest = time.process_time(), [], 0, 0.0
        for case in cases(model):
            before = time.process_time()
            if problem := complaint(case, folder / "data", model):
                wrong.append(problem)
            n, slowest = n + 1, max(slowest, time.process_time() - before)
        os.chdir("/")
    print(*wrong, sep="\n")
    print(
        f"{n} malformed inputs, {len(wrong)} not answered as they should be; "
        f"the slowest took {slowest:.2f} CPU seconds, all {time.process_time() - begin:.0f}"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
