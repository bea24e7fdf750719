# ipsec-gw: `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Debian's own interpreter, not one that a version manager put before it: bcc belongs to it.
PATH := /usr/sbin:/usr/bin:/sbin:/bin:$(PATH)
export PATH

PYTHON := .venv/bin/python
DOCK := xdp_steer/bpf/dock.bpf.o
ENGINE ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast scenarios fuzz lint format bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: ## install what is needed (Debian/Ubuntu packages, Python environment), compile the dock; quick when done
	@./setup.sh

demo: setup ## bring up a real tunnel between two strongSwans, accelerate it and prove it
	@$(PYTHON) -m ipsec_gw.cli.main lab run site-to-site --engine $(ENGINE)

test: setup lint ## everything: unit, property, BPF, engines, and the lab's scenarios
	@$(PYTHON) -m pytest

test-fast: setup ## what needs no root, with fewer examples, in some two minutes
	@N=$${N:-300} $(PYTHON) -m pytest -q -n 2 -m "not root"

scenarios: setup ## all of the lab, all engines, many rounds: hours where it takes a virtual machine
	@$(PYTHON) -m pytest -v -m scenario --all-scenarios

fuzz: setup ## parsers, broken messages, XDP input, the firewall against its reference (N=, SEED=): far more than `make test`
	@HYPOTHESIS_PROFILE=fuzz $(PYTHON) -m pytest -q --timeout 3600 tests/property
	@HYPOTHESIS_PROFILE=fuzz N=$${N:-1000000} $(PYTHON) -m pytest -q --timeout 3600 tests/fuzz tests/differential

lint: setup ## format check, lint, types, import contracts
	@.venv/bin/ruff format --check -q .
	@.venv/bin/ruff check -q .
	@.venv/bin/mypy
	@PYTHONPATH=. .venv/bin/lint-imports --cache-dir .import_linter_cache >/tmp/ipsec-gw-lint.$$$$ || { cat /tmp/ipsec-gw-lint.$$$$; rm -f /tmp/ipsec-gw-lint.$$$$; exit 1; }; rm -f /tmp/ipsec-gw-lint.$$$$

format: setup ## format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix -q .

bench: setup ## measure the XDP path, a flood, NAT and VPP's crypto engines (medians and ratios of one run)
	@$(PYTHON) -m bench.steering
	@$(PYTHON) -m bench.pipeline
	@$(PYTHON) -m bench.flood
	@if $(PYTHON) -c 'from vpp_conf.locate import locate_vpp; locate_vpp()' 2>/dev/null; then \
			$(PYTHON) -m bench.nat && $(PYTHON) -m bench.tune; \
		else echo "bench.nat and bench.tune are left out: no VPP is installed"; fi

clean: ## remove what the build made
	@rm -rf .venv $(DOCK) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
