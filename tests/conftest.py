"""Shared by the tests: four families of tiny tokenizers and models, made here, and fakes. Nothing needs a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on several threads, and `-n 2` uses the other core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import copy
import functools
import gc
import hashlib
import json
import random
import re
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundtune.schema import ASSISTANT, USER, Document, Example, Turn

# Not the user's own cache, which knows of runs made on this machine.
_CACHE = tempfile.TemporaryDirectory(prefix="groundtune-cache-")
os.environ["GROUNDTUNE_CACHE"] = _CACHE.name

CORPUS = [
    "The library opens at nine in the morning and closes at six in the evening.",
    "A user asks a question and the assistant answers it with the passages below.",
    "Answer the user's question with the information in the passages below.",
    "[INST] How do I return a book? [/INST] Bring it back to the desk, please.",
    "USER: What does it cost? ASSISTANT: Nothing at all; it is free for everyone.",
    "model user assistant system\n\nTitle: Opening hours\nContent: nine to six.\n",
]
WORDS = [
    "library", "book", "question", "answer", "nine", "évening", "日本", "naïve", "free,", "(desk)", "the", "The",
    "it's", "1,024", "42%", "x=y", "a->b", "semi;colon", "end.", "[INST]", "USER:", "--", "😀", "Ω\u0301", "\ttab",
    "two\nlines", "para\n\ngraph", "really?!", '"quoted"', "don't", "a", ".", "b", ",", "'s", "n't",
]  # fmt: skip
INSTRUCTION = "Answer with the passages."

# Each refuses roles that do not alternate, as the real ones do.
_REFUSE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "llama": _REFUSE
    + "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}"
    + _REFUSE
    + "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}"
    + _REFUSE
    + "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + "
    "m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    # As in Qwen3: an empty thought precedes the last answer, and ends the generation prompt if thinking is off.
    "qwen": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}",
}
# Two more, for tests of tokenizers alone: those of Llama 3 Instruct and of Phi 3.
MORE_TEMPLATES = {
    "llama3": "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "phi": "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
}
SIGNALS_OF_A_TERMINAL = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
if hasattr(signal, "SIGHUP"):
    SIGNALS_OF_A_TERMINAL[signal.SIGHUP] = signal.SIG_DFL
HISTORICAL_PREFIXES = {"user_prefix": "<s>[INST]", "assistant_prefix": "[/INST]", "sep_user": " ", "sep_sys": "</s>"}


@dataclass(frozen=True)
class Family:
    """A tiny tokenizer and model in the shape of a real family; `folder` holds both as saved by transformers."""

    name: str
    folder: Path
    tokenizer: Any
    window: int | None

    def model(self) -> Any:
        """A fresh copy of the random model, float32."""
        return copy.deepcopy(loaded(self.folder))

    def prompt(self, style: str = "chat template") -> Any:
        from groundtune.arguments import PromptArguments
        from groundtune.prompts.prompt import make_prompt

        flags = HISTORICAL_PREFIXES if style == "prefix" else {}
        prompt = make_prompt(self.tokenizer, PromptArguments(instruction=INSTRUCTION, **flags))
        assert prompt.style == style
        return prompt


@functools.cache
def loaded(folder: Path) -> Any:
    """The model of a folder, shared between tests: do not change it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


FAMILIES = tuple(TEMPLATES)
STYLES = ("prefix", "chat template")
MODEL_FIXTURES = {"families", "static_embedding_folder", "bert_embedding_folder", "cross_encoder_folder"}


