// SPDX-License-Identifier: Apache-2.0
// One function per family adds its NumPy surface to _core. Arrays come in as py::array_t with exact
// dtype and C order (no silent copies); the Python layer has checked shapes already.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>

namespace lowtide::bind {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The writable data of an array; pybind11 raises ValueError if it is read-only.
template <class T>
T* out(Array<T>& a) {
  return a.mutable_data();
}

void bind_base(py::module_& m);
void bind_curvature(py::module_& m);
void bind_krylov(py::module_& m);
void bind_dct(py::module_& m);
void bind_fwht(py::module_& m);
void bind_optim(py::module_& m);
void bind_random(py::module_& m);
void bind_matmul(py::module_& m);
void bind_lowrank(py::module_& m);
void bind_quant(py::module_& m);
void bind_spsa(py::module_& m);
void bind_spsa_perturb(py::module_& m);

}  // namespace lowtide::bind
