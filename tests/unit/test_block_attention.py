"""Block attention: a passage reads the instruction and itself, and is computed once wherever it stands.

The reference is transformers' own model in float32, one row at a time, with a dense mask of tokens x tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import HISTORICAL_PREFIXES, INSTRUCTION, gradients, random_history, random_text
from torch.nn.functional import cross_entropy

from groundtune.arguments import BLOCK, ModelArguments, PromptArguments
from groundtune.errors import ModelError
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import generate_greedy, open_decoder, stream_greedy
from groundtune.model.kv_cache import Block, PassageCache
from groundtune.model.loading import add_lora
from groundtune.model.packing import may_read, pack
from groundtune.prompts.policies import required_first
from groundtune.prompts.prompt import make_prompt
from groundtune.prompts.rows import Row, encode_questions, encode_rows
from groundtune.schema import Document, Example
from groundtune.training.batching import collate
from groundtune.training.loss import answer_loss

MODES = {"packed": {"packed": True}, "shared": {"packed": True, "share_prefix": True}}


def block_prompt(family, style: str = "chat template", instruction: str = INSTRUCTION):
    flags = HISTORICAL_PREFIXES if style == "prefix" else {}
    return make_prompt(family.tokenizer, PromptArguments(instruction=instruction, passage_attention=BLOCK, **flags))


def random_passages(rng: random.Random, n: int) -> list[Document]:
    return [Document(" ".join(random_text(rng, 12) for _ in range(2))) for _ in range(n)]


def rows_in_many_orders(family, seed: int = 0, n: int = 8) -> list[Row]:
    """Questions on one to four of five passages, in any order; some have a history, and one has no passage."""
    rng = random.Random(seed)
    documents = random_passages(rng, 5)
    histories = [random_history(rng) if i % 3 == 0 else () for i in range(n)]
    examples = [Example(random_text(rng), random_text(rng, 5), (), history) for history in histories]
    read = [rng.sample(documents, rng.randint(1, 4)) for _ in range(n - 1)] + [[]]
    return encode_rows(examples, [required_first(these) for these in read], block_prompt(family), 10_000)


def block_model(family):
    model = family.model()
    assert use_packed_attention(model, blocks=True) is None
    return model


# The reference


def dense(module, query, key, value, attention_mask, scaling=None, sliding_window=None, reads=None, **kwargs):
    """Attention by a mask of tokens x tokens: `reads` are the borders of the one row, and the model."""
    borders, model = reads
    n = query.shape[2]
    mask = torch.tensor([[may_read(borders, i, j) for j in range(n)] for i in range(n)])
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    place = torch.arange(n)
    # A passage reads what stands before all passages as if it were the first of them.
    early = place.clone()
    for begin, end in pairwise(borders):
        early[begin:end] += borders[0] - begin
    header = (place < borders[0]) & (early != place)[:, None] if borders else torch.zeros(n, n, dtype=torch.bool)
    moved = turn(model, module, turn(model, module, query, place, back=True), early)
    scores = torch.where(header, moved @ key.mT, query @ key.mT) * scaling
    distance = torch.where(header, early[:, None] - place, place[:, None] - place)
    mask &= distance < (sliding_window or n)
    output = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
    return output.transpose(1, 2), None


def turn(model, module, states, positions, back=False):
    """The rotation of transformers' own model."""
    import sys

    modeling = sys.modules[type(model).__module__]
    kind = getattr(module.config, "layer_types", None)
    more = [kind[module.layer_idx]] if kind and "Gemma3" in type(model).__name__ else []
    cos, sin = model.model.rotary_emb(states, positions[None], *more)
    return modeling.apply_rotary_pos_emb(states, states, cos, -sin if back else sin)[0]


