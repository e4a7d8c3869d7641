"""Groundtune's own arguments, in groups, each with one help text; `check` reports all problems at once.

Optimisation, saving and logging use the arguments of `transformers.TrainingArguments` (see `training/arguments.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from groundtune.filters import filter_problems
from groundtune.schema import UNANSWERABLE, nfc
from groundtune.system.inputs import special
from groundtune.system.model_folders import embedding_problems, may_not_read, model_problems
from groundtune.system.packages import pip_install
from groundtune.system.servers import MILVUS, address_problems, milvus_problems, server_kind
from groundtune.system.text import hide_secrets, one_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T", bound="TrainingArguments", covariant=True)


class Group(Protocol):
    """A dataclass of arguments, and what the help calls it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    _argument_group_name: str


def argument(default: Any, help: str, choices: list[str] | None = None, alone: str = "") -> Any:
    """A dataclass field with its help text; `alone` is its value if the flag is given without one."""
    metadata: dict[str, Any] = {"help": help.replace("%", "%%")}  # argparse formats it
    if alone:
        metadata["alone"] = alone
    if choices is not None:
        metadata["choices"] = choices
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


MAXSIM = "maxsim"  # the reranker that is the embedding model itself
NO_RERANKER = "none"
REWRITE = "rewrite"  # the query history that a language model turns into one question
NO_WRITER = (
    f"--query_history {REWRITE}: needs a model that writes the question; name it with --rewriter where there is this "
    "flag, or use another value"
)
GOLD_FIRST, SHUFFLED, RANKED = ORDERS = ("gold_first", "shuffled", "ranked")
DISTRACTORS = ("retrieved", "given", "mined", "random")
OFF, TAUGHT, AFTERWARDS = "off", "taught", "afterwards"  # citations
FULL, BLOCK = "full", "block"  # attention of passages
PASSAGE_CACHE = 1024  # MB
TOO_LONG = ("error", "drop", "shorten")  # what to do with an example that does not fit into a row


@dataclass
class DataArguments:
    """Examples, documents and the maximum length of a training row."""

    _argument_group_name = "data"

    train_file: str = argument("", "Training examples (.jsonl): question, gold_docs, gold_answer, chat_history.")
    eval_file: str = argument(
        "", "Examples (.jsonl) for end-to-end evaluation during training; the best checkpoint is chosen on them."
    )
    test_file: str = argument(
        "", "Examples (.jsonl) on which the base and the tuned model are compared at the end. Empty: the eval file."
    )
    full_dataset_file_path: str = argument(
        "", "Document database: .jsonl, .parquet, or a LocalRQA .pkl (read without executing anything)."
    )
    full_dataset_index_path: str = argument(
        "",
        "Folder that caches the documents' vectors; created on first use and checked on every use. Empty: `index` "
        "next to the document database.",
    )
    max_seq_length: int = argument(
        2048,
        "Maximum row length in tokens: passages, chat history, question and answer. Longer rows drop retrieved "
        "passages, the last in the row first; never gold passages, question or answer.",
    )
    too_long: str = argument(
        "error",
        "Examples that do not fit even without retrieved passages. error: list them and stop. drop: leave them out. "
        "shorten: drop the earliest turns of the chat history, then retrieved passages, then gold passages after the "
        "first, and leave out an example that is still too long. Both are counted and named.",
        list(TOO_LONG),
    )
    max_train_samples: int = argument(
        0, "Train on at most this many examples, spread evenly over the file. 0: on all of them."
    )
    train_share: float = argument(
        1.0,
        "Train on this share of the examples, by passage: all questions on a gold passage are in or out. With the same "
        "--seed, the examples of a smaller share are among those of a larger one, for a learning curve.",
    )
    share_prefix: str = argument(
        "auto",
        "Share one copy of a common passage among the questions about it; the gradient is the same. auto: if that is "
        "exact; questions about the same passage are then batched together if that saves tokens.",
        ["auto", "on", "off"],
    )


