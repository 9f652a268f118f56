# `make` alone lists what there is. As root on a bare Debian 12, each target installs what it needs (apt, PyPI) by itself.
PYTHON := .venv/bin/python

.PHONY: help venv check deb beds test system test-nspawn test-vm test-releases test-trixie test-sid test-nodes test-gpu demo bench bench-rows locks clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile

venv: .venv/ready ## The virtual environment for working on the code

# Six at a time on any machine: a part of their time is waiting. Without its cache, pytest rewrites 231 files in each of the six, at 3 s each.
check: venv ## Lint, types and unit tests: no root, no network, a good minute
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo --no-cache
	tests/shellcheck
	PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -q --numprocesses=6 --dist=worksteal

deb: ## The package: dist/vllm-safe.deb
	tests/tools deb
	debian/build

test: check system ## Everything in `check`, then the system tests: QEMU and nspawn side by side

# TIERS: which system tests; `python -m tests.tiers` says which there are. A line for each test that ends says how far all are.
TIERS := vm nspawn
system: venv deb beds
	$(PYTHON) -m tests.tiers $(TIERS)

test-vm test-nspawn test-trixie test-sid: test-%: venv deb beds
	$(PYTHON) -m tests.tiers $*

test-releases: venv deb beds ## The same package on trixie and sid, built there too, and an upgrade of bookworm to trixie
	$(PYTHON) -m tests.tiers trixie sid

test-nodes: venv deb beds ## Faults of a model on several machines, a slow network, WireGuard: a quarter of an hour
	$(PYTHON) -m tests.tiers nodes

test-gpu: venv deb beds ## What only NVIDIA GPUs can show, on a machine that has them; elsewhere it says why not
	$(PYTHON) -m tests.gpu.bed

# Without root the tests that need the beds are skipped, and say so.
beds:
	-tests/tools beds

demo: venv ## From the package to an answer of a real vLLM, in a throwaway Debian
	tests/tools deb
	tests/tools beds
	$(PYTHON) -m tests.demo

bench: bench-rows ## Those, and logins while a model misbehaves: hours (python -m tests.bench.login --plan); again goes on where it ended
	$(PYTHON) -m tests.bench.login

bench-rows: venv deb ## Figures, each as a ratio to something run beside it
	tests/tools beds
	$(PYTHON) -m tests.bench

locks: venv ## Resolve another vLLM: edit its version in debian/make-locks.py first
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement vllm_safe/engine/locks/uv.txt
	PATH=$(CURDIR)/.venv/bin:$$PATH $(PYTHON) debian/make-locks.py

clean: ## Remove what was built here (never the cache of wheels and trees)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/ready: pyproject.toml debian/requirements.txt tests/lowest_versions.py
	tests/tools venv
	/usr/bin/python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement debian/requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	/usr/bin/python3 -m venv --clear --without-pip .venv/lowest
	.venv/bin/pip --python .venv/lowest/bin/python install --quiet --disable-pip-version-check --only-binary :all: \
		$$($(PYTHON) tests/lowest_versions.py) \
		|| { rm -rf .venv/lowest; echo "no .venv/lowest: those versions have wheels for Debian 12's Python; their test is skipped" >&2; }
	touch $@
