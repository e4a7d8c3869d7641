"""The three lines after the numbers say what cost most answers, and name a command that is understood as it is."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial

import pytest
from test_documented_commands import test_a_command_that_no_test_runs_is_understood as understood
from test_results import COLOURS, evaluation, results, wrong

from groundtune.api import _written
from groundtune.evaluation.abstention import REFUSED
from groundtune.evaluation.arguments import with_flags
from groundtune.evaluation.predictions import evaluation_of
from groundtune.evaluation.statistics import paired_difference
from groundtune.reporting.next_steps import Known, next_steps
from groundtune.reporting.report import run_steps

SETTINGS = {
    "full_dataset_file_path": "my documents.jsonl", "embedding_model": "e5", "eval_file": "eval.jsonl",
    "test_file": "test.jsonl", "max_new_tokens": 8, "max_seq_length": 300, "train_file": "train.jsonl",
    "command": "groundtune swr --config run.yaml --output_dir runs/a",
}  # fmt: skip


def known(predictions, **changes) -> Known:
    read = [replace(p, read=tuple(hit.document for hit in p.hits[: p.passages_read])) for p in predictions]
    return Known("runs/a", evaluation_of(read, 100), SETTINGS, **changes)


def made(answers=COLOURS, rank=1, **changes) -> Known:
    return known(evaluation(answers, COLOURS, rank=rank).predictions, **changes)


def lines(of: Known) -> list[str]:
    return list(map(str, next_steps(of)))


def test_the_first_line_counts_what_was_right_and_the_last_one_is_how_to_ask():
    first, *_, last, serve = lines(made([*COLOURS[:20], *wrong(4)]))
    assert first == "20 of 24 questions answered right (generation/f1 >= 0.5)."
    assert last == "Ask it: groundtune ask runs/a" and serve.endswith(": groundtune serve runs/a")


def test_passages_that_were_not_found_lead_to_the_table_of_retrievers():
    found = lines(made(wrong(), rank=None))
    assert "24 of 24 questions no passage with the answer was found" in found[1]
    assert found[1].endswith(
        ": groundtune index --full_dataset_file_path 'my documents.jsonl' --eval_file eval.jsonl "
        "--test_file test.jsonl --embedding_model e5 --retriever all"
    )


def test_a_passage_that_was_found_but_cut_from_the_prompt_needs_a_longer_prompt():
    assert "the prompt had no room for it: groundtune evaluate runs/a --max_seq_length 600" in lines(
        made(wrong(), rank=3)
    )[1]  # fmt: skip


def test_many_unfinished_answers_lead_to_a_limit_that_the_gold_answers_fit_into():
    golds = ["a long answer of many words, which goes on and on for quite a while without an end"] * 24
    cut = [
        replace(p, finished=False, answer="a long answer of", new_tokens=8)
        for p in evaluation(wrong(), golds).predictions
    ]
    found = next(line for line in lines(known(cut)) if "were cut" in line)
    assert found == "24 of 24 answers were cut at 8 tokens: groundtune evaluate runs/a --max_new_tokens 64"
    uncounted = [replace(p, new_tokens=None) for p in cut]  # by a server that does not say how many there were
    assert found in lines(known(uncounted))
    enough = replace(known(cut), settings=SETTINGS | {"max_new_tokens": 64})
    assert any("it has not learnt to stop" in line for line in lines(enough))


def cut_after(answers) -> Known:
    golds = ["a long answer of many words, which goes on and on for quite a while without an end"] * 24
    found = evaluation(wrong(), golds).predictions
    cut = [replace(p, finished=False, answer=a, new_tokens=512) for p, a in zip(found, answers, strict=True)]
    return replace(known(cut), settings=SETTINGS | {"max_new_tokens": 512, "max_seq_length": 2048})


@pytest.mark.parametrize("answers", [[""] * 24, ["Ok", *[" "] * 23]])
def test_tokens_of_thoughts_say_nothing_of_a_limit(answers):
    found = next(line for line in lines(cut_after(answers)) if "were cut" in line)
    assert found == ("24 of 24 answers were cut at 512 tokens with little or no text: read some, and if thoughts came "
                     "first, raise --max_new_tokens.")  # fmt: skip


def test_thoughts_of_some_answers_do_not_raise_the_limit_of_the_others():
    found = next(
        line for line in lines(cut_after(["", "Ok", *["a long answer of many words " * 100] * 22])) if "cut" in line
    )
    assert "it has not learnt to stop" in found


def test_a_longer_answer_takes_no_room_from_the_prompt():
    of = cut_after(["a long answer of " * 32] * 24)
    prompts = [
        replace(p, prompt_tokens=260, new_tokens=8, answer="a long answer of") for p in of.evaluation.predictions
    ]
    found = next(line for line in lines(known(prompts)) if "cut" in line)
    assert found.endswith("groundtune evaluate runs/a --max_new_tokens 64 --max_seq_length 324")


def test_another_limit_repeats_the_evaluation_as_it_was_typed():
    typed = ["groundtune", "evaluate", "llama", "--eval_file", "my test.jsonl", "--generator_options", '{"api_key": 1}']
    again = partial(with_flags, [*typed, "--max_new_tokens=8", "--max_seq_length", "300", "-o", "there"])
    cut = [
        replace(p, finished=False, answer="a long answer", new_tokens=8)
        for p in evaluation(wrong(), COLOURS).predictions
    ]
    golds = [replace(p, example=replace(p.example, answer="a long answer of many words")) for p in cut]
    (found,) = [line for line in lines(replace(known(golds), again=again)) if "were cut" in line]
    hidden = """--generator_options '{"api_key": "***"}'"""
    assert found.endswith(f": groundtune evaluate llama --eval_file 'my test.jsonl' {hidden} --max_seq_length 300 -o "
                          "there --max_new_tokens 32")  # fmt: skip
    (found,) = [line for line in lines(replace(made(wrong(), rank=3), again=again)) if "no room" in line]
    assert found.endswith("-o there --max_seq_length 600")


def test_another_limit_replaces_the_one_of_a_call_in_python():
    again = partial(_written, "groundtune.evaluate", "a run", {"config": None, "max_new_tokens": 8, "api_key": "x"})
    cut = [replace(p, finished=False, answer="it is", new_tokens=4) for p in evaluation(wrong(), COLOURS).predictions]
    found = next(
        line for line in lines(replace(known(cut), settings={"max_new_tokens": 4}, again=again)) if "cut" in line
    )
    assert found.endswith(": groundtune.evaluate('a run', max_new_tokens='32', api_key='***')")


def test_wrong_answers_with_the_evidence_lead_to_the_other_method_with_the_same_arguments():
    found = lines(made(wrong(), method="swr"))
    assert "24 of 24 answers are wrong although a passage with the answer was read" in found[1]
    assert found[1].endswith("compare with SFT: groundtune sft --config run.yaml --output_dir runs/a-sft")
    for other in ("groundtune.train('swr')", 'groundtune.train(instruction="Answer the user\'s question")', "", 7):
        unknown = replace(made(wrong(), method="swr"), settings={**SETTINGS, "command": other})
        assert lines(unknown)[1].endswith(": groundtune sft -h")


def test_refusals_lead_to_the_unanswerable_rows_of_the_training_file():
    declined = [replace(p, scores={**p.scores, REFUSED: 1.0}) for p in evaluation(wrong(), COLOURS).predictions]
    found = next(line for line in lines(known(declined)) if "does not know" in line)
    assert found.endswith("""grep -c '"answerable": false' train.jsonl""")
    assert not any("are wrong although" in line for line in lines(known(declined)))


def test_refusals_of_a_model_whose_rows_lost_their_gold_lead_to_fewer_such_rows():
    declined = [replace(p, scores={**p.scores, REFUSED: 1.0}) for p in evaluation(wrong(), COLOURS).predictions]
    for method, settings, share in (("raft", {}, 0.2), ("swr", {"gold_dropout": 0.4}, 0.4)):
        its = replace(known(declined), method=method, settings={**SETTINGS, **settings})
        found = next(line for line in lines(its) if "does not know" in line)
        assert found.endswith(f"train on fewer rows without gold, with a --gold_dropout below {share}.")
    off = replace(known(declined), method="raft", settings={**SETTINGS, "gold_dropout": 0.0})
    assert any(line.endswith("train.jsonl") for line in lines(off) if "does not know" in line)


def test_few_passages_come_first_and_say_how_many_more():
    few = known(evaluation(wrong(9), COLOURS[:9], rank=None).predictions)
    assert "questions on 9 passages, and a verdict takes 20, so add questions on 11 more" in lines(few)[1]
    assert lines(few)[1].endswith("groundtune questions 'my documents.jsonl' --output_dir more --generator MODEL "
                                  "--passages 100")  # fmt: skip


def test_an_unclear_difference_says_how_many_questions_a_small_one_takes():
    a, b = [0.0, 1.0] * 12, [0.2, 0.9] * 12
    difference = paired_difference(a, b, samples=200)
    found = lines(made(COLOURS, difference=difference))[1]
    assert "No clear difference" in found and "questions instead of 24" in found
    assert lines(made(COLOURS, difference=paired_difference([0.0] * 24, [1.0] * 24, samples=200)))[1].startswith(
        "No sin"
    )


def test_at_most_three_lines_and_two_ways_to_talk_whatever_is_wrong():
    bad = [replace(p, finished=False) for p in evaluation(wrong(), COLOURS, rank=None).predictions[:9]]
    assert len(next_steps(known(bad))) == 5
    assert len(next_steps(replace(known(bad), settings={}, model=""))) == 3  # nothing is known: no command, no error
    edited = dict.fromkeys(SETTINGS, "x") | {"max_new_tokens": None, "max_seq_length": [1]}
    assert len(next_steps(replace(known(bad), settings=edited))) == 5


@pytest.mark.parametrize("answers, rank", [(wrong(), None), (wrong(), 1), (wrong(), 3), (COLOURS, 1)])
def test_every_command_is_understood(answers, rank):
    for step in next_steps(made(answers, rank=rank, method="swr")):
        if step.command:
            understood(None, shlex.split(step.command)[1:])


def test_hostile_settings_are_words_of_the_command():
    nasty = "x; rm -rf '$HOME' `y`"
    settings = dict.fromkeys(SETTINGS, nasty) | {"max_new_tokens": 8, "max_seq_length": 300}
    for step in next_steps(replace(made(wrong(), rank=None), model=nasty, settings=settings)):
        assert nasty in shlex.split(step.command) or not step.command


def test_a_runs_steps_come_from_its_record():
    record = {"command": "groundtune swr --x 1", "arguments": {"training": {"output_dir": "runs/a b"}}}
    found = run_steps(results(wrong(), [*COLOURS[:3], *wrong(21)], record=record))
    assert found[0].text.startswith("3 of 24") and found[-1].command == "groundtune serve 'runs/a b'"
