# `make trace` sets up .venv if needed and shows how a trained transformer adds 35 and 59; `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PROMPT ?= 35+59=
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: trace test test-all check bench setup clean

trace: $(READY)
	@$(BIN)/mechkit trace "$(PROMPT)"

test: $(READY)
	@$(BIN)/python -m pytest

test-all: $(READY) chromium
	@$(BIN)/python -m pytest -m ""

check: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest

bench: $(READY)
	@$(BIN)/python -m benchmarks

setup: $(READY)

# The stamp is written last, so that a set-up that was cut short starts again.
$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

# Page tests need a browser; everything else passes without one.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq chromium; } || \
		echo "no chromium could be installed; its tests will be skipped"

clean:
	rm -rf .venv trace.html trace.json
