# Two commands for a new machine with Python and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# The versions that were tested, so that no release of tomorrow changes what these commands do; empty: the newest.
CONSTRAINTS ?= constraints.txt
# Named by its version even where nothing else is: a range would fetch gigabytes of CUDA packages on a machine that has
# no use for them.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# Empty where other versions are tried: libraries change their types without a word.
MYPY ?= $(BIN)/mypy

.PHONY: demo test test-quick test-slow test-latest test-oldest audit docs pictures tutorial faults constraints dist clean

demo: $(VENV)/demo-model  ## train and compare the packaged model, in about seven minutes on two cores
	$(BIN)/groundtune demo

test: $(VENV)/installed-test  ## every test but the slow ones, in two processes; no network, no model download
	$(BIN)/ruff check .
	$(MYPY)
	$(BIN)/python -m pytest

test-quick: $(VENV)/installed-test  ## the tests that take no model, in a minute
	$(BIN)/python -m pytest -m "not slow and not model"

test-slow: $(VENV)/installed-test  ## what `make test` leaves out: campaigns of faults and of load
	$(BIN)/python -m pytest -m slow

audit:  ## known vulnerabilities of the tested versions; apart from `make test`, because it asks a service (pypi.org)
	test -x .venv-audit/bin/pip-audit || ($(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit)
	.venv-audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

pictures: $(VENV)/installed-demo runs/demo/metrics.json  ## the pictures of the docs, in Chromium, from the demo's run
	$(BIN)/python scripts/pictures.py runs/demo

runs/demo/metrics.json:
	$(MAKE) demo

tutorial: $(VENV)/installed-test $(VENV)/demo-model  ## what the commands of docs/tutorial.md print, written into the page; half an hour
	$(BIN)/python scripts/tutorial.py build/tutorial

docs: $(VENV)/installed-docs  ## the site, in site/; a broken link or anything loaded from elsewhere fails
	test ! -f runs/demo/metrics.json || $(BIN)/python scripts/pictures.py runs/demo
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

faults: $(VENV)/installed-test  ## every script that attacks the tool; `make test-slow` runs a few dozen cases of each
	for script in $(filter-out tests/faults/test_%,$(wildcard tests/faults/*.py)); do \
		echo "$$script"; $(BIN)/python "$$script" || exit 1; done

dist:  ## the source distribution, and the wheel made from it, in dist/; asks pypi.org for the tools that build them
	test -x .venv-dist/bin/pyproject-build || ($(PYTHON) -m venv .venv-dist && .venv-dist/bin/pip install --quiet build)
	rm -rf dist
	.venv-dist/bin/pyproject-build --outdir dist

test-latest:  ## every test with the newest of everything but PyTorch (all of it: TORCH=torch), in .venv-latest
	rm -rf .venv-latest
	$(MAKE) test VENV=.venv-latest CONSTRAINTS= MYPY=

test-oldest: build/oldest.txt  ## every test with the lowest versions that pyproject.toml allows, in .venv-oldest
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=build/oldest.txt MYPY=

constraints: test-latest  ## constraints.txt as of today, if every test passes with it
	$(MAKE) .venv-latest/installed-demo .venv-latest/installed-gemma VENV=.venv-latest CONSTRAINTS=
	.venv-latest/bin/python scripts/constraints.py installed > constraints.txt

build/oldest.txt: pyproject.toml scripts/constraints.py
	mkdir -p build
	$(PYTHON) scripts/constraints.py oldest > $@

$(VENV)/installed-%: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || ($(PYTHON) -m pip install virtualenv && $(PYTHON) -m virtualenv $(VENV))
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS:%=-c %) $(TORCH)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS:%=-c %) --editable ".[$*]"
	touch $@

$(VENV)/demo-model: demo-model.txt $(VENV)/installed-demo
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $<
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-audit .venv-dist runs build dist site *.egg-info
