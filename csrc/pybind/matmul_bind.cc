// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>

#include "base/error.h"
#include "bindings.h"
#include "quant/matmul.h"

namespace lowtide::bind {
namespace {

using Scale = std::optional<Array<float>>;
using Zero = std::optional<Array<uint8_t>>;

// bits 0: a dense float32 matrix, rows contiguous; 8 or 4: codes with `cols` columns; -4: levels of
// NF4.
quant::Operand operand(const py::array& data, const Scale& scale, const Zero& zero, int bits,
                       int64_t cols, int64_t group, const char* name) {
  const auto need = [&](bool ok, const char* what) {
    if (!ok) throw Error(ErrorKind::value, std::string("matmul: ") + name + what);
  };
  need(data.ndim() == 2, " must have two dimensions");
  quant::Operand m;
  m.data = data.data();
  m.rows = data.shape(0);
  if (bits == 0) {
    need(py::isinstance<py::array_t<float>>(data), " must be float32");
    m.cols = data.shape(1);
    need(m.cols <= 1 || data.strides(1) == 4, " must have contiguous rows");
    m.stride = m.rows > 1 ? data.strides(0) / 4 : m.cols;
    need(m.stride >= m.cols && (m.rows <= 1 || data.strides(0) % 4 == 0),
         " must have contiguous rows");
    return m;
  }
  need(bits == 8 || bits == 4 || bits == -4, ": bits must be 8, 4 or -4 (NF4)");
  need(cols >= 0 && group >= 32 && group % 32 == 0, ": group must be a positive multiple of 32");
  need(py::isinstance<Array<uint8_t>>(data), " codes must be contiguous uint8");
  m.store = bits == 8 ? quant::Store::int8 : bits == 4 ? quant::Store::int4 : quant::Store::nf4;
  m.cols = cols;
  m.group = group;
  const quant::GroupShape shape{m.rows, cols, group, store_bits(m.store)};
  m.stride = quant::row_bytes(shape);
  const int64_t groups = m.rows * quant::groups_per_row(shape);
  need(data.shape(1) == m.stride, " codes must have the packed bytes of a row");
  need(scale.has_value() && scale->size() == groups, " needs one scale a group");
  m.scale = scale->data();
  if (zero.has_value()) {
    need(zero->size() == groups, " needs one zero a group");
    m.zero = zero->data();
  }
  return m;
}

}  // namespace

void bind_matmul(py::module_& m) {
  m.def(
      "matmul",
      [](Array<float> dst, const py::array& a, const Scale& a_scale, const Zero& a_zero, int a_bits,
         int64_t a_cols, int64_t a_group, bool ta, const py::array& b, const Scale& b_scale,
         const Zero& b_zero, int b_bits, int64_t b_cols, int64_t b_group, bool tb) {
        const quant::Operand x = operand(a, a_scale, a_zero, a_bits, a_cols, a_group, "a");
        const quant::Operand y = operand(b, b_scale, b_zero, b_bits, b_cols, b_group, "b");
        float* c = out(dst);
        require(dst.ndim() == 2 && dst.shape(0) == (ta ? x.cols : x.rows) &&
                    dst.shape(1) == (tb ? y.rows : y.cols),
                "matmul: out must be op(a) rows x op(b) columns");
        py::gil_scoped_release nogil;
        quant::matmul(c, x, ta, y, tb);
      },
      py::arg("out").noconvert(), py::arg("a"), py::arg("a_scale").noconvert(),
      py::arg("a_zero").noconvert(), py::arg("a_bits"), py::arg("a_cols"), py::arg("a_group"),
      py::arg("ta"), py::arg("b"), py::arg("b_scale").noconvert(), py::arg("b_zero").noconvert(),
      py::arg("b_bits"), py::arg("b_cols"), py::arg("b_group"), py::arg("tb"));
}

}  // namespace lowtide::bind
