"""The pages that MkDocs makes from the code and configs/, and the promise that no page loads anything from elsewhere.

A page for each command, from what its `-h` prints; one for the public names of the package, which mkdocstrings fills;
and configs/ as it lies in the repository.
"""

from __future__ import annotations

import io
import logging
import posixpath
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import groundtune
from groundtune.cli import all_commands, main
from groundtune.methods import METHODS

# Page -> the commands that it is about; the training methods take the same arguments.
PAGES = {name: [name] for name in all_commands() if name not in (*METHODS, "index")} | {
    "training": list(METHODS),
    "index-command": ["index"],  # a page called index would be the folder's
}
ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^):#]+\.\w+)")
_SECTION = re.compile(r"[a-z][^:\n]*:")
_ENTRY = re.compile(r" {1,2}(?! )(\S.*?)(?: {2,}(\S.*))?")

logger = logging.getLogger("mkdocs.hooks.groundtune")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for page, commands in PAGES.items():
        files.append(File.generated(config, f"reference/{page}.md", content=command_page(commands)))
    files.append(File.generated(config, "reference/python.md", content=python_page()))
    for path in sorted([*ROOT.glob("configs/**/*.md"), *ROOT.glob("configs/**/*.yaml")]):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links between docs/ and configs/ as they are in the repository lead to the same pages of the site."""
    return _LINK.sub(lambda link: f"]({in_site(link[1], page.file.src_uri)}", markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Warn, which fails a strict build, of what a browser would fetch from elsewhere to show the page."""
    for address in loaded_from_elsewhere(output):
        logger.warning("%s loads %s; put it into docs/", page.file.src_uri, address)
    return output


def in_site(link: str, page: str) -> str:
    """A relative link of a file in the repository, as a link between pages of the site, of which docs/ is the root."""
    here = posixpath.dirname(page if page.startswith("configs/") else f"docs/{page}")
    target = posixpath.normpath(posixpath.join(here, link)).removeprefix("docs/")
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


# Commands


def command_page(commands: list[str]) -> str:
    """Markdown with usage, description, example and every argument of a command."""
    title = " and ".join(f"groundtune {name}" for name in commands)
    before, sections = _parts(help_of(commands[0]))
    usage, _, description = before.partition("\n\n")
    lines = [f"# {title}", "", *(f"`{name}`: {all_commands()[name][0]}  " for name in commands), ""]
    lines += ["```text", usage.removeprefix("usage: "), "```", "", _paragraphs(description)]
    for heading, body in sections:
        example = heading in ("example", "examples")
        block = f"```text\n{_dedented(body)}\n```" if example else _definitions(body)
        lines += [f"## {heading[0].upper()}{heading[1:]}", "", block, ""]
    return "\n".join(lines)


def help_of(command: str) -> str:
    """What `groundtune COMMAND -h` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main([command, "-h"])
    return printed.getvalue().strip()


def _parts(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What comes before the first section of a help text, and each section's heading and body."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if _SECTION.fullmatch(line) and not line.startswith("usage:"):
            blocks.append((line[:-1], []))
        else:
            blocks[-1][1].append(line)
    (_, before), *sections = [(heading, "\n".join(lines).strip("\n")) for heading, lines in blocks]
    return before, sections


def entries(body: str) -> Iterator[tuple[str, str]]:
    """The entries of a section: what is written, and its text with the continued lines joined."""
    name, said = "", []
    for line in body.splitlines():
        if entry := _ENTRY.fullmatch(line):
            if name:
                yield name, " ".join(said)
            name, said = entry[1], [entry[2]] if entry[2] else []
        elif line.strip():
            said.append(line.strip())
    if name:
        yield name, " ".join(said)


def _definitions(body: str) -> str:
    """As HTML, for Markdown would read the stars and angle brackets of help texts."""
    items = "".join(
        f"<dt{_anchor(name)}><code>{escape(name)}</code></dt><dd>{escape(text, quote=False)}</dd>\n"
        for name, text in entries(body)
    )
    return f"<dl>\n{items}</dl>"


def _anchor(name: str) -> str:
    flag = re.match(r"--(\w+)", name)
    return f' id="{flag[1]}"' if flag else ""


def _paragraphs(text: str) -> str:
    """Free text as it is, each blank line a new paragraph; a line that begins with a flag stays a line of its own."""
    return "\n".join(re.sub(r"^(--\w+)  +", r"`\1`: ", line) for line in text.splitlines()) + "\n"


def _dedented(body: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in body.splitlines())


# Python


def python_page() -> str:
    """A heading for mkdocstrings for each public name."""
    names = [name for name in groundtune.__all__ if name in groundtune._PUBLIC]
    where = {name: f"groundtune.{groundtune._PUBLIC[name]}.{name}" for name in names}
    text = "All of it is imported from `groundtune`; importing the package loads no library until a name is used."
    return "\n".join(["# Python", "", text, "", *(f"::: {path}\n" for path in where.values())])


# Nothing from elsewhere


class _Loads(HTMLParser):
    """Collects the addresses that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        fetched = [given.get("src"), given.get("srcset"), given.get("poster"), given.get("data")]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "alternate"):
            fetched.append(given.get("href"))
        self.addresses += [a for a in fetched if a and re.match(r"(https?:)?//", a.strip())]


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses of scripts, styles, fonts and pictures on other hosts."""
    parser = _Loads()
    parser.feed(html)
    in_styles = re.findall(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^\"')\s]+)", unescape(html))
    return parser.addresses + in_styles
