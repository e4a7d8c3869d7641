"""The documentation site builds in strict mode, lists all commands and arguments, and loads no external resources."""

from __future__ import annotations

import importlib.util
import re
from html import unescape
from pathlib import Path

import pytest
from documented import pages
from PIL import Image

import groundtune
from groundtune.cli import all_commands

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["reliability", "security"])
def test_every_test_and_script_that_a_page_names_is_there(page):
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / f"docs/{page}.md").read_text("utf-8"))
    assert len(named) > 25
    lost = [n for n in named if not (ROOT / n[0]).is_file() or f"def {n[1]}" not in (ROOT / n[0]).read_text("utf-8")]
    assert lost == []


def test_the_table_on_security_has_a_row_with_tests_for_every_input():
    page = (ROOT / "docs/security.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    tests = {name: re.findall(r"`tests/[\w/]+\.py::test_\w+`", named) for name, _, _, named in rows[2:]}
    inputs = """model folder, embedding model, run folder, checkpoint, adapter, index,
        approximate index and index of words, filter, vectors from a server, documents, data files, config file,
        figures of a sweep, server, tracker, hub, cache of own runs, terminal and log,
        text in prompts that judge or write, files in an output folder, rating page"""
    assert list(tests) == [" ".join(name.split()) for name in inputs.split(",")] and all(tests.values())


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


HOOKS = load_hooks()


@pytest.mark.parametrize("page", HOOKS.PAGES)
def test_the_page_of_a_command_says_all_that_its_help_says_in_the_same_order(page):
    for command in HOOKS.PAGES[page]:
        help_text, shown = HOOKS.help_of(command), HOOKS.command_page([command])
        flags = re.findall(r"^  (?:-\w[^,\n]*, )?(--\w+)", help_text, re.MULTILINE)
        assert re.findall(r"<dt[^>]*><code>(?:-\w[^,<]*, )?(--\w+)", shown) == flags
        words = iter(re.findall(r"\w+", unescape(re.sub(r"</?(?:d[ltd]|code)[^>]*>", " ", shown)).casefold()))
        lost = [word for word in re.findall(r"\w+", help_text.casefold())[1:] if word not in words]  # uses them up
        assert lost == [] and "<dd></dd>" not in shown


def test_every_command_and_every_public_name_has_a_page_that_the_navigation_leads_to():
    assert {name for names in HOOKS.PAGES.values() for name in names} == set(all_commands())
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    wanted = [f"reference/{page}.md" for page in (*HOOKS.PAGES, "python")]
    wanted += [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    wanted += [path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.md")]
    assert [page for page in wanted if f"{page}\n" not in navigation] == []
    shown = re.findall(r"^::: groundtune\.[\w.]+\.(\w+)$", HOOKS.python_page(), re.MULTILINE)
    assert ["__version__", *shown] == groundtune.__all__


@pytest.mark.parametrize(
    "link, page, there",
    [
        ("../configs/faire/README.md", "prepare.md", "configs/faire/README.md"),
        ("../../configs/README.md", "howto/method.md", "../configs/README.md"),
        ("../../docs/results.md", "configs/faire/README.md", "../../results.md"),
        ("faire.yaml", "configs/faire/README.md", "faire.yaml"),
        ("howto/method.md", "index.md", "howto/method.md"),
        ("../results.md", "howto/method.md", "../results.md"),
    ],
)
def test_links_between_docs_and_configs_lead_to_the_same_pages_in_the_site(link, page, there):
    assert HOOKS.in_site(link, page) == there


def test_links_between_pages_lead_to_files_of_the_repository():
    """So that the pages can be read on the repository's site; only the reference is generated."""
    for page in pages():
        for link in re.findall(r"\]\(([^):#]+\.\w+)[)#]", (ROOT / page).read_text("utf-8")):
            target = (ROOT / page).parent / link
            assert target.exists() or target.parent.name == "reference", f"{page}: {link}"


@pytest.mark.parametrize(
    "loads",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "<img alt='' src='http://example.org/x.png'>",
        "<style>@import url(https://fonts.example/x.css);</style>",
        '<p style="background: url(&quot;https://example.org/x.png&quot;)">',
    ],
)
def test_what_a_page_would_fetch_from_another_host_is_noticed(loads):
    assert len(HOOKS.loaded_from_elsewhere(f"<body>{loads}</body>")) == 1


def test_links_that_a_reader_may_follow_are_no_fetching():
    links = '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org"><img src="x.png">'
    assert HOOKS.loaded_from_elsewhere(links) == []


def test_the_site_builds_strictly(tmp_path, monkeypatch):
    """A broken link, a page outside the navigation, an unreadable docstring or a download makes it fail."""
    pytest.importorskip("material", reason="needs the extra [docs]")
    pytest.importorskip("mkdocstrings", reason="needs the extra [docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    build(load_config("mkdocs.yml", strict=True, site_dir=str(tmp_path)))
    assert "min_support" in (tmp_path / "search" / "search_index.json").read_text("utf-8")
    assert not (tmp_path / "hooks.py").exists()


def test_the_page_about_reports_says_what_its_picture_shows():
    """Both are written by scripts/pictures.py, from one run."""
    with Image.open(ROOT / "docs/howto/report.png") as picture:
        shown = picture.text["figures"]
    assert shown in (ROOT / "docs/howto/report.md").read_text("utf-8")
