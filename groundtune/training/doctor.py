"""Checks the data of a run before anything slow; used by `groundtune doctor` and at the start of every run.

Texts are checked first (`checks.py`); then, if tokenizers are given, tokens: rows over the length budget, passages that
the embedding model truncates, the lengths and ends of rows. No weights are loaded and nothing is searched.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from typing import Any, cast

from groundtune.aliases import Tokenizer
from groundtune.arguments import GOLD_FIRST, REWRITE, TAUGHT, Arguments, room_for_prompt
from groundtune.data.checks import (
    ERROR,
    NOTE,
    WARNING,
    Dataset,
    Finding,
    check_texts,
    condensed,
    in_order,
    read_dataset,
)
from groundtune.data.languages import NAMES, languages_of, limits_of
from groundtune.errors import DataError, ModelError
from groundtune.evaluation.abstention import abstains
from groundtune.methods import METHODS
from groundtune.model.loading import computes_bf16, load_tokenizer, loading_problem
from groundtune.prompts.mixing import without_gold
from groundtune.prompts.policies import draw
from groundtune.prompts.prompt import ChatPrompt, Prompt, make_prompt
from groundtune.prompts.rows import Row, encode_questions
from groundtune.retrieval.opening import evaluation_model
from groundtune.retrieval.queries import queries_of, too_long
from groundtune.retrieval.reading_limit import ReadingLimit, reading_limit, try_embedding_model
from groundtune.schema import Document, Example, Hit
from groundtune.system.model_folders import cannot_load
from groundtune.system.text import harmless, hide_secrets
from groundtune.training.labels import what_else_is_learnt

TOO_LONG = "too-long"  # the check whose findings are examples that do not fit


@dataclass(frozen=True)
class RowCounts:
    """One column of the token table: the training rows of a split. Lengths are quantiles, in tokens."""

    rows: int
    rows_shortened: int
    passages_dropped: int
    turns_dropped: int
    gold_dropped: int
    all_tokens: int
    all_answer_tokens: int
    row_tokens: dict[str, int]
    answer_tokens: dict[str, int]
    ends_on_stop_token: float
    doubled_bos: int


@dataclass(frozen=True)
class Diagnosis:
    """All findings, errors first, and the data and tokenizer that were loaded for the checks.

    `table` holds the splits that training computes a loss on; `row` is the first row of the first of them. If the
    method retrieves, rows are estimates: documents spread evenly over the database stand in for retrieved ones.
    """

    dataset: Dataset
    findings: list[Finding]
    tokenizer: Tokenizer | None = None
    prompt: Prompt | None = None
    row: Row | None = None
    table: dict[str, RowCounts] = field(default_factory=dict)
    estimated: bool = False

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == WARNING]

    @property
    def left_out(self) -> frozenset[str]:
        """File and line of the examples that `--too_long drop` or `shorten` leaves out of the run."""
        return frozenset(finding.where for finding in self.warnings if finding.check == TOO_LONG)

    def raise_errors(self) -> None:
        """Raise `DataError` with every error, if there is any."""
        if self.errors:
            raise DataError([str(finding) for finding in self.errors])

    def tokenizer_and_prompt(self) -> tuple[Tokenizer, Prompt]:
        """Both are there if a model is named and there are no errors."""
        if self.tokenizer is None or self.prompt is None:
            raise ValueError("there is no tokenizer")
        return self.tokenizer, self.prompt

    def to_dict(self) -> dict[str, Any]:
        shown = self.shown_row()
        return {
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [finding.to_dict() for finding in self.findings],
            "documents": len(self.dataset.documents),
            "examples": {split: len(examples) for split, examples in self.dataset.examples.items()},
            "token_table": {split: asdict(column) for split, column in self.table.items()},
            "token_table_is_estimated": self.estimated,
            "row": shown and dict(zip(("source", "prompt", "supervised"), shown)),
        }

    def shown_row(self) -> tuple[str, str, str] | None:
        """Source, prompt and learnt text of the first row, with special tokens shown; None without a tokenizer."""
        row, tokenizer = self.row, self.tokenizer
        if row is None or tokenizer is None:
            return None

        def spelt(ids: list[int]) -> str:
            return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        before, whole = spelt(row.prompt_ids), spelt([*row.prompt_ids, *row.answer_ids])
        # Alone, the first token of the answer would lose the space before it.
        answer = whole[len(before) :] if whole.startswith(before) else spelt(row.answer_ids)
        return row.source, before, answer


def diagnose(arguments: Arguments) -> Diagnosis:
    """Read all data files that `arguments` name, and find every problem in them."""
    dataset = read_dataset(arguments.data)
    findings = check_texts(dataset)
    findings += _texts_not_read(arguments, dataset)
    findings += _declining_answers(dataset, arguments.evaluation.abstentions)
    findings += [*_unknown_abstention(arguments), *_one_citation(arguments), *_emulated(arguments)]
    findings += _languages(arguments, dataset)
    tokenizer, prompt = None, None
    table: dict[str, RowCounts] = {}
    rows: Iterator[Row] = iter(())
    if arguments.model.model_name_or_path:
        try:
            loaded = load_tokenizer(arguments.model)
            tokenizer, prompt = loaded, make_prompt(loaded, arguments.prompt)
        except ModelError as error:
            findings.append(_of_model(str(error)))
        else:
            if problem := loading_problem(arguments.model, loaded.eos_token_id):
                findings.append(_of_model(problem))
    if tokenizer is not None and prompt is not None:
        findings += _without_bos(prompt, tokenizer)
        for split in ("train", "eval"):
            if counted := row_counts(_rows(arguments, dataset, split, prompt, findings), prompt, tokenizer):
                table[split] = counted
                findings += _wrong_rows(dataset.paths[f"{split}_file"], counted)
        findings += _questions_over_budget(arguments, dataset, prompt)
        rows = _rows(arguments, dataset, next(iter(table), "train"), prompt, [])
    findings = in_order(dict.fromkeys(findings), dataset)
    estimated = METHODS[arguments.method].searches(arguments.passages) and bool(dataset.documents)
    return Diagnosis(dataset, findings, tokenizer, prompt, next(rows, None), table, estimated)


def _of_model(problem: str) -> Finding:
    where, _, message = problem.partition(": ")
    return Finding(ERROR, "model", where, "", message)


def _declining_answers(dataset: Dataset, wordings: str) -> Iterator[Finding]:
    """Findings for answers that teach a model to abstain although the question has an answer."""
    for examples in dataset.examples.values():
        for example in examples:
            if example.answerable and abstains(example.answer, (), wordings):
                message = 'declines to answer; write "answerable": false if the documents lack the answer, or answer it'
                yield Finding(WARNING, "declining-answer", example.source, "gold_answer", message)


def _unknown_abstention(arguments: Arguments) -> Iterator[Finding]:
    """A finding if the model learns to abstain in words that an evaluation would take for an answer."""
    taught = arguments.passages.abstention
    if arguments.passages.gold_dropout and not abstains(taught, (), arguments.evaluation.abstentions):
        message = f"{taught[:60]!r} would count as an answer; add the wording to a file, and give it with --abstentions"
        yield Finding(WARNING, "unknown-abstention", "--abstention", "", message)


def _one_citation(arguments: Arguments) -> Iterator[Finding]:
    """A finding if every mark that is taught is the same: a model then cites the first passage, whatever it says."""
    flags = arguments.passages
    alone = not (METHODS[arguments.method].retrieves if flags.num_distractors is None else flags.num_distractors)
    if arguments.prompt.citations == TAUGHT and (alone or flags.passage_order == GOLD_FIRST):
        message = "gold is always the first passage, so the model learns to write ⟦1⟧ everywhere; train with others, "
        yield Finding(WARNING, "one-citation", "--citations", "", f"{message}in any order, as swr and raft do")


def _emulated(arguments: Arguments) -> Iterator[Finding]:
    """A finding if the hardware has no instructions for bfloat16: most CPUs compute it far more slowly than float32."""
    if getattr(arguments.training, "bf16", False) and not computes_bf16():
        message = "this machine has no bfloat16 instructions, so it takes several times as long as float32; give false"
        yield Finding(WARNING, "emulated-bf16", "--bf16", "", message)


def row_counts(rows: Iterable[Row], prompt: Prompt, tokenizer: Tokenizer) -> RowCounts | None:
    """The token table's column for the rows of one split, which are read as a stream; None if there are none."""
    bos = tokenizer.bos_token_id
    lengths, answers, dropped, finished, doubled = [], [], [], 0, 0
    for row in rows:
        lengths.append(len(row))
        answers.append(len(row.answer_ids))
        dropped.append(row.left_out)
        finished += bool(row.answer_ids) and row.answer_ids[-1] in prompt.stop_ids
        doubled += bos is not None and row.prompt_ids[:2] == [bos, bos]
    if not lengths:
        return None
    return RowCounts(
        rows=len(lengths),
        rows_shortened=sum(map(bool, dropped)),
        passages_dropped=sum(left_out.retrieved for left_out in dropped),
        turns_dropped=sum(left_out.turns for left_out in dropped),
        gold_dropped=sum(left_out.gold for left_out in dropped),
        all_tokens=sum(lengths),
        all_answer_tokens=sum(answers),
        row_tokens=_quantiles(lengths),
        answer_tokens=_quantiles(answers),
        ends_on_stop_token=finished / len(lengths),
        doubled_bos=doubled,
    )


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values)
    shares = {"10 %": 0.1, "median": 0.5, "90 %": 0.9, "longest": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items()}


