# make demo   install, run the whole chain on the demo dataset, print the accuracies and the path of the report
# make test   install if needed, run the tests, in up to four processes
# make lint   style of the code
# make bench  measurements of docs/results.md: flow, Frames and Flow, loader, training, demo
# make clean  remove the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/luigi --module tasks FullPipeline --dataset demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/flow.py
	$(BIN)/python benchmarks/preprocess.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/chain.py demo --seeds 0 1 2

clean:
	rm -rf $(VENV) build *.egg-info
