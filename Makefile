# Everything runs out of .venv, made on first use with the versions in requirements-dev.lock.
# PYTHON names the interpreter to make it with: 3.11 or later.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
# The interpreter runs the tools, not their scripts: those carry the path they were installed under.
LINT_IMPORTS := $(PY) -c 'from importlinter.cli import lint_imports_command as c; c()'

export PYTHON

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/runtime.stamp ## run the example: a payment fails, is looked into and replayed
	@$(PY) examples/payment_failure_recovery.py

.PHONY: test
test: static services ## everything: format, lint, types, floors, all tests with real servers
	@$(PY) -m pytest

.PHONY: check
check: static ## format, lint, types, floors and the tests that need no server
	@$(PY) -m pytest -m "not services"

.PHONY: static
static: $(VENV)/dev.stamp
	@$(PY) -m ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m mypy
	@$(LINT_IMPORTS)

.PHONY: bench
bench: services ## measure, on real servers; ONLY="sagas memory" some of it, QUICK=1 a tenth of it
	@$(PY) -m benchmarks $(ONLY) $(if $(QUICK),--quick)

.PHONY: sim
sim: $(VENV)/dev.stamp ## SEEDS=n simulated schedules with faults, from FIRST=1; SEED=n one of them, with its trace
	@$(PY) -m tests.simulation $(if $(SEED),seed $(SEED),run --seeds $(or $(SEEDS),2000) --first $(or $(FIRST),1))

.PHONY: mutants
mutants: $(VENV)/dev.stamp ## plant every known bug, and find it by simulation
	@$(PY) -m tests.simulation mutants --seeds $(or $(SEEDS),3000)

.PHONY: search
search: $(VENV)/dev.stamp ## property tests with random examples, other ones each time
	@$(PY) -m pytest tests/property -m "not services" --hypothesis-profile search -p no:cacheprovider

.PHONY: chaos
chaos: services ## MINUTES=n of killing real servers and processes under load; SEED=s, SAVE=directory, STRICT=1
	@$(PY) -m tests.chaos --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED)) $(if $(SAVE),--save $(SAVE)) $(if $(STRICT),--strict)

.PHONY: up
up: ## start Kafka, PostgreSQL, Redis and S3 with Docker
	docker compose up --detach --wait

.PHONY: down
down: ## stop them and forget their data
	docker compose down --volumes

.PHONY: servers
servers: services ## start Kafka and PostgreSQL without Docker, until Ctrl-C
	@$(PY) -m tests.servers

.PHONY: lock
lock: $(VENV)/dev.stamp ## write requirements-dev.lock anew from pyproject.toml
	@$(PIP) uv
	@$(PY) -m uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev \
	    --no-header --no-annotate --no-emit-index-url --output-file requirements-dev.lock pyproject.toml

.PHONY: services
services: $(VENV)/dev.stamp
	@$(PY) -m tests.servers --prepare

# The stamps are written last: an interrupted installation is done again.
$(VENV)/runtime.stamp: pyproject.toml requirements-dev.lock
	@scripts/venv.sh $(VENV)
	@$(PIP) --constraint requirements-dev.lock --editable '.[cli,kafka,postgresql]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml requirements-dev.lock
	@scripts/venv.sh $(VENV)
	@$(PIP) --requirement requirements-dev.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/runtime.stamp $@
