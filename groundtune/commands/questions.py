"""`groundtune questions`: documents.jsonl -> train, eval and test.jsonl by an LLM."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.arguments import DataArguments, RetrievalArguments, check_model_name, check_retrieval, too_small
from groundtune.commands.flags import add_group, filled
from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, progress, show
from groundtune.data.files import in_the_way
from groundtune.errors import DataError, ModelError
from groundtune.evaluation.arguments import SERVER, GeneratorArguments
from groundtune.model.endpoint import is_server, server_problems
from groundtune.prepare.split import share_problems
from groundtune.runs.remembered import base_not_followed
from groundtune.system.locks import alone
from groundtune.system.outputs import links_at
from groundtune.system.signals import Stopped
from groundtune.system.text import hide_secrets

if TYPE_CHECKING:
    from groundtune.model.generators import Writer
    from groundtune.prepare.gates import GateResult
    from groundtune.prepare.given import Given
    from groundtune.prepare.journal import Journal
    from groundtune.prepare.questions import Sampled, Settings
    from groundtune.retrieval.retrievers import Retriever
    from groundtune.schema import Document

    Load = Callable[[str, str, str], Writer]  # name, model and options -> who writes
    Work = Sampled | Given

logger = logging.getLogger(__name__)
REVIEW = "review.md"
_PROMPTS = {"question_prompt": "questions.txt", "answer_prompt": "answer.txt", "support_prompt": "support.txt"}

LEFT = "documents_left.jsonl"  # documents without those that were taken away from unanswerable questions

# Name, help, default, type.
_SETTINGS: tuple[tuple[str, str, Any, type], ...] = (
    ("passages", "number of passages to sample", 200, int),
    ("questions_per_passage", "questions per passage", 2, int),
    ("min_words", "minimum number of words in a passage", 30, int),
    ("min_support", "lexical: minimum share of an answer's words that must be in its passage", 0.6, float),
    (
        "retrieved_within",
        "a question must find its passage among this many first search results; 0: a quarter of the "
        "square root of the number of documents, at most 20",
        0,
        int,
    ),
    ("passages_tried", "with --questions: passages, best first, that may answer a question", 3, int),
    ("hard_negatives", "hard negatives to keep per question: retrieved passages without the answer", 2, int),
    ("eval_share", "share of the passages for eval.jsonl", 0.1, float),
    ("test_share", "share of the passages for test.jsonl", 0.1, float),
    (
        "unanswerable_share",
        "share of the questions that lose all passages with their answer, and are to be declined "
        f"with the documents in {LEFT}",
        0.0,
        float,
    ),
    ("max_new_tokens", "maximum tokens per reply", 256, int),
    ("seed", "random seed for sample and split", 0, int),
    ("batch_size", "batch size of a locally loaded model", 8, int),
)
_RETRIEVAL = [
    "embedding_model", "embedding_server_model",
    "retriever", "query_prompt", "document_prompt", "embedding_batch_size", "embedding_dtype",
]  # fmt: skip
_HELPS = {
    "embedding_model": "Embedding model (hub name or folder) for finding the passages of a question. Default: BM25.",
    "retriever": "Retrieval method. (default: mix with an embedding model, else bm25)",
}
_AT_LEAST_ONE = ("passages", "questions_per_passage", "passages_tried", "max_new_tokens", "batch_size")


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = data_parser(
        "questions",
        "DOCUMENTS -o DIR --generator MODEL [--FLAG VALUE ...]",
        "Let an LLM write questions about passages of a document database and answer them from those passages.\n"
        "Replies are saved as they arrive: the same command continues where it was stopped. Writes train, eval and\n"
        "test.jsonl, and rejected.jsonl with the questions that failed a quality gate, and why.",
        "groundtune questions documents.jsonl -o qa/ --generator openai:http://localhost:8000/v1 \\\n"
        "      --generator_model Qwen/Qwen3-8B",
    )
    made.add_argument("documents", type=Path, help="the document database")
    made.add_argument("-o", "--output_dir", type=Path, required=True, metavar="DIR", help="output folder")
    made.add_argument(
        "--generator",
        required=True,
        help="a model folder or hub name, or openai:URL of a server; the API key is read from GROUNDTUNE_API_KEY, else "
        "OPENAI_API_KEY",
    )
    made.add_argument("--generator_model", default="", help="with openai:URL, the name of the model on the server")
    made.add_argument(
        "--generator_options",
        default="",
        metavar="JSON",
        help='extra fields for every request to a server; {"chat_template_kwargs": {"enable_thinking": false}} turns '
        "reasoning off",
    )
    made.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="answer these questions instead of writing some: a text with one on each line, or JSONL with question; "
        "each is answered from a passage that a search finds for it",
    )
    made.add_argument(
        "--review",
        action="store_true",
        default=False,
        help=f"stop before the split, and write DIR/{REVIEW} for a person to edit",
    )
    made.add_argument(
        "--resume", action="store_true", default=False, help=f"split the questions in the edited DIR/{REVIEW}"
    )
    made.add_argument("--question_prompt", type=Path, metavar="FILE", help="text file with {passage} and {number}")
    made.add_argument("--answer_prompt", type=Path, metavar="FILE", help="text file with {passage} and {question}")
    made.add_argument(
        "--support",
        choices=["lexical", "llm", "both"],
        default="lexical",
        help="how to check that a passage supports an answer: by shared words, by an LLM, or both (default: lexical)",
    )
    made.add_argument(
        "--checker", default="", help="the LLM that checks, in the form of --generator (default: the generator)"
    )
    made.add_argument("--checker_model", default="", help="with openai:URL, the name of the checker on the server")
    made.add_argument("--checker_options", default="", metavar="JSON", help="like --generator_options, for --checker")
    made.add_argument(
        "--support_prompt", type=Path, metavar="FILE", help="text file with {passage}, {question} and {answer}"
    )
    add_group(made, DataArguments, ["full_dataset_index_path"])
    add_group(made, RetrievalArguments, _RETRIEVAL, _HELPS)
    add_group(made, GeneratorArguments, SERVER)
    for name, text, value, kind in _SETTINGS:
        made.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default: {value})")
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` for problems that the user can fix."""
    arguments = argparse.Namespace(**given(parser(), argv))
    arguments.review = arguments.review and not arguments.resume  # which also follows a file of arguments
    if problems := _problems(arguments):
        raise DataError(problems)

    from groundtune.data.files import read_documents
    from groundtune.prepare import gates, questions
    from groundtune.prepare.given import find, left_out

    documents = read_documents(arguments.documents)
    settings = _settings(arguments, len(documents))
    subjects = _subjects(arguments, settings, documents)
    settings = replace(settings, **_packaged_prompts(arguments, settings))
    with alone(arguments.output_dir):  # otherwise two commands would pay for the same replies
        journal = questions.open_journal(arguments.output_dir, settings, _called(*_generator(arguments)))
        retriever = _retriever(arguments, documents)
        work = find(subjects[0], settings, retriever) if arguments.questions else questions.Sampled(subjects[1])
        with _kept(journal):
            failures = [] if arguments.resume else _ask(arguments, settings, work, journal)
            result = gates.judge(work.asked(journal), settings, journal, retriever)
        result.counts["passages"] = len(work.read(journal))
        if arguments.resume:
            result = _reviewed(arguments, settings, result, documents, retriever)
        elif arguments.review and (result.kept or result.rejected):
            return _stop_for_review(arguments, argv, result, work.read(journal), failures)
        if not result.counts["kept"]:
            raise DataError([*(left_out(result) if arguments.questions else []), *gates.why_none(result, failures)])
        unanswerable = _unanswerable(arguments, result, documents)
        empty = gates.write(result, arguments.output_dir)
    written = f"Wrote {result.counts['kept']:,} examples to {arguments.output_dir}"
    _show(arguments, result, failures, empty, [*_not_read(arguments), *unanswerable, written])
    return 0


