# The targets make their own virtual environment in .venv at first and reuse it from then on, also without a network.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow test-full test-planner test-native lint format docs bench old-mindpet clean

# METHOD=bitfit, or another one of `mindpet demo --help`, is tuned instead of LoRA.
demo: $(VENV)/.package
	$(BIN)/mindpet demo --overwrite $(if $(METHOD),--method $(METHOD))

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

test-slow: $(VENV)/.dev $(VENV)/.reference
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadgroup

# The slow tests with every repetition: kills, seeds and cycles that CI shortens. Takes an hour or more.
test-full: $(VENV)/.dev $(VENV)/.reference
	MINDPET_FULL_TESTS=1 $(BIN)/python -m pytest -m slow

# What MindSpore's own parallel planner makes of the shard strategies; needs gcc and nm, but no accelerator.
test-planner: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests/planner

# The native kernels without Python: built as they are, and with the sanitizers; needs g++.
test-native:
	$(PYTHON) tests/kernels/native/build.py plain
	$(PYTHON) tests/kernels/native/build.py address
	$(PYTHON) tests/kernels/native/build.py thread

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.reference
	$(BIN)/python benchmarks/step_time.py

# MindPet 1.0.4 for `make bench` to measure it too; benchmarks/README.md says why with these versions.
old-mindpet: .venv-mindpet-1/.installed

clean:
	rm -rf $(VENV) .venv-mindpet-1 build dist site *.egg-info

$(VENV)/.package: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev $(VENV)/.docs $(VENV)/.reference: $(VENV)/.%: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv-mindpet-1/.installed:
	$(PYTHON) -m venv .venv-mindpet-1
	.venv-mindpet-1/bin/python -m pip install --quiet mindpet==1.0.4 mindformers==1.3.2 mindspore==2.7.0
	touch $@
