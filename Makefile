# Two commands: `make demo` and `make test`; `make docs` builds the documentation. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
# Small models on small machines: threads that wait for each other cost more than they bring.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint install clean cuda-check docs
.DEFAULT_GOAL := test

install: $(INSTALLED)

$(INSTALLED): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $@

# Triton is 300 MB, which the demo does without.
$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev,kernels]'
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint $(TESTABLE)
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist loadgroup

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py demo

# The site of docs/, in site/; a dead link or a docstring that cannot be read is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# On a machine with a GPU, with the packages of $(PYTHON) where there is no .venv: nothing is installed.
cuda-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/cuda/check.py --minutes 8 --out cuda-check

clean:
	rm -rf $(VENV) demo site cuda-check.md cuda-check.json build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
