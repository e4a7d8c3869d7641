"""What converters of documents keep of files whose right values are known, and how long they take on real ones.

    python -m benchmarks.converters --packages FOLDER [--real FILE ...]

FOLDER has a folder for each converter with what `pip install --target FOLDER/NAME` puts there; converters without one
are left out. Each runs in a process of its own, with only its own packages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
Right = tuple[tuple[str, ...], ...]  # each one value, in the spellings that keep its meaning


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("converters"), help="A folder with one per converter")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="Files to read for the time that they take")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_read(options.one, options.real)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder))
        kinds = sorted({path.suffix for path in [*cases, *options.real]})
        table = Table("converter", *(f"{kind} kept" for kind in kinds), *(f"{kind} s" for kind in kinds))
        for name, (readable, _) in CONVERTERS.items():
            if name == "groundtune" or (options.packages / name).is_dir():
                table.add_row(name, *_row(name, readable, kinds, cases, options))
        Console().print(table)
    return 0


def _row(
    name: str, readable: str, kinds: list[str], cases: dict[Path, Right], options: argparse.Namespace
) -> list[str]:
    kept, seconds = [], []
    for kind in kinds:
        files = [path for path in cases if path.suffix == kind] if kind in readable.split() else []
        texts = _in_a_process(name, files, options.packages)
        held = [any(text in texts[path.name][0] for text in right) for path in files for right in cases[path]]
        kept.append(f"{sum(held)} of {len(held)}" if files else "")
        real = [path for path in options.real if path.suffix == kind] if files else []
        times = _in_a_process(name, real, options.packages)
        seconds.append(f"{sum(one[1] for one in times.values()):.1f}" if real else "")
    return kept + seconds


def _in_a_process(name: str, files: list[Path], packages: Path) -> dict[str, tuple[str, float]]:
    if not files:
        return {}
    own = [str(packages.resolve() / name)] if name != "groundtune" else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*own, os.environ.get("PYTHONPATH", ""), str(ROOT)])}
    command = [sys.executable, "-m", "benchmarks.converters", "--one", name, "--real", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _read(name: str, files: list[Path]) -> dict[str, tuple[str, float]]:
    """The text of each file, "" if it is refused, and the seconds of the processor."""
    convert = CONVERTERS[name][1]()
    found = {}
    for path in files:
        begin = time.process_time()
        try:
            text = convert(str(path))
        except Exception as error:  # each converter has its own
            text = f"refused: {type(error).__name__}"
        found[path.name] = (" ".join(text.split()), time.process_time() - begin)
    return found


# The files and what is right


def make_cases(folder: Path) -> dict[Path, Right]:
    sys.path.insert(0, str(ROOT / "tests"))
    import files_by_hand as by_hand

    html = folder / "page.html"
    html.write_text(
        "<title>Fees</title><main></main><table><tr><td>menu<td><h2>Rules</h2><p>so&shy;lution: 10<sup>6</sup></table>"
        "<table><tr><th>Plan<th>Month<th>Note<tr><td rowspan=2>Pro<td>9<td>a | b<tr><td>11<td>c</table>"
        "<p>E = <math><msup><mi>c</mi><mn>2</mn></msup></math><pre># no heading\n  x = 1</pre><nav>Menu</nav>"
    )
    raised = "<w:vertAlign w:val='superscript'/>"
    body = by_hand.paragraph(by_hand.run("10"), by_hand.run("6", raised), by_hand.run(" cells, as "))
    formula = "<m:sSup><m:e><m:r><m:t>v</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup>"
    body += by_hand.paragraph(f"<m:oMath>{formula}</m:oMath>")
    body += by_hand.word_table(("Part", "Hours", "Note"), ("v Seal", "200", "a | b"), ("^", "400", "c"))
    docx = by_hand.write_docx(folder / "a.docx", body, header1=by_hand.paragraph(by_hand.run("Valid from May")))
    left = ["The library opens at nine on", "weekdays and closes at six.", "it opens at ten for depart-", "ments."]
    right = ["The swimming pool opens at six", "and closes at nine at night.", "when an adult goes too", "swim free."]
    rows = (
        by_hand.line(x, 700 - 12 * n, text)
        for n, pair in enumerate(zip(left, right))
        for x, text in zip((60, 320), pair)
    )
    columns = by_hand.write_pdf(folder / "columns.pdf", "\n".join(rows))
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx /T (n) /V (Kowalska) /Rect [200 716 400 732] >>"
    form = by_hand.write_pdf(folder / "form.pdf", by_hand.lines("Name:"), annotations=field)
    return {
        html: (
            ("| Pro | 11 | c", "Pro | 11 | c"), ("10^6", "10⁶", "10<sup>6</sup>"), ("a \\| b", "a &#124; b"),
            ("solution",), ("c^2", "c^{2}", "c²"), ("``` # no heading",),
            ("menu ## Rules",),
        ),
        docx: (
            ("| Seal | 400",), ("10^6", "10⁶", "10<sup>6</sup>"), ("a \\| b", "a &#124; b"), ("v^2", "v^{2}", "v²"),
            ("| Part | Hours | Note | | ---", "| Part | Hours | Note | |---", "|--------|"), ("Valid from May",),
        ),
        columns: (("nine on weekdays",), ("departments",), ("at six and closes",)),
        form: (("Name: Kowalska",),),
        by_hand.encrypted_pdf(folder / "aes.pdf", password=False): (("Water damage is not covered",),),
    }  # fmt: skip


# Name -> the types that it reads, and what loads it


def _groundtune() -> Callable[[str], str]:
    from groundtune.prepare.pages import read_pages
    from groundtune.prepare.readers.page import ReadOptions

    return lambda path: "\n".join(page.text for page in read_pages(Path(path), "", ReadOptions()))


def _pypdf() -> Callable[[str], str]:
    import pypdf

    return lambda path: "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


def _pypdfium2() -> Callable[[str], str]:
    import pypdfium2

    return lambda path: "\n".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(path))


def _pdfplumber() -> Callable[[str], str]:
    import pdfplumber

    return lambda path: "\n".join(page.extract_text() for page in pdfplumber.open(path).pages)


def _markitdown() -> Callable[[str], str]:
    import markitdown

    converter = markitdown.MarkItDown(enable_plugins=False)
    return lambda path: converter.convert(path).text_content


def _docling() -> Callable[[str], str]:
    from docling.datamodel.base_models import InputFormat
    from docling.document_converter import DocumentConverter

    converter: Any = DocumentConverter(allowed_formats=[InputFormat.HTML, InputFormat.DOCX])
    return lambda path: converter.convert(path).document.export_to_markdown()


def _mammoth() -> Callable[[str], str]:
    import mammoth
    from markdownify import markdownify

    return lambda path: markdownify(mammoth.convert_to_html(open(path, "rb")).value)  # noqa: SIM115


def _trafilatura() -> Callable[[str], str]:
    import trafilatura

    return lambda path: (
        trafilatura.extract(Path(path).read_bytes(), output_format="markdown", include_tables=True) or ""
    )


def _resiliparse() -> Callable[[str], str]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    return lambda path: extract_plain_text(HTMLTree.parse_from_bytes(Path(path).read_bytes()), main_content=True)


CONVERTERS: dict[str, tuple[str, Callable[[], Callable[[str], str]]]] = {
    "groundtune": (".html .docx .pdf", _groundtune),
    "pypdf": (".pdf", _pypdf),
    "pypdfium2": (".pdf", _pypdfium2),
    "pdfplumber": (".pdf", _pdfplumber),
    "markitdown": (".html .docx .pdf", _markitdown),
    "docling": (".html .docx", _docling),
    "mammoth": (".docx", _mammoth),
    "trafilatura": (".html", _trafilatura),
    "resiliparse": (".html", _resiliparse),
}

if __name__ == "__main__":
    sys.exit(main())