def _rows(arguments: Arguments, dataset: Dataset, split: str, prompt: Prompt, findings: list[Finding]) -> Iterator[Row]:
    """The rows that fit into the length budget; the others become findings."""
    method, k, flags = METHODS[arguments.method], arguments.retrieval.embedding_max_num_to_retrieve, arguments.passages
    data, train = arguments.data, split == "train"
    limits = (prompt, data.max_seq_length, data.too_long == "shorten")
    draws = method.draws(flags, k, dataset.documents, keep_gold=not train)
    with_gold = method.draws(flags, k, dataset.documents, keep_gold=True)
    searched = flags.searched(k) if method.searches(flags) else 0
    for i, example in enumerate(dataset.examples.get(split, [])):
        hits, rng = _stand_ins(dataset.documents, i, searched), partial(draw, arguments.training.seed, 0, i)
        try:
            if train and flags.gold_dropout and example.has_evidence:  # an epoch may draw either row
                gold = tuple(passage for passage in with_gold(example, hits, rng())[1] if not passage.droppable)
                method.encode([example, without_gold(example, flags.abstention)], [gold, ()], *limits)
            drawn, passages = draws(example, hits, rng())
            (row,) = method.encode([drawn], [passages], *limits)
        except DataError as error:
            findings += _too_long(error, example, "row", data.too_long)
            continue
        if (learnt := what_else_is_learnt(row, row.answer or drawn.answer, prompt)) is not None:
            message = f"would teach {learnt[:60]!r} instead of the gold answer; correct the chat template"
            findings.append(Finding(ERROR, "other-answer", example.source, "row", message))
        yield row


