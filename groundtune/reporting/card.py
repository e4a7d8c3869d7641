"""The model card, README.md beside the model: what it was trained on, how good it is, how to load and ask it.

It is meant for publication, so it names files without their folders. Its numbers come from metrics.json, and
everything else from run.json.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from groundtune.arguments import (
    MAXSIM,
    TAUGHT,
    DataArguments,
    EvaluationArguments,
    PromptArguments,
    RetrievalArguments,
    reranked_by,
)
from groundtune.evaluation.verdicts import F1
from groundtune.methods import METHODS
from groundtune.prompts.citations import CITE
from groundtune.reporting.markdown import md, md_fence, md_list, md_table
from groundtune.reporting.results import (
    HOW_TO_READ,
    Results,
    comparison,
    flat,
    for_scale,
    notes,
    passages_apart,
    passages_of_rows,
    questions,
    warning,
)
from groundtune.system.servers import server_kind

PREFIXES = ("user_prefix", "assistant_prefix", "sep_user", "sep_sys")
# Metrics for which the hub has its own names.
_ON_THE_HUB = {F1: ("f1", "Token F1"), "generation/rougeL": ("rouge", "ROUGE-L"),
               "generation/exact_match": ("exact_match", "Exact match")}  # fmt: skip
# Settings that serving needs besides the model, if they differ from the default.
_SERVING = (
    (DataArguments, ("max_seq_length",)),
    (
        RetrievalArguments,
        (
            "eval_num_to_retrieve",
            "retriever",
            "mix_weight",
            "query_history",
            "query_prompt",
            "document_prompt",
            "reranker_model",
            "rerank_depth",
            "rerank_weight",
            "rewriter_model",
        ),
    ),
    (PromptArguments, (*PREFIXES, "instruction", "citations", "passage_attention")),
    (EvaluationArguments, ("max_new_tokens",)),
)


def model_card(results: Results) -> str:
    """The card as Markdown, with the front matter that the hub reads."""
    record = results.record
    arguments = flat(record.get("arguments", {}))
    caution, remarks = warning(results), [f"- {md(without_folders(note))}" for note in notes(results)]
    rows = [
        [row.label, *(" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference)), row.verdict]
        for row in comparison(results)
    ]
    blocks = [
        f"---\n{_front_matter(results, arguments)}\n---",
        _title(record),
        f"**{md(results.verdict)}.**",
        f"> **{md(caution)}**" if caution else "",
        md_list(_facts(results, arguments)),
        f"## Before and after, {questions(results.base)}",
        md_table(["", "Base [95 %]", "Tuned [95 %]", "Difference [95 %]", "Verdict"], rows),
        md(for_scale(results)),
        md(HOW_TO_READ),
        *(["## Notes", "\n".join(remarks)] if remarks else []),
        "## Data", md_table(["", "File", "Rows", "SHA-256"], _data(record)),
        "## Ask it", f"With your own documents, as written by `groundtune documents`{_local_embedder(record)}:",
        md_fence(ask_command(record), "shell"),
        "## Load it", "Without Groundtune, on passages that you retrieve. The prompt is the one used in training:",
        md_fence(loading_code(record), "python"),
        "## Licence", "Not set: it depends on the licences of the base model and the data. Add `license` above.",
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def published_as(name: str, card: str, record: Mapping[str, Any]) -> str:
    """The card with its model name replaced by the hub name `name`, which was not known before; edits are kept."""
    now = {**record, "hub_repository": name}
    for part in (_title, _index_entry, ask_command, loading_code):
        card = card.replace(part(record), part(now), 1)
    return card


def ask_command(record: Mapping[str, Any]) -> str:
    """A `groundtune ask` command with the retriever and prompt of the run, independent of the model's location."""
    arguments = flat(record.get("arguments", {}))
    values: dict[str, Any] = {}
    if arguments.get("retriever") != "bm25" or arguments.get("reranker") == MAXSIM:
        flag = "eval_embedding_model" if arguments.get("eval_embedding_model") else "embedding_model"
        values["embedding_model"] = _known_as(record, flag)[0]
    values |= {flag: name for flag in ("reranker", "rewriter") if (name := _named(record, flag))}
    for group, names in _SERVING:
        for field in fields(group):
            default = None if field.default is MISSING else field.default
            if field.name in names and arguments.get(field.name) not in (None, default):
                values[field.name] = arguments[field.name]
    words = ["groundtune", "ask", _name(record), "Your question?"]
    words += ["--full_dataset_file_path", "documents.jsonl"]
    # As one word, because a value may begin with dashes.
    return shlex.join([*words, *(f"--{name}={value}" for name, value in values.items())])


