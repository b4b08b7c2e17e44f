# Every target sets up what it needs in .venv: `make quickstart` on a fresh machine is enough.
PYTHON ?= python3
# Of data2vec in the quick starts: 1 or 2.
VERSION ?= 1
RUN := .venv/bin/python

.PHONY: quickstart quickstart-speech quickstart-text test test-all chaos check hooks clean

quickstart: .venv/installed
	$(RUN) examples/quickstart.py --version $(VERSION)

quickstart-speech: .venv/installed
	$(RUN) -m pip install --quiet 'espeakng-loader>=0.2'
	$(RUN) examples/quickstart_speech.py --version $(VERSION)

quickstart-text: .venv/installed
	$(RUN) examples/quickstart_text.py --version $(VERSION)

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

# The suite on both packages that hold Lightning.
test-all: .venv/installed-dev
	OMP_NUM_THREADS=1 LIGHTNING=pytorch_lightning $(RUN) -m pytest -n 2 --dist worksteal
	OMP_NUM_THREADS=1 LIGHTNING=lightning.pytorch $(RUN) -m pytest -n 2 --dist worksteal

# Hours: every promise about kills, damage and faults. The last one mounts file systems, and needs root.
chaos: .venv/installed-dev
	$(RUN) -m tests.chaos.resume
	$(RUN) -m tests.chaos.kill
	$(RUN) -m tests.chaos.mutate
	$(RUN) -m tests.chaos.faults

check: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Checks before every commit, where the package pre-commit is installed.
hooks: .venv/installed-dev
	.venv/bin/pre-commit install

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "d2v_lightning needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-lm.txt
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv
