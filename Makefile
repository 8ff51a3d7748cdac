# Every target prepares .venv by itself when it is missing or stale: one command on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help demo test check data results bench interop clean

PYTHON ?= python3
BIN := .venv/bin
USER_STAMP := .venv/installed
DEV_STAMP := .venv/installed-dev

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: $(USER_STAMP)  ## train and compare on the embedded glyphs, both protocols: no download, two minutes on two cores
	$(BIN)/fewshot run benchmarks/quickstart.toml --out results/demo --fresh

test: $(DEV_STAMP)  ## run all tests (those on real images need FEWSHOT_DATA)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(DEV_STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

data: $(USER_STAMP)  ## download Omniglot into the data directory, after saying source, licence and size
	$(BIN)/fewshot data get omniglot

# Those whose weights others answer with or begin with come before these.
SUITES = quickstart comparison omniglot_kshot omniglot_gradient omniglot_gradient_gpu omniglot_gradient_pretrained \
	omniglot_reptile omniglot_kshot_lake omniglot_gradient_lake omniglot_first omniglot_inductive glyphs_to_omniglot \
	mini_imagenet_cpu mini_imagenet_generations mini_imagenet_conv4 mini_imagenet_pretrained \
	mini_imagenet_undistorted mini_imagenet_to_omniglot mini_imagenet_gpu mini_imagenet_stream \
	stream_omniglot mann_ablation mann_cost santoro_table1 santoro_table2 santoro_persistent santoro_curriculum \
	santoro_lake
results: $(USER_STAMP)  ## make what is missing of the recorded results (hours), then verify them
	for suite in $(SUITES); do \
		$(BIN)/fewshot run benchmarks/$$suite.toml && $(BIN)/fewshot verify results/$$suite || exit; done
	$(BIN)/fewshot ledger

bench: $(DEV_STAMP)  ## measure speed beside other packages and the limits of the machine: 10 minutes on two cores
	$(BIN)/fewshot bench

interop: $(DEV_STAMP)  ## hold the adapters to the real learn2learn and torchmeta, which it installs: a minute and a half
	python=$$($(BIN)/python -m benchmarks.speed.peers learn2learn torchmeta) && $$python -m pytest tests/interop

clean:  ## remove the environment and what tools leave behind, never data or results
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(USER_STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fewshot needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(DEV_STAMP): $(USER_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
