"""The source distribution is complete: the wheel made from it holds every file of the package, and works installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import groundtune

ROOT = Path(__file__).parents[2]
PROJECT = runpy.run_path(str(ROOT / "scripts" / "constraints.py"))["pyproject"]()["project"]


def has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


needs_setuptools = pytest.mark.skipif(not has_setuptools(), reason="needs setuptools 77 or newer, which builds it")


def build(kind: str, source: Path, target: Path) -> Path:
    """What `pyproject-build` does, with the setuptools that is installed."""
    code = f"import sys, setuptools.build_meta as build; print(build.build_{kind}(sys.argv[1]))"
    words = [sys.executable, "-c", code, str(target)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel built from the unpacked source distribution, as a user's pip would."""
    folder = tmp_path_factory.mktemp("dist")
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for name in ("groundtune", "tests", "scripts", "docs"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    source = build("sdist", folder / "tree", folder)
    with tarfile.open(source) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder)


@needs_setuptools
def test_the_wheel_from_the_source_distribution_holds_every_file_of_the_package(wheel):
    kept = [p for p in (ROOT / "groundtune").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    wanted = {path.relative_to(ROOT).as_posix() for path in kept}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - held == set() and len(wanted) > 150
    assert {name.partition("/")[0] for name in held} == {"groundtune", f"groundtune-{groundtune.__version__}.dist-info"}


@needs_setuptools
@pytest.mark.slow
def test_an_installed_wheel_finds_its_prompts_pages_and_commands(wheel, tmp_path):
    """In an environment of its own; the dependencies are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    installs = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, installs)], check=True, capture_output=True)
    (packages,) = (tmp_path / "venv").rglob("site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import groundtune, sys; from importlib import resources\n"
        "assert groundtune.__file__.startswith(sys.argv[1]), groundtune.__file__\n"
        "from groundtune.evaluation.abstention import read_wordings; read_wordings('')\n"
        "from groundtune.evaluation.judge import read_judge_prompts\n"
        "read_judge_prompts(['correctness', 'faithfulness'])\n"
        "from groundtune.prepare import questions; from groundtune.reporting import report\n"
        "report.page('report', 'x', 'y', {})\n"
        "print((resources.files('groundtune') / 'demo_questions.jsonl').read_text('utf-8')[:1])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(python), "-c", code, str(packages)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == "{", done.stderr[-2000:]
    command = python.with_name("groundtune")
    for words in (["--version"], ["sft", "-h"], ["export", "-h"]):
        done = subprocess.run([str(command), *words], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "groundtune" in done.stdout, done.stderr[-2000:]


def test_the_changelog_begins_with_this_version():
    (first, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first == groundtune.__version__


def test_the_image_has_the_tested_pytorch_known_extras_and_files_that_exist():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    assert arguments["CUDA"] == "cpu", "a GPU is asked for by a build argument"
    assert f"torch=={arguments['TORCH']}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    copied = {name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    assert "USER groundtune" in text and 'ENTRYPOINT ["groundtune"]' in text
