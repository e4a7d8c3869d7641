"""Help, messages, reports and documentation are free of phrases that a native technical writer would not write.

Each of these stood in an earlier version. Docstrings and comments are not read here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import ROOT, pages

from groundtune.cli import all_commands, main

# What not to write (a regular expression, whole words), and what to write instead.
BANNED = {
    r"untouched": "base (model), intact",
    r"anew": "again, rebuilt, from the start",
    r"(?:is|was|be) said(?: of)?": "the run reports, the report shows",
    r"what is said": "what ... says",
    r"that which|that what|those which": "what, the one that",
    r"(?:every|by|at most|of|only) so many|so many-th": "the number of, every N",
    r"at least so high": "at least this high",
    r"of whom|whereof|wherein|whereby": "whose, in which",
    r"whole roads?": "every step, end to end",
    r"at once, before": "before",
    r"as it stands|as they stand": "unchanged",
    r"in no mean": "excluded from the means",
    r"go(?:es|ing)? on (?:from|where|as|without|so|by)": "resumes, continues",
    r"begins? anew|begun anew": "starts over",
    r"(?:written|asked|chosen|named) so": "this way",
    r"(?:files|kinds?) (?:of kinds )?that (?:is|are) not read": "unsupported file type",
    r"of this kind are not read": "unsupported file type",
    r"fetch (?:it|the file) again": "download it again",
    r"make room": "free some space",
    r"see to it": "make sure",
    r"no doubt but|not but": "only",
    r"for want of": "because there is no",
    r"thinks? aloud": "reasons before answering",
    r"has no meaning (?:for|with)": "has no effect",
    r"loses? its end|its end is not found|ends are never found": "a search does not see its end",
    r"way out": "what to do",
    r"which nobody": "which others ... not",
    r"does what is": "is",
    r"holds half|holds lists in lists": "contains half, contains nested lists",
    r"(?<!there )is no (?:file|name|address|server|object|folder|model)\b": "is not a ...",
    r"where the (?:machine|hardware) (?:computes|does|has)": "if the hardware supports",
    r"of (?:a|one) kind that a file is full of": "many warnings of one kind",
    r"as many in all as": "the same total number",
    r"flatters? it": "is optimistic",
    r"flags after (?:it|the file) win": "flags after it override it",
    r"folder of what is written": "output folder",
    r"passages a question|(?:rows|tokens) a (?:step|row)": "per question, per step",
}
BAD = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)


def found(text: str) -> list[str]:
    """The banned phrases of a text, however its lines are broken."""
    return BAD.findall(" ".join(text.split()))


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """Each text of a Python file that is no docstring, with its line; of f-strings what stands between the values."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.lineno, node.value


def test_messages_and_help_texts_in_the_code_hold_no_banned_phrase():
    bad = [
        f"{path.relative_to(ROOT)}:{line}: {phrase}"
        for path in sorted((ROOT / "groundtune").rglob("*.py"))
        for line, text in spoken(path)
        for phrase in found(text)
    ]
    assert bad == []


@pytest.mark.parametrize("command", ["", *all_commands()])
def test_the_help_of_a_command_holds_no_banned_phrase(command, capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(main([*filter(None, [command]), "-h"]))  # some return, some exit
    assert found(capsys.readouterr().out) == []


def test_documentation_and_templates_hold_no_banned_phrase():
    written = [ROOT / page for page in (*pages(), "CHANGELOG.md", "CONTRIBUTING.md")]
    written += sorted((ROOT / "configs").rglob("*.yaml")) + sorted((ROOT / "groundtune").rglob("*.html"))
    bad = [f"{path.relative_to(ROOT)}: {phrase}" for path in written for phrase in found(path.read_text("utf-8"))]
    assert bad == []


@pytest.mark.parametrize(
    "text",
    [
        "evaluate the untouched\nmodel",
        "the index is built anew",
        "Log the loss every so many steps.",
        "documents are not written so; end the name in .jsonl",
        "The same command goes on from the last checkpoint.",
        "answers failed and are in no mean",
    ],
)
def test_a_banned_phrase_is_found_across_lines(text):
    assert found(text)


def test_what_a_native_writer_would_write_passes():
    assert found("Unsupported file type; use .jsonl. The base model is rebuilt, so it can resume at once.") == []
