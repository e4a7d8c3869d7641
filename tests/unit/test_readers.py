"""Readers of `groundtune documents`: what has meaning is kept, what is left out is named, and time grows linearly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("lxml", reason="needs the extra [documents]")

from files_by_hand import (
    SCAN,
    encrypted_pdf,
    line,
    lines,
    paragraph,
    run,
    shape,
    word_table,
    write_docx,
    write_pdf,
    write_pptx,
)  # fmt: skip

from groundtune.errors import DataError
from groundtune.prepare.pages import read_pages
from groundtune.prepare.readers.page import Page, ReadOptions

needs_pdf = pytest.mark.skipif(find_spec("pypdfium2") is None, reason="needs pypdfium2")
needs_excel = pytest.mark.skipif(find_spec("openpyxl") is None, reason="needs openpyxl")
PROSE = [f"Book {n} lies on the shelf with the number {n}, and is lent for {n} days." for n in range(1, 40)]


def pages(path: Path, content: str | bytes | None = None, **options: str) -> list[Page]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_pages(path, path.name, ReadOptions(**options)))


def text_of(path: Path, content: str | bytes | None = None) -> str:
    (page,) = pages(path, content)
    return page.text


def left_out(path: Path, content: str | bytes | None = None) -> str:
    return "; ".join(what for page in pages(path, content) for what in page.left_out)


def refusal(path: Path, content: str | bytes | None = None, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        pages(path, content, **options)
    (problem,) = caught.value.problems
    return problem


# Web pages


@pytest.mark.parametrize(
    "html, text",
    [
        ("<p>10<sup>6</sup> cells on 25 m<sup>2</sup>, H<sub>2</sub>O", "10^6 cells on 25 m^2, H_2O"),
        ("<p>e<sup>x + 1</sup>, 10<sup>-3</sup>, the 1<sup>st</sup>", "e^(x + 1), 10^-3, the 1st"),
        ("<p>Seen<sup><a href='#n'>4</a></sup> twice", "Seen[4] twice"),
        ("<p>E = <math><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup></math>.", "E = mc^2."),
        ("<math><mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac></math>", "a/(b+1)"),
        ("<math alttext='\\alpha'><mi>α</mi></math>", "\\alpha"),
        ("<pre># no heading\n  x = 1 | 2</pre>", "```\n# no heading\n  x = 1 | 2\n```"),
        ("<p># no heading", "\\# no heading"),
        ("<ol start=3><li>c<ul><li>d</ul><li>e</ol>", "3. c\n   - d\n4. e"),
        ("<p>see <img src='data:image/png;base64,AAAA' alt='the valve'> here", "see the valve here"),
        ("<p>so&shy;lu&#8203;tion and ﬁlter", "solution and filter"),
        ("<dl><dt>Refund<dd>in 14 days<dd>or never</dl>", "Refund\n: in 14 days\n\nor never"),
        ("<p><b>Note <b>well</b></b> and <i>this</i>", "**Note well** and *this*"),
        ("<nav>Menu</nav><div class=navheader><p>Prev Next</div><div class='toc'><p>1. Rules</div><p>Text", "Text"),
    ],
)
def test_what_has_meaning_in_a_web_page_is_kept(tmp_path, html, text):
    assert text_of(tmp_path / "a.html", html) == text


@pytest.mark.parametrize(
    "html, text",
    [
        (
            "<tr><th rowspan=2>Plan<th colspan=2>Price<tr><th>Month<th>Year"
            "<tr><td rowspan=2>Pro<td>9<td>90<tr><td>11<td>110",
            "| Plan | Price Month | Price Year |\n| --- | --- | --- |\n| Pro | 9 | 90 |\n| Pro | 11 | 110 |",
        ),
        ("<tr><td>a<td>b | c<tr><td>1<br>2<td>", "| a | b \\| c |\n| --- | --- |\n| 1 2 |  |"),
        ("<caption>Fees</caption><tr><th>a<th>b<tr><td>1<td>2", "Fees\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<tr><td colspan=2>Fees<tr><td>a<td>b<tr><td>1<td>2", "Fees\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<tr><td>menu<td><table><tr><td>a<td>b<tr><td>1<td>2</table>", "menu\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<tr><td>left<td><h2>Rules</h2><p>Dogs wait.", "left\n\n## Rules\n\nDogs wait."),
        ("<tr><td>only<tr><td>one column", "only\n\none column"),
        ("<tr><td>only<td>one row", "only\n\none row"),
        (f"<tr><td>menu<td>{'long ' * 250}<tr><td>foot<td>x", f"menu\n\n{('long ' * 250).strip()}\n\nfoot\n\nx"),
        (
            "<tr><td rowspan=9999 colspan=9999>a<td>b<tr><td>c<td>d",
            "| a | a | b |  |\n| --- | --- | --- | --- |\n| a | a | c | d |",
        ),
    ],
)
def test_tables_keep_their_cells_in_place_and_those_that_arrange_a_page_are_none(tmp_path, html, text):
    assert text_of(tmp_path / "a.html", f"<table>{html}</table>") == text


@pytest.mark.parametrize(
    "main", ["<main></main>", "<main>Loading</main>", "<article> </article>", "<div role=main></div>"]
)
def test_text_beside_a_main_part_that_holds_nearly_nothing_is_read(tmp_path, main):
    assert PROSE[0] in text_of(tmp_path / "a.html", f"{main}<div><p>{' '.join(PROSE)}</div>")


def test_a_page_that_is_nothing_but_navigation_is_read(tmp_path):
    assert text_of(tmp_path / "a.html", "<nav><p>Dogs wait outside.</nav>") == "Dogs wait outside."


def test_much_text_outside_the_main_part_is_named(tmp_path):
    html = f"<main>{PROSE[0]}</main><div>{' '.join(PROSE[1:5])}</div>"
    assert text_of(tmp_path / "a.html", html) == PROSE[0]
    assert "% of the page outside its main part" in left_out(tmp_path / "a.html")


@pytest.mark.parametrize("title", ["Untitled", "untitled document", "New Page 1", "memo.doc", " "])
def test_a_title_that_nobody_gave_is_none(tmp_path, title):
    (page,) = pages(tmp_path / "a.html", f"<title>{title}</title><h1>Rules</h1><p>Dogs wait.")
    assert page.title == "Rules"


@pytest.mark.parametrize("declared, encoding", [("windows-1251", "cp1251"), ("latin-1", "cp1252"), ("", "cp1252")])
def test_a_page_that_is_not_utf_8_is_read_as_it_declares(tmp_path, declared, encoding):
    text = "Правила" if encoding == "cp1251" else "„Größe“"
    meta = f"<meta charset='{declared}'>" if declared else ""
    assert text_of(tmp_path / "a.html", f"{meta}<p>{text}".encode(encoding)) == text


# Markdown


@pytest.mark.parametrize(
    "markdown, title",
    [
        ("```sh\n# update first\n```\n\nText.", "a"),
        ("~~~~\n# no\n~~~\n# no\n~~~~\n# Yes", "Yes"),
        ("# C#", "C#"),
        ("# Rules ##", "Rules"),
        ("Rules\n=====\n\nText.", "Rules"),
        ('+++\ntitle = "House rules"\ndate = 2024-01-01\n[extra]\ntitle = "no"\n+++\nText.', "House rules"),
        ("+++\ndraft = true\n+++\n# Rules", "Rules"),
        ("---\ntitle: Untitled\n---\n# Rules", "Rules"),
    ],
)
def test_the_title_of_markdown_is_not_a_line_of_code(tmp_path, markdown, title):
    (page,) = pages(tmp_path / "a.md", markdown)
    assert page.title == title and "draft" not in page.text


def test_comments_and_images_within_markdown_are_left_out_and_code_is_kept(tmp_path):
    blob = "iVBORw0KGgo" * 500
    text = f"A <!-- secret\n\n --> B ![valve](data:image/png;base64,{blob}) C `<!--` D\n\n```\n<!-- code -->\n```\n"
    assert text_of(tmp_path / "a.md", text).split() == [
        "A",
        "B",
        "valve",
        "C",
        "`<!--`",
        "D",
        "```",
        "<!--",
        "code",
        "-->",
        "```",
    ]
    assert left_out(tmp_path / "a.md") == "images that are written into the text"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv"])
def test_data_encoded_as_text_is_left_out_and_named(tmp_path, name):
    blob = "aGVsbG8gd29ybGQgMTIz" * 40
    (page,) = pages(tmp_path / name, f"text\nThe key is {blob} and opens the door.")
    assert blob[:100] not in page.text and "The key is" in page.text and "opens the door" in page.text
    assert "data that is encoded as text" in page.left_out[0]


# Word


def test_word_keeps_superscripts_formulas_and_what_stands_in_headers(tmp_path):
    up, down = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'
    fraction = "<m:f><m:num><m:r><m:t>Q·p</m:t></m:r></m:num><m:den><m:r><m:t>η</m:t></m:r></m:den></m:f>"
    power = "<m:sSup><m:e><m:r><m:t>v</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup>"
    body = paragraph(run("It holds 10"), run("6", up), run(" cells of H"), run("2", down), run("O."))
    body += paragraph(run("P is "), f"<m:oMath><m:r><m:t>P=</m:t></m:r>{fraction}</m:oMath>", run(" in watts."))
    body += f"<m:oMathPara><m:oMath>{power}</m:oMath></m:oMathPara>"
    edges = {"header1": paragraph(run("Valid from May")), "header2": paragraph(run("Valid from May"))}
    path = write_docx(tmp_path / "a.docx", body, **edges, footer1=paragraph(run("Page "), run("3")))
    assert text_of(path).split("\n\n") == [
        "Valid from May", "It holds 10^6 cells of H_2O.", "P is P=(Q·p)/η in watts.", "v^2",
    ]  # fmt: skip


def test_the_first_row_of_a_word_table_is_its_header_and_merged_cells_are_repeated(tmp_path):
    table = word_table(("3*Intervals",), ("Part", "Hours", "Note"), ("v Seal", "200", "a | b"), ("^", "400", ""))
    assert text_of(write_docx(tmp_path / "a.docx", table)) == (
        "Intervals\n\n| Part | Hours | Note |\n| --- | --- | --- |\n| Seal | 200 | a \\| b |\n| Seal | 400 |  |"
    )


def test_a_word_file_names_what_is_not_read(tmp_path):
    path = write_docx(tmp_path / "a.docx", paragraph(run("Text."), "<w:mystery/>"), comments=paragraph(run("Why?")))
    assert "comments" in left_out(path) and "elements of the type mystery" in left_out(path)


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", pytest.param("a.xlsx", marks=needs_excel)])
def test_office_files_with_a_password_of_before_2007_and_broken_ones_are_told_apart(tmp_path, name):
    begin = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
    assert "is protected by a password" in refusal(tmp_path / name, begin + "EncryptedPackage".encode("utf-16-le"))
    assert f"of the format before 2007; save it as .{name[2:]}" in refusal(tmp_path / name, begin)
    assert "is not a readable" in refusal(tmp_path / name, b"PK\x03\x04 broken")


# PDF


@needs_pdf
def test_columns_that_are_drawn_row_by_row_are_read_one_after_the_other(tmp_path):
    left = ["The library opens at nine on", "weekdays and closes at six.", "On Saturday it opens at ten.",
            "Books may be kept for three", "weeks and renewed once."]  # fmt: skip
    right = ["The swimming pool opens at six", "and closes at nine at night.", "Children under seven swim free",
             "when an adult goes with them.", "Lockers take a one euro coin."]  # fmt: skip
    rows = "\n".join(
        f"{line(60, 700 - 12 * n, a)}\n{line(320, 700 - 12 * n, b)}" for n, (a, b) in enumerate(zip(left, right))
    )
    heading = line(
        60, 740, "What the town offers to all who live in it or come to see it, from the first of May on, all days"
    )
    path = write_pdf(tmp_path / "a.pdf", f"{heading}\n{rows}\n{line(60, 600, 'Printed in May.')}")
    assert text_of(path).split("\n")[1:] == [*left, *right, "Printed in May."]


@needs_pdf
def test_the_cells_of_a_table_in_a_pdf_stay_in_their_rows(tmp_path):
    cells = [("Part", "Price", "Place"), *((f"Seal {n}", f"{n} EUR", f"shelf {n}") for n in range(8))]
    content = "\n".join(
        line(60 + 150 * m, 700 - 14 * n, cell) for n, row in enumerate(cells) for m, cell in enumerate(row)
    )
    assert text_of(write_pdf(tmp_path / "a.pdf", content)).split("\n")[1] == "Seal 0 0 EUR shelf 0"


@needs_pdf
def test_words_are_joined_across_the_ends_of_lines_unless_the_hyphen_is_theirs(tmp_path):
    content = lines(
        "Every depart-", "ment has a well-", "known state-of-the-", "art door for UTF-", "8 and a twenty-",
        "four hour lock.", "The twenty-four hours begin with the Öffnungs-", "und Schließzeiten.",
    )  # fmt: skip
    text = " ".join(text_of(write_pdf(tmp_path / "a.pdf", content)).split())
    assert text == (
        "Every department has a well-known state-of-the-art door for UTF-8 and a twenty-four hour lock. "
        "The twenty-four hours begin with the Öffnungs- und Schließzeiten."
    )


@needs_pdf
def test_what_is_typed_into_a_form_stands_with_its_label(tmp_path):
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx /T ({}) /V ({}) /Rect [{}] >>"
    fields = [
        field.format("n", "Maria Kowalska", "200 716 400 732"),
        field.format("Income", "48 500 EUR", "200 500 400 516"),
        "<< /Type /Annot /Subtype /FreeText /Contents (Paid in May) /Rect [60 600 200 616] >>",
    ]
    path = write_pdf(tmp_path / "a.pdf", lines("Name of the applicant:"), annotations="\n".join(fields))
    assert text_of(path).split("\n") == ["Name of the applicant: Maria Kowalska", "Paid in May", "Income: 48 500 EUR"]


@needs_pdf
def test_sheets_that_are_images_are_named_with_what_reads_them(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", lines("One."), SCAN, "", SCAN, SCAN, f"{SCAN} {lines('Scanned in May')}")
    assert left_out(path) == (
        "sheets 2, 4-6 without text, only images; to read them: ocrmypdf --skip-text a.pdf with_text.pdf"
    )
    (page,) = pages(path)
    assert page.text == "One.\n\nScanned in May" and page.sheets[1] < page.sheets[5] == page.text.index("Scanned")
    scan = refusal(write_pdf(tmp_path / "b.pdf", SCAN, SCAN))
    assert scan.endswith("contains no text, only images; add it with OCR: ocrmypdf --skip-text b.pdf with_text.pdf")


@needs_pdf
def test_dotted_contents_are_left_out_of_a_pdf_and_dotted_prices_stay(tmp_path):
    contents = lines(*(f"{n} Chapter {n} " + ". " * 30 + f"{n}" for n in range(1, 7)))
    prices = lines(*(f"Coffee {n} " + "." * 30 + f"{9 - n}.50" for n in range(1, 7)))
    path = write_pdf(tmp_path / "a.pdf", contents, prices, *[lines("Text.")] * 5)
    assert "Chapter" not in text_of(path) and "Coffee 2 ...7.50" in text_of(path)
    assert left_out(path) == "its table of contents"


@needs_pdf
def test_a_pdf_that_opens_without_a_password_is_read_and_one_that_does_not_is_named(tmp_path):
    assert text_of(encrypted_pdf(tmp_path / "a.pdf", password=False)) == "Water damage is not covered."
    assert "is protected by a password; save it without" in refusal(encrypted_pdf(tmp_path / "b.pdf", password=True))


# Slides, sheets, notebooks


def test_slides_are_sections_in_the_order_in_which_they_are_shown(tmp_path):
    cells = "<a:tr><a:tc gridSpan='2'>{}</a:tc><a:tc hMerge='1'/></a:tr><a:tr><a:tc>{}</a:tc><a:tc>{}</a:tc></a:tr>"
    text = "<a:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></a:txBody>"
    table = f"<a:tbl>{cells.format(*(text.format(word) for word in ('Fees', 'a', 'b')))}"
    table += f"<a:tr><a:tc>{text.format(1)}</a:tc><a:tc>{text.format(2)}</a:tc></a:tr></a:tbl>"
    path = write_pptx(
        tmp_path / "a.pptx",
        shape("Dogs wait\n  outside\nCats too", "body") + shape("House rules", "title") + shape("7", "sldNum"),
        f"{shape('Fees', 'title')}<p:graphicFrame>{table}</p:graphicFrame>",
        notes="Say it slowly.",
    )
    (page,) = pages(path)
    assert page.title == "House rules"
    assert page.text.split("\n\n") == [
        "## House rules", "- Dogs wait\n  - outside\n- Cats too", "Notes:", "Say it slowly.", "## Fees", "Fees",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
    ]  # fmt: skip


@needs_excel
def test_sheets_are_tables_with_values_as_they_are_shown(tmp_path):
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Fees"
    for row in (
        ["Fees of 2025"],
        ["Plan", "Tax", "From"],
        ["Pro|x", 0.19, datetime.datetime(2025, 3, 1)],
        [None, 0.07],
        [],
    ):
        sheet.append(row)
    sheet.append(["Sum", "=B3+B4"])
    sheet["B3"].number_format = sheet["B4"].number_format = "0%"
    sheet.merge_cells("A3:A4")
    book.create_sheet("Hidden").sheet_state = "hidden"
    book.save(tmp_path / "a.xlsx")
    (page,) = pages(tmp_path / "a.xlsx")
    assert page.text.startswith(
        "Fees of 2025\n\n| Plan | Tax | From |\n| --- | --- | --- |\n| Pro\\|x | 19% | 2025-03-01 |\n"
        "| Pro\\|x | 7% |  |"
    )
    assert "1 formulas without a stored value" in page.left_out[0] and page.left_out[1] == "the hidden sheet Hidden"


def test_a_notebook_is_its_text_code_and_output(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Rules\n", "Dogs wait."]},
        {
            "cell_type": "code",
            "source": "# count\nprint(3)",
            "outputs": [{"text": ["3\n"]}, {"data": {"image/png": "iVBOR", "text/plain": "<Figure>"}}],
        },
    ]
    (page,) = pages(
        tmp_path / "a.ipynb", json.dumps({"cells": cells, "metadata": {"kernelspec": {"language": "python"}}})
    )
    assert page.title == "Rules" and page.left_out == ("images",)
    assert page.text == "# Rules\nDogs wait.\n\n```python\n# count\nprint(3)\n```\n\n```\n3\n```"
    assert "is not a readable notebook" in refusal(tmp_path / "b.ipynb", "{}")


# Rows, encodings, names


@pytest.mark.parametrize(
    "content, texts",
    [
        ("sep=;\nquestion;answer\nWhen?;At nine, daily\n", ["question: When?\nanswer: At nine, daily"]),
        ('"sep=|"\na|b\n1;2|3,4\n', ["a: 1;2\nb: 3,4"]),
        ("a;b,c,d;e\n1;2,3,4;5\n6;7;8\n", ["a: 1\nb,c,d: 2,3,4\ne: 5", "a: 6\nb,c,d: 7\ne: 8"]),
        ('a,b\n"1;2;3",4\n"5\n6",7\n', ["a: 1;2;3\nb: 4", "a: 5\n6\nb: 7"]),
        ("a,b,\n1,2,3\n4,5,\n", ["a: 1\nb: 2\ncolumn 3: 3", "a: 4\nb: 5"]),
        ("text\nDogs, cats and birds\nwait\n", ["Dogs, cats and birds", "wait"]),
        ("a\tb\n1, 2\t3, 4\n", ["a: 1, 2\nb: 3, 4"]),
    ],
)
def test_no_column_of_a_table_is_lost_whatever_separates_them(tmp_path, content, texts):
    assert [page.text for page in pages(tmp_path / "a.csv", content)] == texts


def test_columns_and_fields_beside_the_text_are_named(tmp_path):
    assert left_out(tmp_path / "a.csv", "title,text,price\nDogs,Wait.,9\n") == "the fields price"
    assert left_out(tmp_path / "a.jsonl", '{"text": "Wait.", "tags": ["a"], "empty": ""}\n') == "the fields tags"


@pytest.mark.parametrize(
    "content, texts",
    [
        (
            [{"text": "One.", "title": "T"}, {"name": "lamp", "size": {"h": 3, "w": [1, 2]}}],
            ["One.", "name: lamp\nsize.h: 3\nsize.w: 1, 2"],
        ),
        ({"count": 2, "items": [{"text": "One."}, {"text": "Two."}]}, ["One.", "Two."]),
        ({"name": "lamp", "on": True, "note": None}, ["name: lamp\non: True"]),
        (["One.", "Two."], ["One.", "Two."]),
    ],
)
def test_json_is_read_object_by_object(tmp_path, content, texts):
    assert [page.text for page in pages(tmp_path / "a.json", json.dumps(content))] == texts


def test_a_file_without_a_suffix_is_read_by_how_it_begins(tmp_path):
    assert text_of(tmp_path / "README", "Dogs wait.") == "Dogs wait."
    assert text_of(tmp_path / "page", "<!DOCTYPE html><p>Dogs wait.") == "Dogs wait."


@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "utf-16"])
def test_utf_8_comes_first_and_the_given_encoding_where_it_fails(tmp_path, encoding):
    text = "規則" if encoding == "shift_jis" else "Größe"
    assert pages(tmp_path / "a.txt", text, encoding=encoding)[0].text == text
    assert pages(tmp_path / "b.txt", text.encode(encoding), encoding=encoding)[0].text == text


@pytest.mark.parametrize(
    "content, encoding, doubt",
    [
        ("“Größe”".encode("cp1252"), "latin-1", "it has control characters"),
        ("Правила дома".encode("cp1251"), "cp1252", "over half of its letters have accents"),
        ("Größe, schön, süß".encode().decode("latin-1").encode(), "utf-8", "it has Ã¤ or the like for ä"),
        ("Größe, schön, süß".encode("cp1252"), "cp1252", ""),
        ("Größe, schön, süß".encode(), "utf-8", ""),
    ],
)
def test_a_text_that_was_probably_decoded_wrongly_is_named(tmp_path, content, encoding, doubt):
    (page,) = pages(tmp_path / "a.txt", content, encoding=encoding)
    assert (doubt in "; ".join(page.left_out)) and bool(page.left_out) is bool(doubt)


# Time

UNITS = {
    "base64": "![](data:image/png;base64,iVBORw0KGgo=)", "word": "a", "comments": "<!--", "scripts": "<script ",
    "cdata": "<![CDATA[", "instructions": "<?", "blanks": " ", "line feeds": "\n", "hashes": "# a####",
    "tags": "<b>", "brackets": "![", "quotes": "`", "superscripts": "a<sup>b", "cells": "<table><tr><td>a",
    "fences": "```\n",
}  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(2):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return max(min(taken), 0.004)  # a clock's ticks are no measure


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv"])
def test_four_times_the_text_takes_at_most_six_times_as_long(tmp_path, name, unit):
    def read(length: int) -> float:
        content = "text\n" + UNITS[unit] * (length // len(UNITS[unit]))
        path = tmp_path / name
        path.write_text(f'"{content}"' if name == "a.csv" else content)

        def work() -> None:
            with suppress(DataError):  # nested too deeply
                pages(path)

        return seconds(work)

    assert read(80_000) <= 6 * read(20_000) + 0.1
