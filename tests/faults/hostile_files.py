"""Hostile files for `groundtune documents`: each alone fails, within the limits, and the files around it are read.

    python tests/faults/hostile_files.py

Each case is put into a folder between two good files, and the command reads the folder in another process. It must end
with status 0 and no traceback, write the passages of the good files, stay within the limits, and leave no process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

TIMEOUT, MEMORY_MB, FILE_MB = 5, 600, 50
START = 6.0  # seconds for everything but the hostile file, on a busy machine
GOOD = {"a.txt": "Dogs wait outside.", "z.md": "# Rules\n\nGuests drink water.\n"}

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)


def docx(path: Path, body: str, **more: str) -> None:
    """A Word file with this body, and other entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{_W}"><w:body>{body}</w:body></w:document>')
        for name, content in more.items():
            archive.writestr(name, content)


def pdf(path: Path, objects: list[bytes]) -> None:
    """A PDF of these objects, numbered from 1; the first is its catalog."""
    written, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(written))
    path.write_bytes(written + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, trailer))


def stream(data: bytes, *keys: bytes) -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), b" ".join(keys), data)


def pages(path: Path, content: bytes, kids: bytes = b"3 0 R", more: bytes = b"") -> None:
    """A PDF whose pages are these references; 3 is a page, 4 its content."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> %s >> >>" % more
    count = kids.count(b"R")
    catalog, tree = b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count)
    pdf(path, [catalog, tree, page, content, font])


TEXT = b"BT /F1 12 Tf 72 720 Td (Dogs wait.) Tj ET\n"
Make = Callable[[Path], object]
# Name of the case -> the file's suffix, and what makes it.
FILES: dict[str, tuple[str, Make]] = {
    "docx: empty paragraphs": (".docx", lambda p: docx(p, "<w:p/>" * 2_000_000)),
    "docx: one entry of 300 MB": (".docx", lambda p: docx(p, "<w:p><w:r><w:t>" + "a" * 300_000_000)),
    "docx: an image of 300 MB": (".docx", lambda p: docx(p, "<w:p/>", **{"word/media/a.png": "\0" * 300_000_000})),
    "docx: elements in elements": (".docx", lambda p: docx(p, "<w:sdt><w:sdtContent>" * 50_000)),
    "docx: tables in tables": (".docx", lambda p: docx(p, "<w:tbl><w:tr><w:tc>" * 5_000)),
    "docx: no archive": (".docx", lambda p: p.write_bytes(os.urandom(100_000))),
    "pdf: 20,000 references to a page": (".pdf", lambda p: pages(p, stream(TEXT * 500), b"3 0 R " * 20_000)),
    "pdf: a stream of 300 MB": (
        ".pdf",
        lambda p: pages(p, stream(zlib.compress(TEXT * 7_000_000), b"/Filter /FlateDecode")),
    ),
    "pdf: a stream packed ten times": (
        ".pdf",
        lambda p: pages(p, stream(packed(b"\0" * 60_000_000, 10), b"/Filter [", b"/FlateDecode " * 10, b"]")),
    ),
    "pdf: pages that contain themselves": (".pdf", lambda p: pages(p, stream(TEXT), b"2 0 R " * 50)),
    "pdf: arrays in arrays": (".pdf", lambda p: pages(p, stream(b"[" * 1_000_000))),
    "pdf: forms in forms": (
        ".pdf",
        lambda p: pages(
            p,
            stream(b"/X Do " * 100, b"/Type /XObject /Subtype /Form /Resources << /XObject << /X 4 0 R >> >>"),
            more=b"/XObject << /X 4 0 R >>",
        ),
    ),
    "txt: one word of 4 MB": (".txt", lambda p: p.write_text("a" * 4_000_000)),
    "txt: 40 MB": (".txt", lambda p: p.write_text("The library opens at nine.\n" * 1_500_000)),
    "txt: 60 MB without a line": (".txt", lambda p: p.write_text("on and " * 9_000_000)),
    "md: quotes in quotes": (".md", lambda p: p.write_text("> " * 500_000 + "a")),
    "md: lists in lists": (".md", lambda p: p.write_text("".join(f"{' ' * 2 * n}- a\n" for n in range(4_000)))),
    "md: brackets": (".md", lambda p: p.write_text("[" * 500_000 + "](" * 500_000)),
    "md: front matter of references": (".md", lambda p: p.write_text(front_matter())),
    "md: a heading above 5,000 passages": (
        ".md",
        lambda p: p.write_text(f"# {'long ' * 20_000}\n\n" + "The library opens at nine. Dogs wait.\n\n" * 100_000),
    ),
    "html: elements in elements": (".html", lambda p: p.write_text("<div>" * 300_000 + "a")),
    "html: two million tags": (".html", lambda p: p.write_text("<p>a<br>" * 2_000_000)),
    "html: a table of 20,000 columns": (
        ".html",
        lambda p: p.write_text("<table>" + "<tr><td rowspan=60000 colspan=1000>a" * 20_000),
    ),
    "html: comments that are not closed": (".html", lambda p: p.write_text("<!--<script" * 400_000)),
    "csv: 300,000 columns": (".csv", lambda p: p.write_text(",".join(["a"] * 300_000) + "\n" + "," * 299_999)),
    "csv: a quote that is not closed": (".csv", lambda p: p.write_text('text\n"' + "a,\n" * 10_000_000)),
    "jsonl: arrays in arrays": (".jsonl", lambda p: p.write_text('{"text": ' + "[" * 1_000_000 + "\n")),
    "jsonl: one line of 45 MB": (".jsonl", lambda p: p.write_text(json.dumps({"text": "a b " * 11_000_000}))),
    "jsonl: a long word in the last line": (
        ".jsonl",
        lambda p: p.write_text('{"text": "In part."}\n' * 1000 + json.dumps({"text": "a" * 4_000_000})),
    ),
    "jsonl: a title of 5 MB above each passage": (
        ".jsonl",
        lambda p: p.write_text(json.dumps({"title": "long " * 1_000_000, "text": "It opens at nine.\n" * 500_000})),
    ),
}


def packed(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 9)
    return data


def front_matter() -> str:
    lines = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "---\n" + "\n".join([*lines, "title: *a11"]) + "\n---\nText.\n"


def bind(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # the address of a socket has 107 bytes at most
    here = os.open(".", os.O_RDONLY)
    os.fchdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)


def link_loop(path: Path) -> None:
    path.symlink_to(path.parent / "b.txt")
    (path.parent / "b.txt").symlink_to(path)


def linked_folders(path: Path) -> None:
    path.mkdir()
    (path / "up.txt").symlink_to(path.parent)
    (path / "self.txt").symlink_to(path)
    (path / "deep").symlink_to(path / "deep")


def not_utf8(path: Path) -> None:
    (path.parent / os.fsdecode(b"caf\xe9 rules.md")).write_text("Cats sleep.")
    (path.parent / os.fsdecode(b"\xff\xfe")).mkdir()
    (path.parent / os.fsdecode(b"\xff\xfe/b.txt")).write_text("Cats sleep by day.")
    (path.parent / os.fsdecode(b"bro\xe9ken.pdf")).write_text("no pdf")


# What is in a folder but no file, and names.
ENTRIES: dict[str, tuple[str, Make]] = {
    "a pipe": (".txt", os.mkfifo),
    "a socket": (".jsonl", bind),
    "a link to /dev/zero": (".txt", lambda p: p.symlink_to("/dev/zero")),
    "a link to a terminal": (".md", lambda p: p.symlink_to("/dev/tty")),
    "a link to standard input": (".jsonl", lambda p: p.symlink_to("/dev/stdin")),
    "a loop of links": (".txt", link_loop),
    "a link to itself": (".pdf", lambda p: p.symlink_to(p)),
    "folders in a circle": (".txt", linked_folders),
    "a folder that is named like a file": (".docx", Path.mkdir),
    "a link to a folder outside": (".txt", lambda p: p.symlink_to("/etc")),
    "a link to a file outside": (".txt", lambda p: p.symlink_to("/etc/passwd")),
    "names that are not UTF-8": (".txt", not_utf8),
    "a name that writes on the terminal": ("\x1b[2J\n.txt", lambda p: p.write_bytes(b"\xff")),
    "no permission": (".txt", lambda p: (p.write_text("Cats."), p.chmod(0))),
}
CASES = FILES | ENTRIES


@dataclass(frozen=True)
class Outcome:
    """What the command did with a case; `wrong` says what it should not have done."""

    name: str
    said: str
    seconds: float
    memory_mb: float  # at least that of the process that calls `attempt`
    wrong: list[str]


def attempt(name: str, folder: Path, tokenizer: Path, locale: str = "C.UTF-8") -> Outcome:
    """Read a folder with this case in it."""
    docs, output = folder / "docs", folder / "documents.jsonl"
    docs.mkdir()
    for good, text in GOOD.items():
        (docs / good).write_text(text)
    suffix, make = CASES[name]
    made = os.fork()  # in another process: what this one takes would count as memory of those that it starts
    if not made:
        make(docs / f"m{suffix}")
        os._exit(0)
    assert os.waitpid(made, 0)[1] == 0
    limits = ("--file_timeout", TIMEOUT, "--max_memory_mb", MEMORY_MB, "--max_file_mb", FILE_MB)
    words = ("documents", docs, "-o", output, "--tokenizer", tokenizer, *limits)
    begin = time.monotonic()
    done = subprocess.Popen(
        [sys.executable, "-m", "groundtune.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": locale},
        start_new_session=True,
    )
    assert done.stdout
    said = done.stdout.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(done.pid, 0)
    seconds = time.monotonic() - begin
    return Outcome(name, said, seconds, usage.ru_maxrss / 1024, _wrong(name, said, status, seconds, output))


def _wrong(name: str, said: str, status: int, seconds: float, output: Path) -> list[str]:
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(Path(row["metadata"]["source"]).name, []).append(row["page_content"])
    wrong = []
    if status:
        wrong.append(f"status {status}")
    if "Traceback" in said or "\x1b" in said:
        wrong.append("a traceback, or a control character")
    if [by_source.get(good) for good in GOOD] != [["Dogs wait outside."], ["# Rules\n\nGuests drink water."]]:
        wrong.append("a good file was not read")
    if any("In part" in text for texts in by_source.values() for text in texts):
        wrong.append("a file was used in part")
    if "root:" in output.read_text("utf-8") if output.exists() else False:
        wrong.append("a link led out of the folder")
    if seconds > TIMEOUT + START:
        wrong.append(f"{seconds:.0f} seconds")
    if sorted(path.name for path in output.parent.iterdir()) != ["docs", "documents.jsonl"]:
        wrong.append("something was left beside the output")
    return wrong


def main() -> int:
    from conftest import make_tokenizer

    with tempfile.TemporaryDirectory() as top:
        tokenizer = Path(top) / "tokenizer"
        make_tokenizer("qwen").save_pretrained(tokenizer)
        outcomes = []
        for number, name in enumerate(CASES):
            folder = Path(top) / str(number)
            folder.mkdir()
            outcomes.append(outcome := attempt(name, folder, tokenizer, "C" if number % 2 else "C.UTF-8"))
            lines = [line for line in outcome.said.splitlines() if line.startswith("not read: ")]
            how = " | ".join(line.rpartition("/")[2][:110] for line in lines) or "read"
            wrong = f"  WRONG: {outcome.wrong}" if outcome.wrong else ""
            print(f"{name:42} {outcome.seconds:5.1f} s {outcome.memory_mb:5.0f} MB  {how}{wrong}", flush=True)
    bad = [outcome for outcome in outcomes if outcome.wrong]
    slowest, largest = max(o.seconds for o in outcomes), max(o.memory_mb for o in outcomes)
    print(f"{len(outcomes)} cases, {len(bad)} wrong; at most {slowest:.1f} s, and {largest:.0f} MB in one process")
    return 1 if bad or largest > MEMORY_MB + 100 else 0  # 100: the program itself, which the kernel does not count


if __name__ == "__main__":
    sys.exit(main())
