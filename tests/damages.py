"""Ways to break a model folder, adapter, embedding model, run folder, index or file of predictions, by name.

Used by the unit tests, and in full by faults/broken_models.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 4976698672\n"
NaN = float("nan")


@dataclass(frozen=True)
class Case:
    """Damage to the folder (or file) `kind`; `harmless`: the commands may succeed, as nothing in it matters."""

    kind: str
    name: str
    damage: Callable[[Path], object]
    harmless: bool = False


# What shows only when weights are read, so not to the doctor.
FOUND_LATER = {
    "weights: NaN",
    "sentence_bert_config.json: {'module_output_name': 'own'}",
    "1_Pooling/config.json: {'pooling_mode': []}",
}


def cases() -> Iterator[Case]:
    yield from (Case("model", f"weights: {name}", weights(change)) for name, change in WEIGHTS.items())
    yield from (Case("embedding", f"weights: {name}", weights(change)) for name, change in WEIGHTS.items())
    yield from (
        Case("adapter", f"weights: {name}", weights(change, "adapter_model")) for name, change in WEIGHTS.items()
    )
    for name, change in FOLDERS.items():
        yield Case("model", f"folder: {name}", change, name in HARMLESS_FOLDERS)
    yield Case("model", "folder: an embedding model", _other("embedding"))
    yield Case("embedding", "folder: a decoder", _other("model"))
    yield Case("adapter", "folder: an embedding model", _other("embedding"))
    for kind in ("model", "embedding"):
        for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            for name, content in WHOLES.items():
                harmless = kind == "embedding" and file == "tokenizer_config.json" and content.startswith(b"{")
                yield Case(kind, f"{file}: {name}", _file(file, content), harmless)
        yield from (Case(kind, f"tokenizer.json: {name}", change, harmless) for name, change, harmless in TOKENIZERS)
    for name, (values, harmless) in TOKENIZER_CONFIGS.items():
        yield Case("model", f"tokenizer_config.json: {name}", put("tokenizer_config.json", values), harmless)
    for name, template in TEMPLATES.items():
        yield Case("model", f"template: {name}", _template(template))
    for values, harmless in CONFIGS:
        yield Case("model", f"config.json: {_short(values)}", put("config.json", values), harmless)
    for values, harmless in BERT_CONFIGS:
        yield Case("embedding", f"config.json: {_short(values)}", put("config.json", values), harmless)
    for values, harmless in ADAPTERS:
        yield Case("adapter", f"adapter_config.json: {_short(values)}", put("adapter_config.json", values), harmless)
    for file in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        for name, content in WHOLES.items():
            harmless = file == "sentence_bert_config.json" and content == b"{}"
            yield Case("embedding", f"{file}: {name}", _file(file, content), harmless)
    for file, values, harmless in SENTENCES:
        yield Case("embedding", f"{file}: {_short(values)}", put(file, values), harmless)
    yield from (Case("run", f"run.json: {name}", _file("run.json", content)) for name, content in WHOLES.items())
    for path, value, harmless in RUNS:
        yield Case("run", f"run.json: {'.'.join(path)} {_short(value)}", put_at("run.json", path, value), harmless)
    yield from (Case("index", f"index: {name}", change, True) for name, change in INDEXES.items())
    for name, change in PREDICTIONS.items():
        yield Case("predictions", f"predictions: {name}", as_line(change), name in HARMLESS_PREDICTIONS)


def _short(value: object) -> str:
    return re.sub(r"(.{50}).+", r"\1...", str(value))


def _file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def put(name: str, values: dict[str, Any]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | values))

    return change


def put_at(name: str, path: tuple[str, ...], value: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        at = whole
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
        (folder / name).write_text(json.dumps(whole))

    return change


def _other(kind: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(folder.parents[1] / kind, folder)

    return change


def _template(template: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if isinstance(template, str):
            (folder / "chat_template.jinja").write_text(template)
        else:
            put("tokenizer_config.json", {"chat_template": template})(folder)

    return change


# Weights


def weights(change: Callable[[bytes], bytes], name: str = "model") -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / f"{name}.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Change the header of a safetensors file, or replace it by what `change` returns."""

    def changed(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        result = change(header)
        told = result if isinstance(result, bytes) else json.dumps(header if result is None else result).encode()
        return struct.pack("<Q", len(told)) + told + data[8 + length :]

    return changed


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        from safetensors.torch import load, save

        tensors = load(data)
        change(tensors)
        return save(tensors, {"format": "pt"})

    return changed


def _nan(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor.fill_(NaN)


def _rename_first(tensors: dict[str, Any]) -> None:
    tensors["nobody.knows.weight"] = tensors.pop(min(tensors))  # a file lists them in any order


def _transposed(tensors: dict[str, Any]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1])
    tensors[name] = tensors[name].T.contiguous()


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by one byte": lambda data: data[:-1],
    "cut in the header": lambda data: data[:100],
    "empty": lambda data: b"",
    "four bytes": lambda data: data[:4],
    "Git LFS pointer": lambda data: LFS,
    "HTML page": lambda data: b"<!doctype html><title>404: not found</title>" * 9,
    "zeros": lambda data: bytes(len(data)),
    "random bytes": lambda data: bytes(range(256)) * 9,
    "pickle": lambda data: b"\x80\x02}q\x00." * 9,
    "header of 2**63 bytes": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "header of 99 MB": lambda data: struct.pack("<Q", 99_000_000) + data[8:],
    "header no JSON": _header(lambda header: b"{" * 99),
    "header a list": _header(lambda header: []),
    "header nests deeply": _header(lambda header: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header without tensors": _header(lambda header: {}),
    "offsets beyond the file": _header(lambda header: _first(header).update(data_offsets=[0, 10**12])),
    "offsets negative": _header(lambda header: _first(header).update(data_offsets=[-8, 8])),
    "offsets reversed": _header(lambda header: _first(header)["data_offsets"].reverse()),
    "offsets missing": _header(lambda header: _first(header).pop("data_offsets")),
    "unknown type": _header(lambda header: _first(header).update(dtype="F99")),
    "other type": _header(lambda header: _first(header).update(dtype="F64")),
    "shape of 2**62": _header(lambda header: _first(header).update(shape=[2**62, 2**62])),
    "shape negative": _header(lambda header: _first(header).update(shape=[-1, 4])),
    "shape no list": _header(lambda header: _first(header).update(shape="4x4")),
    "tail of a megabyte": lambda data: data + bytes(2**20),
    "a matrix transposed": _tensors(_transposed),
    "a tensor missing": _tensors(lambda tensors: tensors.pop(min(tensors))),
    "a tensor renamed": _tensors(_rename_first),
    "NaN": _tensors(_nan),
}


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _shards(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file

        names = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}
        change(index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _map(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["weight_map"].update({next(iter(index["weight_map"])): value})


def _replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def _more_layers(folder: Path) -> None:
    put("config.json", {"num_hidden_layers": 1})(folder)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "index names a missing shard": _shards(_map("two.safetensors")),
    "index names a number": _shards(_map(7)),
    "index names itself": _shards(_map("model.safetensors.index.json")),
    "index without map": _shards(lambda index: index.pop("weight_map")),
    "index with an empty map": _shards(lambda index: index.update(weight_map={})),
    "index with a list": _shards(lambda index: index.update(weight_map=["one.safetensors"])),
    "index lists a tensor that no shard has": _shards(
        lambda index: index["weight_map"].update(other="one.safetensors")
    ),
    "index leaves a tensor out": _shards(lambda index: index["weight_map"].pop(next(iter(index["weight_map"])))),
    "index of pointers": lambda folder: (
        _shards(lambda index: None)(folder),
        (folder / "one.safetensors").write_bytes(LFS),
    ),
    "no weights": _remove("model.safetensors"),
    "no config": _remove("config.json"),
    "no tokenizer": _remove("tokenizer.json"),
    "weights a folder": _replace("model.safetensors", Path.mkdir),
    "weights a pipe": _replace("model.safetensors", os.mkfifo),
    "config a pipe": _replace("config.json", os.mkfifo),
    "config a folder": _replace("config.json", Path.mkdir),
    "tokenizer a pipe": _replace("tokenizer.json", os.mkfifo),
    "generation_config a pipe": _replace("generation_config.json", os.mkfifo),
    "config a link to itself": _replace("config.json", lambda path: path.symlink_to(path.name)),
    "config a pointer": _file("config.json", LFS),
    "tokenizer a pointer": _file("tokenizer.json", LFS),
    "generation_config no JSON": _file("generation_config.json", b"{"),
    "generation_config a list": _file("generation_config.json", b"[]"),
    "generation_config nonsense": put(
        "generation_config.json", {"eos_token_id": "x", "max_length": -1, "temperature": "hot"}
    ),
    "special_tokens_map nonsense": _file("special_tokens_map.json", b'{"eos_token": 17}'),
    "chat_template.jinja not UTF-8": _file("chat_template.jinja", b"\xff\xfe\x00"),
    "weights of more layers": _more_layers,
}

HARMLESS_FOLDERS = {"index lists a tensor that no shard has", "index leaves a tensor out", "generation_config nonsense"}
WHOLES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"17",
    "null": b"null",
    "a text": b'"x"',
    "not UTF-8": b"\xff\xfe{}",
    "zeros": bytes(99),
    "empty object": b"{}",
    "lists in lists": b"[[[[]]]]",
    "nests deeply": b'{"a":' * 100_000,
    "nests deeply, closed": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge number": b'{"a": 1' + b"0" * 5000 + b"}",
    "HTML page": b"<!doctype html>",
    "pointer": LFS,
    "half a character": b'{"model_type": "\\ud800"}',
}

