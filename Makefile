# make demo | test | test-slow | test-4x | lint. Each sets itself up once; needs only Python >= 3.11.
# PIP_ARGS reaches every pip call, e.g. PIP_ARGS="--extra-index-url https://example.org/simple".

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
TORCH := torch==2.13.0

BIN := .venv/bin
RUN := .venv/.set-up-run
DEV := .venv/.set-up-dev
DEV4X := .venv-4x/.set-up-dev
INPUTS := pyproject.toml requirements.txt
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
NOT_HOST := --ignore=tests/host

.PHONY: demo test test-slow test-host test-4x lint clean

demo: $(RUN)
	$(BIN)/python -m mindedit_core demo

test: $(DEV)
	$(PYTEST) -m "not slow" $(NOT_HOST) tests
	$(PYTEST) -m "not slow" tests/host

test-host: $(DEV)
	$(PYTEST) tests/host

test-slow: $(DEV)
	$(PYTEST) -m slow tests

test-4x: $(DEV4X)
	.venv-4x/bin/python -m pytest $(PYTEST_ARGS) -m "not slow" $(NOT_HOST) tests

lint: $(DEV)
	$(BIN)/python -m ruff check .

clean:
	rm -rf build .venv .venv-4x

# torch first and alone: its build (CPU, CUDA, ...) is chosen by the index, and nothing later may replace it.
$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv-4x/bin/python:
	$(PYTHON) -m venv .venv-4x

$(RUN): $(INPUTS) constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) $(TORCH)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[headless]"
	@touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[headless,train,test]"
	@touch $@

$(DEV4X): $(INPUTS) constraints-4x.txt | .venv-4x/bin/python
	.venv-4x/bin/python -m pip install $(PIP_ARGS) $(TORCH)
	.venv-4x/bin/python -m pip install $(PIP_ARGS) -c constraints-4x.txt -e ".[headless,train,test]"
	@touch $@