@dataclass
class RetrievalArguments:
    """The frozen retriever, used in training (SwR) and in end-to-end evaluation (both methods)."""

    _argument_group_name = "retrieval"

    embedding_model: str = argument(
        "",
        "Embedding model for retrieval in training (SwR) and evaluation: a hub name, a folder, or openai:URL of a "
        "server with /embeddings, whose key is read from GROUNDTUNE_EMBEDDING_KEY.",
    )
    eval_embedding_model: str = argument("", "Embedding model for evaluation only. Empty: --embedding_model.")
    embedding_server_model: str = argument("", "Name of the embedding model on the server.")
    embedding_max_num_to_retrieve: int = argument(
        3, "k of SwR: a training row has at most k + 1 passages, gold passages first, then retrieved ones."
    )
    eval_num_to_retrieve: int = argument(4, "Passages retrieved per question in end-to-end evaluation.")
    retriever: str = argument(
        "mix",
        "Retrieval method: dense compares vectors, bm25 words; mix adds both scores, hybrid both ranks.",
        ["mix", "dense", "bm25", "hybrid"],
    )
    mix_weight: float = argument(
        0.6, "Weight of the vectors in --retriever mix, from 0 to 1; the rest is that of the words."
    )
    query_history: str = argument(
        "fused",
        "Part of the chat history that is added to the search query, in training, evaluation and serving: nothing, "
        "the user's last message, all of the user's messages, or all messages. fused: search with none, last and all, "
        "and add the scores. rewrite: search for a question that --rewriter writes from both.",
        ["none", "last", "user", "all", "fused", REWRITE],
    )
    rewriter: str = argument(
        "",
        "With --query_history rewrite: what writes the question, openai:URL of a server, or a model folder or hub name "
        "to load locally. Empty: the model that is trained or answers, without what it learns here.",
    )
    rewriter_model: str = argument("", "Name of the rewriter's model on the server.")
    rewriter_options: str = argument("", "Extra fields for every request to the rewriter's server, as JSON.")
    rewrite_prompt: str = argument(
        "", "Text file with the prompt of the rewriter, with $chat_history and $question. Empty: the one that ships."
    )
    reranker: str = argument(
        "",
        "Puts the first passages of each search in a better order. A cross-encoder (hub name or folder); jina:URL or "
        "tei:URL of a server, whose key is read from GROUNDTUNE_RERANKER_KEY; or maxsim, which compares the embedding "
        "model's vectors of single tokens. none: not even the one of MODEL's run.",
    )
    reranker_model: str = argument("", "Name of the reranker on the server.")
    rerank_depth: int = argument(20, "Number of passages per question that are reranked.")
    rerank_weight: float | None = argument(
        None,
        "Weight of the reranker's score, from 0 to 1; the rest is that of the search. Default: 0.5 for maxsim, else 1.",
    )
    embedding_batch_size: int = argument(
        64, "Texts embedded per batch; on a CPU up to twice as many if they are short."
    )
    embedding_dtype: str = argument(
        "auto",
        "Data type of the embedding model. auto: as it was saved. bfloat16 is faster on hardware that supports it, "
        "but changes vectors slightly, so it gets its own index.",
        ["auto", "float32", "bfloat16"],
    )
    query_prompt: str | None = argument(
        None, "Prefix for questions when they are embedded. Default: the prefix defined by the embedding model."
    )
    document_prompt: str | None = argument(
        None, "Prefix for documents when they are embedded. Default: the prefix defined by the embedding model."
    )
    filter: str = argument(
        "",
        'Search only passages whose metadata meet this condition, such as \'lang == "en" and date >= "2025"\': '
        "comparisons (== != < <= > >= in), and, or, not, parentheses. Empty: all passages.",
    )
    store: str = argument(
        "local",
        "Where the documents' vectors are: local, in files of the index folder; milvus:FILE.db, in a file of Milvus "
        "Lite; milvus:URL#NAME, in a collection of a Milvus server, whose token is read from GROUNDTUNE_MILVUS_TOKEN.",
    )
    vector_dtype: str = argument(
        "float32",
        "Data type of the vectors on disk. float16 halves their size and changes them slightly, so it gets its own "
        "index.",
        ["float32", "float16"],
    )