def _unanswerable(arguments: argparse.Namespace, result: GateResult, documents: Sequence[Document]) -> list[str]:
    """Make a share of the questions unanswerable, if that is asked for, and write the documents that are left."""
    if not arguments.unanswerable_share:
        return []

    from groundtune.data.files import write_documents
    from groundtune.prepare.unanswerable import take_answers_away

    found = take_answers_away(result.splits, documents, arguments.unanswerable_share, arguments.seed)
    result.splits, result.counts["unanswerable"] = found.splits, found.unanswerable
    left = arguments.output_dir / LEFT
    write_documents(left, found.documents)
    return [f"{found.note}; give the others, in {left}, as --full_dataset_file_path"]


def _show(
    arguments: argparse.Namespace, result: GateResult, failures: Sequence[str], empty: Sequence[str],
    last: Sequence[str],
) -> None:  # fmt: skip
    from groundtune.prepare import gates
    from groundtune.prepare.given import left_out

    splits = {name: len(examples) for name, examples in result.splits.items()}
    summary = {"counts": result.counts, "splits": splits, "failed_requests": len(failures)}
    summary |= {"reviewed": result.reviewed} if result.reviewed else {}
    notes = [*(left_out(result) if arguments.questions else []), *gates.notes(result, failures, empty), *last]
    show(summary, gates.summary_table(result, arguments.review), notes, arguments)


