"""A question and its chat history -> the search query, shortened to what an embedding model reads.

The question is always part of its query: embedding models read the beginning of a text, and the question stands last.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groundtune.retrieval.reading_limit import ReadingLimit, token_counts
from groundtune.schema import USER, Example, Turn

_PIECE = re.compile(r"\S{1,20}\s*")  # a word; in scripts without spaces, twenty characters


@dataclass(frozen=True)
class Query:
    """A question, and the messages of its chat history that belong to its query, oldest first.

    `also`: other parts of the history, with which it is searched as well; a document's score is the mean of all.
    """

    question: str
    history: str = ""
    also: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.history}\n{self.question}" if self.history else self.question

    @property
    def parts(self) -> tuple[Query, ...]:
        """The queries that are searched for it, all different; each has one history."""
        return tuple(Query(self.question, history) for history in dict.fromkeys((*self.also, self.history)))


def query_of(question: str, chat_history: Sequence[Turn], history: str) -> Query:
    """The query with the part of the chat history that `history` selects: `none`, `last` (the user's last message),
    `user` (all of the user's), `all`, or `fused` (`none`, `last` and `all`). What is written for `rewrite` is not known
    here (`rewriting.py`).

    A follow-up such as "and how do I undo it?" finds nothing by itself; the earlier messages name its subject.
    """
    of_user = [turn for turn in chat_history if turn.speaker == USER]
    turns = {"none": [], "last": of_user[-1:], "user": of_user, "all": chat_history}
    texts = {name: "\n".join(turn.message for turn in some) for name, some in turns.items()}
    if history == "fused":
        return Query(question, texts["all"], also=(texts["none"], texts["last"]))
    return Query(question, texts[history])


def queries_of(examples: Sequence[Example], history: str) -> list[Query]:
    return [query_of(example.question, example.chat_history, history) for example in examples]


def too_long(queries: Sequence[Query], limit: ReadingLimit | None) -> dict[int, int]:
    """Position -> length in tokens, query prompt included, of the queries that are longer than the limit.

    A fused query is as long as its first part, the question: of the part with all messages, the last ones are enough.
    """
    if limit is None:
        return {}
    counts = token_counts(limit.tokenizer, limit.query_prompt, [query.parts[0].text for query in queries])
    return {i: n for i, n in enumerate(counts) if n > limit.max_tokens}


def too_long_note(queries: Sequence[Query], limit: ReadingLimit | None) -> list[str]:
    """A line with the number of queries that the limit shortens; empty if there are none."""
    if limit is None or not (long := too_long(queries, limit)):
        return []
    return [
        f"{len(long)} of {len(queries)} search queries are longer than the {limit.max_tokens} tokens that {limit.name} "
        "reads: the beginning of the chat history was left out of them, or the middle of a question that is too long "
        "by itself"
    ]


def texts_within(queries: Sequence[Query], limit: ReadingLimit | None) -> list[str]:
    """The text of each query; one that is longer than the limit is shortened until it fits.

    The history loses its beginning. If the question alone is too long, its beginning and its end are kept: the one or
    the other asks, and what is pasted beside it is the longest.
    """
    long = too_long(queries, limit)
    return [_shortened(query, limit) if limit and i in long else query.text for i, query in enumerate(queries)]


def _shortened(query: Query, limit: ReadingLimit) -> str:
    history, question = _PIECE.findall(query.history), _PIECE.findall(query.question)

    def without_beginning(dropped: int) -> str:
        return Query(query.question, "".join(history[dropped:])).text

    def without_middle(dropped: int) -> str:
        half, rest = divmod(len(question) - dropped, 2)
        return "".join([*question[: half + rest], *question[len(question) - half :]])

    def first_that_fits(text: Callable[[int], str], most: int) -> str:
        """`text` of the smallest number of dropped pieces with which it fits, or of `most`."""
        return text(bisect_left(range(most), True, key=lambda dropped: fits(text(dropped))))

    def fits(text: str) -> bool:
        return limit.length_of_query(text) <= limit.max_tokens

    shortened = first_that_fits(without_beginning, len(history))
    return shortened if fits(shortened) else first_that_fits(without_middle, len(question))
