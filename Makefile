# make demo | test | lint | bench.  Each makes and fills .venv when it is absent or out of date.
#   make demo ARGS="--type VP"        options for `edmund demo`
#   make test ARGS="-k transform"     options for pytest
#   make bench BENCHMARKS=benchmarks/sampler_overhead.py
#   make test PYTHON=python3.12       the Python to make .venv with
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench FORCE

BIN := .venv/bin
STAMP := .venv/.installed
BENCHMARKS ?= $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))
ARGS ?=
PYTHON ?=

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

demo: $(STAMP)
	@$(BIN)/edmund demo $(ARGS)

test: $(STAMP)
	@$(BIN)/pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script"; done

# The stamp holds the folder that .venv was made for: scripts inside it carry absolute paths, so a moved or copied checkout installs anew.
ifneq ($(shell $(BIN)/python -c pass 2>/dev/null && cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt
	@python=$$(for candidate in $(or $(PYTHON),python3 python python3.13 python3.12 python3.11 python3.14); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$candidate"; break; fi; \
	  done); \
	if [ -z "$$python" ]; then \
	    echo "edmund needs Python >= 3.11 with its venv module; none was found$(if $(PYTHON), at PYTHON=$(PYTHON)): install one or say make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Installing edmund into .venv with $$("$$python" --version)"; \
	"$$python" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@printf '%s\n' "$(CURDIR)" > $@