@pytest.fixture
def signals_of_a_terminal():
    """Restore signals: a background job of a shell script ignores it, and child processes inherit that."""
    before = {signum: signal.signal(signum, handler) for signum, handler in SIGNALS_OF_A_TERMINAL.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def no_drawing():
    """Disable plots for whole runs whose plots are not tested: drawing them takes as long as training."""
    from groundtune.reporting import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", lambda figure, alt: "<svg></svg>")
        yield


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """Families by name, each made at its first use."""

    class Made(dict):
        def __missing__(self, name: str) -> Family:
            self[name] = make_family(name, tmp_path_factory.mktemp(name))
            return self[name]

    return Made()


@pytest.fixture(params=FAMILIES)
def family(request, families) -> Family:
    return families[request.param]


@pytest.fixture(params=STYLES)
def style(request) -> str:
    return request.param


def make_family(name: str, folder: Path, **config: Any) -> Family:
    """Write a tokenizer and a random model into `folder`; `config` changes the model's configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    from groundtune.arguments import ModelArguments
    from groundtune.model.loading import load_tokenizer

    tokenizer = make_tokenizer(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(name, tokenizer, config), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
    assert loaded("The library, naïve.")["input_ids"] == tokenizer("The library, naïve.")["input_ids"]
    return Family(name, folder, loaded, getattr(model.config, "sliding_window", None))


def _config(name: str, tokenizer: Any, changes: dict[str, Any]) -> Any:
    from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
        "initializer_range": 0.3,  # wide, or a random model repeats one token forever
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if name == "llama":
        return LlamaConfig(**shape | changes)
    if name == "mistral":
        return MistralConfig(**shape | {"sliding_window": 8} | changes)
    if name == "qwen":
        return Qwen3Config(**shape | changes)
    layers = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}
    return Gemma3TextConfig(**shape | layers | changes)


def make_tokenizer(name: str) -> Any:
    """A tokenizer of about 500 ids, trained here on a few sentences."""
    from transformers import PreTrainedTokenizerFast

    specials = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>"},  # no padding token: the end token must serve
        "mistral": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "gemma": {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        "qwen": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        "phi": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"},
    }[name]
    turns = {
        "gemma": ["<start_of_turn>", "<end_of_turn>"],
        "qwen": ["<|im_start|>"],
        "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "phi": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    }.get(name, [])
    make = _byte_level if name in ("llama", "qwen", "llama3") else _sentencepiece_like
    backend = make(name, [*specials.values(), *turns])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template={**TEMPLATES, **MORE_TEMPLATES}[name],
        extra_special_tokens=turns,
        padding_side="left" if name == "gemma" else "right",
        clean_up_tokenization_spaces=name == "mistral",
        **specials,
    )


def seamless_tokenizer() -> Any:
    """A tokenizer that merges the end of a prompt with the start of an answer if it encodes them together."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = {"pad_token": "<pad>", "eos_token": "<|im_end|>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<pad>", "<|im_end|>", "<|im_start|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([f"assistant\n{word} " for word in WORDS] * 3, trainer)
    template = TEMPLATES["qwen"].replace("<think>\\n\\n</think>\\n\\n", "")
    assert "<think>" not in template
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, extra_special_tokens=["<|im_start|>"], **specials
    )


def _byte_level(name: str, specials: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if name != "qwen":
        _begin_with(tokenizer, specials[0])
    return tokenizer


def _begin_with(tokenizer: Any, bos: str) -> None:
    """Make the tokenizer put one beginning-of-sequence token before a text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _sentencepiece_like(name: str, specials: list[str]) -> Any:
    """As converted from SentencePiece: "▁" for a space, bytes for unknown characters; all but Gemma prefix one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    elif name == "phi":  # as Llama 2: before every piece of text between two special tokens
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(special, normalized=False, special=True) for special in specials])
    if name != "phi":
        _begin_with(tokenizer, specials[1] if name == "mistral" else specials[2])
    return tokenizer


# How the tests are run


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for whole folders, none for single files: importing torch takes longer than most files."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    return 2 if all(path.is_dir() for path in paths) else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that `make test-quick` skips: those that need a model, all recipes and all attacks."""
    for item in items:
        if MODEL_FIXTURES & set(item.fixturenames) or item.path.parent.name in ("recipe", "faults"):
            item.add_marker("model")


def pytest_collection_finish() -> None:
    """Freeze garbage collection of imported objects: Trainer collects in every run, over half a million of them."""
    gc.collect()
    gc.freeze()


# Random text, documents and dialogues


def gradients(model) -> Any:
    """The gradient of all trained weights as one vector; it is then zero."""
    import torch

    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def random_text(rng: random.Random, words: int = 8) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, words)))


def random_history(rng: random.Random) -> tuple[Turn, ...]:
    """A random history: empty, alternating, starting with the assistant, or in any order of speakers."""
    kind, n = rng.choice(["none", "alternating", "assistant first", "any"]), rng.randint(1, 5)
    speakers = {
        "none": [],
        "alternating": [USER, ASSISTANT] * n,
        "assistant first": ([ASSISTANT, USER] * n)[:n],
        "any": [rng.choice([USER, ASSISTANT]) for _ in range(n)],
    }[kind]
    return tuple(Turn(speaker, random_text(rng)) for speaker in speakers)


def random_documents(rng: random.Random, at_most: int = 4) -> tuple[Document, ...]:
    return tuple(Document(random_text(rng, 12)) for _ in range(rng.randint(0, at_most)))


