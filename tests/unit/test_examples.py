"""Rows have exactly the answer as labels and lose only retrieved passages; everything that cannot fit is named."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from conftest import random_documents, random_history, random_text

from groundtune.errors import DataError
from groundtune.prompts.policies import Passages, kept, required_first
from groundtune.prompts.rows import LeftOut, Row, encode_questions, encode_rows, shortening_note
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn
from groundtune.training.batching import IGNORED, collate


def cases(n: int = 40, seed: int = 0) -> tuple[list[Example], list[Passages]]:
    rng = random.Random(seed)
    examples = [
        Example(random_text(rng), random_text(rng), (), random_history(rng), source=f"train.jsonl:{i + 1}")
        for i in range(n)
    ]
    return examples, [required_first(random_documents(rng, 2), random_documents(rng, 5)) for _ in examples]


def stay(passages: Passages) -> Passages:
    return tuple(passage for passage in passages if not passage.droppable)


def test_labels_spell_the_answer_and_its_end_token_and_nothing_else(family, style):
    prompt, tokenizer = family.prompt(style), family.tokenizer
    # The historical separator is an end token of two families only; for the others it is text before theirs.
    separator = "</s>" if style == "prefix" and "</s>" not in tokenizer.all_special_tokens else ""
    examples, passages = cases()
    batch = collate(encode_rows(examples, passages, prompt, 10_000), tokenizer.pad_token_id)
    for example, ids, mask, labels in zip(examples, *batch.values(), strict=True):
        learnt = (labels != IGNORED).nonzero().flatten().tolist()
        assert labels[learnt].tolist() == ids[learnt].tolist()
        assert learnt == list(range(learnt[0], int(mask.sum())))  # one span, up to where the row ends
        *answer, end = labels[learnt].tolist()
        assert end in prompt.stop_ids
        spelt = tokenizer.decode(answer, clean_up_tokenization_spaces=False).strip()
        assert spelt == f"{example.answer.strip()}{separator}"


def test_every_row_fits_and_only_the_last_retrieved_passages_are_missing(family, style):
    prompt = family.prompt(style)
    examples, passages = cases()
    unlimited = encode_rows(examples, passages, prompt, 10_000)
    assert [row.left_out.retrieved for row in unlimited] == [0] * len(examples)
    limit = sorted(map(len, unlimited))[len(examples) // 2]
    required = encode_rows(examples, [stay(p) for p in passages], prompt, 10_000)
    examples, passages = zip(*[(e, p) for e, p, row in zip(examples, passages, required) if len(row) <= limit])
    rows = encode_rows(examples, passages, prompt, limit)
    assert sum(row.left_out.retrieved > 0 for row in rows) >= 5  # or this says nothing
    for example, these, row in zip(examples, passages, rows, strict=True):
        read = kept(these, row.left_out.retrieved)
        assert row.prompt_ids == prompt.prompt_ids(read, example.chat_history, example.question)
        assert row.answer_ids == prompt.answer_ids(example.answer) and row.source == example.source
        assert len(row) <= limit
        if row.left_out.retrieved:  # and not one more than needed
            one_more = kept(these, row.left_out.retrieved - 1)
            longer = prompt.prompt_ids(one_more, example.chat_history, example.question)
            assert len(longer) + len(row.answer_ids) > limit


def test_shortening_drops_early_turns_then_retrieved_then_gold_passages_and_no_more_than_needed(family):
    prompt = family.prompt()
    examples, passages = cases()
    examples = [replace(e, chat_history=random_dialogue(i % 5)) for i, e in enumerate(examples)]
    bare = [replace(e, chat_history=()) for e in examples]
    least = encode_rows(bare, [stay(these)[:1] for these in passages], prompt, 10_000)
    for limit in {max(map(len, least)), max(map(len, least)) + 60}:
        rows = encode_rows(examples, passages, prompt, limit, shorten=True)
        for example, these, row in zip(examples, passages, rows, strict=True):
            out = row.left_out
            read, turns = kept(these, out.retrieved, out.gold), example.chat_history[out.turns :]
            assert len(row) <= limit and row.prompt_ids == prompt.prompt_ids(read, turns, example.question)
            assert kept(stay(these)[:1]) == read[: len(stay(these)[:1])] and (not turns or turns[0].speaker == USER)
            assert not out.retrieved or out.turns == len(example.chat_history)
            assert not out.gold or out.retrieved == sum(passage.droppable for passage in these)
            if out:  # whatever was left out last does not fit
                before = (
                    kept(these, out.retrieved, out.gold - 1) if out.gold
                    else kept(these, out.retrieved - 1) if out.retrieved else kept(these)
                )  # fmt: skip
                restored = () if out.retrieved or out.gold else example.chat_history[max(out.turns - 2, 0) :]
                assert len(prompt.prompt_ids(before, restored, example.question)) + len(row.answer_ids) > limit
        parts = [(row.left_out.turns, row.left_out.retrieved, row.left_out.gold) for row in rows]
        assert all(sum(map(bool, part)) >= 3 for part in zip(*parts)) or limit > max(map(len, least))
    with pytest.raises(DataError):
        encode_rows(examples, passages, prompt, max(map(len, least)) - 1, shorten=True)


def random_dialogue(pairs: int) -> tuple[Turn, ...]:
    rng = random.Random(pairs)
    return tuple(Turn(speaker, random_text(rng)) for _ in range(pairs) for speaker in (USER, ASSISTANT))


def test_a_note_counts_and_names_what_was_shortened():
    rows = [Row([1], [2], f"train.jsonl:{n}", LeftOut(turns=n - 1, gold=n // 12)) for n in range(1, 13)]
    note = shortening_note("train rows", rows)
    assert note.startswith("train rows: 11 of 12 prompts left out 66 chat turns and 1 gold passage to fit ")
    assert "train.jsonl:2, " in note and note.endswith("train.jsonl:11, ...")
    assert shortening_note("train rows", rows[:1]) == ""


def test_the_limit_is_exact(family):
    prompt = family.prompt()
    examples, passages = cases(1)
    (row,) = encode_rows(examples, [stay(passages[0])], prompt, 10_000)
    assert len(encode_rows(examples, [stay(passages[0])], prompt, len(row))) == 1
    with pytest.raises(DataError):
        encode_rows(examples, [stay(passages[0])], prompt, len(row) - 1)


def test_every_example_that_cannot_fit_is_named_with_its_lengths(family, style):
    prompt = family.prompt(style)
    long = "library " * 60
    fits = Example("Why?", "So.", (), source="train.jsonl:1")
    parts = {
        "question": Example(long, "So.", (), source="train.jsonl:2"),
        "chat history": Example("Why?", "So.", (), (Turn(USER, long),), source="train.jsonl:3"),
        "gold passages": Example("Why?", "So.", (Document(long),), source="train.jsonl:4"),
        "answer": Example("Why?", long, (), source="train.jsonl:5"),
    }
    examples = [fits, *parts.values()]
    passages = [required_first(e.gold_documents, (Document("Retrieved."),)) for e in examples]
    with pytest.raises(DataError) as caught:
        encode_rows(examples, passages, prompt, 60)
    assert len(caught.value.problems) == 4
    for (part, example), problem in zip(parts.items(), caught.value.problems, strict=True):
        assert problem.startswith(f"{example.source}: too long: ")
        lengths = {
            name: int(n) for name, n in re.findall(r"(question|chat history|gold passages|answer) (\d+)", problem)
        }
        assert max(lengths, key=lengths.get) == part and lengths[part] > 60
        assert "60; raise --max_seq_length" in problem
        # The lengths add up to the row that does not fit, except for the few ids around each part.
        whole = prompt.prompt_ids(example.gold_documents, example.chat_history, example.question)
        assert abs(sum(lengths.values()) - len(whole) - len(prompt.answer_ids(example.answer))) <= 10


def test_questions_have_no_answer_and_say_how_many_passages_they_hold(family, style):
    prompt = family.prompt(style)
    examples, passages = cases(seed=1)
    passages = [tuple(passage for passage in these if passage.droppable) for these in passages]
    limit = max(len(prompt.prompt_ids([], e.chat_history, e.question)) for e in examples)
    questions = encode_questions(examples, passages, prompt, limit)
    assert any(len(q.read) < len(p) for q, p in zip(questions, passages))
    for example, these, question in zip(examples, passages, questions, strict=True):
        assert question.read == kept(these)[: len(question.read)]
        assert question.prompt_ids == prompt.prompt_ids(question.read, example.chat_history, example.question)
        assert len(question.prompt_ids) <= limit


def test_a_question_does_not_depend_on_the_gold_answer_or_gold_passages(family):
    prompt = family.prompt()
    known = Example("Why?", "Because of secrets.", (Document("secrets"),), source="eval.jsonl:1")
    blank = Example("Why?", "-", (Document("-"),), source="eval.jsonl:1")
    passages = [required_first(droppable=[Document("Retrieved.")])]
    assert encode_questions([known], passages, prompt, 500) == encode_questions([blank], passages, prompt, 500)


def test_a_question_that_cannot_fit_is_named():
    class Letters:
        def prompt_ids(self, passages, chat_history, question):
            return [*"".join(d.text for d in passages), *"".join(t.message for t in chat_history), *question]

        def borders(self, ids, passages, chat_history, question):
            return ()

    examples = [
        Example(text, "So.", (), source=f"eval.jsonl:{n}") for n, text in enumerate(["short", "much longer"], 1)
    ]
    with pytest.raises(DataError) as caught:
        encode_questions(examples, [required_first(droppable=[Document("passage")])] * 2, Letters(), 8)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith("eval.jsonl:2: too long: ")
