# SPDX-License-Identifier: Apache-2.0
PY ?= .venv/bin/python

.PHONY: inplace
inplace:  ## build the native modules into python/lowtide (work on the source tree with PYTHONPATH=python)
	mkdir -p build
	cmake --preset release -DPython_EXECUTABLE=$(abspath $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir) $(CMAKE_ARGS) > build/inplace.log 2>&1 || (cat build/inplace.log; exit 1)
	cmake --build --preset release
	cmake --install build/release --component python --prefix python > /dev/null
