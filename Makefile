# `make` alone lists what there is. As root on a bare Debian 12, each target installs what it needs (apt, PyPI) by itself.
PYTHON := .venv/bin/python

.PHONY: help venv check deb test demo bench locks clean

help: ## This list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile

venv: .venv/ready ## The virtual environment for working on the code

check: venv ## Lint, types and unit tests: no root, no network, under a minute
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	tests/shellcheck
	$(PYTHON) -m pytest -q

deb: ## The package: dist/vllm-safe.deb
	tests/tools deb
	debian/build

test: check deb ## Everything in `check`, then the system tests in nspawn and QEMU
	# Without root the tests that need the beds are skipped, and say so.
	-tests/tools beds
	$(PYTHON) -m pytest tests/system

demo: venv ## From the package to an answer of a real vLLM, in a throwaway Debian
	tests/tools deb
	tests/tools beds
	$(PYTHON) -m tests.demo

bench: venv deb ## Figures, each as a ratio to something run beside it
	tests/tools beds
	$(PYTHON) -m tests.bench

locks: venv ## Resolve another vLLM: edit its version in debian/make-locks.py first
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement vllm_safe/locks/uv.txt
	PATH=$(CURDIR)/.venv/bin:$$PATH $(PYTHON) debian/make-locks.py

clean: ## Remove what was built here (never the cache of wheels and trees)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/ready: pyproject.toml debian/requirements.txt
	tests/tools venv
	/usr/bin/python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement debian/requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
