# make demo: the whole path in minutes. make test: lint and all tests. make test-boards: on emulated Arm CPUs.
# All set up what they need, once.
PYTHON ?= python3
BIN := .venv/bin
PYTHON36 := $(firstword $(wildcard $(HOME)/.pyenv/versions/3.6.*/bin/python3.6) $(shell command -v python3.6))
BOARD_ROOT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/merino_edge/boards/bookworm

.PHONY: demo test test-boards lint clean

demo: .venv/ready
	$(BIN)/merino-edge demo

test: lint .venv36/ready
	$(BIN)/python -m pytest

# On Debian, the first time as root: installs qemu-user and mmdebstrap, keeps 230 MB in BOARD_ROOT.
test-boards: .venv/ready
	tests/boards/rootfs.sh "$(BOARD_ROOT)" $(BIN)/python
	MERINO_BOARD_ROOT="$(BOARD_ROOT)" $(BIN)/python -m pytest tests/test_boards.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "merino_edge needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The board side's own tests run under the Jetson Nano's Python where there is one; else they are skipped.
.venv36/ready: Makefile
	mkdir -p .venv36
ifneq ($(PYTHON36),)
	$(PYTHON36) -m venv .venv36
	.venv36/bin/pip install --quiet --disable-pip-version-check pip==21.3.1
	.venv36/bin/pip install --quiet --disable-pip-version-check --only-binary=:all: \
		numpy==1.19.5 onnxruntime==1.10.0 tokenizers==0.12.1 pytest hypothesis psutil
endif
	touch $@

clean:
	rm -rf .venv .venv36 .pytest_cache .mypy_cache .ruff_cache out