def _local_embedder(record: Mapping[str, Any]) -> str:
    """A note if the command's embedding model was a local folder, whose path differs on other machines."""
    names = [_known_as(record, flag) for flag in ("eval_embedding_model", "embedding_model")]
    name, on_hub = next((known for known in names if known[0]), ("", True))
    return "" if on_hub else f"; {md(name)} was a local folder: use your own"


def loading_code(record: Mapping[str, Any]) -> str:
    """Python code that loads the model with transformers (and PEFT for an adapter) and answers a question."""
    arguments = flat(record.get("arguments", {}))
    adapter = bool(arguments.get("use_peft"))
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = "AutoTokenizer, GenerationConfig" if adapter else "AutoModelForCausalLM, AutoTokenizer, GenerationConfig"
    options = 'dtype="auto"'
    if arguments.get("trust_remote_code"):
        options += ", trust_remote_code=True"
    if adapter and arguments.get("gguf_file"):
        options += f", gguf_file={arguments['gguf_file']!r}"
    instruction = arguments.get("instruction", PromptArguments().instruction)
    cites, apart = arguments.get("citations") == TAUGHT, passages_apart(arguments)
    instruction = f"{instruction} {CITE}".strip() if cites else instruction
    lines = [
        "from peft import AutoPeftModelForCausalLM" if adapter else "",
        f"from transformers import {imports}",
        "",
        *["# Unlike in training, a passage attends to the others here: answers may be worse."] * bool(apart),
        f"name = {_name(record)!r}  # on the hub, or this folder",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f"model = {loader}.from_pretrained(name, {options}).eval()",
        "",
        'passages = ["Title: Returns\\nReturns are accepted within 60 days."]  # the best first',
        *(['passages = [f"⟦{i}⟧ {passage}" for i, passage in enumerate(passages, 1)]'] if cites else []),
        'question = "Can I return it?"',
        f'opening = "\\n\\n".join([{instruction!r}, *passages])',
        *_prompt_lines(record),
        'bos = tokenizer.bos_token or ""',
        "inputs = tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos)), "
        'return_tensors="pt").to(model.device)',
        "settings = GenerationConfig.from_pretrained(name)",
        f"settings.max_new_tokens = {arguments.get('max_new_tokens', EvaluationArguments().max_new_tokens)}",
        "output = model.generate(**inputs, generation_config=settings)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())',
    ]
    return "\n".join(lines).lstrip("\n")


def without_folders(text: str) -> str:
    """A text with absolute paths replaced by file names; URLs stay."""
    return re.sub(r"(?<![\w:/\\.])(?:[A-Za-z]:)?[\\/](?:[^\\/\s:;,'\"()]+[\\/])+", "", text)


