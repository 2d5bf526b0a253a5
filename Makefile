# cspine: every task of a developer and of CI. `make` lists them.
# It needs Python 3.11 or newer and GNU make; all else is installed into .venv from the package registry.

PYTHON  ?= python3
VENV    ?= .venv
# Test processes. Each computes with THREADS threads, so that together they do not ask for more than the cores.
WORKERS ?= 2
THREADS ?= 1
# Extra arguments: `make demo ARGS=--help`, `make test ARGS='-k manifest'`, `make bench ARGS=...`
ARGS    ?=

# A DICOM archive, checkers of DICOM objects, a browser, and what watches system calls. RUNLEVEL=1 starts no service.
PROGRAMS := orthanc orthanc-dicomweb dcmtk dicom3tools chromium strace

BIN   := $(VENV)/bin
STAMP := $(VENV)/.cspine-setup
PATHS := $(wildcard src tests benchmarks)
LIMIT_THREADS := OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) OPENCV_FOR_THREADS_NUM=$(THREADS) \
	POLARS_MAX_THREADS=$(THREADS)
# The `ci` profile of hypothesis: the same examples in every run, and no deadline that a busy machine could miss.
PYTEST := $(LIMIT_THREADS) $(BIN)/python -m pytest --hypothesis-profile=ci

.DEFAULT_GOAL := help
.PHONY: help system-packages setup demo test test-slow check docs format bench build constraints clean

help: ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

system-packages: ## install the programs that some tests drive (Debian; asks for root by sudo)
	@missing=; for name in $(PROGRAMS); do dpkg -s $$name >/dev/null 2>&1 || missing="$$missing $$name"; done; \
	test -z "$$missing" || { sudo=; test $$(id -u) = 0 || sudo=sudo; \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -qq -y --no-install-recommends $$missing >/dev/null; }

setup: $(STAMP) ## make .venv and install cspine with its pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cspine needs Python 3.11 or newer; name one: make PYTHON=python3.11 setup" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train and compare three models on the phantom; prints where the report is
	$(BIN)/cspine demo $(ARGS)

test: $(STAMP) ## run the tests (without the slow ones), with branch coverage of at least 95%
	$(PYTEST) -n $(WORKERS) --cov=cspine --cov-branch --cov-report=term --cov-fail-under=95 $(ARGS)

test-slow: $(STAMP) ## run the slow tests only
	$(PYTEST) -m slow $(ARGS)

check: $(STAMP) ## format, lint, types and import contracts, changing nothing
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/ruff check $(PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages that are made: commands from the command line, the notebook as a page.
docs: $(STAMP) ## build the site of the documents into site/, links checked
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/typer --app app cspine.cli.app utils docs --name cspine --title Commands --output docs/reference/commands.md
	PYTHONWARNINGS=ignore $(BIN)/jupyter nbconvert --log-level WARN --execute --to markdown docs/tutorials/first-steps.ipynb
	$(BIN)/zensical build --clean --strict

format: $(STAMP) ## format the code and sort its imports
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

bench: $(STAMP) ## run every script in benchmarks/ (hours); docs/benchmarks.md has what they found
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

build: $(STAMP) ## build the source archive and the wheel into dist/
	$(BIN)/python -m build $(ARGS)

constraints: $(STAMP) ## rewrite constraints.txt from .venv (start from a fresh one)
	@{ sed -n '/^#/p' constraints.txt; \
		$(BIN)/python -m pip freeze --all --exclude-editable --exclude cspine --exclude pip; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean: ## remove caches and build outputs; keeps .venv, runs and data
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.* htmlcov
	find $(PATHS) -name __pycache__ -type d -prune -exec rm -rf {} +