def _subjects(
    arguments: argparse.Namespace, settings: Settings, documents: Sequence[Document]
) -> tuple[list[str], list[Document]]:
    """The given questions, or else the passages to write questions about."""
    from groundtune.prepare.given import read_questions
    from groundtune.prepare.questions import sample_passages

    if arguments.questions:
        return read_questions(arguments.questions), []
    if not (passages := sample_passages(documents, settings)):
        raise DataError([f"{arguments.documents}: no passage has {settings.min_words} words; lower --min_words"])
    return [], passages


@contextmanager
def _kept(journal: Journal) -> Iterator[None]:
    """Inside, a signal that ends the command also reports what is kept."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as stopped:
        number = len(journal.rows)
        kept = f"; {number:,} replies are in {journal.path}, and the same command continues" if number else ""
        raise Stopped(getattr(stopped, "signum", signal.SIGINT), kept) from None


def _stop_for_review(
    arguments: argparse.Namespace, argv: Sequence[str], result: GateResult, passages: Sequence[Document],
    failures: Sequence[str],
) -> int:  # fmt: skip
    """Write the file for a person, and print the command that continues after that."""
    from groundtune.prepare import review

    path = arguments.output_dir / REVIEW
    words = ["groundtune", "questions", *(word for word in argv if word != "--review"), "--resume"]
    command = hide_secrets(shlex.join(words))
    review.write(result, passages, path, command)
    left = sum(bool(row["passage"]) for row in result.rejected)
    about = f"questions that passed the gates: {len(result.kept):,}, and rejected ones: {left:,}"
    last = [f"Wrote {path} ({about}); edit it, then continue with", command]
    _show(arguments, result, failures, [], last)
    return 0


def _reviewed(
    arguments: argparse.Namespace, settings: Settings, result: GateResult, documents: Sequence[Document],
    retriever: Retriever,
) -> GateResult:  # fmt: skip
    from groundtune.prepare import review

    entries = review.read(arguments.output_dir / REVIEW, documents)
    return review.apply(result, entries, settings, retriever)


def _not_read(arguments: argparse.Namespace) -> list[str]:
    """A note on a file for a review that had no part in the examples."""
    path = arguments.output_dir / REVIEW
    return [] if arguments.resume or not path.exists() else [f"{path} was not read; --resume reads it"]


def _settings(arguments: argparse.Namespace, documents: int) -> Settings:
    """The settings with the user's own prompts; of the others, `_packaged_prompts` decides."""
    from groundtune.prepare.questions import Settings, found_within, read_prompt

    read = {flag: read_prompt(path, name) for flag, name in _PROMPTS.items() if (path := getattr(arguments, flag))}
    within = arguments.retrieved_within or found_within(documents)
    own: dict[str, Any] = {
        **dict.fromkeys(_PROMPTS, ""),
        **read,
        "checker": _called(*_checker(arguments)) if arguments.checker or arguments.checker_model else "",
        "one_line_answers": False,
        "retrieved_within": max(within, arguments.passages_tried if arguments.questions else 0),
    }
    return Settings(**own, **{f.name: getattr(arguments, f.name) for f in fields(Settings) if f.name not in own})


