# `make demo` and `make test` set everything up themselves, once: uv, ffmpeg, and .venv from the
# lock. What is already there is used; what is done is not done again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BSRNN_PYTHON ?= >=3.11,<3.15
DEMO_ARGS ?=
TEST_ARGS ?=

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
OWN_UV := build/uv/bin/uv
# A uv that only exists by name (a version manager's shim) does not count.
UV := $(shell for uv in uv "$$HOME/.local/bin/uv"; do \
	if "$$uv" --version >/dev/null 2>&1; then command -v "$$uv"; exit; fi; done; echo $(OWN_UV))

# Where Python keeps no bytecode, every process of Ray would compile torch, Ray and MLflow anew: two
# to three times the seconds until it starts.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

# $(call apt,PACKAGES): install Debian or Ubuntu packages; fails where that cannot be done.
apt = as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	command -v apt-get >/dev/null && { [ -z "$$as_root" ] || command -v sudo >/dev/null; } \
	&& { $$as_root apt-get update -qq || true; } \
	&& $$as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(1) >/dev/null

.PHONY: help setup ffmpeg chromium hosts demo test proof test-cluster lint lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' \
		| expand -t 22

setup: ffmpeg $(INSTALLED)  ## make .venv from requirements.lock

demo: setup  ## the whole job on a corpus made on the spot (DEMO_ARGS: flags of `bsrnn demo`)
	@.venv/bin/bsrnn demo $(DEMO_ARGS)

test: setup  ## all tests but the slow proofs (TEST_ARGS: arguments of pytest)
	@$(PYTHON) -m pytest -m "not proof and not cluster" $(TEST_ARGS)

proof: setup  ## the slow proofs: servers that die, programs that race, whole trainings
	@$(PYTHON) -m pytest -m proof $(TEST_ARGS)

test-cluster: setup  ## `ray up` and all that follows, on hosts made of namespaces (as root)
	@$(PYTHON) -m pytest -m cluster tests/cluster $(TEST_ARGS)

lint: setup  ## ruff, its format check, and pyright
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright

lock: $(if $(filter $(OWN_UV),$(UV)),$(OWN_UV))  ## write requirements.lock anew from pyproject.toml
	@$(UV) pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header \
		--quiet -o requirements.lock

clean:  ## remove the environment and all caches; results stay
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

ffmpeg:
	@if ! { ffmpeg -version && ffprobe -version; } >/dev/null 2>&1; then \
		echo "Installing ffmpeg"; \
		{ $(call apt,ffmpeg); } || { echo "ffmpeg and ffprobe are missing and could not be" \
			"installed: put them on the PATH (https://ffmpeg.org), then run make again." >&2; \
			exit 1; }; \
	fi

# Not part of the setup: only tests that look at pages need it, and they are skipped without.
chromium:
	@if ! { chromium --version && chromedriver --version; } >/dev/null 2>&1; then \
		echo "Installing chromium"; \
		{ $(call apt,chromium chromium-driver); } || { echo "chromium and chromedriver are" \
			"missing and could not be installed: put both on the PATH, then run make again." >&2; \
			exit 1; }; \
	fi

# Not part of the setup either: what the hosts of `make test-cluster` are made with.
hosts:
	@for tool in sshd rsync ip ssh curl ps; do \
		PATH="$$PATH:/usr/sbin" command -v $$tool >/dev/null && continue; \
		echo "Installing openssh-server, rsync and iproute2"; \
		{ $(call apt,openssh-server openssh-client rsync iproute2 curl procps); } || { \
			echo "$$tool is missing and could not be installed: put openssh-server, rsync," \
			"iproute2, curl and procps on the machine, then run make again." >&2; exit 1; }; \
		break; \
	done

$(OWN_UV):
	@echo "Installing uv into build/uv"
	@python3 -m pip --version >/dev/null 2>&1 || { $(call apt,python3-pip); } || true
	@PIP_USER=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
		python3 -m pip install --quiet --upgrade --target build/uv uv \
		|| { echo "uv is missing and python3 -m pip could not install it:" \
			"install uv (https://docs.astral.sh/uv), then run make again." >&2; exit 1; }

# Synced anew whenever the lock or the project file is newer than the last time.
$(INSTALLED): requirements.lock pyproject.toml $(if $(filter $(OWN_UV),$(UV)),| $(OWN_UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(UV) venv --clear --python "$(BSRNN_PYTHON)" .venv
	@$(UV) pip sync --python $(PYTHON) --require-hashes $(COMPILE) requirements.lock
	@$(UV) pip install --python $(PYTHON) --quiet --no-deps -e .
	@touch $@
