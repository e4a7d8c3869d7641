"""A dialogue about the documents: question -> passages and answer, with the same retriever and prompt as evaluation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from groundtune.arguments import OFF, TAUGHT, PromptArguments, room_for_prompt
from groundtune.data.files import read_documents
from groundtune.errors import DataError
from groundtune.evaluation.arguments import MODEL, InferenceArguments
from groundtune.evaluation.citations import Marked
from groundtune.model.endpoint import Endpoint
from groundtune.prompts.policies import Passages, kept, retrieved_passages
from groundtune.prompts.prompt import Prompt, chat_messages, make_prompt, to_continue
from groundtune.prompts.rows import Question, encode_questions
from groundtune.retrieval.opening import index_folder, open_retriever
from groundtune.retrieval.retrievers import Retriever, Rewrite, retrieve
from groundtune.retrieval.rewriting import open_rewriter
from groundtune.schema import ASSISTANT, USER, Document, Example, Hit, Sampling, Turn, Words
from groundtune.serving.telling import Manner, Told, noted, told_of, withholding
from groundtune.system.text import encodable, one_line

Write = Callable[[Example, Passages], tuple[Sequence[Document], Words]]
_NAMES = ("title", "source", "url", "id")  # metadata keys; the first one present is used
_UNITS = {"sheet": "sheet", "number": "passage"}


@dataclass(frozen=True)
class Source:
    """A passage that the answer is based on; `score` is the retriever's."""

    document: Document
    score: float

    @property
    def title(self) -> str:
        """The title from the metadata, with the section; else the beginning of the text."""
        metadata = self.document.metadata
        name = next((metadata[key] for key in _NAMES if metadata.get(key)), "")
        parts = [name or self.document.text[:70], metadata.get("section")]
        return " > ".join(one_line(part) for part in parts if part)

    @property
    def file(self) -> str:
        """The file or address that the passage is from; empty if its metadata name none."""
        metadata = self.document.metadata
        return next((one_line(metadata[key]) for key in ("url", "source") if metadata.get(key)), "")

    @property
    def page(self) -> int | str | None:
        """The page of that file, or its sheet; None if the metadata name none."""
        metadata = self.document.metadata
        page = next((metadata[key] for key in ("page", "sheet") if metadata.get(key)), None)
        return page if isinstance(page, int) or page is None else one_line(page)

    @property
    def place(self) -> str:
        """Where the passage comes from, if not part of the title: file, and PDF sheet or passage number."""
        metadata = self.document.metadata
        source = metadata.get("source") if metadata.get("title") else ""
        number = next((f"{unit} {metadata[key]}" for key, unit in _UNITS.items() if metadata.get(key)), "")
        return ", ".join(one_line(part) for part in (source, number) if part)


def sources_of(read: Sequence[Document], hits: Sequence[Hit]) -> list[Source]:
    """The passages that were read, with the scores of the search."""
    scores = {hit.document.id: hit.score for hit in reversed(hits)}  # if a text was found twice, the better score
    return [Source(document, scores[document.id]) for document in read]


@dataclass
class Dialogue:
    """A dialogue; each question is asked with the earlier turns.

    `write` answers an example from retrieved passages: it returns the passages in the prompt, and an iterator over
    the words. `told` is the last answer as a whole.
    """

    retriever: Retriever
    k: int
    query_history: str
    write: Write
    turns: list[Turn] = field(default_factory=list)
    manner: Manner = Manner()
    told: Told = Told(Marked(""))
    rewrite: Rewrite | None = None

    @property
    def cites(self) -> bool:
        return self.manner.citations != OFF

    def ask(self, question: str) -> tuple[list[Source], Iterator[str]]:
        """The sources, and the answer's words as they arrive; both turns are recorded after the last word.

        Raises `DataError` if the question is not text, or leaves no room for an answer with the earlier turns.
        """
        if not encodable(question):  # bytes of a terminal, a pipe or a command line
            raise DataError(["your question: is not valid UTF-8; type it again, or save the file in UTF-8"])
        example = Example(question, "", (), tuple(self.turns), source="your question")
        hits = retrieve(self.retriever, [example], self.k, self.query_history, self.rewrite)[0]
        read, words = self.write(example, retrieved_passages(example, hits))
        return sources_of(read, hits), self._kept(question, withholding(words, hits, self.manner.least), read)

    def _kept(self, question: str, words: Words, read: Sequence[Document]) -> Iterator[str]:
        said: list[str] = []
        ended = yield from noted(words, said)
        self.told = told_of("".join(said), ended, read, self.manner.citations)
        self.turns += [Turn(USER, question), Turn(ASSISTANT, self.told.said.answer)]


