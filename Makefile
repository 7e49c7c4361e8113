# make up        protect a small application on this machine; run it again at any time
# make preview   what `pulumi up` would change
# make down      stop application and backend; data, copies and stacks stay
# make clean     make down, then remove data, copies and stacks of the quickstart (asks first)
# make test      lint and all tests          make soak    long campaigns
# make lint      ruff, mypy, import-linter   make bench   against nbdkit, restic, kopia and others
# make tools     only the Pulumi CLI with its Python language host

PYTHON := setup/python
VENV   := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help up preview down clean venv test-environment tools lint test soak bench

help:
	@sed -n 's/^# make/make/p' Makefile

up:
	@$(PYTHON) -m setup.quickstart up

preview:
	@$(PYTHON) -m setup.quickstart preview

down:
	@$(PYTHON) -m setup.quickstart down

clean:
	@$(PYTHON) -m setup.quickstart clean

tools:
	@$(PYTHON) -m setup.pulumi_tools

test-environment:
	@$(PYTHON) -m setup.environment backend aws policy test

lint: test-environment
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/mypy setup bench tests/tools.py tests/conftest.py examples/quickstart/orders.py
	MYPYPATH=examples/postgres $(VENV)/mypy examples/postgres/bank.py
	$(VENV)/lint-imports

# Where a Go tool cannot be built, the tests that need it say so; with CI=true they fail on it.
# PYTEST_ARGS="-k journal -x" narrows it. A lint finding fails the run, and lets the tests be seen all the same.
test: test-environment
	@$(PYTHON) -m setup.packages
	@$(PYTHON) -m setup.pulumi_tools
	-@$(PYTHON) -m setup.go_tools versitygw
	@status=0; \
	$(MAKE) --no-print-directory lint || status=$$?; \
	$(VENV)/pytest -n 2 --dist loadgroup $(PYTEST_ARGS) || status=$$?; \
	exit $$status

soak: test-environment
	@$(PYTHON) -m setup.packages
	@$(PYTHON) -m setup.pulumi_tools
	-@$(PYTHON) -m setup.go_tools versitygw
	$(VENV)/pytest -m soak --timeout=0 $(PYTEST_ARGS)

# BENCH_ARGS=--quick is smaller and shorter; BENCH_ARGS="--only volume" runs a part.
bench: test-environment
	@$(PYTHON) -m setup.packages bench
	-@$(PYTHON) -m setup.go_tools versitygw kopia litestream
	$(VENV)/python -m bench $(BENCH_ARGS)
