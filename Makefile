# What can be done here. `make` alone says so.
# A virtual environment is made in .venv with the first Python that is new enough; PYTHON=python3.12 chooses another.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test matrix torture check format bench clean

help: ## say what can be done
	@echo "make …"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-10s %s\n", $$1, $$2 }'

install: $(VENV)/installed ## install pgqueue and what its tests need into .venv

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "pgqueue needs Python 3.11 or newer: none found. Say which with PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## run the example shop end to end: jobs enqueued, retried, dead-lettered, rescued (30 s)
	@$(BIN)/python -m examples.shop.demo

test: install ## run the tests on a PostgreSQL that they start themselves
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

matrix: install ## run the tests on every PostgreSQL, Python and SQLAlchemy supported; MATRIX=all: each combination
	@$(BIN)/python -m tests.matrix

torture: install ## two faults at a time to workers, network and server: SECONDS=300, SEED= repeats a run's faults
	@$(BIN)/python -m tests.torture.run --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

check: install ## lint, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: install ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install ## measure pgqueue on this machine, beside a raw loop; PEERS=1: and beside other queues
	@BENCH_PEERS="$(or $(PEERS),$(BENCH_PEERS))" $(BIN)/python -m benchmarks.run

clean: ## remove what the other targets made
	rm -rf $(VENV) .bench .demo .matrix build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
