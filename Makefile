# PriMIA Grid. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
DEMO_OPTIONS ?=
BENCH_OPTIONS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up down status test check fmt bench bench-inference bench-training bench-case-study bench-inversion fuzz images

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP) ## install everything into .venv

demo: setup ## train a federation and answer encrypted inferences (DATA=folder of images by class)
	$(BIN)/primia demo $(if $(DATA),--data "$(DATA)") $(DEMO_OPTIONS)

up: setup ## start the grid of one machine and leave it running
	$(BIN)/primia grid up

down: ## stop the grid
	@[ ! -x $(BIN)/primia ] || $(BIN)/primia grid down

status: setup ## what runs
	$(BIN)/primia grid status

test: setup ## all tests, with real servers and processes (WORKERS=2 side by side)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: setup ## formatting, lint, types, import contracts, manifests (edits nothing)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m deploy.check

fmt: setup ## format and sort the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup ## print the figures of the benchmarks
	$(BIN)/python -m benchmarks

bench-inference: setup ## time encrypted inference and its peers (DATA=…, BENCH_OPTIONS=--help)
	$(BIN)/python -m benchmarks.inference $(if $(DATA),--data "$(DATA)") $(BENCH_OPTIONS)

bench-training: setup ## time rounds of training and their peers (BENCH_OPTIONS=--help)
	$(BIN)/python -m benchmarks.training $(BENCH_OPTIONS)

bench-case-study: setup ## train in every mode on your radiographs and compare (DATA=…, BENCH_OPTIONS=--help)
	$(BIN)/python -m benchmarks.case_study $(if $(DATA),--data "$(DATA)") $(BENCH_OPTIONS)

bench-inversion: setup ## attack updates by gradient inversion and compare (DATA=…, BENCH_OPTIONS=--help)
	$(BIN)/python -m benchmarks.inversion $(if $(DATA),--data "$(DATA)") $(BENCH_OPTIONS)

fuzz: setup ## fuzz every parser and the step endpoint with atheris (SECONDS=60 each)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

images: ## build the container image of each service (docker or podman)
	deploy/build-images
