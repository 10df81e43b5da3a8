# Everything a fresh machine needs: Python 3.10+, a C/C++ compiler, and a network to a package registry.
#   make demo   the whole road on real models      make test   every test but the page's in a browser
# Both make .venv on their first run (a few minutes, mostly llama.cpp's build) and start at once afterwards.

PYTHON ?= python3
DEMO_BASE ?= gemma-3-270m
export SLM_HOME ?= $(CURDIR)/.slm
export HF_HUB_DISABLE_TELEMETRY = 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGES := slm convert train serve rag
SOURCES := $(PACKAGES) slm_cli.py scripts tests

.PHONY: help setup demo from-scratch release query-adapter twofold reader second-reader test test-browser coverage check format wheel wheelhouse container-check clean

help:
	@sed -n '2,3p' Makefile | cut -c3-
	@echo "  make setup  only the installation     make check  ruff and mypy     make format"
	@echo "  make test-browser  the web page in a real Chromium     make coverage  which lines the tests run"
	@echo "  make wheel  sdist and wheel, tried in an empty environment     make wheelhouse  for machines without a network"
	@echo "  make container-check  the Dockerfile's steps without a container engine (root, Debian)"
	@echo "  make clean  removes .venv, .slm and what training and conversion made"

setup: .venv/installed

demo: .venv/installed
	@$(BIN)/python scripts/demo.py --base $(DEMO_BASE)

# CORPUS=DIR as scripts/manuals.py makes it; docs/from-scratch.md walks through it.
from-scratch: .venv/installed
	@[ -n "$(CORPUS)" ] || { echo "error: name the corpus: make from-scratch CORPUS=DIR (docs/from-scratch.md says how to make one)" >&2; exit 1; }
	@$(BIN)/python -m pip show -q matplotlib 2>/dev/null || $(PIP) install -q -c constraints.txt -e '.[plot]'
	@$(BIN)/python scripts/from_scratch.py $(CORPUS)

# The project's own release, in dist/VERSION: its model, adapters, packages and notes (docs/releasing.md). CORPUS=DIR as for
# from-scratch, LICENCE=ID as its texts decide; RELEASE_OPTIONS="--size 5m --tag" for more. DRY_RUN=1: all of it, tiny.
release: .venv/installed
	@[ -n "$(DRY_RUN)" ] || { [ -n "$(CORPUS)" ] && [ -n "$(LICENCE)" ]; } || { echo "error: name the corpus and the licence that its texts decide: make release CORPUS=DIR LICENCE=ID (docs/releasing.md); or try it with DRY_RUN=1" >&2; exit 1; }
	@$(BIN)/python scripts/release.py $(if $(DRY_RUN),--dry-run,$(CORPUS) --licence $(LICENCE)) $(RELEASE_OPTIONS)

# What is learned about questions for the packaged embedder: rag/index/embedders/learned. About 10 minutes on 2 cores.
query-adapter: .venv/installed
	@$(BIN)/python scripts/query_adapter.py

# What tells questions that ask for two things: rag/answer/twofold.npy. Half a minute.
twofold: .venv/installed
	@$(BIN)/python scripts/twofold.py

# The reader of data/reading, a LoRA of the packaged embedder: adapters/reader. About 80 minutes on 2 cores.
reader: .venv/installed
	@$(BIN)/python scripts/reader.py

# The reader that reads after it, a LoRA of Gemma 3 270m: adapters/second-reader. At most 120 minutes on 2 cores.
second-reader: .venv/installed
	@$(BIN)/python scripts/reader.py --base gemma-3-270m

# The road uses every core by itself; the other files run two at a time.
test: .venv/installed
	$(BIN)/python -m pytest tests/test_road.py
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/test_road.py

# Which lines of the packages the tests run, child processes included. A figure to look at, no gate.
coverage: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/test_road.py --cov --cov-report=term

# The web page in a real Chromium (found on PATH, or named: make test-browser SLM_CHROMIUM=/path/to/chromium).
test-browser: .venv/browser
	@[ -n "$(SLM_CHROMIUM)" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  command -v google-chrome >/dev/null || command -v google-chrome-stable >/dev/null || \
	  { echo "error: the page's tests need a Chromium, found none. Debian, Ubuntu: apt install chromium fonts-noto-cjk; or name one: make test-browser SLM_CHROMIUM=FILE" >&2; exit 1; }
	SLM_CHROMIUM="$(SLM_CHROMIUM)" $(BIN)/python -m pytest -m browser tests/test_serve_browser*.py

check: .venv/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python 3.10 or newer is needed, found: $$($(PYTHON) --version 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "error: llama.cpp is built here and needs a C++ compiler, found none. Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install" >&2; exit 1; }
	@echo "[1/3] making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/llama: .venv/python constraints.txt slm/native/build.py $(wildcard slm/native/recipe/* slm/native/recipe/rows/*)
	@echo "[2/3] building llama.cpp from source for this processor: 2 to 4 minutes on 2 cores the first time, seconds afterwards"
	@CMAKE_ARGS="$(CMAKE_ARGS)" $(BIN)/python -m slm.native.build
	@touch $@

.venv/browser: .venv/installed
	$(PIP) install -q -c constraints.txt -e '.[browser]'
	@touch $@

.venv/installed: .venv/llama pyproject.toml constraints.txt
	@echo "[3/3] installing the packages of constraints.txt: about 2 minutes, about 2 GB on disk"
	@start=$$(date +%s); $(PIP) install -q -c constraints.txt -e '.[demo,dev]' || exit $$?; \
	echo "      done in $$(( $$(date +%s) - start )) s"
	@touch $@

# sdist and wheel in dist/, and the wheel at work in an environment of its own. Another Python: make wheel WHEEL_PYTHON=python3.12
WHEEL_PYTHON ?= $(BIN)/python
WHEEL_MODEL ?= smollm2-135m-instruct
wheel: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/slm pull $(WHEEL_MODEL)
	$(BIN)/python scripts/wheel_check.py dist/*.whl --python $(WHEEL_PYTHON) --model $(WHEEL_MODEL)

# Every wheel of an installation in one folder: make wheelhouse EXTRAS=train,rag; docs/install.md walks through it.
EXTRAS ?=
wheelhouse: .venv/installed
	@CMAKE_ARGS="$(CMAKE_ARGS)" $(BIN)/python scripts/wheelhouse.py -o wheelhouse --extras "$(EXTRAS)"

# What a container engine would do, in a Debian root of its own: needs root, debootstrap, and `make wheelhouse` before it.
container-check: .venv/installed
	$(BIN)/slm pull $(WHEEL_MODEL)
	$(BIN)/python scripts/container_check.py --build-arg WHEELS=wheelhouse --model $(WHEEL_MODEL)

clean:
	rm -rf wheelhouse dist .venv .slm build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
	find adapters exports -mindepth 1 -not -name .gitkeep -delete
