# What a contributor types. Everything runs in .venv, which is made at first use and remade when the requirements change.

PYTHON ?= python3
MODEL  ?=
ROWS   ?=
STARTS ?=
TICKS  ?=
OUT    ?= out/report

BIN       := .venv/bin
INSTALLED := .venv/installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install test lint types report notebooks bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter; make report takes MODEL, ROWS, STARTS, TICKS and OUT."

install: $(INSTALLED)  ## Make .venv with the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
	"attractorlab needs Python 3.11, 3.12 or 3.13 and $(PYTHON) is %d.%d. Try make PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the tested versions into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	@touch $@

lint: $(INSTALLED)  ## Check the style
	$(BIN)/ruff check .

types: $(INSTALLED)  ## Check the types
	$(BIN)/mypy

test: lint types  ## Check style and types, run every test and every example in a docstring
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

report: $(INSTALLED)  ## Analyse a bundled model; writes index.html, report.json and report.md
	$(BIN)/attractorlab report $(MODEL) --out $(OUT) $(if $(ROWS),--rows $(ROWS)) \
		$(if $(STARTS),--starts $(STARTS)) $(if $(TICKS),--ticks $(TICKS))

notebooks: $(INSTALLED)  ## Run every notebook in place
	@set -e; for notebook in notebooks/*.ipynb; do \
		echo "$$notebook"; $(BIN)/jupyter execute --inplace "$$notebook"; done

bench: $(INSTALLED)  ## Time the parts that have to be fast
	@set -e; for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script"; done

clean:  ## Remove .venv, caches and what was built; runs/ and out/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
