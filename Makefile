# All that a developer, CI and a newcomer type. Needs: git, make and Python 3.11 or newer.
#   make demo     install Warren and collect the shipped example tasks
#   make check    ruff, formatting, mypy, layers
#   make test     all tests, over private RabbitMQ and Redis servers too, one case per fault
#   make test-faults            the full fault matrix, thousands of random schedules
#   make test-vllm             the gateway with a real vLLM on this CPU, as server and inside (4 GiB)
#   make drill                  what breaks others, on 2,000 rollouts each; a table
#   make soak MINUTES=10        random faults under load, an audit, memory slopes
#   make bench                  CPU, memory and latency per rollout (benchmarks/README.md)

VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Images often forbid bytecode files. Then each start compiles 1,000 modules: 1.1 s CPU, not 0.4.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo check test test-faults test-vllm soak drill bench clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMPS)/base  ## Warren itself, as users get it

demo: $(STAMPS)/base
	@$(BIN)/warren demo $(DEMO)

check: $(STAMPS)/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# First one seeded case per class of fault: real processes, which want the machine to themselves.
# Then three processes, since most tests wait for others. PYTEST="-k journal -x" narrows it down.
test: $(STAMPS)/test
ifeq ($(PYTEST),)
	$(BIN)/python -m pytest tests/faults --timeout 300
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore tests/faults
else
	$(BIN)/python -m pytest $(PYTEST)
endif

# Real processes killed at every step, servers too, and the gateway's storms: 40 minutes.
test-faults: $(STAMPS)/test
	$(BIN)/python -m pytest tests/faults -m "faults or not faults" --timeout 600 $(PYTEST)
	$(BIN)/python -m pytest -m faults --ignore tests/faults --timeout 600 $(PYTEST)

# A real vLLM on this CPU, as a server and inside the gateway. PYTEST="-k tool" narrows it down.
test-vllm: .venv-vllm/.stamp
	WARREN_TEST_VLLM=$(CURDIR)/.venv-vllm .venv-vllm/bin/python -m pytest tests/vllm -W default $(PYTEST)

.venv-vllm/.stamp: .ci/vllm-venv pyproject.toml
	.ci/vllm-venv .venv-vllm
	@touch $@

soak: $(STAMPS)/test
	$(BIN)/python -m tests.soak.run --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

# DRILL="--tasks 500 --in-flight 100 --seed 7"
drill: $(STAMPS)/test
	$(BIN)/python -m tests.drill.run $(DRILL)

# BENCH="rabbitmq-plain --repeat 3", BENCH=--full: see benchmarks/README.md
bench: $(STAMPS)/test
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) build dist out demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is made anew when the dependencies change. The code itself is read where it stands.
# --no-compile: what is imported is compiled then; all else only costs time and 40 MB.
$(STAMPS)/venv: .ci/venv
	.ci/venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: $(STAMPS)/venv pyproject.toml
	$(PIP) install --no-compile --editable .
	@touch $@

$(STAMPS)/check: $(STAMPS)/venv pyproject.toml
	$(PIP) install --no-compile --editable '.[check,test]'
	@touch $@ $(STAMPS)/base

$(STAMPS)/test: $(STAMPS)/venv pyproject.toml
	$(PIP) install --no-compile --editable '.[test]'
	@touch $@ $(STAMPS)/base