# Tokenizers


def _tokenizer(*path: Any, value: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        whole = json.loads((folder / "tokenizer.json").read_text())
        at = whole
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        (folder / "tokenizer.json").write_text(json.dumps(whole))

    return damage


def _pattern(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_TOKEN = {"content": "x", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
TOKENIZERS: list[tuple[str, Callable[[Path], object], bool]] = [
    ("no model", _tokenizer("model", value=None), False),
    ("unknown model", _tokenizer("model", value={"type": "Own"}), False),
    ("empty vocabulary", _tokenizer("model", "vocab", value={}), False),
    ("vocabulary a list", _tokenizer("model", "vocab", value=[1]), False),
    ("ids negative", _tokenizer("model", "vocab", value={"a": -1}), False),
    ("ids beyond 32 bits", _tokenizer("model", "vocab", value={"a": 2**40}), False),
    ("ids with a hole of 4 billion", _tokenizer("model", "vocab", value={"a": 0, "b": 2**32 - 1}), False),
    ("merges unknown", _tokenizer("model", "merges", value=[["zz", "yy"]]), True),
    ("merges numbers", _tokenizer("model", "merges", value=[1, 2]), True),
    (
        "Unigram with a wrong unknown id",
        _tokenizer("model", value={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 99}),
        False,
    ),
    (
        "Unigram without unknown",
        _tokenizer("model", value={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}),
        False,
    ),
    ("Unigram with NaN", _tokenizer("model", value={"type": "Unigram", "vocab": [["a", NaN]], "unk_id": 0}), False),
    ("Unigram, empty", _tokenizer("model", value={"type": "Unigram", "vocab": [], "unk_id": None}), False),
    (
        "WordLevel without its unknown",
        _tokenizer("model", value={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "u"}),
        False,
    ),
    (
        "WordPiece of length 0",
        _tokenizer(
            "model",
            value={
                "type": "WordPiece",
                "vocab": {"a": 0},
                "unk_token": "a",
                "continuing_subword_prefix": "",
                "max_input_chars_per_word": 0,
            },
        ),
        True,
    ),
    (
        "stride beyond length",
        _tokenizer(
            "truncation", value={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 9}
        ),
        True,
    ),
    (
        "truncation to nothing",
        _tokenizer(
            "truncation", value={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}
        ),
        True,
    ),
    (
        "padding to a billion",
        _tokenizer(
            "padding",
            value={
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        ),
        True,
    ),
    (
        "padding to multiples of 0",
        _tokenizer(
            "padding",
            value={
                "strategy": "BatchLongest",
                "direction": "Right",
                "pad_to_multiple_of": 0,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        ),
        True,
    ),
    ("regular expression unclosed", _tokenizer("pre_tokenizer", value=_pattern("(")), False),
    (
        "regular expression endless",
        _tokenizer("pre_tokenizer", value=_pattern("(.*)*(.*)*(.*)*(.*)*\\1\\2\\3$x")),
        True,
    ),
    ("regular expression nested", _tokenizer("pre_tokenizer", value=_pattern("(a{1,9999}){1,9999}")), True),
    (
        "normalizer replaces nothing",
        _tokenizer("normalizer", value={"type": "Replace", "pattern": {"String": ""}, "content": "x" * 999}),
        True,
    ),
    (
        "normalizer precompiled",
        _tokenizer("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        False,
    ),
    (
        "normalizer precompiled, long",
        _tokenizer("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "/////w" + "AAAA" * 99}),
        False,
    ),
    (
        "normalizer precompiled, empty trie",
        _tokenizer("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
        False,
    ),
    (
        "normalizer precompiled, one unit",
        _tokenizer("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}),
        True,
    ),
    ("normalizer unknown", _tokenizer("normalizer", value={"type": "Own"}), False),
    ("post-processor names an unknown token", _tokenizer("post_processor", value=_PROCESSOR), False),
    ("post-processor of nothing", _tokenizer("post_processor", value={**_PROCESSOR, "single": [], "pair": []}), True),
    ("decoder nonsense", _tokenizer("decoder", value={"type": "WordPiece"}), False),
    ("added token with a huge id", _tokenizer("added_tokens", value=[{"id": 2**32 - 1, **_TOKEN}]), True),
    ("added token empty", _tokenizer("added_tokens", value=[{"id": 5000, **_TOKEN, "content": ""}]), True),
    ("added tokens a text", _tokenizer("added_tokens", value="x"), False),
    ("added token without id", _tokenizer("added_tokens", value=[_TOKEN]), False),
    (
        "added token of a megabyte",
        _tokenizer("added_tokens", value=[{"id": 5000, **_TOKEN, "content": "x" * 2**20}]),
        True,
    ),
    ("version unknown", _tokenizer("version", value="9.0"), False),
]
TOKENIZER_CONFIGS: dict[str, tuple[dict[str, Any], bool]] = {
    "unknown class": ({"tokenizer_class": "OwnTokenizer"}, True),
    "class a number": ({"tokenizer_class": 17}, False),
    "class of another kind": ({"tokenizer_class": "LlamaModel"}, False),
    "no end token": ({"eos_token": None}, False),
    "end token a number": ({"eos_token": 17}, False),
    "end token a list": ({"eos_token": ["</s>"]}, False),
    "end token unknown": ({"eos_token": "<nobody>"}, False),
    "end token empty": ({"eos_token": ""}, False),
    "bos token nonsense": ({"bos_token": {"a": 1}}, False),
    "length a text": ({"model_max_length": "long"}, True),
    "length negative": ({"model_max_length": -1}, True),
    "padding side unknown": ({"padding_side": "up"}, False),
    "added tokens a text": ({"added_tokens_decoder": "x"}, False),
    "added tokens of text ids": ({"added_tokens_decoder": {"x": {"content": "y"}}}, False),
    "added tokens without content": ({"added_tokens_decoder": {"5": {}}}, True),
    "added tokens beyond the embedding": (
        {"added_tokens_decoder": {"5": _TOKEN | {"content": "<new>"}}, "extra_special_tokens": ["<other>"]},
        True,
    ),
    "extra tokens numbers": ({"extra_special_tokens": [1, 2]}, False),
    "clean up a text": ({"clean_up_tokenization_spaces": "x"}, True),
    "processor of another kind": ({"processor_class": "OwnProcessor"}, True),
    "auto_map": ({"auto_map": {"AutoTokenizer": "own.Own"}}, True),
}

# Chat templates

_ALL = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def _grown(how: str) -> str:
    return "{% set ns = namespace(x='xx') %}{% for i in range(60) %}" + how + "{% endfor %}" + _ALL


TEMPLATES: dict[str, Any] = {
    "syntax error": "{% for m in messages %}{{ m",
    "unknown tag": "{% evil %}",
    "unknown filter": "{{ messages | own }}",
    "undefined attribute": "{{ messages[0].a.b.c }}",
    "raises": "{{ raise_exception('no') }}",
    "raises many lines": "{{ raise_exception('a\\nb\\n\\x1b[2Jc') }}",
    "division by zero": "{{ 1 / 0 }}",
    "unsafe attribute": "{{ messages.__class__.__mro__ }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "range of a billion": "{% for i in range(10**9) %}{% endfor %}" + _ALL,
    "loops in loops": "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}" + _ALL,
    "loops in loops that print": "{% for i in range(99999) %}{% for i in range(99999) %}x{% endfor %}{% endfor %}"
    + _ALL,
    "loop over a text times 10**9": "{% for c in 'x' * 10**9 %}{% endfor %}" + _ALL,
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}" + _ALL,
    "power of powers": "{{ 10**10**10 }}" + _ALL,
    "text times 10**11": "{{ 'x' * 10**11 }}" + _ALL,
    "list times 10**11": "{{ ([1] * 10**11) | length }}" + _ALL,
    "text doubled 60 times": _grown("{% set ns.x = ns.x + ns.x %}"),
    "text joined 60 times": _grown("{% set ns.x = ns.x ~ ns.x %}"),
    "text printed 60 times": _grown("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "format to 10**11": "{{ '%100000000000d' % 1 }}" + _ALL,
    "format method to 10**11": "{{ '{:100000000000}'.format(1) }}" + _ALL,
    "centred in 10**11": "{{ 'x' | center(10**11) }}" + _ALL,
    "justified to 10**11": "{{ 'x'.ljust(10**11) }}" + _ALL,
    "sum of a billion": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}" + _ALL,
    "empty": "{# #}",
    "only a text": "Hello.",
    "without the question": "{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}</s>",
    "without the content": "{% for m in messages %}{{ m['role'] }}</s>{% endfor %}",
    "content cut to 8 characters": "{% for m in messages %}{{ m['content'][:8] }}</s>{% endfor %}",
    "content reversed": "{% for m in messages %}{{ m['content'] | reverse }}</s>{% endfor %}",
    "content in capitals": "{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}",
    "without the passages": "{% for m in messages %}{{ m['content'].split('\\n')[-1] }}</s>{% endfor %}",
    "without the answer": "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}</s>{% endfor %}",
    "a number": 17,
    "a mapping": {"a": 1},
    "a list of named": [{"name": "default", "template": "{{ x.y.z }}"}],
    "a list of named, none default": [{"name": "other", "template": "x"}],
    "a list of nonsense": [1, 2],
}

# Settings. With each: whether commands may succeed.

_DEEP: Any = 1
for _ in range(900):
    _DEEP = [_DEEP]
CONFIGS: list[tuple[dict[str, Any], bool]] = [
    *(
        ({"num_hidden_layers": value}, False)
        for value in (-1, 0, 3, 10**6, 10**9, 10**30, "2", 2.5, NaN, None, [2], {}, 1e300)
    ),
    *(({"hidden_size": value}, False) for value in (-1, 0, 31, 10**9, 10**18, "32", 32.5, NaN, [32], None)),
    *(({"num_attention_heads": value}, False) for value in (0, -2, 3, 10**9, "2", NaN)),
    *(({"num_key_value_heads": value}, False) for value in (0, -1, 10**9, "x")),
    *(({"vocab_size": value}, False) for value in (0, -1, 10, 10**12, "x", None)),
    *(({"intermediate_size": value}, False) for value in (0, 10**12, "x")),
    *(({"max_position_embeddings": value}, True) for value in (0, -1, 10**12, "x", NaN)),
    *(({"head_dim": value}, False) for value in (0, 7, 10**9, "x")),
    *(({"model_type": value}, False) for value in ("own", 17, None, [], "bert", "whisper", "")),
    *(({"architectures": value}, True) for value in (17, ["Own"], [17], "x", [], ["BertModel"])),
    *(
        ({"rope_scaling": value}, True)
        for value in (
            17,
            "x",
            [],
            {"type": "own"},
            {"rope_type": "yarn", "factor": "x"},
            {"rope_type": "yarn", "factor": NaN},
            {"rope_type": "dynamic", "factor": -1},
            {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
        )
    ),
    *(
        ({"rope_parameters": value}, True)
        for value in (
            17,
            "x",
            [],
            {"rope_type": "own"},
            {"rope_theta": "x", "rope_type": "default"},
            {"rope_theta": NaN, "rope_type": "default"},
            {"rope_theta": 0, "rope_type": "default"},
        )
    ),
    *(
        ({"quantization_config": value}, True)
        for value in (
            17,
            "x",
            [],
            {"quant_method": "own"},
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"quant_method": "fp8"},
            {"quant_method": 17},
        )
    ),
    *(({"dtype": value}, True) for value in (17, "own", [], {"": "float32"}, "int8", "load")),
    *(({"torch_dtype": value}, True) for value in (17, "own", None, "qint8")),
    *(({"hidden_act": value}, False) for value in ("own", 17, None, ["silu"])),
    *(({"rms_norm_eps": value}, True) for value in ("x", NaN, None, -1.0, 1e300)),
    *(({"initializer_range": value}, True) for value in ("x", NaN, -1)),
    *(({"tie_word_embeddings": value}, True) for value in ("x", 17, True)),
    *(({"layer_types": value}, True) for value in (17, ["own"], ["full_attention"] * 9, {})),
    *(({"eos_token_id": value}, True) for value in ("x", -1, 10**12, [[1]], {})),
    *(({"pad_token_id": value}, True) for value in ("x", -5, 10**12, [1])),
    *(({"id2label": value}, True) for value in (17, {"a": 1}, [1])),
    ({"num_labels": 10**9}, True),
    ({"num_labels": -1}, True),
    ({"text_config": 17}, True),
    ({"text_config": {}}, True),
    ({"attention_bias": "x"}, True),
    ({"attn_implementation": 17}, True),
    ({"_attn_implementation": "own"}, True),
    ({"is_encoder_decoder": True}, True),
    ({"use_return_dict": 7}, True),
    ({"deep": _DEEP}, True),
    ({"num_local_experts": 10**9}, True),
    ({"pruned_heads": {"0": [0]}}, True),
    ({"transformers_weights": "x"}, False),
    ({"base_model_tp_plan": 17}, True),
    ({"attribute_map": {"a": "b"}}, True),
    ({"to_dict": 1}, True),
    ({"__class__": 1}, True),
    ({"name_or_path": 1}, True),
    ({"transformers_version": 17}, True),
]
BERT_CONFIGS: list[tuple[dict[str, Any], bool]] = [
    *(({"num_hidden_layers": value}, False) for value in (-1, 0, 3, 10**9, "1", NaN, None)),
    *(({"hidden_size": value}, False) for value in (-1, 0, 17, 10**12, "x", NaN)),
    *(({"max_position_embeddings": value}, False) for value in (0, -1, 10, 10**12, "x")),
    *(({"model_type": value}, False) for value in ("own", 17, None, "llama", "t5", "clip")),
    *(({"vocab_size": value}, False) for value in (0, 10, 10**12, "x")),
    *(({"hidden_act": value}, False) for value in ("own", 17)),
    *(({"layer_norm_eps": value}, True) for value in ("x", NaN)),
    *(({"type_vocab_size": value}, False) for value in (0, 10**12)),
    ({"quantization_config": {"quant_method": "own"}}, True),
    ({"dtype": 17}, True),
    ({"architectures": [17]}, True),
    ({"is_decoder": True}, True),
]
ADAPTERS: list[tuple[dict[str, Any], bool]] = [
    *(
        ({"target_modules": value}, False)
        for value in (
            17,
            "x",
            "(",
            "(.*)*(.*)*x",
            "((a|.)*)*$y",
            "(([a-z_.0-9]+)+)+X",
            [],
            [17],
            None,
            {},
            ".*" * 40 + "X",
            "(" * 5000,
            ["q_proj", "nobody"],
            r".*(q|v)_proj",
        )
    ),
    *(
        ({"init_lora_weights": value}, True)
        for value in (
            "pissa_niter_100000",
            "pissa",
            "pissa_niter_x",
            "olora",
            "loftq",
            "corda",
            "eva",
            "lora_ga",
            "orthogonal",
            "own",
            17,
            None,
            [],
            "gaussian",
            False,
        )
    ),
    *(({"r": value}, False) for value in (0, -1, 3, 10**9, 10**12, "2", 2.5, NaN, None, [2])),
    *(({"lora_alpha": value}, False) for value in ("x", NaN, None, [1])),
    *(({"lora_alpha": value}, True) for value in (0, -1, 10**30)),
    *(({"lora_dropout": value}, True) for value in ("x", -1, 2, NaN, None)),
    *(
        ({"rank_pattern": value}, False)
        for value in (17, "x", [], {"q_proj": "x"}, {"(": 2}, {"q_proj": 10**9}, {"((a|.)*)*y": 4})
    ),
    *(
        ({"alpha_pattern": value}, False)
        for value in (17, "x", {"q_proj": "x"}, {"(": 2}, {"((a|.)*)*y": 4}, {"(.*)*(.*)*(.*)*z": 4})
    ),
    *(({"layers_pattern": value, "layers_to_transform": [0]}, False) for value in ("(", "((a|.)*)*y", 17)),
    *(({"layers_to_transform": value}, True) for value in ("x", -1, [99], [[1]], NaN, 10**12)),
    *(({"exclude_modules": value}, False) for value in ("((a|.)*)*y", "(", 17, ".*")),
    *(({"modules_to_save": value}, True) for value in (17, ["nobody"], ["((a|.)*)*y"], ["lm_head"], "lm_head")),
    *(({"target_parameters": value}, value != 17) for value in (17, ["nobody"])),
    *(({"trainable_token_indices": value}, False) for value in ([10**9], "x")),
    *(({"peft_type": value}, False) for value in (17, "own", "PREFIX_TUNING", None)),
    *(({"task_type": value}, True) for value in (17, "own", "SEQ_CLS")),
    *(({"bias": value}, True) for value in ("own", 17, "all")),
    ({"target_modules": "all-linear"}, True),
    ({"use_dora": True}, False),
    ({"use_rslora": "x"}, True),
    ({"fan_in_fan_out": True}, True),
    ({"layer_replication": [[0, 10**9]]}, False),
    ({"layer_replication": "x"}, False),
    ({"unknown": 1}, True),
    ({"auto_mapping": {"base_model_class": "x", "parent_library": "os"}}, True),
    ({"eva_config": 17}, True),
    ({"corda_config": {"a": 1}}, True),
    ({"loftq_config": {"loftq_bits": 4}}, True),
    ({"runtime_config": 17}, True),
    ({"lora_bias": True}, False),
    ({"use_qalora": True}, True),
    ({"arrow_config": 17}, True),
    ({"revision": 17}, True),
    ({"inference_mode": "x"}, True),
]
SENTENCES: list[tuple[str, dict[str, Any], bool]] = [
    *(
        ("sentence_bert_config.json", {"max_seq_length": value}, True)
        for value in (0, -1, 10**9, "x", NaN, [1], None, 2.5, True)
    ),
    *(("sentence_bert_config.json", {"do_lower_case": value}, True) for value in ("x", [])),
    ("sentence_bert_config.json", {"transformer_task": "own"}, False),
    ("sentence_bert_config.json", {"modality_config": 17}, False),
    ("sentence_bert_config.json", {"unknown": 1}, False),
    ("sentence_bert_config.json", {"module_output_name": "own"}, False),
    *(("1_Pooling/config.json", {"pooling_mode": value}, False) for value in ("own", 17, None, [])),
    *(("1_Pooling/config.json", {"embedding_dimension": value}, True) for value in ("x", -1, 10**12)),
    ("1_Pooling/config.json", {"unknown": 1}, False),
    ("1_Pooling/config.json", {"include_prompt": "x"}, True),
    *(
        ("config_sentence_transformers.json", {"similarity_fn_name": value}, True)
        for value in ("own", 17, "euclidean", [])
    ),
    *(("config_sentence_transformers.json", {"prompts": value}, False) for value in (17, {"query": 17})),
    ("config_sentence_transformers.json", {"default_prompt_name": "own"}, True),
    ("config_sentence_transformers.json", {"__version__": 17}, True),
    ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, True),
    ("config_sentence_transformers.json", {"truncate_dim": -1}, True),
    ("config_sentence_transformers.json", {"truncate_dim": 10**9}, True),
    ("config_sentence_transformers.json", {"truncate_dim": "x"}, True),
]
RUNS: list[tuple[tuple[str, ...], Any, bool]] = [
    *((("arguments",), value, False) for value in (17, None, [], "x")),
    *((("arguments", "model"), value, True) for value in (17, None, [], "x")),
    *((("arguments", "data"), value, True) for value in (17, [])),
    *((("arguments", "retrieval"), value, True) for value in (17, [])),
    *((("arguments", "method"), value, True) for value in ("own", None, "../x", "\x1b[2J")),
    *((("arguments", "method"), value, False) for value in (17, [], "x" * 10**6)),
    *((("arguments", "data", "max_seq_length"), value, False) for value in (0, -1, "x", 2.5, True, 10**30)),
    *((("arguments", "retrieval", "eval_num_to_retrieve"), value, False) for value in (0, -1, "x", [], {})),
    *((("arguments", "retrieval", "eval_num_to_retrieve"), value, True) for value in (10**9, 10**30)),
    *((("arguments", "retrieval", "retriever"), value, False) for value in ("own", 17, [], {})),
    *((("arguments", "retrieval", "query_history"), value, False) for value in ("own", 17, [])),
    *((("arguments", "retrieval", "query_prompt"), value, False) for value in (17, [])),
    *((("arguments", "retrieval", "embedding_dtype"), value, False) for value in ("own", 17, [])),
    *((("arguments", "model", "dtype"), value, False) for value in ("own", 17, [], {})),
    *((("arguments", "model", "use_peft"), value, False) for value in ("x", 17)),
    *((("arguments", "model", "load_in_4bit"), value, value is True) for value in ("x", True)),
    *((("arguments", "model", "model_name_or_path"), value, False) for value in (17, "\0", "x" * 5000)),
    *((("arguments", "model", "model_name_or_path"), value, True) for value in ([], "a/b/c")),
    *((("arguments", "model", "model_revision"), value, True) for value in (17, "x\ny", [])),
    *((("arguments", "model", "gguf_file"), value, True) for value in (17, "../x", "x.gguf", "..")),
    *((("arguments", "prompt", "user_prefix"), value, False) for value in (17, [], {})),
    *((("arguments", "prompt", "instruction"), value, value is None) for value in (17, None)),
    *((("arguments", "prompt", "sep_sys"), value, False) for value in (17, [])),
    *((("arguments", "evaluation", "bootstrap_samples"), value, True) for value in (0, -1, "x", 10**12)),
    *((("arguments", "evaluation", "max_new_tokens"), value, True) for value in (0, -1, "x", 10**12, NaN)),
    *((("arguments", "training", "bf16"), value, True) for value in ("x", 17, [])),
    *((("arguments", "training", "load_best_model_at_end"), value, True) for value in ("x", [])),
    *(
        (("arguments", "data", "full_dataset_file_path"), value, False)
        for value in (17, "\0", "nowhere.jsonl", "run.json", ".", "/dev/zero")
    ),
    *((("arguments", "data", "test_file"), value, True) for value in (17, [], "\0", "nowhere")),
    *((("inputs",), value, True) for value in (17, [], "x")),
    *((("inputs", "test_file"), value, True) for value in (17, {"sha256": 17}, [])),
    *((("working_directory",), value, True) for value in (17, "\0", [], "x" * 10**5)),
]

# Indexes: what is damaged is embedded again, with a warning.


def _vectors(change: Callable[[Any], Any], forged: bool = True) -> Callable[[Path], object]:
    """Change an index's vectors; `forged`: the manifest's checksum matches them."""

    def damage(index: Path) -> None:
        import numpy as np

        store = next(path for path in index.iterdir() if path.is_dir())
        np.save(store / "vectors.npy", change(np.load(store / "vectors.npy")), allow_pickle=True)
        if forged:
            _forge(store)

    return damage


def _forge(store: Path, **values: Any) -> None:
    from groundtune.system.durable import MANIFEST, write_manifest

    about = json.loads((store / MANIFEST).read_text()) | values
    (store / MANIFEST).unlink()
    write_manifest(store, {name: value for name, value in about.items() if name not in ("files", "sha256")})


def _manifest(content: bytes | dict[str, Any]) -> Callable[[Path], object]:
    def damage(index: Path) -> None:
        store = next(path for path in index.iterdir() if path.is_dir())
        if isinstance(content, bytes):
            (store / "manifest.json").write_bytes(content)
        else:
            _forge(store, **content)

    return damage


def _with(value: float) -> Callable[[Any], Any]:
    def change(vectors: Any) -> Any:
        vectors[0, 0] = value
        return vectors

    return change


INDEXES: dict[str, Callable[[Path], object]] = {
    "NaN": _vectors(_with(NaN)),
    "infinity": _vectors(_with(float("inf"))),
    "other lengths": _vectors(lambda vectors: vectors * 1000),
    "fewer rows": _vectors(lambda vectors: vectors[:-1]),
    "fewer dimensions": _vectors(lambda vectors: vectors[:, :-1].copy()),
    "float64": _vectors(lambda vectors: vectors.astype("f8")),
    "integers": _vectors(lambda vectors: vectors.astype("i4")),
    "text": _vectors(lambda vectors: vectors.astype("U")),
    "objects": _vectors(lambda vectors: vectors.astype("O")),
    "one dimension": _vectors(lambda vectors: vectors.ravel()),
    "by column": _vectors(lambda vectors: vectors.copy(order="F")),
    "big-endian": _vectors(lambda vectors: vectors.astype(">f4")),
    "not forged": _vectors(lambda vectors: vectors * 2, forged=False),
    "dimensions forged": lambda index: (
        _vectors(lambda v: v[:, :-1].copy())(index),
        _manifest({"dimensions": 15})(index),
    ),
    "ids a number": _manifest({"ids": 17}),
    "ids twice": _manifest({"ids": ["a", "a"]}),
    "ids lists": _manifest({"ids": [["a"], ["b"]]}),
    "dimensions a text": _manifest({"dimensions": "x"}),
    "fingerprint": _manifest({"fingerprint": "x"}),
    "settings": _manifest({"settings": {}}),
    **{f"manifest: {name}": _manifest(content) for name, content in WHOLES.items()},
}

# Predictions


def as_line(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        lines = path.read_text("utf-8").split("\n")
        row = json.loads(lines[1])
        result = change(row)
        lines[1] = result if isinstance(result, str) else json.dumps(row)
        path.write_text("\n".join(lines), "utf-8")

    return damage


def _field(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda row: row.update({name: value})


PREDICTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a score NaN": lambda row: row["scores"].update({"generation/f1": NaN}),
    "a score infinite": lambda row: row["scores"].update({"generation/f1": float("inf")}),
    "a score a text": lambda row: row["scores"].update({"generation/f1": "x"}),
    "a score a list": lambda row: row["scores"].update({"generation/f1": [1]}),
    "a score of 400 digits": lambda row: row["scores"].update({"generation/f1": 10**400}),
    "an unknown score": lambda row: row["scores"].update({"retrieval/recall@x": 1.0}),
    "nests deeply": lambda row: '{"a":' * 100_000,
    "nests deeply, closed": lambda row: "[" * 100_000 + "]" * 100_000,
    "metadata nests deeply": lambda row: json.dumps(row)[:-1] + ', "judged": {"a": ' + "[" * 5000 + "]" * 5000 + "}}",
    "metadata of a document nests": lambda row: json.dumps(row).replace(
        '"metadata": {', '"metadata": {"a": ' + "[" * 900 + "]" * 900 + ", ", 1
    ),
    "no JSON": lambda row: "{",
    "a list": lambda row: "[]",
    "a number": lambda row: "17",
    "null": lambda row: "null",
    "a number of 5,000 digits": lambda row: json.dumps(row)[:-1] + ', "new_tokens": 1' + "0" * 5000 + "}",
    **{
        f"{name} a number": _field(name, 17)
        for name in (
            "question",
            "gold_answer",
            "gold_docs",
            "retrieved_docs",
            "chat_history",
            "scores",
            "answer",
            "context",
            "judged",
            "outcome",
            "failure",
            "gold_answers",
            "read_docs",
        )
    },
    **{
        f"{name} a list": _field(name, [17])
        for name in (
            "question",
            "gold_answer",
            "gold_docs",
            "retrieved_docs",
            "chat_history",
            "scores",
            "source",
            "answer",
            "finished",
            "passages_read",
            "prompt_tokens",
            "new_tokens",
            "judged",
        )
    },
    **{
        f"{name} a text": _field(name, "x")
        for name in (
            "gold_docs",
            "retrieved_docs",
            "chat_history",
            "scores",
            "passages_read",
            "prompt_tokens",
            "new_tokens",
            "finished",
            "answerable",
            "gold_answers",
            "judged",
        )
    },
    **{
        f"{name} null": _field(name, None)
        for name in (
            "question",
            "gold_answer",
            "gold_docs",
            "retrieved_docs",
            "scores",
            "source",
            "answer",
            "finished",
            "passages_read",
            "context",
        )
    },
    **{f"{name} NaN": _field(name, NaN) for name in ("passages_read", "prompt_tokens", "new_tokens", "answer")},
    "a document without text": lambda row: row["gold_docs"][0].pop("page_content"),
    "a document of numbers": lambda row: row["gold_docs"][0].update(page_content=17),
    "a document's metadata a list": lambda row: row["gold_docs"][0].update(metadata=[17]),
    "a document's fmt_content a number": lambda row: row["gold_docs"][0].update(fmt_content=17),
    "metadata NaN": lambda row: row["gold_docs"][0].update(metadata={"a": NaN}),
    "a hit's score a text": lambda row: row["retrieved_docs"].append(dict(row["gold_docs"][0], score="x")),
    "a hit's score NaN": lambda row: row["retrieved_docs"].append(dict(row["gold_docs"][0], score=NaN)),
    "a turn without message": lambda row: row["chat_history"].append({"speaker": "user"}),
    "a turn's speaker a list": lambda row: row["chat_history"].append({"speaker": ["user"], "message": "x"}),
    "half a character": _field("answer", "\ud800"),
    "control characters": _field("outcome", "\x1b[2J"),
    "an unknown outcome": _field("outcome", "own"),
    "an unknown context": _field("context", "own"),
}

HARMLESS_PREDICTIONS = {"metadata NaN", "control characters", "an unknown outcome", "an unknown context"}
