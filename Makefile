# Two commands for a new machine with Python and pip: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-quick test-slow docs faults clean

demo: .venv/installed-demo  ## train and compare the embedded model, in about a quarter of an hour on two cores
	$(BIN)/groundtune demo

test: .venv/installed-test  ## every test but the slow ones, in two processes; no network, no model download
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

test-quick: .venv/installed-test  ## the tests that take no model, in a minute
	$(BIN)/python -m pytest -m "not slow and not model"

test-slow: .venv/installed-test  ## what `make test` leaves out: campaigns of faults and of load
	$(BIN)/python -m pytest -m slow

docs: .venv/installed-docs  ## the site, in site/; a broken link or anything loaded from elsewhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

faults: .venv/installed-test  ## every script that attacks the tool; `make test-slow` runs a few dozen cases of each
	for script in $(filter-out tests/faults/test_%,$(wildcard tests/faults/*.py)); do \
		echo "$$script"; $(BIN)/python "$$script" || exit 1; done

# torch is pinned first: a range would fetch gigabytes of CUDA packages on a machine that has no use for them.
.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || ($(PYTHON) -m pip install virtualenv && $(PYTHON) -m virtualenv .venv)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv runs build site *.egg-info