def _packaged_prompts(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """The packaged prompts that are used, with examples for a model without a chat template."""
    from groundtune.prepare.questions import read_prompt

    checks = arguments.support != "lexical"
    who = dict.fromkeys(_PROMPTS, ("generator", arguments.generator))
    who["support_prompt"] = ("checker" if arguments.checker else "generator", _checker(arguments)[0])
    missing = [flag for flag in _PROMPTS if not getattr(settings, flag)]
    by_example = [flag for flag in missing if (checks or flag != "support_prompt") and _lacks_template(*who[flag])]
    prompts = {flag: read_prompt(None, _PROMPTS[flag], flag in by_example) for flag in missing}
    return {**prompts, "one_line_answers": "answer_prompt" in by_example}


@cache
def _lacks_template(flag: str, name: str) -> bool:
    """Whether a model is loaded here and has no chat template; a server applies one itself."""
    if is_server(name):
        return False
    from groundtune.model.opening import writing_model

    try:
        lacks = not writing_model(name, bf16=False).open_tokenizer().chat_template
    except ModelError as error:
        raise ModelError(str(error).replace("--model_name_or_path", f"--{flag}")) from error
    if lacks:
        logger.info("%s has no chat template, so the built-in prompts for it contain examples", name)
    return lacks


def _ask(arguments: argparse.Namespace, settings: Settings, work: Work, journal: Journal) -> list[str]:
    """Ask for everything that the journal lacks; returns why requests failed."""
    from groundtune.prepare import questions, support

    load = _loader(arguments)
    with progress(arguments.quiet or arguments.json) as bars:
        who, checker = _generator(arguments), _checker(arguments)
        ask = questions.Asker(
            lambda: load(*who), journal, settings.max_new_tokens, _prompts_per_batch(who[0], arguments), bars.at
        )
        check = replace(ask, load=lambda: load(*checker), batch=_prompts_per_batch(checker[0], arguments))
        used = settings.support != "lexical"
        work.write(settings, ask, lambda asked: support.check_support(asked, settings, check) if used else None)
    return ask.failures


def _generator(arguments: argparse.Namespace) -> tuple[str, str, str]:
    """The generator: its name, its name on the server, and the options of every request."""
    return arguments.generator, arguments.generator_model, arguments.generator_options


def _checker(arguments: argparse.Namespace) -> tuple[str, str, str]:
    """The same for the model that checks support: a separate one, or another model on the generator's server."""
    if arguments.checker:
        return arguments.checker, arguments.checker_model, arguments.checker_options
    return arguments.generator, arguments.checker_model or arguments.generator_model, arguments.generator_options


def _called(name: str, model: str, options: str) -> str:
    """The generator's name in the journal, without the server's address, which may change."""
    return f"{model or name} {options}".strip()


def _prompts_per_batch(name: str, arguments: argparse.Namespace) -> int:
    """Number of prompts sent to a generator at a time; replies are saved after each batch."""
    return 4 * _server(arguments).concurrency if is_server(name) else arguments.batch_size


def _loader(arguments: argparse.Namespace) -> Load:
    """A function that loads a generator at its first use, and releases it when another one is needed.

    A run that only changes the gates needs no generator.
    """

    @lru_cache(maxsize=1)
    def load(name: str, model: str, options: str) -> Writer:
        from transformers.utils.logging import disable_progress_bar

        from groundtune.model.opening import open_writer

        disable_progress_bar()  # it would overwrite the progress bar of the questions
        return open_writer(name, model, options, batch_size=arguments.batch_size, **_server(arguments).limits)

    return load


def _problems(arguments: argparse.Namespace) -> list[str]:
    least = dict.fromkeys(_AT_LEAST_ONE, 1)
    problems = [
        f"--{name}: is {value}; give {least.get(name, 0)} or more"
        for name, *_ in _SETTINGS
        if not (value := getattr(arguments, name)) >= least.get(name, 0)  # `not >=` also catches NaN
    ]
    if arguments.support == "lexical":
        unused = [
            name
            for name in ("checker", "checker_model", "checker_options", "support_prompt")
            if getattr(arguments, name)
        ]
        problems += [f"--{name}: has no effect with --support lexical; use --support llm or both" for name in unused]
    if arguments.questions and arguments.question_prompt:
        problems.append("--question_prompt: has no effect with --questions; remove one of them")
    problems += in_the_way("output_dir", arguments.output_dir, folder=True)
    written = [*(f"{name}.jsonl" for name in ("generated", "train", "eval", "test", "rejected")), REVIEW, LEFT]
    problems += links_at((arguments.output_dir / name for name in written), "output_dir")
    problems += _review_problems(arguments)
    problems += share_problems(arguments.eval_share, arguments.test_share)
    if arguments.unanswerable_share >= 1:
        problems.append(f"--unanswerable_share: {arguments.unanswerable_share} is not below 1; use a value such as 0.2")
    problems += check_retrieval(_retrieval(arguments)) + too_small(_server(arguments).least)
    for flag, (name, model, options) in {"generator": _generator(arguments), "checker": _checker(arguments)}.items():
        asked = flag == "generator" or arguments.support != "lexical"
        if asked and is_server(name):
            problems += server_problems(flag, name, model, options)
        elif asked:
            problems += [*check_model_name(flag, name), *base_not_followed(flag, name)]
    return problems


def _review_problems(arguments: argparse.Namespace) -> list[str]:
    path = arguments.output_dir / REVIEW
    if arguments.review and path.exists():
        return [f"--review: {path} is there already, and may have been edited; use --resume, or delete it"]
    if arguments.resume and not path.exists():
        return [f"--resume: {path} is missing; write it with --review"]
    return []


def _retriever(arguments: argparse.Namespace, documents: Sequence[Document]) -> Retriever:
    from groundtune.retrieval.opening import index_folder, open_retriever

    data = DataArguments(
        full_dataset_file_path=str(arguments.documents), full_dataset_index_path=arguments.full_dataset_index_path or ""
    )
    return open_retriever(_retrieval(arguments), documents, index_folder(data))


def _server(arguments: argparse.Namespace) -> GeneratorArguments:
    """The arguments for requests to a server."""
    given = {name: value for name in SERVER if (value := getattr(arguments, name)) is not None}
    return filled(GeneratorArguments, given)


def _retrieval(arguments: argparse.Namespace) -> RetrievalArguments:
    """The retrieval arguments; BM25 if no embedding model is given."""
    given = {name: value for name in _RETRIEVAL if (value := getattr(arguments, name)) is not None}
    without = {} if "embedding_model" in given else {"retriever": "bm25"}
    return RetrievalArguments(**without | given)
