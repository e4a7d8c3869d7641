"""Kept answers are those that the same model would give; whatever could change an answer makes it a new question."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import make_family
from peft import LoraConfig, get_peft_model
from test_generation import frequent_stops, prompts_for

from groundtune.arguments import ModelArguments
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import generate_greedy
from groundtune.model.loading import lora_on
from groundtune.model.lora import fuse
from groundtune.runs import known_answers
from groundtune.runs.known_answers import KnownAnswers, answer_all, fingerprint
from groundtune.system.durable import write_sealed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


@pytest.fixture(scope="module")
def mistral(families):
    family = families["mistral"]
    model = family.model()
    assert use_packed_attention(model) is None
    prompts = prompts_for(family)
    options = {
        "stop_ids": frequent_stops(family, model, prompts), "pad_id": family.tokenizer.pad_token_id,
        "max_new_tokens": 8, "batch_size": 4,
    }  # fmt: skip
    return model, prompts, options


def ask(mistral, prompts=None, **changes) -> tuple[list, KnownAnswers]:
    model, every, options = mistral
    known = KnownAnswers(fingerprint(model))
    return answer_all(model, every if prompts is None else prompts, known=known, **options | changes), known


@pytest.mark.parametrize("size", [1, 5, 64])
def test_kept_answers_are_those_of_the_model_to_the_last_digit(mistral, monkeypatch, size):
    monkeypatch.setattr(known_answers, "_ON_CPU", size)
    model, prompts, options = mistral
    without = answer_all(model, prompts, **options)
    first, known = ask(mistral)
    assert (known.asked, known.reused) == (len(prompts), 0)
    done = []
    again, known = ask(mistral, on_answer=done.append)
    assert first == without == again and known.reused == len(prompts) == sum(done) and known.seconds > 0
    whole = generate_greedy(model, prompts, **options)
    assert [answer.ids for answer in whole] == [answer.ids for answer in again]
    assert "reused" in known.note("m") and f"{len(prompts)} of {len(prompts)}" in known.note("m")


def test_what_a_stopped_run_had_answered_is_not_asked_again(mistral, monkeypatch):
    monkeypatch.setattr(known_answers, "_ON_CPU", 4)
    calls = []

    def stopped(model, prompts, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return generate_greedy(model, prompts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(known_answers, "generate_greedy", stopped)
        with pytest.raises(KeyboardInterrupt):
            ask(mistral)
    _, known = ask(mistral)
    assert (known.asked, known.reused) == (12, 8)


@pytest.mark.parametrize(
    "changed", ["prompt", "order", "max_new_tokens", "stop_ids", "pad_id", "batch_size", "precision", "weights"]
)
def test_anything_that_may_change_an_answer_is_asked_again(mistral, changed):
    model, prompts, options = mistral
    ask(mistral)
    if changed == "prompt":
        _, known = ask(mistral, [*prompts[:-1], [*prompts[-1], 5]])
    elif changed == "order":
        _, known = ask(mistral, prompts[::-1])
    elif changed == "precision":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, known = ask(mistral)
    elif changed == "weights":
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_input_embeddings().weight[3, 3] += 1e-3
        _, known = ask((other, prompts, options))
    else:
        one_more = {"stop_ids": [*options["stop_ids"], 9]}.get(changed) or options[changed] + 1
        _, known = ask(mistral, **{changed: one_more})
    assert known.asked == len(prompts) and known.reused == 0


def test_answers_after_passages_that_do_not_read_each_other_are_kept_with_their_borders(mistral, families):
    _, prompts, options = mistral
    model = families["mistral"].model()
    assert use_packed_attention(model, blocks=True) is None
    mistral = (model, prompts, options)
    borders = [(1, len(prompt) // 2, len(prompt) - 1) if len(prompt) > 8 else () for prompt in prompts]
    first, _ = ask(mistral, borders=borders, passage_cache=2**20)
    again, known = ask(mistral, borders=borders, passage_cache=2**20)
    assert again == first == answer_all(model, prompts, borders=borders, passage_cache=2**20, **options)
    assert known.reused == len(prompts)
    asked = {"borders": borders, "passage_cache": 2**20, **options}
    assert not known.missing(model, prompts, **asked) and known.missing(model, prompts, **options)
    assert ask(mistral)[1].reused == 0  # every passage reads those before it
    others = [tuple(border + (0 < i < 2) for i, border in enumerate(these)) for these in borders]
    assert ask(mistral, borders=others, passage_cache=2**20)[1].reused == 0


def test_a_model_is_known_by_its_weights_configuration_and_adapter(families, tmp_path):
    family = families["llama"]
    base = fingerprint(family.model())
    assert fingerprint(family.model()) == base
    fresh = lora_on(family.model(), ModelArguments(lora_r=2))
    assert fingerprint(fresh) == base  # it adds nothing yet
    fuse(fresh)
    assert fingerprint(fresh) == base
    with torch.no_grad():
        next(p for name, p in fresh.named_parameters() if "lora_B" in name)[0, 0] = 0.1
    tuned = fingerprint(fresh)
    assert tuned != base
    with fresh.disable_adapter():
        assert fingerprint(fresh, without_adapter=True) == base
    for config in fresh.peft_config.values():
        config.lora_alpha += 1  # the tensors stay
    assert fingerprint(fresh) != tuned
    other = family.model()
    other.config.rope_theta = getattr(other.config, "rope_theta", 1.0) * 2
    assert fingerprint(other) != base
    half = family.model().to(torch.bfloat16)
    assert fingerprint(half) != base
    trained = family.model()
    trained.config.use_cache, trained.config.pad_token_id = False, 7  # as Trainer sets them
    assert fingerprint(trained) == base
    elsewhere = make_family("llama", tmp_path / "elsewhere")  # the same seed
    assert fingerprint(elsewhere.model()) == base


@pytest.mark.parametrize(
    ("trained", "changes"),
    [
        ("lora_embedding", {"target_modules": ["embed_tokens"]}),
        ("lora_magnitude", {"target_modules": ["q_proj"], "use_dora": True}),
        ("trainable_tokens", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
    ],
)
def test_an_adapter_that_changes_outputs_in_any_way_is_another_model_than_its_base(families, trained, changes):
    family, ids = families["llama"], torch.tensor([[1, 2, 3]])
    model, base = get_peft_model(family.model(), LoraConfig(r=2, **changes)).eval(), family.model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trained in name:
                parameter.add_(torch.ones_like(parameter))
        assert not torch.equal(model(ids).logits, base(ids).logits)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, base(ids).logits)
    found = fingerprint(model)
    assert found not in (fingerprint(base), fingerprint(model, without_adapter=True))


def test_a_model_that_is_not_all_here_is_not_known(families):
    with torch.device("meta"):
        model = families["llama"].model().to("meta")
    assert fingerprint(model) == ""


def damages(path: Path):
    good = json.loads(path.read_text())

    def rows(change):
        def damage():
            content = {name: value for name, value in copy.deepcopy(good).items() if name != "sha256"}
            change(content)
            write_sealed(path, content)

        return damage

    return {
        "cut": lambda: path.write_bytes(path.read_bytes()[:-5]),
        "one digit": lambda: path.write_text(path.read_text().replace("1", "2", 1)),
        "nested": lambda: path.write_text("[" * 100_000),
        "a list": lambda: path.write_text("[]"),
        "empty": lambda: path.write_bytes(b""),
        "not UTF-8": lambda: path.write_bytes(b"\xff" * 100),
        "a link": lambda: (path.rename(path.with_suffix(".other")), path.symlink_to(path.with_suffix(".other"))),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "a pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "huge": lambda: path.write_bytes(b" " * 2**20),
        "another key": rows(lambda c: c.update(key="0" * 64)),
        "fewer": rows(lambda c: c["answers"].pop()),
        "no ids": rows(lambda c: c["answers"].__setitem__(0, [[], -1.0])),
        "foreign ids": rows(lambda c: c["answers"].__setitem__(0, [[10**9] * 8, -1.0])),
        "negative ids": rows(lambda c: c["answers"].__setitem__(0, [[-1] * 8, -1.0])),
        "true as id": rows(lambda c: c["answers"].__setitem__(0, [[True] * 8, -1.0])),
        "an endless answer": rows(lambda c: c["answers"].__setitem__(0, [[5] * 1000, -1.0])),
        "an answer cut": rows(lambda c: c["answers"].__setitem__(0, [[5], -1.0])),
        "a text": rows(lambda c: c["answers"].__setitem__(0, "no")),
        "a logprob above 0": rows(lambda c: c["answers"].__setitem__(0, [[5] * 8, 3.0])),
        "seconds below 0": rows(lambda c: c.update(seconds=-1)),
        "seconds as text": rows(lambda c: c.update(seconds="NaN")),
    }


@pytest.mark.parametrize("name", [
    "cut", "one digit", "nested", "a list", "empty", "not UTF-8", "a link", "a folder", "a pipe", "huge",
    "another key", "fewer", "no ids", "foreign ids", "negative ids", "true as id", "an endless answer",
    "an answer cut", "a text", "a logprob above 0", "seconds below 0", "seconds as text",
])  # fmt: skip
def test_a_file_that_cannot_hold_the_answers_is_ignored(mistral, cache, monkeypatch, name):
    monkeypatch.setattr(known_answers, "_LARGEST", 2**19)
    right, _ = ask(mistral)
    (path,) = cache.iterdir()
    damages(path)[name]()
    again, known = ask(mistral)
    assert again == right and known.reused == 0


def test_a_cache_that_cannot_be_written_changes_nothing(mistral, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "file"))
    first, _ = ask(mistral)
    again, known = ask(mistral)
    assert again == first and known.reused == 0


def test_the_cache_is_bounded_and_the_least_recently_used_go_first(mistral, cache, monkeypatch):
    monkeypatch.setattr(known_answers, "_MOST", 10)
    prompts = mistral[1]
    for i in range(10):
        ask(mistral, [prompts[i]])
        os.utime(max(cache.iterdir(), key=lambda p: p.stat().st_mtime_ns), (i, i))
    ask(mistral, [prompts[0]])  # used again
    ask(mistral, [prompts[10]])
    assert len(list(cache.iterdir())) == 9
    assert [ask(mistral, [prompts[i]])[1].reused for i in (0, 10, 9)] == [1, 1, 1]
    assert ask(mistral, [prompts[1]])[1].reused == 0


def test_answers_of_smaller_batches_than_asked_for_are_not_kept(mistral, cache, monkeypatch):
    def halved(model, prompts, **options):
        options["on_fewer"](2)
        return generate_greedy(model, prompts, **options)

    monkeypatch.setattr(known_answers, "generate_greedy", halved)
    ask(mistral)
    assert not cache.exists()
