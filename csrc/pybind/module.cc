// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"
#include "base/isa.h"
#include "base/parallel.h"
#include "bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace lowtide;
  m.doc() = "Native kernels on NumPy arrays. Use the functions of the lowtide package instead.";

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      const char* name = e.kind() == ErrorKind::value  ? "LowtideValueError"
                         : e.kind() == ErrorKind::type ? "LowtideTypeError"
                                                       : "LowtideRuntimeError";
      py::object type = py::module_::import("lowtide.errors").attr(name);
      py::set_error(type, e.what());
    }
  });

  m.def(
      "build_info",
      [] {
        py::typing::Dict<py::str, py::str> d;
        d["version"] = LOWTIDE_VERSION;
        d["compiler"] = LOWTIDE_COMPILER;
        d["build_type"] = LOWTIDE_BUILD_TYPE;
        return d;
      },
      "Version, compiler and build type of this binary.");
  m.def("active_isa", [] { return std::string(isa_name(active_isa())); });
  m.def("active_isa_id", [] { return static_cast<int>(active_isa()); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  m.def(
      "set_isa", [](const std::string& name) { set_isa(parse_isa(name)); }, py::arg("name"));
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  bind::bind_base(m);
  bind::bind_curvature(m);
  bind::bind_krylov(m);
  bind::bind_dct(m);
  bind::bind_fwht(m);
  bind::bind_optim(m);
  bind::bind_random(m);
  bind::bind_matmul(m);
  bind::bind_lowrank(m);
  bind::bind_quant(m);
  bind::bind_spsa(m);
  bind::bind_spsa_perturb(m);
}
