# Each target makes .venv by itself and reuses it. Nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.install-stamp

.PHONY: install demo test test-long check check-benchmarks format docs docs-links bench audit clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("deepseek needs Python >= 3.11, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/python examples/digits_demo.py

test: install
	$(BIN)/python -m pytest -m 'not long' -n auto --maxprocesses 8 --dist loadfile

test-long: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/check_size.py
	$(BIN)/codespell

# Calls that do not fit what they call, in programs that no test runs.
check-benchmarks: install
	$(BIN)/pyright --project benchmarks --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

docs-links: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python tools/check_links.py docs

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python benchmarks/coming_from.py
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/checkpoint_overhead.py
	$(BIN)/python benchmarks/logger_overhead.py
	$(BIN)/python benchmarks/graph_modes.py
	$(BIN)/python benchmarks/image_pipeline.py
	$(BIN)/python benchmarks/train_images.py
	$(BIN)/python benchmarks/parallel.py

# Known vulnerabilities and licences of what is installed in .venv; the tools are in an environment
# of their own. Needs the network.
AUDIT := .venv-audit
audit: install
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit pip-licenses
	$(AUDIT)/bin/pip-licenses --python=$(BIN)/python --order=license --format=markdown
	$(AUDIT)/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  || { echo "audit: not passed. Vulnerabilities are listed above; where a package could not be audited, nothing is known of any."; exit 1; }

clean:
	rm -rf $(VENV) $(AUDIT) build dist docs/_build runs demo
