// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/error.h"
#include "base/fpenv.h"
#include "bindings.h"
#include "spsa/perturb.h"

namespace lowtide::bind {
namespace {

// bf16 arrives as uint16: NumPy has no such dtype of its own.
spsa::FloatType float_type(const py::array& a) {
  require((a.flags() & py::array::c_style) != 0, "perturb: arrays must be contiguous in C order");
  if (py::isinstance<py::array_t<float>>(a)) return spsa::FloatType::f32;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return spsa::FloatType::bf16;
  require(a.dtype().kind() == 'f' && a.itemsize() == 2 && a.dtype().byteorder() == '=',
          "perturb: arrays must be float32, float16, or bfloat16 as uint16");
  return spsa::FloatType::f16;
}

}  // namespace

void bind_spsa_perturb(py::module_& m) {
  m.def(
      "spsa_perturb",
      [](py::array dst, std::optional<py::array> minus, const py::array& w, double scale,
         uint64_t seed, uint64_t step, uint32_t slot, uint32_t param, int64_t offset, int dist,
         double threshold) {
        require(dst.size() == w.size() && (!minus || minus->size() == w.size()),
                "perturb: out, minus and w must have equal sizes");
        spsa::Perturbation t;
        t.out_type = float_type(dst);
        t.w_type = float_type(w);
        require(!minus || float_type(*minus) == t.out_type,
                "perturb: out and minus must have equal dtypes");
        t.out = dst.mutable_data();
        t.minus = minus ? minus->mutable_data() : nullptr;
        t.w = w.data();
        t.n = w.size();
        t.offset = offset;
        t.scale = to_float_rn(scale);
        t.threshold = to_float_rn(threshold);
        t.param = param;
        py::gil_scoped_release nogil;
        spsa::perturb({t}, seed, step, slot, static_cast<random::Dist>(dist));
      },
      py::arg("out"), py::arg("minus"), py::arg("w"), py::arg("scale"), py::arg("seed"),
      py::arg("step"), py::arg("slot"), py::arg("param"), py::arg("offset"), py::arg("dist"),
      py::arg("threshold"), "out = w + scale z, minus = w - scale z where it is given.");
}

}  // namespace lowtide::bind
