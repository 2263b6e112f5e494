// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/error.h"
#include "bindings.h"
#include "lowrank/fwht.h"

namespace lowtide::bind {
namespace {

using lowrank::Lines;

const float* signs_of(const std::optional<Array<float>>& signs, int64_t n) {
  if (!signs) return nullptr;
  require(signs->ndim() == 2 && signs->shape(0) == lowrank::fwht_spans(n) && signs->shape(1) == n,
          "fwht: signs must be spans x n");
  return signs->data();
}

}  // namespace

void bind_fwht(py::module_& m) {
  m.def("fwht_spans", &lowrank::fwht_spans, py::arg("n"));
  m.def(
      "fwht_forward",
      [](const Array<float>& x, const std::optional<Array<float>>& signs,
         const std::optional<Array<int32_t>>& index, bool columns) {
        require(x.ndim() == 2, "fwht: x must have two dimensions");
        const lowrank::DctMatrix in = {x.data(), quant::FloatType::f32, x.shape(0), x.shape(1),
                                       columns ? Lines::columns : Lines::rows};
        const int64_t n = columns ? in.rows : in.cols, count = index ? index->size() : n;
        Array<float> low(
            std::vector<py::ssize_t>{columns ? count : in.rows, columns ? in.cols : count});
        const float* d = signs_of(signs, n);
        const int32_t* at = index ? index->data() : nullptr;
        float* out = low.mutable_data();
        py::gil_scoped_release nogil;
        lowrank::fwht_forward(out, in, d, at, count);
        return low;
      },
      py::arg("x").noconvert(), py::arg("signs").noconvert(), py::arg("index").noconvert(),
      py::arg("columns"));
  m.def(
      "fwht_inverse",
      [](const Array<float>& low, const std::optional<Array<float>>& signs,
         const std::optional<Array<int32_t>>& index, bool columns, int64_t n) {
        const int64_t count = index ? index->size() : n;
        require(low.ndim() == 2 && low.shape(columns ? 0 : 1) == count,
                "fwht: low must have one value a line for each coefficient");
        const int64_t rows = columns ? n : low.shape(0), cols = columns ? low.shape(1) : n;
        const float* d = signs_of(signs, n);
        Array<float> x(std::vector<py::ssize_t>{rows, cols});
        const int32_t* at = index ? index->data() : nullptr;
        const float* in = low.data();
        float* out = x.mutable_data();
        py::gil_scoped_release nogil;
        lowrank::fwht_inverse(out, rows, cols, columns ? Lines::columns : Lines::rows, in, d, at,
                              count);
        return x;
      },
      py::arg("low").noconvert(), py::arg("signs").noconvert(), py::arg("index").noconvert(),
      py::arg("columns"), py::arg("n"));
}

}  // namespace lowtide::bind
