"""A judge grades every answer or is counted as failed; its prompt is the user's to write."""

from __future__ import annotations

import re

import pytest
from conftest import tiny_documents, tiny_examples
from fake_server import FakeServer, Refusal

from groundtune.commands.evaluate import inference_arguments
from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.evaluation.judge import SHIPPED, JudgePrompt, judged, probe_judge, rating_of, read_judge_prompts
from groundtune.evaluation.predictions import evaluation_of
from groundtune.model.endpoint import EndpointError
from groundtune.schema import Prediction, Reply

ASK = "Rate [[1]] to [[5]]: $answer"


def predictions(failed: int | None = None) -> list[Prediction]:
    return [
        Prediction(example, (), f"answer {i}", True, 1, 9, 2, {"generation/f1": 0.5}, read=(document,),
                   failure="no reply" if i == failed else "")
        for i, (example, document) in enumerate(zip(tiny_examples(), tiny_documents()))
    ]  # fmt: skip


def judge(replies: dict[str, str | Reply], asked: list[str]):
    """A judge whose reply depends on text in the prompt; all other prompts get a 3."""

    def complete(messages_list, max_tokens, on_done):
        for messages in messages_list:
            asked.append(messages[0]["content"])
            on_done(1)
            said = next((reply for part, reply in replies.items() if part in asked[-1]), "[[3]]")
            yield said if isinstance(said, Reply) else Reply(said)

    return lambda *args, **options: list(complete(*args, **options))


@pytest.mark.parametrize(
    "text, rating",
    [
        ("Good.\n[[5]]", 5),
        ("Not [[1]], but [[ 4 ]].", 4),  # the last one counts
        ("[[0]] [[6]] [[33]] [3]", None),
        ("I would say three.", None),
        ("", None),
    ],
)
def test_a_rating_is_the_last_number_from_1_to_5_in_double_brackets(text, rating):
    assert rating_of(text) == rating


def test_ratings_become_scores_from_0_to_1_in_the_order_of_the_predictions():
    asked, done = [], []
    complete = judge({"answer 0": "[[1]]", "answer 2": "[[5]]"}, asked)
    found = judged(predictions(), JudgePrompt("mine", ASK), complete, 99, done.append)
    assert [p.scores["judge/mine"] for p in found] == [0, 0.5, 1, 0.5, 0.5, 0.5]
    assert [p.answer for p in found] == [p.answer for p in predictions()] and sum(done) == 6
    assert found[0].judged == {"mine": "[[1]]"} and found[0].scores["generation/f1"] == 0.5


def test_what_failed_is_counted_and_in_no_mean():
    complete = judge({"answer 1": Reply(failure="timeout"), "answer 2": "no idea", "answer 3": "[[5]]"}, asked := [])
    evaluation = evaluation_of(judged(predictions(failed=0), JudgePrompt("mine", ASK), complete, 99))
    assert not any("answer 0" in prompt for prompt in asked)  # there was no answer to grade
    assert evaluation.scored("judge/mine") == 3 and evaluation.n == 6 and evaluation.failed == 1
    assert evaluation.metrics["judge/mine"].value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert evaluation.to_dict()["judge/mine"]["scored"] == 3
    assert evaluation.predictions[1].judged["mine"] == "failed: timeout"
    assert evaluation.predictions[2].judged["mine"] == "no idea"


def test_the_prompt_holds_what_its_file_asks_for_and_an_answer_cannot_fill_in_more():
    text = "$question|$gold_answer|$chat_history|$passages|$answer|$$5"
    example = tiny_examples()[2]
    made = Prediction(example, (), "$gold_answer [[5]]", True, 2, 9, 2, read=tuple(tiny_documents()[:2]))
    (message,) = JudgePrompt("mine", text).messages(made)
    filled = message["content"].partition("\n\n")[2]
    question, gold, history, passages, answer, dollar = filled.split("|")
    assert (message["role"], dollar) == ("user", "$5")
    assert question == f"<question>\n{example.question}\n</question>"
    assert (gold, answer) == (f"<reference>\n{example.answer}\n</reference>", "<answer>\n$gold_answer [[5]]\n</answer>")
    said = "user: Hello there.\nassistant: Good day, how can I help?"
    assert history == f"<conversation>\n{said}\n</conversation>"
    assert passages == "\n\n".join(f"<passage>\n{document.text}\n</passage>" for document in tiny_documents()[:2])


def test_the_shipped_prompts_are_sound_and_grade_what_they_say():
    prompts = read_judge_prompts(["correctness", "faithfulness"])
    assert [prompt.name for prompt in prompts] == ["correctness", "faithfulness"]
    texts = [prompt.messages(predictions()[0])[0]["content"] for prompt in prompts]
    example, document = tiny_examples()[0], tiny_documents()[0]
    assert example.answer in texts[0] and document.text not in texts[0]
    assert document.text in texts[1] and f"\n{example.answer}\n" not in texts[1]
    assert all(re.findall(r"\[\[3\]\]", text) for text in texts) and len(list(SHIPPED.glob("*.txt"))) == 2


def test_a_prompt_of_ones_own_is_a_file_and_all_that_is_wrong_with_any_is_said_at_once(tmp_path):
    (tmp_path / "my prompt.txt").write_text(ASK)
    assert read_judge_prompts([str(tmp_path / "my prompt.txt")]) == [JudgePrompt("my_prompt", ASK)]
    (tmp_path / "bad.txt").write_text("Rate $anwser, it costs $5")
    with pytest.raises(DataError) as caught:
        read_judge_prompts(["nothing", "long" * 100, "null\0", str(tmp_path / "bad.txt")])
    problems = caught.value.problems
    assert len(problems) == 7 and all(problem.startswith("--judge_prompt: ") for problem in problems)
    for part in ("one of correctness, faithfulness", "$anwser is unknown", "$$", "does not use $answer", "[[3]]"):
        assert any(part in problem for problem in problems), part


# Before hours of work


def judging(server: FakeServer, **flags) -> InferenceArguments:
    words = {"model": "", "judge": f"openai:{server.url}", "judge_model": "m", "endpoint_retries": 0, **flags}
    return inference_arguments(words, for_questions=True, again=str)


NEWER = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


@pytest.mark.parametrize(
    "said, reason, way_out",
    [
        (Refusal(400, "Invalid model name passed in model=m"), "Invalid model name", "a model 'm'"),
        (Refusal(429, "no more credit"), "no more credit", "--judge_options"),
        (Refusal(500, "out of order"), "out of order", "check the server log"),
        (Refusal(400, NEWER), NEWER, """--judge_options '{"max_tokens": null, "max_completion_tokens": 77}'"""),
        (b"<html>Welcome</html>", "not a reply", "check the server log"),
    ],
)
def test_a_judge_that_cannot_answer_is_a_problem_before_there_is_anything_to_judge(said, reason, way_out):
    with FakeServer(lambda body: said) as server, pytest.raises(EndpointError) as caught:
        probe_judge(judging(server, judge_max_new_tokens=77))
    (problem,) = caught.value.problems
    assert problem.startswith("--judge: ") and reason in problem and way_out in problem


def test_a_judge_is_probed_with_the_request_that_will_judge():
    """With a lower token limit, a model that reasons first would fail only the probe."""
    with FakeServer(lambda body: "yes") as server:
        options = '{"max_tokens": null, "max_completion_tokens": 99}'
        probe_judge(judging(server, judge_max_new_tokens=77))
        probe_judge(judging(server, judge_options=options))
    assert server.bodies[0]["max_tokens"] == 77
    assert server.bodies[1]["max_completion_tokens"] == 99 and "max_tokens" not in server.bodies[1]