@dataclass
class PassageArguments:
    """The passages of a training row, drawn again in each epoch. Without these flags, the method chooses them."""

    _argument_group_name = "passages of a training row"
    _SEARCHED: ClassVar[int] = 30  # hits per question, from which the distractors are chosen

    passage_order: str = argument(
        GOLD_FIRST,
        "Order of the passages; several gold passages (those with the answer) stay together. gold_first: gold, then "
        "the others. shuffled (the default of swr and raft): any order. ranked: as retrieved, and gold that was not "
        "retrieved anywhere among them.",
        list(ORDERS),
    )
    num_distractors: int | None = argument(
        None,
        "Passages without the answer per row. Default: none in SFT; in the other methods as many as make "
        "--embedding_max_num_to_retrieve + 1 passages.",
    )
    distractors: list[str] = argument(
        ["retrieved"],
        "Where distractors come from, one of each in turn: retrieved (best first), given (hard_neg_docs), mined "
        f"(retrieved lower, down to rank {_SEARCHED}, without the answer), random. Never a passage that repeats gold, "
        "except in swr --passage_order gold_first alone.",
        list(DISTRACTORS),
    )
    gold_dropout: float = argument(
        0.0,
        "Share of rows, from 0 to 1, that lose their gold passages and all others with the answer, and teach "
        "--abstention instead. Such a row reads as many passages as the others.",
    )
    abstention: str = argument(UNANSWERABLE, "What a model learns to say if no passage has the answer.")

    def __post_init__(self) -> None:
        self.abstention = nfc(self.abstention)

    @property
    def given(self) -> bool:
        """Whether the flags choose the passages, in place of the method."""
        return (self.passage_order, self.num_distractors, self.distractors, self.gold_dropout) != (
            GOLD_FIRST, None, ["retrieved"], 0.0,
        )  # fmt: skip

    def searched(self, k: int) -> int:
        """The hits that a row needs of which the method itself reads `k`."""
        return max(k, self._SEARCHED, 2 * (self.num_distractors or 0)) if self.given else k


@dataclass
class PromptArguments:
    """How a prompt is written. Setting any of the four prefix flags selects the prefix style."""

    _argument_group_name = "prompt"

    user_prefix: str | None = argument(None, 'Start of a user\'s turn, such as "USER" or "<s>[INST]".')
    assistant_prefix: str | None = argument(None, 'Start of an answer, such as "ASSISTANT" or "[/INST]".')
    sep_user: str | None = argument(None, "End of a user's turn. Default in the prefix style: one space.")
    sep_sys: str | None = argument(
        None, "End of an assistant's turn. Default in the prefix style: the tokenizer's end-of-sequence token."
    )
    instruction: str = argument(
        "Answer the user's question with the information in the passages below.",
        "Instruction at the start of every prompt.",
    )
    thinking: str = argument(
        "drop",
        "Reasoning models, in training and when they answer. drop: the prompt ends as the chat template begins an "
        "answer without thoughts. keep: the prompt ends as the template's generation prompt, and the model may think. "
        "Thoughts are never part of an answer.",
        ["drop", "keep"],
    )
    citations: str = argument(
        OFF,
        "Which passage each sentence of an answer is taken from. taught: passages are numbered, and the model learns "
        "to write ⟦1⟧ after a sentence; scores and judges see answers without such marks. afterwards: marks are found "
        "for the answers of any model, by the words that sentence and passage share; prompts do not change.",
        [OFF, TAUGHT, AFTERWARDS],
    )
    passage_attention: str = argument(
        FULL,
        "What the tokens of a passage attend to. full: to everything before them. block: to the instruction and to "
        "their own passage, never to another; question and answer attend to everything (Block-Attention, Ma et al. "
        "2024). A passage then costs its time once, in whatever place and prompt it stands; train with block to answer "
        "with it. Needs a model with rotary positions, in this process.",
        [FULL, BLOCK],
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), str):
                setattr(self, one.name, nfc(value))


