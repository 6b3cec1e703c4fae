# Two commands are all that a newcomer needs: `make rehearse` and `make test`. Each does the set-up that is missing.

PYTHON ?= python3.11
VENV := .venv/bin
RUN := $(VENV)/python -m

# The deployment of include/deployments/ and the environment of include/environments/ that `make rehearse` rolls out.
DEPLOYMENT ?= meta-llama3-8b-instruct
ENVIRONMENT ?= rehearsal
# KEEP=1 leaves the rehearsal up after `make rehearse`.
KEEP ?=
# More arguments for pytest, as in `make test ARGS="-k names -x"`.
ARGS ?=

export PYTHONPATH := $(CURDIR):$(CURDIR)/plugins
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup rehearse up down status kubeconfig deploy teardown test test-all unit lint fmt lock clean bench-%

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## make what is missing: .venv, the benchmark client, the control plane (minutes, the first time)
	@command -v $(PYTHON) >/dev/null || { \
		echo "setup: no $(PYTHON) on PATH." >&2; \
		echo "  what to do: install Python 3.11 with its venv module (Debian, Ubuntu: python3.11 python3.11-venv)," >&2; \
		echo "  or say where it is: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m scripts.setup

rehearse: setup ## the whole main job in a rehearsal: up, deploy, summary, down (KEEP=1: stay up)
	@KEEP="$(KEEP)" $(VENV)/python -m rehearsal.rehearse --deployment $(DEPLOYMENT) --environment $(ENVIRONMENT)

up: setup ## bring the rehearsal up
	@$(RUN) rehearsal up

down: ## end every process of the rehearsal
	@if [ -x $(VENV)/python ]; then $(RUN) rehearsal down; else echo "nothing was up"; fi

status: setup ## the parts of the rehearsal and their logs
	@$(RUN) rehearsal status

kubeconfig: setup ## print the path of the rehearsal's kubeconfig: export KUBECONFIG=$(make -s kubeconfig)
	@$(RUN) rehearsal kubeconfig

deploy: setup ## run nim_deploy on a rehearsal that is up, and follow it
	@$(RUN) rehearsal.main_job deploy --deployment $(DEPLOYMENT) --environment $(ENVIRONMENT)

teardown: setup ## run nim_teardown on a rehearsal that is up, and follow it
	@$(RUN) rehearsal.main_job teardown --environment $(ENVIRONMENT)

lint: setup ## style, types and layers
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(VENV)/lint-imports --no-cache

fmt: setup ## put the sources into the project's format
	@$(RUN) ruff check --fix-only --quiet .
	@$(RUN) ruff format .

unit: setup ## the unit tests alone: no network, no rehearsal
	@$(RUN) pytest tests/unit $(ARGS)

test: lint ## lint, the unit tests and one real rollout with its short checks
	@$(RUN) pytest -m "not slow" $(ARGS)

test-all: lint ## the same with the slow tests
	@$(RUN) pytest $(ARGS)

bench-%: setup ## run a measurement of benchmarks/, as in `make bench-waiting`
	@$(RUN) benchmarks.$* $(ARGS)

lock: setup ## pin anew what pyproject.toml asks for, in the requirements files
	@scripts/lock

clean: down ## remove what was made in the checkout (the cache outside it stays)
	rm -rf .venv .rehearsal .mypy_cache .ruff_cache .import_linter_cache