def open_dialogue(arguments: InferenceArguments) -> Dialogue:
    """Open documents, retriever and model for a dialogue.

    Raises `DataError`, `ModelError` or `EndpointError` for problems that the user can fix.
    """
    retrieval, folder = arguments.retrieval, index_folder(arguments.data)
    manner = Manner(arguments.prompt.citations, arguments.least(MODEL))  # what is wrong with it is known first
    rewriter = open_rewriter(arguments.searching, folder)
    retriever = open_retriever(retrieval, read_documents(arguments.data.full_dataset_file_path), folder)
    return Dialogue(
        retriever,
        retrieval.eval_num_to_retrieve,
        retrieval.query_history,
        _writer(arguments),
        manner=manner,
        rewrite=rewriter.queries if rewriter else None,
    )


def _writer(arguments: InferenceArguments) -> Write:
    new = arguments.evaluation.max_new_tokens
    if arguments.api == "chat":
        endpoint, flags = arguments.generator_endpoint(), arguments.prompt
        return lambda example, passages: by_chat(endpoint, flags, example, passages, new)
    opening = arguments.answering_model()
    tokenizer = opening.open_tokenizer()
    prompt = make_prompt(tokenizer, arguments.prompt)
    room = room_for_prompt(arguments.data.max_seq_length, new)
    if arguments.api == "completions":
        server = arguments.generator_endpoint()
        return lambda example, passages: by_completions(server, prompt, fitted(example, passages, prompt, room), new)
    from groundtune.model.generators import LocalModel  # here, because it imports torch, which a server does not need
    from groundtune.model.kv_cache import MB, PassageCache

    kept_passages = PassageCache(arguments.evaluation.passage_cache * MB)
    model = opening.open(prompt, tokenizer.pad_token_id)
    local = LocalModel(model, tokenizer, opening.bf16, kept=kept_passages)

    def here(example: Example, passages: Passages) -> tuple[Sequence[Document], Words]:
        question = fitted(example, passages, prompt, room)
        return question.read, local.stream(prompt, question.prompt_ids, new, question.borders)

    return here


def by_chat(
    endpoint: Endpoint, flags: PromptArguments, example: Example, passages: Passages, new: int,
    sampling: Sampling | None = None,
) -> tuple[Sequence[Document], Words]:  # fmt: skip
    """All passages, and the answer of a server that gets messages and writes the prompt."""
    read, cites = kept(passages), flags.citations == TAUGHT
    messages = chat_messages(flags.instruction, read, example.chat_history, example.question, cites)
    return read, endpoint.stream(messages, new, sampling)


def by_completions(
    endpoint: Endpoint, prompt: Prompt, question: Question, new: int, sampling: Sampling | None = None
) -> tuple[Sequence[Document], Words]:
    """The passages in the prompt of a question, and the answer of a server that gets the prompt."""
    words = endpoint.stream_prompt(question.prompt_ids, new, **to_continue(prompt), sampling=sampling)
    return question.read, words


def fitted(example: Example, passages: Passages, prompt: Prompt, room: int) -> Question:
    """The prompt of a question within `room` tokens, and the passages in it; raises `DataError` if it does not fit."""
    (question,) = encode_questions([_shortened(example, prompt, room)], [passages], prompt, room)
    return question


def _shortened(example: Example, prompt: Prompt, room: int) -> Example:
    """Drop the oldest questions and answers of a long dialogue, to leave half of the room for passages."""
    history = example.chat_history
    starts = range(0, len(history) + 2, 2)

    def fits(start: int) -> bool:
        return not history[start:] or len(prompt.prompt_ids([], history[start:], example.question)) <= room // 2

    # From the end, in growing steps: a dialogue may be far longer than what fits, and writing all of it takes long.
    width = 1
    while width < len(starts) and fits(starts[-width]):
        width *= 2
    first = bisect_left(starts, True, lo=max(0, len(starts) - width), key=fits)
    return replace(example, chat_history=history[starts[first] :])