def _front_matter(results: Results, arguments: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    record, adapter = results.record, bool(arguments.get("use_peft"))
    base, on_hub = _known_as(record, "model_name_or_path")
    relation = "adapter" if adapter else "finetune"
    of_base: dict[str, Any] = {"base_model": base, "base_model_relation": relation} if on_hub else {}
    test = _test_file(record)
    scores = [
        EvalResult(
            task_type="question-answering",
            task_name="Answers from retrieved passages, end to end",
            dataset_type="private",
            dataset_name=test["name"],
            dataset_args={"sha256": test["sha256"], "questions": results.tuned.n},
            metric_type=kind,
            metric_name=label,
            metric_value=results.tuned.metrics[metric].value,
        )
        for metric, (kind, label) in _ON_THE_HUB.items()
        if metric in results.tuned.metrics
    ]
    # No `datasets`: the files are local, and a dataset name on the hub would be a guess.
    return ModelCardData(
        **of_base,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["groundtune", "rag", "question-answering", results.method, *(["lora"] if adapter else [])],
        metrics=[score.metric_type for score in scores],
        model_name=_last(_name(record)),
        eval_results=scores,
    ).to_yaml()


def _title(record: Mapping[str, Any]) -> str:
    return f"# {md(_last(_name(record)))}"


def _index_entry(record: Mapping[str, Any]) -> str:
    return f"model-index:\n- name: {_last(_name(record))}\n"


def _facts(results: Results, arguments: Mapping[str, Any]) -> dict[str, str]:
    record = results.record
    base, on_hub = _known_as(record, "model_name_or_path")
    method = METHODS.get(results.method)
    how = (
        f"{method.title}: cross-entropy on the answers, from the question and {method.reads}"
        if method
        else results.method
    )
    if arguments.get("use_peft"):
        kind = "QLoRA (base in 4 bits)" if arguments.get("load_in_4bit") else "LoRA"
        how += f"; {kind}, r = {arguments.get('lora_r')}, alpha = {arguments.get('lora_alpha')}"
    step = results.best_step
    embedding = _known_as(record, "eval_embedding_model")[0] or _known_as(record, "embedding_model")[0]
    kind = arguments.get("retriever", "dense")
    found_by = "BM25" if kind == "bm25" else embedding + (" and BM25" if kind in ("mix", "hybrid") else "")
    passages = arguments.get("eval_num_to_retrieve", len(results.base.predictions[0].hits))
    found_by = (found_by or "dense") + reranked_by(_named(record, "reranker"))
    versions = record.get("versions", {})
    revision = f", revision {arguments['model_revision']}" if arguments.get("model_revision") else ""
    shown = {
        "Base model": f"{base}{revision}" if on_hub else f"{base} (a local folder)" if base else "",
        "Trained by": how,
        "Passages of a row": passages_of_rows(arguments),
        "Passage attention": passages_apart(arguments),
        "Checkpoint": "the last weights" if step is None else f"step {step}, best {results.selection_metric}",
        "Retriever": f"{found_by}, {passages} passages per question",
        "Prompt": _style(record),
        "Made with": ", ".join(f"{name} {versions[name]}" for name in ("groundtune", "transformers", "peft", "torch")
                               if name in versions),
        "Seed": str(record.get("seed", "")),
    }  # fmt: skip
    return {name: value for name, value in shown.items() if value}


def _data(record: Mapping[str, Any]) -> list[list[str]]:
    """A row per input file: its role, name, number of rows used, and hash."""
    labels = {"train_file": "Training", "eval_file": "Evaluation", "test_file": "Test",
              "full_dataset_file_path": "Documents"}  # fmt: skip
    return [
        [labels.get(name, name), _last(about.get("path", "")), f"{about['rows']:,}" if "rows" in about else "",
         about.get("sha256", "")]
        for name, about in record.get("inputs", {}).items()
    ]  # fmt: skip


def _test_file(record: Mapping[str, Any]) -> dict[str, str]:
    files = record.get("inputs", {})
    about = files.get("test_file") or files.get("eval_file") or {}
    return {"name": _last(about.get("path", "")) or "questions", "sha256": about.get("sha256", "")}


def _prompt_lines(record: Mapping[str, Any]) -> list[str]:
    """Code that builds `prompt` from `opening` and `question`, as `prompt.py` does for a first question."""
    if _style(record) == "chat template":
        removed, added = record.get("prompt_tail", ("", ""))
        thinks = flat(record.get("arguments", {})).get("thinking") == "keep"
        off = "" if thinks else ", enable_thinking=False, thinking=False"
        return [
            'messages = [{"role": "user", "content": f"{opening}\\n\\n{question}"}]',
            "prompt = tokenizer.apply_chat_template(",
            f"    messages, tokenize=False, add_generation_prompt=True{off}",
            ")",
            *([f"prompt = prompt.removesuffix({removed!r}) + {added!r}"] if removed or added else []),
        ]
    arguments = flat(record.get("arguments", {}))
    defaults = {"user_prefix": "USER", "assistant_prefix": "ASSISTANT", "sep_user": " "}
    user, assistant, end = (
        default if arguments.get(name) is None else arguments[name] for name, default in defaults.items()
    )
    return [f"prompt = opening + {f'{chr(10)}{chr(10)}{user}: '!r} + question + {f'{end}{assistant}:'!r}"]


def _style(record: Mapping[str, Any]) -> str:
    given = flat(record.get("arguments", {}))
    known = "prefix" if any(given.get(name) is not None for name in PREFIXES) else "chat template"
    return record.get("prompt_style", known)


def _name(record: Mapping[str, Any]) -> str:
    """The model's name on the hub if it is published, else the name of its folder."""
    arguments = flat(record.get("arguments", {}))
    published = record.get("hub_repository") or arguments.get("hub_model_id")
    return published or _last(arguments.get("output_dir") or "") or "model"


def _known_as(record: Mapping[str, Any], flag: str) -> tuple[str, bool]:
    """A model's name, and whether it is a hub name; a local folder is named by its last part."""
    name = str(flat(record.get("arguments", {})).get(flag) or "")
    local = str(record.get("identity", {}).get(f"--{flag}", "")).startswith("sha256 ")
    on_hub = not local and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))
    return (name, True) if on_hub else (_last(name), False)


def _named(record: Mapping[str, Any], flag: str) -> str:
    """The same of a model that may be on a server, whose address is nobody else's business."""
    kind = server_kind(str(flat(record.get("arguments", {})).get(flag) or ""))
    return f"{kind}:URL" if kind else _known_as(record, flag)[0]


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("/\\"))[-1]