def reference_logits(model, ids: list[int], borders) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one row."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("dense_reference", dense)
    AttentionMaskInterface.register("dense_reference", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("dense_reference")
    as_it_is = torch.zeros(1, 1, 1, 1)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    output = model(input_ids=torch.tensor([ids]), attention_mask=as_it_is, use_cache=False, reads=(borders, inner))
    model.set_attn_implementation(before)
    return output.logits[0]


def reference_loss(model, rows: list[Row]) -> float:
    """The loss of the rows, each by itself; its gradient is added to the parameters."""
    tokens, total = sum(len(row.answer_ids) for row in rows), 0.0
    for row in rows:
        logits = reference_logits(model, row.prompt_ids + row.answer_ids, row.borders)[len(row.prompt_ids) - 1 : -1]
        loss = cross_entropy(logits, torch.tensor(row.answer_ids), reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


# Training


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_one_row_at_a_time_under_a_dense_mask(family, mode):
    """Two families have sliding windows of 8 tokens, shorter than the passages."""
    model = block_model(family)
    for seed in range(2):
        rows = rows_in_many_orders(family, seed)
        alone = reference_loss(model, rows)
        expected = gradients(model)
        batch = collate(rows, 0, **MODES[mode])
        loss = answer_loss(model, batch)
        loss.backward()
        found = gradients(model)
        assert loss.item() == pytest.approx(alone, rel=1e-6)
        assert torch.cosine_similarity(found, expected, dim=0) >= 0.99999
        torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-4, atol=0)
    if mode == "shared":
        assert batch["input_ids"].numel() < 0.8 * sum(map(len, rows))  # else nothing was tried


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_an_adapter_gets_the_gradient_of_one_row_at_a_time(family, checkpointing):
    torch.manual_seed(0)
    model = add_lora(family.model(), ModelArguments(use_peft=True, lora_r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert use_packed_attention(model, blocks=True) is None
    rows = rows_in_many_orders(family, 3)
    alone = reference_loss(model, rows)
    expected = gradients(model)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    loss = answer_loss(model, collate(rows, 0, **MODES["shared"]))
    loss.backward()
    assert loss.item() == pytest.approx(alone, rel=1e-6)
    assert torch.cosine_similarity(gradients(model), expected, dim=0) >= 0.99999


def test_one_passage_is_read_as_with_full_attention_and_several_are_not(family):
    model, rng = block_model(family), random.Random(0)
    documents = random_passages(rng, 3)
    for read, same in ((documents[:1], True), (documents, False)):
        (row,) = encode_rows([Example("q?", "a.", ())], [required_first(read)], block_prompt(family), 10_000)
        losses = [answer_loss(model, collate([r], 0, packed=True)).item() for r in (row, replace(row, borders=()))]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) == same


def test_a_row_reads_what_the_definition_says(family):
    """The segments, and how far each is moved, against `may_read` and the place in the row."""
    rows = rows_in_many_orders(family, 1)
    sequences = [row.prompt_ids + row.answer_ids for row in rows]
    packing = pack(sequences, [len(row.prompt_ids) - 1 for row in rows], [row.borders for row in rows])
    for row, sequence, end in zip(rows, sequences, packing.ends, strict=True):
        segments = [packing.segments[j] for j in (*packing.segments[end].path, end)]
        assert [id for s in segments for id in packing.ids[s.start : s.stop]] == sequence
        for i in range(len(sequence)):
            readers = [may_read(row.borders, i, j) for j in range(len(sequence))]
            assert readers[i] and not any(readers[i + 1 :])
        starts = [0, *row.borders, len(sequence)]
        for passage, (begin, stop) in enumerate(pairwise(starts)):
            for i in range(begin, stop):
                last = passage == len(row.borders)
                expected = [j < i + 1 and (last or j < starts[1] or j >= begin) for j in range(len(sequence))]
                assert [may_read(row.borders, i, j) for j in range(len(sequence))] == expected


@pytest.mark.parametrize("style", ["chat template", "prefix"])
def test_a_prompt_is_the_same_as_with_full_attention_and_its_borders_enclose_the_passages(family, style):
    blocks, full = block_prompt(family, style), family.prompt(style)
    rng = random.Random(0)
    for _ in range(40):
        documents, history = random_passages(rng, rng.randint(0, 4)), random_history(rng)
        asked = (documents, history, random_text(rng))
        ids = full.prompt_ids(*asked)
        assert blocks.prompt_ids(*asked) == ids and full.borders(ids, *asked) == ()
        borders = blocks.borders(ids, *asked)
        assert len(borders) == (len(documents) + 1 if documents else 0)
        for document, (begin, end) in zip(documents, pairwise(borders)):
            # Without white space, which SentencePiece's decoders remove from the beginning of a text.
            decoded = blocks.tokens.tokenizer.decode(ids[begin:end], clean_up_tokenization_spaces=False)
            assert "".join(decoded.split()) == "".join(blocks.tokens.spelt(document.text).split())
        if documents:
            assert borders[0] < borders[-1] < len(ids)


def test_a_passage_has_the_same_tokens_wherever_it_stands(family):
    prompt, rng = block_prompt(family), random.Random(2)
    documents = [Document(f"Title {i}: {random_text(rng, 12)}.") for i in range(4)]

    def tokens(order):
        ids = prompt.prompt_ids(order, (), "What?")
        borders = prompt.borders(ids, order, (), "What?")
        return {d.text: ids[begin:end] for d, (begin, end) in zip(order, pairwise(borders), strict=True)}

    assert tokens(documents) == tokens(documents[::-1])


# Answers


def questions(family, n: int = 6, seed: int = 0):
    rng = random.Random(seed)
    documents = random_passages(rng, 5)
    examples = [Example(random_text(rng), "", ()) for _ in range(n)]
    read = [required_first(rng.sample(documents, 3)) for _ in range(n)]
    return encode_questions(examples, read, block_prompt(family), 10_000)


def answers(model, these, **options):
    found = generate_greedy(
        model, [q.prompt_ids for q in these], stop_ids=[], pad_id=0, max_new_tokens=6, batch_size=3,
        borders=[q.borders for q in these], **options,
    )  # fmt: skip
    return [answer.ids for answer in found]


@torch.no_grad()
def test_answers_are_those_of_the_dense_mask_with_and_without_kept_passages(family):
    model, these = block_model(family).eval(), questions(family)
    expected = []
    for question in these:
        ids = list(question.prompt_ids)
        for _ in range(6):
            ids.append(int(reference_logits(model, ids, question.borders)[-1].argmax()))
        expected.append(ids[len(question.prompt_ids) :])
    assert answers(model, these) == expected
    kept = PassageCache(2**30)
    assert answers(model, these, kept=kept) == expected and kept.size > 0
    assert answers(model, these, kept=kept) == expected
    for question, ids in zip(these, expected):
        stream = stream_greedy(
            model, question.prompt_ids, stop_ids=[], max_new_tokens=6, borders=question.borders, kept=kept
        )
        assert list(stream) == ids


@torch.no_grad()
def test_a_kept_passage_is_not_read_again(families, monkeypatch):
    family = families["gemma"]
    model, (question, *_) = block_model(family).eval(), questions(family)
    kept, read = PassageCache(2**30), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for _ in range(2):
        open_decoder(model, 1, 10_000, (), kept).start([question.prompt_ids], [1], [question.borders])
    assert read == [len(question.prompt_ids), len(question.prompt_ids) - question.borders[-1]]
    layers = len(model.model.layers)
    per_token = 2 * 16 * 4 * layers  # keys and values of one head of 16 in float32
    assert kept.size == question.borders[-1] * per_token


def test_what_was_used_longest_ago_makes_room():
    def block(n):
        return Block(n, {0: (torch.zeros(1, 1, n, 2), torch.zeros(1, 1, n, 2))})  # 16 bytes a token

    cache = PassageCache(16 * 10)
    names = {name: ((), (i,)) for i, name in enumerate("abcd")}
    cache.add_all({names["a"]: block(4), names["b"]: block(4)})
    assert cache.get(names["a"]) is not None
    cache.add_all({names["c"]: block(4)})
    assert [name for name in "abc" if names[name] in cache.blocks] == ["a", "c"] and cache.size == 16 * 8
    cache.add_all({names["d"]: block(11)})  # larger than the cache: it is not kept, and nothing else is left
    assert cache.size <= cache.limit and cache.get(names["d"]) is None
    assert PassageCache(0).get(names["a"]) is None


# Refusals


def test_models_whose_passages_differ_from_place_to_place_are_refused(families):
    from transformers import GPT2Config, GPT2LMHeadModel

    learnt = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
                                        attn_pdrop=0, initializer_range=0.3))  # fmt: skip
    assert use_packed_attention(learnt) is None
    again = GPT2LMHeadModel(GPT2Config(**{**learnt.config.to_dict(), "attn_implementation": "sdpa"}))
    assert "another place" in use_packed_attention(again, blocks=True)
    stretched = families["llama"].model()
    stretched.config.rope_parameters = {**stretched.config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    assert "depend on the length" in use_packed_attention(stretched, blocks=True)


def test_rows_without_packed_attention_are_never_computed_with_full_attention_in_silence(families):
    family = families["llama"]
    model, rows, (question, *_) = family.model(), rows_in_many_orders(family), questions(family)
    with pytest.raises(ValueError, match="packed"):
        collate(rows, 0)
    with pytest.raises(ValueError, match="packed"):
        answers(model, [question])
    with pytest.raises(ValueError, match="packed"):
        open_decoder(model, 1, 100, ()).start([question.prompt_ids], [1], [question.borders])


def test_a_template_that_changes_the_passages_is_refused(families):
    family = families["llama"]
    prompt = block_prompt(family)
    tokenizer = prompt.tokens.tokenizer
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = before.replace("m['content'] + ' [/INST]'", "m['content'] | upper + ' [/INST]'")
        ids = prompt.prompt_ids([Document("small letters")], (), "q?")
        with pytest.raises(ModelError, match="changes the passages"):
            prompt.borders(ids, [Document("small letters")], (), "q?")
    finally:
        tokenizer.chat_template = before