@dataclass
class ModelArguments:
    """The model to train, and how to load it."""

    _argument_group_name = "model"

    model_name_or_path: str = argument(
        "", "Decoder model to train: a hub name or a folder with a complete model, not an adapter."
    )
    model_revision: str | None = argument(None, "Commit, tag or branch of a hub model.")
    gguf_file: str | None = argument(None, "Name of a GGUF file in the model folder; it is dequantised for training.")
    trust_remote_code: bool = argument(
        False, "Allow code from the model's repository to run. Needs --model_revision with a full commit hash."
    )
    dtype: str = argument(
        "auto",
        "Data type of the frozen weights. auto: bfloat16 with LoRA if the hardware supports it, else float32.",
        ["auto", "float32", "bfloat16", "float16"],
    )
    use_flash_attention: bool = argument(
        False,
        "Use FlashAttention 2, which needs CUDA and the package flash-attn. Without them, PyTorch's fastest exact "
        "attention is used, and a line says so.",
    )
    use_peft: bool = argument(False, "Train a LoRA adapter instead of all weights.")
    load_in_4bit: bool = argument(
        False,
        "QLoRA: store the frozen weights of the linear layers in 4 bits (NF4). Needs --use_peft and the package "
        "bitsandbytes.",
    )
    lora_r: int = argument(16, "Rank of the adapter.")
    lora_alpha: int = argument(32, "Scale of the adapter: its output is multiplied by alpha / r.")
    lora_dropout: float = argument(0.0, "Dropout on the adapter's input.")
    lora_target_modules: list[str] = argument(
        ["all-linear"],
        "Linear layers that get an adapter, by the end of their name; all-linear: all except the output layer.",
    )


@dataclass
class EvaluationArguments:
    """End-to-end evaluation: retrieve, generate, score."""

    _argument_group_name = "evaluation"

    eval_max_samples: int = argument(
        0,
        "Number of eval examples used during training, spread evenly over the file. 0: all. The test at the end "
        "always uses all examples.",
    )
    eval_endpoint: str = argument(
        "",
        "vLLM server that answers the questions of evaluations while training goes on, such as "
        "openai:http://localhost:8000/v1. It serves the base model, loads the adapter of each evaluation (--use_peft) "
        "and must see --output_dir under the same path; start it with --enable-lora and "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true. Empty: the model under training answers, and training waits.",
    )
    max_new_tokens: int = argument(256, "Maximum answer length in tokens.")
    bootstrap_samples: int = argument(10_000, "Number of bootstrap resamples for the 95 % intervals.")
    reuse_answers: bool = argument(
        True,
        "Reuse the answers that a model gave before, on this machine, to exactly the same prompts; they are kept in "
        "~/.cache/groundtune. In training: those of the base model.",
    )
    passage_cache: int = argument(
        PASSAGE_CACHE,
        "With --passage_attention block: memory in MB for passages that were read, the least recently used out. One of "
        "300 tokens takes 5.5 MB with Gemma 3 270M in bfloat16 and 44 MB with Qwen3 8B. 0: each is read again.",
    )
    abstentions: str = argument(
        "",
        "Text file with more wordings by which an answer says that the passages hold none, one per line, in addition "
        "to those known for English, German, French, Spanish, Italian, Portuguese, Chinese and Japanese.",
    )


@dataclass
class LoggerArguments:
    """How trackers group the run; --report_to selects the trackers."""

    _argument_group_name = "tracking"

    run_group: str = argument("", "Group name for trackers that support groups (WANDB_RUN_GROUP).")


@dataclass
class OutputArguments:
    """What the terminal shows and what is published besides the model; nothing here changes the computation."""

    _argument_group_name = "output"

    quiet: bool = argument(False, "Print only results and problems, no progress or notes.")
    json: bool = argument(False, "Print the results as one JSON object on standard output, and nothing else.")
    push_report: bool = argument(
        False,
        "With --push_to_hub, also push the report and the test predictions, which quote questions, answers and "
        "passages. Model, tokenizer, model card and metrics are always pushed.",
    )


GROUPS = (
    DataArguments,
    RetrievalArguments,
    PassageArguments,
    PromptArguments,
    ModelArguments,
    EvaluationArguments,
    LoggerArguments,
    OutputArguments,
)


