# Everything sets itself up on a fresh Debian 12+ or Ubuntu 24.04+.
.POSIX:
.PHONY: help setup setup-dev demo test check style types site docs test-unit test-simulation test-vm test-nightly format clean

BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest
# Half of what these tests take is waiting for processes and for time to pass.
RINGS = $(PYTEST) tests/unit tests/simulation -n $$((2 * $$(nproc))) --dist worksteal --durations=15
# The tests of a file share a set, whose guests boot and wait in turns: three files at a time
# keep two cores busy. The longest begin (tests/vm/conftest.py).
VMS = $(PYTEST) tests/vm -n 3 --dist loadfile --no-loadscope-reorder --durations=40

# The theme would advertise its successor; warnings of the build are errors.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

help:
	@echo 'make demo             the main job on real VMs: upgrade, bad image, rollback'
	@echo 'make test             checks and all three rings of tests'
	@echo 'make check            formatting, lint, types, import rules, documentation'
	@echo 'make docs             the documentation as a site, in site/'
	@echo 'make test-unit        seconds'
	@echo 'make test-simulation  two minutes'
	@echo 'make test-vm          minutes: real VMs'
	@echo 'make test-nightly     an hour and more: soaks, kills at random moments'
	@echo 'make format           formats the code'
	@echo 'make clean            removes the virtual environment'

setup:
	@scripts/setup

setup-dev:
	@scripts/setup dev

demo: setup
	@$(BIN)/vmss demo

check: setup-dev
	@$(MAKE) --no-print-directory --output-sync --jobs 2 types style site

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types:
	$(BIN)/mypy

site:
	$(SITE)

docs: setup-dev
	$(SITE)
	@echo 'open site/index.html'

test: check
	$(RINGS)
	$(VMS)

test-unit: setup-dev
	$(PYTEST) tests/unit

test-simulation: setup-dev
	$(PYTEST) tests/simulation

test-vm: setup-dev
	$(VMS)

test-nightly: setup-dev
	scripts/audit
	$(PYTEST) tests -m nightly -s
	$(BIN)/python -m benchmarks.crash_points --every 1 --stride 30 --real 7
	$(BIN)/python -m benchmarks.fault_points --stride 3
	$(BIN)/python -m benchmarks.mutants
	$(BIN)/python -m benchmarks.fuzz guests --count 100000
	$(BIN)/python -m benchmarks.fuzz images --count 100000
	$(BIN)/python -m benchmarks.fuzz documents --count 1000000 --jobs $$(nproc)

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-audit .setup-* site
