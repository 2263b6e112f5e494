// SPDX-License-Identifier: Apache-2.0
#include "base/fpenv.h"
#include "bindings.h"
#include "random/stream.h"

namespace lowtide::bind {
namespace {

random::Stream stream(uint64_t seed, uint64_t step, uint32_t slot, uint32_t param, uint32_t role) {
  return {seed, step, slot, param, role};
}

}  // namespace

void bind_random(py::module_& m) {
  m.def(
      "random_words",
      [](Array<uint32_t> dst, uint64_t seed, uint64_t step, uint32_t slot, uint32_t param,
         uint32_t role, int64_t offset) {
        auto* p = out(dst);
        py::gil_scoped_release nogil;
        random::words(p, dst.size(), offset, stream(seed, step, slot, param, role));
      },
      py::arg("out").noconvert(), py::arg("seed"), py::arg("step"), py::arg("slot"),
      py::arg("param"), py::arg("role"), py::arg("offset"));
  m.def(
      "random_sample",
      [](Array<float> dst, uint64_t seed, uint64_t step, uint32_t slot, uint32_t param,
         uint32_t role, int64_t offset, int dist) {
        auto* p = out(dst);
        py::gil_scoped_release nogil;
        random::sample(p, dst.size(), offset, stream(seed, step, slot, param, role),
                       static_cast<random::Dist>(dist));
      },
      py::arg("out").noconvert(), py::arg("seed"), py::arg("step"), py::arg("slot"),
      py::arg("param"), py::arg("role"), py::arg("offset"), py::arg("dist"));
  m.def(
      "random_add",
      [](Array<float> x, double scale, uint64_t seed, uint64_t step, uint32_t slot, uint32_t param,
         uint32_t role, int64_t offset, int dist) {
        auto* p = out(x);
        py::gil_scoped_release nogil;
        random::add_scaled(p, to_float_rn(scale), x.size(), offset,
                           stream(seed, step, slot, param, role), static_cast<random::Dist>(dist));
      },
      py::arg("x").noconvert(), py::arg("scale"), py::arg("seed"), py::arg("step"), py::arg("slot"),
      py::arg("param"), py::arg("role"), py::arg("offset"), py::arg("dist"));
  m.def(
      "random_dot",
      [](const Array<float>& x, uint64_t seed, uint64_t step, uint32_t slot, uint32_t param,
         uint32_t role, int64_t offset, int dist) {
        const auto* p = x.data();
        py::gil_scoped_release nogil;
        return random::dot(p, x.size(), offset, stream(seed, step, slot, param, role),
                           static_cast<random::Dist>(dist));
      },
      py::arg("x").noconvert(), py::arg("seed"), py::arg("step"), py::arg("slot"), py::arg("param"),
      py::arg("role"), py::arg("offset"), py::arg("dist"));
}

}  // namespace lowtide::bind
