"""Which share of real and of vague questions finds its own passage among the first results, by size of the database.

    python -m benchmarks.vague_questions DOCUMENTS EXAMPLES

The gate of `groundtune questions` that a question must find its passage: `found_within` is chosen on these numbers. A
vague question is a template with one of the three most frequent words of its passage.
"""

from __future__ import annotations

import random
import sys
from collections import Counter

from groundtune.data.files import read_documents, read_examples
from groundtune.data.words import telling_words
from groundtune.prepare.questions import found_within
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document

SIZES = (50, 100, 200, 400, 800)
DRAWS = 4  # random parts of each size
TEMPLATES = (
    "What is the purpose of this {}?",
    "How does this {} work?",
    "What are the {}?",
    "How do I change the {}?",
    "Why does the {} matter?",
)


def vague(passage: Document, rng: random.Random) -> list[str]:
    """Three questions that name nothing but a frequent word of the passage."""
    words = Counter(word for word in telling_words(passage.body) if word.isalpha() and len(word) > 3)
    return [rng.choice(TEMPLATES).format(word) for word, _ in words.most_common(3)]


def found(retriever: BM25Retriever, asked: list[tuple[str, str]], within: int) -> list[bool]:
    """Whether each question finds the passage with its id."""
    hits = retriever.search([question for question, _ in asked], within)
    return [id in {hit.document.id for hit in found} for (_, id), found in zip(asked, hits, strict=True)]


def main() -> None:
    documents = list({document.id: document for document in read_documents(sys.argv[1])}.values())
    by_id, rng = {document.id: document for document in documents}, random.Random(0)
    examples = [e for e in read_examples(sys.argv[2]) if e.gold_documents[0].id in by_id]
    for size in (*SIZES, len(documents)):
        within, passed = found_within(size), Counter()
        for _ in range(DRAWS if size < len(documents) else 1):
            asked = rng.sample(examples, min(len(examples), max(20, size // 4)))
            gold = {example.gold_documents[0].id for example in asked}
            others = [document for document in documents if document.id not in gold]
            part = BM25Retriever([by_id[id] for id in sorted(gold)] + rng.sample(others, size - len(gold)))
            real = [(example.question, example.gold_documents[0].id) for example in asked]
            made = [(question, id) for _, id in real for question in vague(by_id[id], rng)]
            for kind, these in (("real", real), ("vague", made)):
                for k in (within, 20):
                    passed[kind, k] += sum(found(part, these, k))
                passed[kind, 0] += len(these)
        shares = {(kind, k): f"{number / passed[kind, 0]:.0%}" for (kind, k), number in passed.items() if k}
        said = f"{shares['real', within]} of real questions pass, {shares['vague', within]} of vague ones"
        print(f"{size:,} passages, {within} results: {said}; with 20: {shares['real', 20]}, {shares['vague', 20]}")


if __name__ == "__main__":
    main()
