// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/error.h"
#include "bindings.h"
#include "lowrank/range_finder.h"
#include "quant/matmul.h"

namespace lowtide::bind {

void bind_lowrank(py::module_& m) {
  m.def(
      "rsvd",
      [](const Array<float>& g, int64_t rank, bool left, const std::optional<Array<float>>& prev,
         int64_t oversample, int64_t power_iters, uint64_t seed, uint64_t step, uint32_t param) {
        require(g.ndim() == 2, "rsvd: g must have two dimensions");
        require(rank >= 1, "rsvd: rank must be >= 1");
        const quant::Operand x = quant::dense(g.data(), g.shape(0), g.shape(1));
        const auto side = left ? lowrank::Side::left : lowrank::Side::right;
        const int64_t r = lowrank::basis_rows(x, rank), d = lowrank::basis_cols(x, side);
        const random::Stream stream{seed, step, 0, param, random::kRoleU};
        const lowrank::RangeFinder how{rank, oversample, power_iters};
        Array<float> basis(std::vector<py::ssize_t>{r, d});
        float* q = basis.mutable_data();
        const float* p = nullptr;
        if (prev.has_value()) {
          require(prev->ndim() == 2 && prev->shape(0) == r && prev->shape(1) == d,
                  "rsvd: prev must have the shape of the basis");
          p = prev->data();
        }
        py::gil_scoped_release nogil;
        if (p != nullptr)
          lowrank::track_range(q, x, side, how, p, stream);
        else
          lowrank::find_range(q, x, side, how, stream);
        return basis;
      },
      py::arg("g").noconvert(), py::arg("rank"), py::arg("left"), py::arg("prev").noconvert(),
      py::arg("oversample"), py::arg("power_iters"), py::arg("seed"), py::arg("step"),
      py::arg("param"));
}

}  // namespace lowtide::bind
