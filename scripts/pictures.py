"""Pictures for the documentation, from a real run: `python scripts/pictures.py runs/demo`, or `make pictures`.

The pages are rendered again with the code of today, so no picture shows an old page, and the sentences of
docs/howto/report.md that quote the picture are written with it. Without Chromium, the pictures stay as they are.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import browser  # noqa: E402  speaks to Chromium, for tests as well
import serving  # noqa: E402  a server in this process, for tests as well

from groundtune.commands.serve import open_serving  # noqa: E402
from groundtune.evaluation.comparison import read_systems  # noqa: E402
from groundtune.reporting.report import read_results, write_results  # noqa: E402
from groundtune.reporting.results import Results, gained_and_lost  # noqa: E402
from groundtune.serving.rating import Grades, RatingServer, items_of  # noqa: E402

HOWTO = ROOT / "docs" / "howto"
_QUOTED = re.compile(r"(<!-- written by scripts/pictures.py -->\n).*?(?=\n<!-- to here -->)", re.DOTALL)
_FIGURES = "figures"  # name of the text inside report.png


def main(run: str) -> int:
    """Make the pictures; returns 0 also if there is no browser."""
    if browser.PROGRAM is None:
        print("no Chromium: the pictures stay as they are")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        shutil.copytree(run, work / "runs" / "demo", ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
        results = _rendered(work / "runs" / "demo")
        with browser.Browser(Path(folder, "profile"), 1400, 1640) as page:
            page.open((work / "runs/demo/report.html").as_uri())
            page.picture(HOWTO / "report.png")
            _rating(work / "runs" / "demo", page, HOWTO / "rating.png")
            chat(run, work, page)
    figures = quoted(results)
    _stamp(HOWTO / "report.png", figures)
    text = (HOWTO / "report.md").read_text("utf-8")
    (HOWTO / "report.md").write_text(_QUOTED.sub(lambda found: found[1] + figures, text), "utf-8")
    return 0


def _rendered(run: Path) -> Results:
    """Write the run's pages again, with paths as in the folder where it was made."""
    record = (run / "run.json").read_text("utf-8")
    made_in = json.loads(record)["working_directory"]
    for folder, shown in ((f"{made_in}/", ""), (f"{ROOT}/", ""), (str(Path.home()), "~")):
        record = record.replace(folder, shown)
    (run / "run.json").write_text(record, "utf-8")
    results = read_results(run)
    write_results(run, results)
    return results


def _rating(run: Path, page: browser.Browser, path: Path) -> None:
    """A question in the middle of being graded."""
    systems = read_systems([str(run / f"predictions/test_{name}.jsonl") for name in ("base", "tuned")])
    server = RatingServer(Grades(run / "grades.jsonl", items_of(list(systems.values()), 50)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page.resize(1400, 1060)
    page.open(server.address)
    page.wait("document.activeElement.id === 'name'")
    page.type("Anna")
    page.press("Enter")
    page.wait("!document.getElementById('item').hidden")
    page.press("p", *"ynn")
    page.picture(path)
    server.shutdown()


def chat(run: str, work: Path, page: browser.Browser) -> None:
    """A dialogue of three turns with the run's model, on a wide screen and on a narrow one."""
    with serving.running(open_serving(*serving.arguments_of(run, feedback_file=work / "votes.jsonl"))) as server:
        page.open(server.url)
        page.wait("!document.getElementById('ask').hidden")
        for number, question in enumerate(DIALOGUE, 1):
            page.value("document.getElementById('question').focus()")
            page.type(question)
            page.press("Enter")
            page.wait(f"document.querySelectorAll('.votes:not([hidden])').length === {number}", seconds=120)
        page.value("document.querySelectorAll('.sources').forEach((one, i) => one.querySelectorAll('details').forEach("
                   f"(passage, j) => {{ passage.open = i === {len(DIALOGUE) - 1} && j === 0; }}))")  # fmt: skip
        page.resize(1400, 1420)
        page.value("scrollTo(0, 0)")
        page.picture(HOWTO / "chat.png")
        page.resize(390, 844)
        page.value("document.querySelector('.turn:last-child').scrollIntoView()")
        page.picture(HOWTO / "chat-narrow.png")


DIALOGUE = ("What are lambda expressions used for?", "Can they contain statements?", "And annotations?")


def quoted(results: Results) -> str:
    """What the page about reports says of the picture."""
    found, (_, lost) = results.differences["generation/f1"], gained_and_lost(results)
    worst = f'"{lost[0].base.example.question}" lost {-lost[0].value:.2f}' if lost else "no answer lost anything"
    return (
        f"In the picture, the tuned model answered {found.wins} questions better than the base model, {found.losses} "
        f"worse and {found.ties} equally well. Of the\nanswers that changed most, {worst}."
    )


def _stamp(path: Path, figures: str) -> None:
    """Store in the picture what is said about it, so that a test notices if they differ."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_FIGURES, figures)
    picture = Image.open(path).convert("RGB")
    picture.save(path, pnginfo=info, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
