"""Installation uses the tested versions, and none that is known to be broken."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "constraints.py"))
PROJECT = SCRIPT["pyproject"]()["project"]
PYTHONS = ["3.10.0", "3.11.0", "3.11.9", "3.12.0", "3.13.0"]


def requirements(*extras: str) -> list[Requirement]:
    """Requirements of the project and its extras, and of the extras that these name."""
    own = [Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    named = {extra for requirement in own if requirement.name == "groundtune" for extra in requirement.extras}
    others = [requirement for requirement in own if requirement.name != "groundtune"]
    inside = [requirement for extra in sorted(named) for requirement in requirements(extra)]
    return [*map(Requirement, PROJECT["dependencies"]), *others, *inside]


def pins(python: str) -> dict[str, str]:
    """name: version from constraints.txt for a Python version."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    environment = {"python_full_version": python}
    there = [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment)]
    assert all(str(pin.specifier).startswith("==") and "+" not in str(pin.specifier) for pin in there)
    names = [canonicalize_name(pin.name) for pin in there]
    assert len(names) == len(set(names)) and "groundtune" not in names
    return {name: str(pin.specifier)[2:] for name, pin in zip(names, there)}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_are_allowed_ones_of_all_that_the_commands_of_make_install(python):
    pinned = pins(python)
    for requirement in requirements("test", "docs", "demo"):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:  # it no longer supports this Python
            assert python < "3.11.5", f"{requirement.name}: make constraints"
        else:
            assert requirement.specifier.contains(version), f"{requirement} is not {version}: make constraints"


def test_every_requirement_has_a_lowest_version_that_make_test_oldest_takes():
    oldest = dict(line.split("==") for line in SCRIPT["oldest"]())
    extras = [extra for extra in PROJECT["optional-dependencies"] if extra != "test"]
    for requirement in [*requirements("test"), *requirements(*extras)]:
        exact = str(requirement.specifier).startswith("==")
        if not exact and requirement.name not in ("torch", "ruff"):  # one is gigabytes, the other only reads our code
            assert requirement.specifier.contains(oldest[requirement.name]), requirement


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("target", ["demo", "test", "docs"])
def test_the_commands_of_make_install_the_tested_versions(target):
    inside = ("MAKEFLAGS", "MFLAGS", "VENV", "CONSTRAINTS", "TORCH")  # of `make test-latest`, which may run this
    environment = {name: value for name, value in os.environ.items() if name not in inside}
    command = ["make", "--dry-run", "--always-make", target]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    installs = [line for line in made.stdout.splitlines() if " -m pip install --quiet " in line]
    assert len(installs) == (3 if target == "demo" else 2)  # the demo's model comes without what it requires
    assert all(" -c constraints.txt " in line or " --require-hashes " in line for line in installs)
    (torch,) = [name for name in installs[0].split() if name.startswith("torch==")]
    assert torch.removeprefix("torch==") == pins("3.11.9")["torch"]


@pytest.mark.parametrize("version", ["0.18.0", "0.19.1"])
def test_no_peft_is_allowed_that_imports_what_an_adapter_names(version):
    (peft,) = [requirement for requirement in requirements() if requirement.name == "peft"]
    assert not peft.specifier.contains(version) and peft.specifier.contains("0.20.0")


@pytest.mark.parametrize("version", ["3.1.2", "3.1.5"])
def test_no_jinja_is_allowed_in_which_a_chat_template_can_run_code(version):
    (jinja,) = [requirement for requirement in requirements() if requirement.name == "jinja2"]
    assert not jinja.specifier.contains(version) and jinja.specifier.contains("3.1.6")


def test_the_package_says_that_it_has_types_and_no_module_is_exempt_from_checking_them():
    tools = SCRIPT["pyproject"]()["tool"]
    assert "py.typed" in tools["setuptools"]["package-data"]["groundtune"]
    assert (ROOT / "groundtune" / "py.typed").is_file()
    assert tools["mypy"]["disallow_untyped_defs"] is True
    assert not {"overrides", "exclude", "ignore_errors"} & tools["mypy"].keys()
    exempt = [path for path in (ROOT / "groundtune").rglob("*.py") if "# mypy: " in path.read_text("utf-8")]
    assert exempt == []
