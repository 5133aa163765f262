# `make demo` and `make test` need Python 3.11-3.13, pip, make and git; everything else they install into .venv.
PYTHON ?= $(shell for v in python3.11 python3.12 python3.13 python3; do \
	$$v -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$v && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test test-thorough test-slow bench lint types docs clean

# The demo needs only the library; the tests need the rest as well. Each stamp is older than what it was made from.
.venv/.demo: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Trimtab needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing Trimtab into .venv"
	@$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.demo
	@echo "installing what the tests and the docs need"
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 # first, and so by itself: the CPU build
	@$(PIP) -e '.[dev]'
	@touch $@

.venv-bench/.bench: pyproject.toml constraints.txt
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

demo: .venv/.demo
	@$(BIN)/python -m trimtab.cli.demo

# Nearly all of the suite's time is compiling. Here programs run once, so XLA is told to compile fast, not well: half the
# time. `make test-slow`, where agents learn, and the benchmarks run what users run.
test test-thorough: export XLA_FLAGS += --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
test: .venv/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 25

# The rest of what must hold before a change lands: all agents where the default suite takes one of each kind.
test-thorough: .venv/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 25 -m thorough

test-slow: .venv/.dev
	@$(BIN)/python -m pytest -q -m slow

bench: .venv-bench/.bench
	.venv-bench/bin/python benchmarks/updates.py
	.venv-bench/bin/python benchmarks/online.py
	.venv-bench/bin/python benchmarks/roofline.py
	.venv-bench/bin/python benchmarks/offline.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

docs: .venv/.dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-bench site build dist
