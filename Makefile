# Two commands: `make demo` and `make test`. They need Python 3.10 or newer and make; the rest they install.
VENV       ?= .venv
# Which Python makes the environment: found below if you name none.
PYTHON     ?=
DEMO_ARGS  ?=
PYTEST_ARGS ?= -n $(WORKERS)
LAB_ARGS   ?=
GPU_ARGS   ?=
# Notebooks side by side, a thread each: with more threads a notebook the same work takes more processor time.
WORKERS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

BIN   := $(VENV)/bin
PY    := $(BIN)/python
STAMP := $(VENV)/.idrnet_nb-installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test gpu lab book env export readme clean clean-env force
.DEFAULT_GOAL := help

help:  ## show this
	@echo 'make TARGET [VENV=folder] [PYTHON=python3.x]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## learn the small world three ways side by side, results in runs/demo (DEMO_ARGS adds options)
	@"$(BIN)/idrnet" compare --data world --out runs/demo $(DEMO_ARGS)

test: $(STAMP)  ## check everything: notebooks, modules, README, style, then pytest (PYTEST_ARGS adds options)
	@echo '== notebooks are clean'
	@"$(PY)" tools/check.py clean
	@echo '== modules are in step with their notebooks'
	@"$(PY)" tools/check.py export
	@echo '== README is in step with nbs/index.ipynb'
	@"$(PY)" tools/check.py readme
	@echo '== ruff'
	@"$(PY)" -m ruff check --quiet --output-format concise .
	@echo '== tests and tools are formatted'
	@"$(PY)" -m ruff format --quiet --check tests tools setup.py
	@echo '== imports point down'
	@"$(BIN)/lint-imports" --no-cache >"$(VENV)/layers.log" || { cat "$(VENV)/layers.log"; exit 1; }
	@echo '== how livable the code is'
	@"$(PY)" tools/livable.py --check idrnet_nb
	@echo '== every notebook, $(WORKERS) at a time'
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$(BIN)/nbdev-test" --n-workers $(WORKERS)
	@echo '== two notebooks in a real Jupyter kernel'
	@HF_HUB_OFFLINE=1 "$(PY)" tools/kernel.py nbs/index.ipynb nbs/5_experiments/07_toy_world.ipynb
	@echo '== pytest'
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$(PY)" -m pytest -q $(PYTEST_ARGS) tests

gpu: $(STAMP)  ## all that a GPU has to say in 12 minutes: is it right, is it fast, a training; rows in runs/gpu (GPU_ARGS adds options)
	@"$(PY)" tools/gpu.py $(GPU_ARGS)

lab: $(STAMP)  ## open JupyterLab at nbs/index.ipynb (LAB_ARGS adds options)
	@"$(BIN)/jupyter" lab $(LAB_ARGS) nbs/index.ipynb

book: $(STAMP)  ## write all notebooks and the API as a website, book/index.html; nothing is run, no network
	@"$(PY)" tools/book.py

export: $(STAMP)  ## write the modules from the notebooks
	@"$(BIN)/nbdev-export"

readme: $(STAMP)  ## write README.md from nbs/index.ipynb
	@"$(PY)" tools/readme.py

clean: $(STAMP)  ## clean the notebooks before a commit
	@"$(BIN)/nbdev-clean"

env: $(STAMP)  ## only create the environment and install
	@echo '$(VENV) is ready.'

clean-env:  ## remove the environment, if this Makefile created it
	@if [ -e "$(VENV)/.made-by-make" ]; then rm -rf "$(VENV)"; \
	elif [ -e "$(VENV)" ]; then echo '$(VENV) was not made by this Makefile: remove it yourself.'; exit 1; fi

# An environment that exists is used; else one is made with the first Python that is new enough.
$(PY):
	@for p in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11 python3.10 python); do \
	  if "$$p" -c 'import sys; sys.exit(sys.version_info < (3,10))' >/dev/null 2>&1; then found=$$p; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo 'No Python 3.10 or newer found$(if $(PYTHON), as $(PYTHON)). Install one, or name it: make PYTHON=/path/to/python3'; exit 1; fi; \
	echo "Making the environment $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv "$(VENV)" || { \
	  echo 'python -m venv failed. On Debian and Ubuntu: apt install python3-venv'; rm -rf "$(VENV)"; exit 1; }; \
	touch "$(VENV)/.made-by-make"

# Installed once; again when requirements change, or when the environment last served another folder.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
$(STAMP): force
endif
$(STAMP): settings.ini setup.py pyproject.toml | $(PY)
	@echo 'Installing idrnet_nb and what it needs into $(VENV). The first time takes minutes and about 6 GB.'
	@"$(PY)" -m pip install -e '.[dev]' >"$(VENV)/install.log" 2>&1 || { \
	  tail -n 25 "$(VENV)/install.log"; echo 'pip failed; all it said is in $(VENV)/install.log'; exit 1; }
	@echo '$(CURDIR)' >"$(STAMP)"
force:
