# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs (tools/setup.sh): Debian packages, .venv, pinned requirements.
# ONLY=stage,... runs some stages of a suite, VERBOSE=1 shows their whole output.
SHELL := /bin/bash
PY ?= .venv/bin/python
STAGES = .venv/bin/python tools/run_stages.py

.DEFAULT_GOAL := help
.PHONY: help demo test nightly bench docs wheel lint format inplace stubs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test:  ## everything that must hold: lint, C++ per ISA, sanitizers, NEON, CUDA on the CPU, Python (half an hour on 2 cores)
	tools/setup.sh apt cross counts browser build test peers docs
	$(STAGES) test

nightly:  ## make test with the slow tests
	tools/setup.sh apt cross counts browser build test peers docs bench
	$(STAGES) nightly

demo:  ## fine-tune a real language model with AdamW, GaLore and Q-GaLore; one table, one figure
	tools/setup.sh apt build demo package
	.venv/bin/python examples/demo.py $(DEMO_ARGS)

bench:  ## C++ and Python benches against measured machine limits and other libraries; JSON in bench/results
	tools/setup.sh apt build bench package
	.venv/bin/python tools/run_benches.py $(BENCH_ARGS)

docs:  ## these pages and the API reference as HTML in build/docs, warnings as errors
	tools/setup.sh apt build test docs
	$(STAGES) docs

wheel:  ## sdist and repaired wheels in dist, audited and tested in clean environments (PYTHONS=all CUDA=1 TESTS=full)
	tools/setup.sh apt build
	.venv/bin/python tools/wheel.py --python "$(or $(PYTHONS),this)" $(if $(CUDA),--cuda) $(WHEEL_ARGS)
ifeq ($(TESTS),full)
	tools/setup.sh test peers
	$(STAGES) nightly --only package,pytest,pytest-clock
endif

lint:  ## ruff, clang-format, mypy --strict, SPDX lines, file lengths, kernel stems, stub drift
	tools/setup.sh apt build test
	$(STAGES) lint

format:  ## rewrite the sources with ruff and clang-format
	tools/setup.sh build test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	git ls-files -z '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs -0 .venv/bin/clang-format -i

inplace:  ## build the native modules into python/lowtide (work on the source tree with PYTHONPATH=python)
	mkdir -p build
	cmake --preset release -DPython_EXECUTABLE=$(abspath $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir) $(CMAKE_ARGS) > build/inplace.log 2>&1 || (cat build/inplace.log; exit 1)
	cmake --build --preset release
	cmake --install build/release --component python --prefix python > /dev/null

stubs: inplace  ## regenerate python/lowtide/_core.pyi after a change of csrc/pybind
	PYTHONPATH=python $(PY) tools/make_stubs.py

clean:  ## remove everything that was built (.venv stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find python -name '*.so' -delete
