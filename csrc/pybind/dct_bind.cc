// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/error.h"
#include "bindings.h"
#include "lowrank/dct.h"

namespace lowtide::bind {
namespace {

using lowrank::DctMatrix;
using lowrank::Lines;

DctMatrix matrix(const Array<float>& x, bool columns) {
  require(x.ndim() == 2, "dct: x must have two dimensions");
  return {x.data(), quant::FloatType::f32, x.shape(0), x.shape(1),
          columns ? Lines::columns : Lines::rows};
}

}  // namespace

void bind_dct(py::module_& m) {
  m.def(
      "dct_forward",
      [](const Array<float>& x, const std::optional<Array<int32_t>>& index, bool columns) {
        const DctMatrix in = matrix(x, columns);
        const int64_t n = columns ? in.rows : in.cols, count = index ? index->size() : n;
        Array<float> low(
            std::vector<py::ssize_t>{columns ? count : in.rows, columns ? in.cols : count});
        const int32_t* at = index ? index->data() : nullptr;
        float* out = low.mutable_data();
        py::gil_scoped_release nogil;
        lowrank::dct_forward(out, in, at, count);
        return low;
      },
      py::arg("x").noconvert(), py::arg("index").noconvert(), py::arg("columns"));
  m.def(
      "dct_inverse",
      [](const Array<float>& low, const std::optional<Array<int32_t>>& index, bool columns,
         int64_t n) {
        const int64_t count = index ? index->size() : n;
        require(low.ndim() == 2 && low.shape(columns ? 0 : 1) == count,
                "dct: low must have one value a line for each coefficient");
        const int64_t rows = columns ? n : low.shape(0), cols = columns ? low.shape(1) : n;
        Array<float> x(std::vector<py::ssize_t>{rows, cols});
        const int32_t* at = index ? index->data() : nullptr;
        const float* in = low.data();
        float* out = x.mutable_data();
        py::gil_scoped_release nogil;
        lowrank::dct_inverse(out, rows, cols, columns ? Lines::columns : Lines::rows, in, at,
                             count);
        return x;
      },
      py::arg("low").noconvert(), py::arg("index").noconvert(), py::arg("columns"), py::arg("n"));
  m.def(
      "dct_power",
      [](const Array<float>& x, bool columns, bool square) {
        const DctMatrix in = matrix(x, columns);
        const int64_t n = columns ? in.rows : in.cols;
        Array<float> sums(static_cast<py::ssize_t>(n));
        float* out = sums.mutable_data();
        py::gil_scoped_release nogil;
        lowrank::dct_power(out, in, square ? lowrank::Power::square : lowrank::Power::magnitude);
        return sums;
      },
      py::arg("x").noconvert(), py::arg("columns"), py::arg("square"));
}

}  // namespace lowtide::bind