@dataclass(frozen=True)
class Arguments(Generic[T]):
    """All arguments of one run; `training` is a `training.arguments.QATrainingArguments`."""

    method: str
    data: DataArguments
    retrieval: RetrievalArguments
    passages: PassageArguments
    prompt: PromptArguments
    model: ModelArguments
    evaluation: EvaluationArguments
    logger: LoggerArguments
    output: OutputArguments
    training: T

    @property
    def searching(self) -> RetrievalArguments:
        """The retrieval arguments, with the model that is trained as what writes the questions if none is named."""
        return replace(self.retrieval, rewriter=self.retrieval.rewriter or self.model.model_name_or_path)

    def check(self, complete: bool = True, for_training: str = "") -> list[str]:
        """Every problem that can be found without reading data or loading a model, one line each; empty if none.

        `complete`: report missing arguments that training needs; otherwise check only the given ones. `for_training`:
        the title of the method if it retrieves training passages, else empty.
        """
        flag = "--embedding_model" if for_training else "--eval_embedding_model"
        return [
            *_check_data(self.data, complete),
            *check_retrieval(self.searching, complete, flag, for_training),
            *_check_model(self.model, complete),
            *_check_numbers(self),
        ]


def _check_data(data: DataArguments, complete: bool) -> list[str]:
    problems = []
    for name in ("train_file", "eval_file", "full_dataset_file_path"):
        if complete and not getattr(data, name):
            problems.append(f"--{name}: missing; {_made_by(name, data)}")
    problems += no_such_file(data, ("train_file", "eval_file", "test_file", "full_dataset_file_path"))
    index = data.full_dataset_index_path
    if os.path.exists(index) and not os.path.isdir(index):
        problems.append(f"--full_dataset_index_path: {index} is a file; name a new or existing folder")
    return problems


def _made_by(name: str, data: DataArguments) -> str:
    """What belongs to an argument that is missing, and the command that makes it."""
    if name == "eval_file" and data.train_file:
        folder = shlex.quote(str(Path(data.train_file).with_suffix("")))
        return f"to hold examples out of training: groundtune split {shlex.quote(data.train_file)} -o {folder}"
    about = DataArguments.__dataclass_fields__[name].metadata["help"]
    makers = {"full_dataset_file_path": "documents", "train_file": "questions"}
    return about + (f" groundtune {makers[name]} -h: how to make it" if name in makers else "")


def check_retrieval(
    retrieval: RetrievalArguments, complete: bool = True, flag: str = "--embedding_model", for_training: str = ""
) -> list[str]:
    """What is missing to open the retriever. Messages suggest `flag` if no embedding model is named; `for_training` is
    the title of the method if it retrieves training passages, else empty."""
    problems = []
    if not 0 <= retrieval.mix_weight <= 1:
        problems.append(f"--mix_weight: {retrieval.mix_weight}; give a number from 0 to 1")
    dense = complete and reads_vectors(retrieval)
    if dense and not (retrieval.embedding_model or retrieval.eval_embedding_model):
        problems.append(
            f"{flag}: missing; name an embedding model such as intfloat/e5-base-v2, or use --retriever bm25"
        )
    elif dense and for_training and not retrieval.embedding_model:
        problems.append(f"--embedding_model: missing; {for_training} needs it to retrieve training passages")
    for flag in ("embedding_model", "eval_embedding_model"):
        problems += _check_embedding_name(flag, getattr(retrieval, flag), retrieval.embedding_server_model)
    problems += [*filter_problems(retrieval.filter), *_check_store(retrieval.store)]
    problems += [*_check_reranker(retrieval), *_check_rewriter(retrieval)]
    if complete and retrieval.query_history == REWRITE and not retrieval.rewriter:
        problems.append(NO_WRITER)
    if reads_vectors(retrieval):
        named = dict.fromkeys((retrieval.embedding_model, retrieval.eval_embedding_model))
        problems += [problem for name in named if not server_kind(name) for problem in embedding_problems(name)]
    return problems


def reads_vectors(retrieval: RetrievalArguments) -> bool:
    """Whether a search needs an embedding model."""
    return retrieval.retriever != "bm25" or retrieval.reranker == MAXSIM


def reranked_by(reranker: str) -> str:
    """The reranker as a continuation of the retriever's name: ", reranked by maxsim"; empty if there is none."""
    return "" if reranker in ("", NO_RERANKER) else f", reranked by {hide_secrets(reranker)}"


