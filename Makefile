# From a fresh clone, with Python >= 3.11 and a package index:
#   make demo    the whole workflow on the embedded dataset; ends with the metrics table and the report's path
#   make test    the tests
#   make fetch   the published weights that config.yaml uses; CONFIG=configs/x.yaml for another, NAMES="a b" for these
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
CORES ?= all

# Like pip, trust the certificates this machine trusts (a company's proxy, for example).
export UV_SYSTEM_CERTS ?= 1

# Jobs start Python again and again; without compiled files each start takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test fetch lint format weights lock clean

help:
	@sed -n 's/^# *\(make .*\)/  \1/p' $(MAKEFILE_LIST)
	@echo "  make lint    style checks        make format  apply them"
	@echo "  make weights train the embedded detectors again from nothing (about an hour on two cores)"
	@echo "  make lock    resolve the dependencies again        make clean   remove the environment"

# The virtual environment and, in it, the one pinned tool that installs everything else.
$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(UV)

$(VENV)/.runtime: $(UV) requirements/runtime.txt
	@# A development environment holds the runtime one; syncing to the smaller set would only take packages away.
	@if [ -f $(VENV)/.dev ] && [ $(VENV)/.dev -nt requirements/dev.txt ]; then :; else \
		$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/uv.txt requirements/runtime.txt; fi
	@touch $@

$(VENV)/.dev: $(UV) requirements/dev.txt
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/uv.txt requirements/dev.txt
	@touch $@ $(VENV)/.runtime

demo: $(VENV)/.runtime
	@# What trains first: the test set's features fill the gaps.
	$(BIN)/snakemake --cores $(CORES) --prioritize train
	@echo
	@$(BIN)/python -m evaluation.table --results results --config config.yaml
	@echo
	@echo "report: $(CURDIR)/results/report/index.html"

# One more than there are cores: tests of Slurm and of servers wait for long.
test: $(VENV)/.dev
	PYTEST_XDIST_AUTO_NUM_WORKERS=$${PYTEST_XDIST_AUTO_NUM_WORKERS:-$$(($$(getconf _NPROCESSORS_ONLN) + 1))} \
		$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

CONFIG ?= config.yaml
fetch: $(VENV)/.runtime
	$(BIN)/python -m published fetch $(NAMES) --config $(CONFIG)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check .
	$(BIN)/snakemake --lint

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt .

weights: $(VENV)/.dev
	$(BIN)/python -m extractors.training --network regions --steps 3600 --seed 1 --output weights/scenes_regions.safetensors
	$(BIN)/python -m extractors.training --network grids --steps 1200 --lr 5e-4 --seed 2 --init weights/scenes_regions.safetensors --output weights/scenes_grids.safetensors
	$(BIN)/python -m extractors.training --network panoptic --steps 3600 --seed 3 --output weights/scenes_panoptic.safetensors
	$(BIN)/python -m benchmarks.scenes_detectors --images 300 --output weights/quality_day.json
	$(BIN)/python -m benchmarks.scenes_detectors --images 100 --style dusk --output weights/quality_dusk.json

lock: $(UV)
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements/dev.txt
	$(UV) pip compile pyproject.toml -c requirements/dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements/runtime.txt
	echo uv | $(UV) pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements/uv.txt

clean:
	rm -rf $(VENV)
