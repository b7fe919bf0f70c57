# make demo, make test: each sets up everything it needs, starting from Python 3.11 and pip.
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet
READY  := $(VENV)/.ready
TORCH  := 2.13.0
# The core is type-checked strictly; the formatter and the linter see everything.
STRICT := $(addprefix src/deltaw/,ops spec.py sites attach.py lowrank methods/init methods/rules methods/update rules.py edits.py \
          probe.py passes.py optimize.py parametrise.py extrapolate.py evolve bilevel methods/rank codecs squeeze.py continual.py \
          measures.py routing.py methods/slots.py methods/banks.py)
# Everything that is made stays in the checkout, converted models included.
QUIET  := DELTAW_CACHE=$(CURDIR)/.cache HF_HOME=$(CURDIR)/.cache/huggingface HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint format docs setup clean
.DELETE_ON_ERROR:

# PASSIVE: threads that wait by spinning made training ten times slower beside one other busy process on two cores.
demo: $(READY)
	$(QUIET) OMP_WAIT_POLICY=PASSIVE $(BIN)/deltaw demo $(ARGS)

test: lint
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy $(STRICT)

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# Rewrites what is generated from the registry: the table in README.md and the pages in docs/methods.
docs: $(READY)
	$(BIN)/deltaw docs

setup: $(READY)

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache

# torch first, as the CPU build and by its full name, so that no later step can pull in the CUDA one. Where the default
# index has no such build (it is published on PyTorch's own index, and macOS has one build only) the next lines find it.
$(READY): pyproject.toml constraints.txt requirements-demo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==$(TORCH)+cpu \
		|| $(PIP) -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==$(TORCH)+cpu \
		|| $(PIP) -c constraints.txt torch==$(TORCH)
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) -c constraints.txt --no-deps -r requirements-demo.txt
	touch $@