def _check_reranker(retrieval: RetrievalArguments) -> list[str]:
    name, weight = retrieval.reranker, retrieval.rerank_weight
    problems = too_small([(retrieval, "rerank_depth", 1)])
    if weight is not None and not 0 <= weight <= 1:
        problems.append(f"--rerank_weight: {weight}; give a number from 0 to 1")
    if name in ("", NO_RERANKER, MAXSIM):
        return problems
    if server_kind(name) or "://" in name:
        problems += address_problems("reranker", name, ("jina", "tei"))
        if server_kind(name) == "jina" and not retrieval.reranker_model:
            problems.append("--reranker_model: missing; give the server's name for the model")
        return problems
    unsafe = [] if check_model_name("reranker", name) else embedding_problems(name, "reranker")
    return [*problems, *check_model_name("reranker", name), *unsafe]


def _check_rewriter(retrieval: RetrievalArguments) -> list[str]:
    name = retrieval.rewriter
    if retrieval.query_history != REWRITE:
        return []
    problems = no_such_file(retrieval, ["rewrite_prompt"])
    try:
        if not isinstance(json.loads(retrieval.rewriter_options or "{}"), dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        problems.append(f'--rewriter_options: not a JSON object ({error}); write one such as {{"seed": 1}}')
    if server_kind(name) or "://" in name:
        problems += address_problems("rewriter", name, ("openai",))
        if server_kind(name) == "openai" and not retrieval.rewriter_model:
            problems.append("--rewriter_model: missing; give the server's name for the model")
        return problems
    return [*problems, *check_model_name("rewriter", name), *model_problems(name)] if name else problems


def _check_embedding_name(flag: str, name: str, served: str) -> list[str]:
    if not server_kind(name) and "://" not in name:
        return check_model_name(flag, name)
    missing = "--embedding_server_model: missing; give the server's name for the embedding model"
    return address_problems(flag, name, ("openai",)) or ([] if served else [missing])


def _check_store(store: str) -> list[str]:
    if store == "local":
        return []
    if not store.startswith(MILVUS):
        return [f"--store: {one_line(hide_secrets(store), 200)!r} is unknown; use local or milvus:FILE_OR_URL"]
    return milvus_problems(store)


def _check_model(model: ModelArguments, complete: bool) -> list[str]:
    if not model.model_name_or_path:
        return ["--model_name_or_path: missing; name a hub model or a local folder"] if complete else []
    problems = check_model_name("model_name_or_path", model.model_name_or_path)
    folder = Path(model.model_name_or_path)
    if os.path.exists(folder / "adapter_config.json") and not os.path.exists(folder / "config.json"):
        problems.append(f"--model_name_or_path: {folder} holds an adapter; merge it into its base model first")
    return [*problems, *check_loading(model), *model_problems(model.model_name_or_path, model.gguf_file)]


def check_loading(model: ModelArguments) -> list[str]:
    """Problems with the arguments that say how to load the model."""
    folder, problems = Path(model.model_name_or_path), _check_four_bits(model)
    if model.gguf_file and os.path.isdir(folder) and not os.path.isfile(folder / model.gguf_file):
        problems.append(f"--gguf_file: no {model.gguf_file} in {folder}")
    if model.trust_remote_code and not is_commit(model.model_revision):
        problems.append(
            "--trust_remote_code: runs code from the hub; pin it with --model_revision and a full commit hash"
        )
    return problems


def is_commit(revision: str | None) -> bool:
    """Whether this is a full commit hash. Unlike a branch or tag, it cannot be moved to other code."""
    return len(revision or "") == 40 and all(c in "0123456789abcdef" for c in revision or "")


def _check_four_bits(model: ModelArguments) -> list[str]:
    if not model.load_in_4bit:
        return []
    problems = []
    if not model.use_peft:
        problems.append("--load_in_4bit: 4-bit weights cannot be trained; add --use_peft to train an adapter")
    if model.gguf_file:
        problems.append(
            "--load_in_4bit: cannot be combined with --gguf_file, which is dequantised for training; remove one of them"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"--load_in_4bit: needs the package bitsandbytes; {pip_install('qlora')}")
    return problems


def check_model_name(flag: str, value: str) -> list[str]:
    """A hub name is `name` or `owner/name`; anything that looks like a path must be a folder that exists."""
    path = Path(value)
    # os.path, because Path's methods raise if a name is too long or lies in another user's home.
    if not value or os.path.isdir(path):
        return []
    if os.path.isfile(path):
        return [f"--{flag}: {value} is a file; name the folder of the model"]
    if may_not_read(path):
        return [f"--{flag}: {value}: permission denied; let its owner make it readable for this user, or name another"]
    beside_others = "/" in value and os.path.isdir(path.parent)
    if beside_others or path.is_absolute() or value.startswith((".", "~")) or value.count("/") > 1 or "\\" in value:
        return [f"--{flag}: no such folder: {value}; give an existing folder or a hub name such as owner/model"]
    return []


def _check_numbers(arguments: Arguments) -> list[str]:
    least = [
        (arguments.data, "max_seq_length", 16),
        (arguments.retrieval, "embedding_max_num_to_retrieve", 0),
        (arguments.retrieval, "eval_num_to_retrieve", 1),
        (arguments.retrieval, "embedding_batch_size", 1),
        (arguments.passages, "num_distractors", 0),
        (arguments.model, "lora_r", 1),
        (arguments.model, "lora_alpha", 1),
        (arguments.data, "max_train_samples", 0),
        (arguments.evaluation, "eval_max_samples", 0),
        (arguments.evaluation, "max_new_tokens", 1),
        (arguments.evaluation, "bootstrap_samples", 100),
        (arguments.evaluation, "passage_cache", 0),
        (arguments.training, "per_device_train_batch_size", 1),
        (arguments.training, "per_device_eval_batch_size", 1),
        (arguments.training, "gradient_accumulation_steps", 1),
        (arguments.training, "learning_rate", 0),
        (arguments.training, "weight_decay", 0),
        (arguments.training, "num_train_epochs", 0),
    ]
    problems = [*too_small(least), *_check_passages(arguments.passages)]
    if not 0 < arguments.data.train_share <= 1:
        problems.append(f"--train_share: {arguments.data.train_share} is not above 0 and at most 1; use 0.25, 0.5 or 1")
    if not 0 <= arguments.model.lora_dropout < 1:
        problems.append(f"--lora_dropout: {arguments.model.lora_dropout} is not in [0, 1); use a value such as 0.1")
    return [
        *problems,
        *no_room(arguments.data, arguments.evaluation),
        *no_such_file(arguments.evaluation, ("abstentions",)),
    ]


def _check_passages(passages: PassageArguments) -> list[str]:
    problems = []
    if not 0 <= passages.gold_dropout < 1:
        problems.append(f"--gold_dropout: {passages.gold_dropout} is not in [0, 1); use a value such as 0.2")
    if not passages.abstention.strip():
        problems.append("--abstention: is empty; write the sentence, or remove the flag")
    return problems


def no_such_file(group: Group, names: Sequence[str]) -> list[str]:
    """A line for each of these fields that names no file."""
    given = [(name, path) for name in names if (path := getattr(group, name)) and not os.path.isfile(path)]
    return [f"--{name}: {_why_no_file(path)}" for name, path in given]


def _why_no_file(path: str) -> str:
    if kind := special(path):  # it is read more than once
        return f"{path} is {kind}, not a file; save its contents to a file, and name that"
    if os.path.isdir(path):
        return f"{path} is a folder; name a file in it"
    if may_not_read(Path(path)):
        return f"{path}: permission denied; let its owner make it readable for this user, or name another"
    return f"no such file: {path}; give the path of an existing file"


def too_small(least: Sequence[tuple[object, str, float]]) -> list[str]:
    """A line for each (group, field, minimum) whose value is below the minimum, or NaN."""
    return [
        f"--{name}: {getattr(group, name)} is too small; the minimum is {smallest}"
        for group, name, smallest in least
        if getattr(group, name) is not None and not getattr(group, name) >= smallest  # `not >=` also catches NaN
    ]


def room_for_prompt(max_seq_length: int, max_new_tokens: int) -> int:
    """Maximum prompt length in tokens that leaves room for the longest answer."""
    return max_seq_length - max_new_tokens


def no_room(data: DataArguments, evaluation: EvaluationArguments) -> list[str]:
    """A line if the maximum answer length leaves no room for a prompt."""
    if room_for_prompt(data.max_seq_length, evaluation.max_new_tokens) > 0:
        return []
    shorter = f"leaves no room for a prompt in --max_seq_length {data.max_seq_length}"
    return [f"--max_new_tokens: {evaluation.max_new_tokens} {shorter}"]
