# The one list of commands. The environment is .venv in this folder; the first target makes it.
FAMILY ?= nvila
PYTHON_BIN := .venv/bin/python
LOCKS := $(wildcard requirements/*.txt) requirements/environment.sh

.PHONY: help quickstart test check format lock clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   train a nano model on this machine, from Hugging Face weights to Hugging Face weights"
	@echo "                  (FAMILY=$(FAMILY); FRESH=1 does everything again)"
	@echo "make test         all tests (TESTS=tests/recipes for some)"
	@echo "make check        lint, types, layers, documents"
	@echo "make format       rewrite the code in the house format"
	@echo "make lock         resolve requirements/*.in again"

.venv/.complete: $(LOCKS)
	@requirements/environment.sh

quickstart: .venv/.complete
	@$(PYTHON_BIN) -m launch.quickstart --family $(FAMILY) $(if $(FRESH),--fresh)

TESTS ?= tests
# A file's tests share a process, and so its fixtures; a process takes up to 4 GB.
test: .venv/.complete
	@OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder $(TESTS)

check: .venv/.complete
	@$(PYTHON_BIN) -m ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(PYTHON_BIN) -m ruff check --quiet .
	@$(PYTHON_BIN) -m mypy
	@.venv/bin/lint-imports --config pyproject.toml
	@$(PYTHON_BIN) -m pytest --quiet tests/architecture

format: .venv/.complete
	@$(PYTHON_BIN) -m ruff format --quiet .
	@$(PYTHON_BIN) -m ruff check --fix --quiet .

lock: .venv/.complete
	@cd requirements && for set in "bootstrap bootstrap.in" "lock runtime.in" "lock-develop develop.in runtime.in"; do \
		set -- $$set; out=$$1; shift; \
		../.bootstrap/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--no-header --quiet --override overrides.in --output-file $$out.txt $$@ || exit 1; \
	done

clean:
	@rm -rf .venv .bootstrap runs
