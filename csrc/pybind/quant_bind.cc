// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/error.h"
#include "bindings.h"
#include "quant/gemv.h"
#include "quant/group_codec.h"
#include "quant/group_map.h"
#include "quant/requant.h"

namespace lowtide::bind {
namespace {

using Bytes = Array<uint8_t>;
using Floats = Array<float>;

// bf16 arrives as uint16: NumPy has no such dtype of its own.
quant::FloatType float_type(const py::array& a) {
  require((a.flags() & py::array::c_style) != 0, "arrays must be contiguous in C order");
  if (py::isinstance<py::array_t<float>>(a)) return quant::FloatType::f32;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return quant::FloatType::bf16;
  require(a.dtype().kind() == 'f' && a.itemsize() == 2 && a.dtype().byteorder() == '=',
          "arrays must be float32, float16, or bfloat16 as uint16");
  return quant::FloatType::f16;
}

quant::GroupShape shape_of(const py::array& full, int bits, int64_t group, const Bytes& codes,
                           const Floats& scale, const std::optional<Bytes>& zero) {
  require(full.ndim() == 2, "the matrix must have two dimensions");
  const quant::GroupShape s{full.shape(0), full.shape(1), group, bits};
  quant::check_shape(s);
  const int64_t groups = s.rows * quant::groups_per_row(s);
  require(codes.size() == s.rows * quant::row_bytes(s) && scale.size() == groups &&
              (!zero || zero->size() == groups),
          "codes, scale and zero do not fit the matrix, bits and group");
  return s;
}

quant::GroupShape map_shape(const py::array& full, int map, int64_t group, const Bytes& codes,
                            const Floats& scale) {
  const int bits = quant::map_bits(static_cast<quant::LevelMap>(map));
  return shape_of(full, bits, group, codes, scale, std::nullopt);
}

}  // namespace

void bind_quant(py::module_& m) {
  m.def(
      "quantize_group",
      [](const py::array& x, Bytes codes, Floats scale, std::optional<Bytes> zero, int bits,
         int64_t group, bool stochastic, int range, uint64_t seed, uint64_t step, uint32_t slot,
         uint32_t param, uint32_t role, int64_t offset, bool bf16_scale) {
        const auto type = float_type(x);
        const quant::GroupMatrix dst{out(codes), out(scale), zero ? out(*zero) : nullptr,
                                     shape_of(x, bits, group, codes, scale, zero)};
        const void* src = x.data();
        py::gil_scoped_release nogil;
        return quant::quantize_groups(
            src, type, dst,
            {stochastic ? quant::Rounding::stochastic : quant::Rounding::nearest,
             static_cast<quant::Range>(range), random::Stream{seed, step, slot, param, role},
             offset, bf16_scale});
      },
      py::arg("x"), py::arg("codes").noconvert(), py::arg("scale").noconvert(),
      py::arg("zero").noconvert(), py::arg("bits"), py::arg("group"), py::arg("stochastic"),
      py::arg("range"), py::arg("seed"), py::arg("step"), py::arg("slot"), py::arg("param"),
      py::arg("role"), py::arg("offset"), py::arg("bf16_scale") = false,
      "Writes codes, scale and zero; returns the number of non-finite elements.");
  m.def(
      "quantize_map",
      [](const py::array& x, Bytes codes, Floats scale, int map, int64_t group, bool stochastic,
         uint64_t seed, uint64_t step, uint32_t slot, uint32_t param, uint32_t role, int64_t offset,
         bool bf16_scale) {
        const auto type = float_type(x);
        const quant::GroupMatrix dst{out(codes), out(scale), nullptr,
                                     map_shape(x, map, group, codes, scale)};
        const void* src = x.data();
        py::gil_scoped_release nogil;
        return quant::quantize_map(
            src, type, static_cast<quant::LevelMap>(map), dst,
            {stochastic ? quant::Rounding::stochastic : quant::Rounding::nearest,
             random::Stream{seed, step, slot, param, role}, offset, bf16_scale});
      },
      py::arg("x"), py::arg("codes").noconvert(), py::arg("scale").noconvert(), py::arg("map"),
      py::arg("group"), py::arg("stochastic"), py::arg("seed"), py::arg("step"), py::arg("slot"),
      py::arg("param"), py::arg("role"), py::arg("offset"), py::arg("bf16_scale"),
      "Writes codes and scale; returns the number of non-finite elements.");
  m.def(
      "dequantize_map",
      [](const Bytes& codes, const Floats& scale, py::array dst, int map, int64_t group) {
        const auto type = float_type(dst);
        const quant::ConstGroupMatrix src{codes.data(), scale.data(), nullptr,
                                          map_shape(dst, map, group, codes, scale)};
        void* p = dst.mutable_data();
        py::gil_scoped_release nogil;
        quant::dequantize_map(src, static_cast<quant::LevelMap>(map), p, type);
      },
      py::arg("codes").noconvert(), py::arg("scale").noconvert(), py::arg("out"), py::arg("map"),
      py::arg("group"));
  m.def(
      "dequantize_group",
      [](const Bytes& codes, const Floats& scale, const std::optional<Bytes>& zero, py::array dst,
         int bits, int64_t group) {
        const auto type = float_type(dst);
        const quant::ConstGroupMatrix src{codes.data(), scale.data(), zero ? zero->data() : nullptr,
                                          shape_of(dst, bits, group, codes, scale, zero)};
        void* p = dst.mutable_data();
        py::gil_scoped_release nogil;
        quant::dequantize_groups(src, p, type);
      },
      py::arg("codes").noconvert(), py::arg("scale").noconvert(), py::arg("zero").noconvert(),
      py::arg("out"), py::arg("bits"), py::arg("group"));
  m.def(
      "gemv",
      [](Floats y, const Bytes& codes, const Floats& scale, const std::optional<Bytes>& zero,
         int bits, bool nf4, int64_t group, const Floats& x) {
        require(y.ndim() == 1 && x.ndim() == 1, "gemv: x and y must have one dimension");
        const quant::GroupShape s{y.size(), x.size(), group, bits};
        quant::check_shape(s);
        const int64_t groups = s.rows * quant::groups_per_row(s);
        require(codes.size() == s.rows * quant::row_bytes(s) && scale.size() == groups &&
                    (!zero || zero->size() == groups),
                "codes, scale and zero do not fit the matrix, bits and group");
        const quant::ConstGroupMatrix w{codes.data(), scale.data(), zero ? zero->data() : nullptr,
                                        s};
        float* to = out(y);
        const float* from = x.data();
        py::gil_scoped_release nogil;
        quant::gemv(to, w, nf4 ? quant::Coding::nf4 : quant::Coding::integer, from);
      },
      py::arg("y").noconvert(), py::arg("codes").noconvert(), py::arg("scale").noconvert(),
      py::arg("zero").noconvert(), py::arg("bits"), py::arg("nf4"), py::arg("group"),
      py::arg("x").noconvert());
  m.def(
      "requant_add_sr",
      [](Bytes codes, Floats scale, std::optional<Bytes> zero, const Floats& delta, double alpha,
         double decay, int bits, int64_t group, uint64_t seed, uint64_t step, uint32_t slot,
         uint32_t param, uint32_t role, int64_t offset) {
        const quant::GroupMatrix w{out(codes), out(scale), zero ? out(*zero) : nullptr,
                                   shape_of(delta, bits, group, codes, scale, zero)};
        const float* d = delta.data();
        py::gil_scoped_release nogil;
        return quant::requant_add_sr(
            w, d, {alpha, decay, random::Stream{seed, step, slot, param, role}, offset});
      },
      py::arg("codes").noconvert(), py::arg("scale").noconvert(), py::arg("zero").noconvert(),
      py::arg("delta").noconvert(), py::arg("alpha"), py::arg("decay"), py::arg("bits"),
      py::arg("group"), py::arg("seed"), py::arg("step"), py::arg("slot"), py::arg("param"),
      py::arg("role"), py::arg("offset"),
      "Steps the weights in place; returns the number of groups skipped as non-finite.");
}

}  // namespace lowtide::bind
