# The whole set-up, the main job and every check. `make train` and `make test` work on a bare
# machine with Python 3.11, pip and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/arithmetic
# Files of tests side by side: most of them wait for programs that they start.
JOBS   ?= 2

.PHONY: setup train test slow check format docs clean

setup: $(VENV)/.ready

# torch comes first and alone, so that the constrained build is the one everything else sees.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

train: setup
	$(BIN)/rl4lm train --output_dir $(OUT) --overwrite_output_dir $(ARGS)

test: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

slow: setup
	$(BIN)/python -m pytest -q -m slow $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pages that can be read without a network, in site/; broken links and missing docstrings end it.
docs: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
