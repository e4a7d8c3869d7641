"""Questions a second in end-to-end evaluation (retrieve, prompt, generate), against the historical procedure.

    python -m benchmarks.evaluation --data FOLDER --adapter RUN

The historical procedure embeds and searches one question at a time and generates in padded batches of four, in file
order. Both sides decode greedily, with the same prompts and the same limit of new tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import arguments, compare, decoder_folder, load_data, report
from benchmarks.retrieval import add_embedding_flag, make_index
from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import generate_greedy
from groundtune.model.loading import load_model, load_tokenizer
from groundtune.model.lora import fuse
from groundtune.prompts.policies import retrieved_passages
from groundtune.prompts.prompt import Prompt, make_prompt
from groundtune.prompts.rows import encode_questions
from groundtune.retrieval.queries import query_of
from groundtune.retrieval.retrievers import DenseRetriever, retrieve
from groundtune.schema import Example


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    add_embedding_flag(parser)
    parser.add_argument("--adapter", help="Folder of a LoRA adapter for the model; tuned models stop, others rarely do")
    parser.add_argument("--questions", type=int, default=16, help="Questions of one pass")
    parser.add_argument("--max_new_tokens", type=int, default=160)
    parser.add_argument("--batch_size", type=int, default=16, help="Questions that Groundtune answers at once")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.max_new_tokens, options.batch_size, options.pairs = 8, 16, 8, 2
    documents, train, held_out = load_data(options.data)
    folder = str(decoder_folder(options))
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=folder))
    both = Both(
        retriever=make_index(documents[:200] if options.quick else documents, options),
        prompt=make_prompt(tokenizer, PromptArguments()),
        tokenizer=tokenizer,
        new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    examples = [*held_out, *train][: options.questions * options.pairs]
    parts = [examples[i : i + options.questions] for i in range(0, len(examples), options.questions)]
    float32 = load(folder, options.adapter, "float32", both)
    check_same_answers(both, float32, examples[:3])
    del float32
    model = load(folder, options.adapter, "bfloat16", both)
    case = compare(
        "end-to-end evaluation",
        "historical",
        lambda i: both.ours(model, parts[i]),
        lambda i: both.theirs(model, parts[i]),
        len(parts),
        warm_up=lambda: (both.ours(model, examples[:2]), both.theirs(model, examples[:2])),
        ours_questions_s=0.0,
        theirs_questions_s=0.0,
        new_tokens_at_most=options.max_new_tokens,
    )
    case.extra.update(
        ours_questions_s=options.questions / case.ours_s, theirs_questions_s=options.questions / case.theirs_s
    )
    report([case])
    return 0


@dataclass(frozen=True)
class Both:
    """Both ways from questions to answers (token ids up to and including the stop token)."""

    retriever: DenseRetriever
    prompt: Prompt
    tokenizer: Any
    new_tokens: int
    batch_size: int
    k: int = 4

    def ours(self, model: Any, examples: Sequence[Example]) -> list[list[int]]:
        hits = retrieve(self.retriever, examples, self.k, "user")
        passages = [retrieved_passages(example, found) for example, found in zip(examples, hits)]
        questions = encode_questions(examples, passages, self.prompt, 2048)
        generated = generate_greedy(
            model, [q.prompt_ids for q in questions], stop_ids=self.prompt.stop_ids, pad_id=self.tokenizer.pad_token_id,
            max_new_tokens=self.new_tokens, batch_size=self.batch_size,
        )  # fmt: skip
        return [g.ids for g in generated]

    @torch.no_grad()
    def theirs(self, model: Any, examples: Sequence[Example]) -> list[list[int]]:
        prompts = []
        for example in examples:
            (hits,) = self.retriever.search([query_of(example.question, example.chat_history, "user")], self.k)
            (question,) = encode_questions([example], [retrieved_passages(example, hits)], self.prompt, 2048)
            prompts.append(question.prompt_ids)
        answers = []
        for start in range(0, len(prompts), 4):
            answers += self._generate(model, prompts[start : start + 4])
        return answers

    def _generate(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=self.new_tokens,
            eos_token_id=list(self.prompt.stop_ids), pad_token_id=pad,
        )[:, longest:].tolist()  # fmt: skip
        return [cut_after(answer, self.prompt.stop_ids) for answer in output]


def cut_after(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, id in enumerate(ids) if id in stop_ids), len(ids))
    return ids[: end + 1]


def load(folder: str, adapter: str | None, dtype: str, both: Both) -> Any:
    """One model for both sides: without a packed layout, its attention is PyTorch's own."""
    arguments = ModelArguments(model_name_or_path=folder, dtype=dtype)
    model = load_model(arguments, bf16=dtype == "bfloat16", stop_ids=both.prompt.stop_ids, pad_id=0)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        fuse(model)
    model = model.to("cuda") if torch.cuda.is_available() else model
    problem = use_packed_attention(model)
    if problem:
        raise SystemExit(f"this model cannot be packed: {problem}")
    return model.eval()


def check_same_answers(both: Both, model: Any, examples: Sequence[Example]) -> None:
    """Raise `AssertionError` unless both sides give the same tokens. In float32: bfloat16 rounding may decide ties."""
    if both.ours(model, examples) != both.theirs(model, examples):
        raise AssertionError("the two sides give different answers in float32")


if __name__ == "__main__":
    sys.exit(main())
