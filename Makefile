# Every target below 'help' first makes this checkout runnable: packaging/bootstrap.sh says what it does, and does nothing
# when all is there.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv/bin
CODE := cpe_agent cpe_controller tests

# The environment is .venv and nothing else.
unexport PYTHONHOME PYTHONPATH

.PHONY: help bootstrap guest-bootstrap fmt check test test-kernel guest demo lab bench deb test-deb

help: ## show this list
	@printf 'cpe_agent: run as root on Debian 12 or 13\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

bootstrap: ## install what the other targets need (they do it themselves)
	@packaging/bootstrap.sh

fmt: bootstrap ## format the code and sort its imports
	$(VENV)/ruff check --quiet --select I --fix $(CODE)
	$(VENV)/ruff format $(CODE)

check: bootstrap ## lint, format, types, who may import whom
	$(VENV)/ruff check $(CODE)
	$(VENV)/ruff format --check $(CODE)
	$(VENV)/mypy $(CODE)
	$(VENV)/lint-imports --no-logo

# Three workers for two cores: two thirds of the tests' time are spent waiting for what networks do.
test: check ## check, then every test (some 15 minutes on two cores)
	$(VENV)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

guest-bootstrap: # also what an emulated computer with a kernel of its own needs
	@packaging/bootstrap.sh guest

test-kernel: bootstrap ## the tests with the kernel's ESP, in an emulated computer unless this kernel has it; TESTS=ci for the short ones
	@$(VENV)/python -m tests.guest.kernel_tests $(TESTS)

guest: guest-bootstrap ## run CMD='...' under Debian's own kernel, in an emulated computer
	@$(VENV)/python -m tests.guest -- $(if $(CMD),"$$CMD",'uname -a')

test-deb: bootstrap ## build the packages twice; on clean Debians, booted, do all that an installer does (long)
	@packaging/bootstrap.sh deb
	@$(VENV)/python -m tests.deb.tree
	@CPE_DEB=1 $(VENV)/python -m pytest -v $(if $(TESTS),$(TESTS),tests/deb)
	@$(if $(TESTS),,CPE_DEB=1 $(VENV)/python -m tests.guest.kernel_tests tests/deb/test_kernel.py)

export CMD

demo: bootstrap ## bring up a whole network, break it, print what was lost (a minute)
	@$(VENV)/python -m tests.lab.demo

lab: bootstrap ## bring up the same network and leave it up until Ctrl-C
	@$(VENV)/python -m tests.lab up

bench: bootstrap ## measure; BENCH=name for one figure; writes build/bench.json
	@mkdir -p build
	@$(VENV)/python -m tests.bench $(BENCH)

deb: bootstrap ## build the Debian packages into build/deb (DEB='12-arm64 ...' for other targets)
	@packaging/bootstrap.sh deb
	@packaging/deb.sh $(DEB)
