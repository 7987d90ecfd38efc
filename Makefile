PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := $(VENV)/.extras
SECONDS ?= 300
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup extras demo check test lint types protos protos-check chaos fuzz containers images soak bench bench-peers peers-check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY) ## Make .venv with everything that runs, tests and checks the project

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Cairn needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,examples,dp]' \
		$$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"])')
	@touch $(READY)

extras: $(EXTRAS) ## Add what single examples need: lifelines, and a pretrained transformer with its libraries

$(EXTRAS): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt \
		$$($(BIN)/python -c 'import tomllib; of = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*(each for extra in ("trial", "transformer") for each in of[extra] if not each.startswith("cairn")))')
	@touch $(EXTRAS)

demo: setup ## Set up, then run the tutorial: an aggregator, bob, alice and a coordinator
	$(BIN)/cairn demo tutorial --out runs/tutorial --force

check: setup lint types ## The quick half, for all day: style, types, the unit tests and the wire
	$(BIN)/pytest -n 2 --dist worksteal tests/unit tests/golden

test: setup ## Set up, then run the tests (containers apart)
	$(BIN)/pytest -n 3 --dist worksteal

lint: setup ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy

protos: setup ## Make the stubs under cairn/v1 from protos/
	find cairn/v1 -name '*_pb2*' -delete
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/cairn/v1/*.proto

protos-check: protos ## Prove that the checked-in stubs are those of protos/
	@test -z "$$(git status --porcelain cairn/v1)" || { git status --short cairn/v1; echo "cairn/v1 is not what 'make protos' makes: commit its output" >&2; exit 1; }

chaos: setup ## Every fault at every failpoint, every call lost, many random ones; 'make test' has every kill and a few of the others
	$(BIN)/pytest -n 2 --dist worksteal -m "chaos or not chaos" tests/chaos tests/unit/aggregator_node/rounds/test_stateful.py

fuzz: setup ## Send spoilt messages to an aggregator and a coordinator for five minutes, or SECONDS=...
	$(BIN)/python -m tests.hostile.fuzz --seconds $(SECONDS)

containers: setup images ## Build the images and run the tests that need a Docker engine
	$(BIN)/pytest -n 3 --dist loadfile -m "containers and not chaos" tests/containers

soak: setup images ## Fault every container in every phase, then kill them at random for MINUTES=30; SEED=...
	$(BIN)/pytest -m "containers and chaos" tests/containers
	$(BIN)/python -m tests.containers.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

images: setup
	@docker compose version >/dev/null 2>&1 || { echo "this needs Docker with Compose v2; on a bare Debian 12, as root, .ci/docker-up installs it" >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "this needs a running Docker engine, and this user's leave to use it" >&2; exit 1; }
	docker compose build --quiet

bench: setup ## Measure rounds beside the limit of this machine, into bench/README.md
	$(BIN)/python -m bench all

bench-peers: setup ## Measure the same work by Flower and NVFLARE, into bench/README.md
	$(BIN)/python -m bench peers

peers-check: setup ## Record what Flower's own rules give, which it installs, and hold ours against that
	$(BIN)/python -m bench peer-rules
	$(BIN)/pytest tests/golden/test_flower.py

clean: ## Remove what was built; runs stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