@dataclass
class FakeEmbedder:
    """Embeds texts as bags of words, so that shared words mean similarity, and remembers every embedded text."""

    name: str = "fake"
    settings: dict[str, Any] = field(default_factory=lambda: {"weights": "1", "document_prompt": "", "dtype": "f32"})
    dimensions: int = 32
    documents: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    limit: Any = None
    similarity: str = "cosine"

    def embed_documents(self, texts: Sequence[str], so_far: Any = None) -> np.ndarray:
        self.documents += texts
        return self._embed(texts)

    def embed_questions(self, texts: Sequence[str]) -> np.ndarray:
        self.questions += texts
        return self._embed(texts)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
                vector += np.random.default_rng(seed).normal(size=self.dimensions).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


FACTS = {  # title: (passage, question, answer)
    "Opening": ("The library opens at nine.", "When is it that the library opens?", "At nine."),
    "Returns": ("Bring books back to the desk.", "Where do I bring a book back?", "To the desk."),
    "Price": ("A card costs four coins a year.", "What does a card cost?", "Four coins a year."),
    "Food": ("Guests may bring only water inside.", "May guests bring food inside?", "No, only water."),
    "Dogs": ("Dogs wait at the red door.", "Where do dogs wait?", "At the red door."),
    "Music": ("Headphones are lent on floor two.", "Where are headphones lent?", "On floor two."),
}


def tiny_documents() -> list[Document]:
    return [Document(text, f"Title: {title}\n{text}", {"title": title}) for title, (text, _, _) in FACTS.items()]


def tiny_examples() -> list[Example]:
    """One example for each tiny document, in the same order; every third has a chat history."""
    history = (Turn(USER, "Hello there."), Turn(ASSISTANT, "Good day, how can I help?"))
    return [
        Example(question, answer, (document,), history if i % 3 == 2 else (), source=f"tiny.jsonl:{i + 1}")
        for i, (document, (_, question, answer)) in enumerate(zip(tiny_documents(), FACTS.values(), strict=True))
    ]


# Folders as on a user's disk


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A fast tokenizer alone, as `groundtune documents` reads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer("qwen").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def counter(tokenizer_folder):
    """What counts the tokens of passages."""
    from groundtune.prepare.chunking import load_counter

    return load_counter(tokenizer_folder / "tokenizer.json")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder: Path) -> Path:
    """documents.jsonl, and the tiny examples as train.jsonl, eval.jsonl (first four) and test.jsonl (last three)."""
    from groundtune.data.files import write_documents, write_jsonl

    write_documents(folder / "documents.jsonl", tiny_documents())
    rows = [
        {
            "question": e.question,
            "gold_docs": [d.to_dict() for d in e.gold_documents],
            "gold_answer": e.answer,
            "chat_history": [{"speaker": t.speaker, "message": t.message} for t in e.chat_history],
        }
        for e in tiny_examples()
    ]
    for name, part in {"train": rows, "eval": rows[:4], "test": rows[3:]}.items():
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


@pytest.fixture(scope="session")
def static_embedding_folder(tmp_path_factory) -> Path:
    return save_static_embedder(tmp_path_factory.mktemp("static_embedding"))


def save_static_embedder(folder: Path) -> Path:
    """A sentence-transformers folder with a random vector per word, so that texts with common words are close."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({w for fact in FACTS.values() for text in fact for w in re.findall(r"\w+", text.lower())})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words) + 1, 32)).astype(np.float32)
    weights[0] = 0
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


def save_bert_embedder(folder: Path, **options: Any) -> Path:
    """A sentence-transformers folder of a tiny random BERT of 24 tokens with mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    tokenizer, config = _tiny_bert()
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=24)
    pooling = Pooling(16, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu", **options).save(str(folder / "model"))
    return folder / "model"


def save_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A tiny random cross-encoder of 24 tokens, as `transformers` saves it."""
    import torch
    from transformers import BertForSequenceClassification

    tokenizer, config = _tiny_bert()
    config.num_labels = labels
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_bert() -> tuple[Any, Any]:
    """The tokenizer and the configuration of a tiny BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    characters = [chr(c) for c in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "library", "book"]
    pieces += [*characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=24,
    )
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return fast, config


@pytest.fixture(scope="session")
def bert_embedding_folder(tmp_path_factory) -> Path:
    return save_bert_embedder(tmp_path_factory.mktemp("bert_embedding"))


@pytest.fixture(scope="session")
def cross_encoder_folder(tmp_path_factory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross_encoder"))
