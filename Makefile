# Trainmaster's commands. `make up` and `make test` need Python 3.11 or newer, make and git; the rest they fetch.

PYTHON ?= python3
export PORT ?= 8000
export HOST ?= 127.0.0.1
export NODES ?= 2
export TRAINMASTER_HOME ?= var

VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest -n 2 --dist loadgroup

.PHONY: up test bench lint constraints setup setup-dev

up: setup  ## start everything on this machine; Ctrl-C stops it
	@exec $(VENV)/python manage.py up

test: setup-dev  ## all tests; then those that touch the database once more, on PostgreSQL
	$(PYTEST) tests
	$(VENV)/python tools/with_postgres.py $(PYTEST) tests/web

bench: setup-dev  ## the benchmarks, each beside what it is compared with
	$(VENV)/python -m benchmarks

lint: setup-dev  ## format, lint, types, pending migrations
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy trainer webapp
	$(VENV)/python manage.py makemigrations --check --dry-run --settings tests.settings

constraints: setup-dev  ## write constraints.txt anew from what pyproject.toml asks for
	$(VENV)/python tools/write_constraints.py

setup:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) tools/bootstrap.py

setup-dev:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) tools/bootstrap.py --dev