def _stand_ins(documents: Sequence[Document], i: int, k: int) -> tuple[Hit, ...]:
    """`k` documents spread over the database in place of the retrieved ones: only their lengths matter here."""
    n = len(documents)
    return tuple(Hit(documents[(i + j * n // k) % n], 0.0) for j in range(k if n else 0))


def _too_long(error: DataError, example: Example, name: str, consequence: str) -> list[Finding]:
    severity, left_out = (ERROR, "") if consequence == "error" else (WARNING, "; left out")
    return [
        Finding(severity, TOO_LONG, example.source, name, problem.removeprefix(f"{example.source}: ") + left_out)
        for problem in error.problems
    ]


def _questions_over_budget(arguments: Arguments, dataset: Dataset, prompt: Prompt) -> Iterator[Finding]:
    """Findings for questions that are too long, and for gold answers that are longer than generated ones can be."""
    limit, data = arguments.evaluation.max_new_tokens, arguments.data
    room = room_for_prompt(data.max_seq_length, limit)
    for split in ("eval", "test"):
        for example in dataset.examples.get(split, []):
            try:
                encode_questions([example], [()], prompt, room, data.too_long == "shorten")
            except DataError as error:
                yield from _too_long(error, example, "question", data.too_long)
            if (length := len(prompt.answer_ids(example.answer))) > limit:
                message = (
                    f"has {length} tokens, but answers are cut off at {limit}; raise --max_new_tokens or shorten it"
                )
                yield Finding(WARNING, "long-answer", example.source, "gold_answer", message, length)


def _wrong_rows(path: str, column: RowCounts) -> Iterator[Finding]:
    """Findings for rows that the chat template spoils: without an end token, the model never learns to stop."""
    unfinished = round((1 - column.ends_on_stop_token) * column.rows)
    if unfinished:
        message = f"{unfinished} of {column.rows} rows do not end with an end token; correct the chat template"
        yield Finding(ERROR, "unfinished-row", path, "row", message)
    if column.doubled_bos:
        message = (
            f"{column.doubled_bos} of {column.rows} rows begin with two BOS tokens; remove one from the chat template "
            "or from --instruction"
        )
        yield Finding(ERROR, "doubled-bos", path, "row", message)


def _without_bos(prompt: Prompt, tokenizer: Tokenizer) -> Iterator[Finding]:
    """A finding if rows lack a BOS token that the model may have been trained with."""
    if isinstance(prompt, ChatPrompt) and prompt.lacks_bos:
        message = (
            f"the tokenizer begins a text with {tokenizer.bos_token}, but the chat template does not, so neither do "
            "rows and prompts, here as in transformers and on servers; add {{ bos_token }} to the template if the "
            "model was trained with it"
        )
        yield Finding(WARNING, "no-bos", "--model_name_or_path", "", message)


def _texts_not_read(arguments: Arguments, dataset: Dataset) -> Iterator[Finding]:
    """Findings for documents and queries that an embedding model of this run would truncate."""
    retrieval, method = arguments.retrieval, METHODS[arguments.method]
    if retrieval.retriever == "bm25":
        return
    flags = {getattr(retrieval, flag): flag for flag in ("eval_embedding_model", "embedding_model")}
    for name, flag in flags.items():
        if not name:
            continue
        try:
            limit = reading_limit(name, retrieval.document_prompt, retrieval.query_prompt)
            try_embedding_model(name)
        except Exception as error:  # libraries raise many types, even bare exceptions for a damaged file
            yield Finding(ERROR, "model", f"--{flag}", "", cannot_load(name, error))
            continue
        if limit is not None and dataset.documents:
            yield from _passages_not_read(limit, dataset)
            evaluates = name == evaluation_model(retrieval)
            trains = method.searches(arguments.passages) and flag == "embedding_model"
            searched = {"train": trains, "eval": evaluates or trains, "test": evaluates}
            for split, examples in dataset.examples.items():
                if searched[split]:
                    yield from _queries_not_read(limit, examples, retrieval.query_history)


def _passages_not_read(limit: ReadingLimit, dataset: Dataset) -> Iterator[Finding]:
    for i, tokens in limit.too_long([document.text for document in dataset.documents]).items():
        name_of_field = "fmt_content" if dataset.documents[i].fmt_content.strip() else "page_content"
        message = (
            f"has {tokens} tokens, but {limit.name} reads only {limit.max_tokens}; split it, or a search will not see "
            "its end"
        )
        yield Finding(WARNING, "long-passage", dataset.document_places[i], name_of_field, message, tokens)


def _queries_not_read(limit: ReadingLimit, examples: Sequence[Example], history: str) -> Iterator[Finding]:
    queries = queries_of(examples, "none" if history == REWRITE else history)
    for i, tokens in too_long(queries, limit).items():
        alone = limit.length_of_query(queries[i].question) > limit.max_tokens
        where, lost = ("question", "middle") if alone else ("chat_history", "beginning")
        message = (
            f"makes a search query of {tokens} tokens, but {limit.name} reads only {limit.max_tokens}; its {lost} is "
            "left out of the search, which --query_history none or --retriever bm25 avoids"
        )
        yield Finding(WARNING, "long-query", examples[i].source, where, message, tokens)


def _languages(arguments: Arguments, dataset: Dataset) -> Iterator[Finding]:
    """A note for each language in which some score cannot be measured as in English; rare ones are not mentioned."""
    files = {"full_dataset_file_path": [document.text for document in dataset.documents]}
    files |= {f"{split}_file": [example.answer for example in found] for split, found in dataset.examples.items()}
    unanswerable = any(not example.answerable for found in dataset.examples.values() for example in found)
    unanswerable = unanswerable or bool(arguments.passages.gold_dropout)
    told: set[str] = set()
    for flag, texts in files.items():
        some = texts[:: max(1, len(texts) // _SAMPLE)]
        for language, count in languages_of(text[:_BEGINNING] for text in some).most_common():
            limits = limits_of(language, arguments.retrieval.retriever != "dense", unanswerable)
            if limits and language not in told and count >= 0.1 * len(some):
                told.add(language)
                message = f"contains {NAMES[language]}: {'; '.join(limits)}"
                yield Finding(NOTE, "language", dataset.paths[flag], "", message)


_SAMPLE, _BEGINNING = 200, 1000  # texts of a file whose language is found out, and characters of each


# Display


def shown(diagnosis: Diagnosis, cost: str = "", brief: bool = False) -> str:
    """Token table, one row with the learnt text marked, cost, all findings, their number; `brief`: the last two only.

    Frequent warnings of one kind become a single line per file.
    """
    lines = condensed(diagnosis.findings, diagnosis.dataset)
    told = summary(diagnosis)
    if len(lines) < len(diagnosis.findings):
        told += "\n--json lists every warning that is summarised here"
    blocks = [] if brief else [_token_table(diagnosis), _marked(diagnosis.shown_row()), cost]
    return harmless("\n\n".join(filter(None, [*blocks, "\n".join(lines), told])))


def summary(diagnosis: Diagnosis) -> str:
    """The number of errors and warnings, and the data that was checked."""
    documents = len(diagnosis.dataset.documents)
    read = [f"{documents:,} documents"] if documents else []
    read += [f"{len(examples):,} {split} examples" for split, examples in diagnosis.dataset.examples.items()]
    kinds = {"error": diagnosis.errors, "warning": diagnosis.warnings}
    numbers = [f"{len(found):,} {kind}{'' if len(found) == 1 else 's'}" for kind, found in kinds.items() if found]
    return f"{' and '.join(numbers) or 'no problems'} in {', '.join(read) or 'no data'}"


def _token_table(diagnosis: Diagnosis) -> str:
    """The token table with a column per split; empty without rows."""
    columns = diagnosis.table.values()
    if not columns:
        return ""
    lines = {
        "training rows": list(diagnosis.table),
        "rows": [f"{c.rows:,}" for c in columns],
        "rows shortened": [f"{c.rows_shortened:,}" for c in columns],
        "retrieved passages dropped": [f"{c.passages_dropped:,}" for c in columns],
        "history turns dropped": [f"{c.turns_dropped:,}" for c in columns],
        "gold passages dropped": [f"{c.gold_dropped:,}" for c in columns],
    }
    for name in ("10 %", "median", "90 %", "longest"):
        lines[f"tokens in a row, {name}"] = [f"{c.row_tokens[name]:,}" for c in columns]
    for name in ("10 %", "median", "90 %", "longest"):
        lines[f"tokens in an answer, {name}"] = [f"{c.answer_tokens[name]:,}" for c in columns]
    lines["rows ending with an end token"] = [f"{100 * c.ends_on_stop_token:.0f} %" for c in columns]
    lines["rows beginning with two BOS"] = [f"{c.doubled_bos:,}" for c in columns]
    table = "\n".join(f"{name:<32}" + "".join(f"{cell:>9}" for cell in cells) for name, cells in lines.items())
    note = "\n(estimated: documents sampled across the database stand in for the retrieved ones)"
    apart = "\n(--passage_attention block: a passage reads the instruction and itself, and is computed once per batch)"
    blocks = diagnosis.prompt and diagnosis.prompt.blocks
    return table + (note if diagnosis.estimated else "") + (apart if blocks else "")


def _marked(row: tuple[str, str, str] | None) -> str:
    return f"{row[0]} as a row; the model learns the text between >>> and <<<:\n{row[1]}>>>{row[2]}<<<" if row else ""


def doctor_command(arguments: Arguments) -> str:
    """The `groundtune doctor` command for these arguments, with every flag that is not at its default."""
    words = ["groundtune", "doctor", arguments.method]
    of_method = METHODS[arguments.method].defaults
    groups = ("data", "retrieval", "passages", "prompt", "model", "evaluation")
    for group in (getattr(arguments, name) for name in groups):
        for one in fields(group):
            default = of_method.get(one.name, one.default if one.default_factory is MISSING else one.default_factory())
            value = getattr(group, one.name)
            if value != default and value is not None:
                words += [f"--{one.name}", *map(str, value if isinstance(value, list) else [value])]
    return hide_secrets(shlex.join(words))
