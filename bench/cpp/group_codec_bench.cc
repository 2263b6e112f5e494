// SPDX-License-Identifier: Apache-2.0
// Rows of 2048 in groups of 256. Bytes moved: 4 + bits/8 an element and the scales, against a
// memcpy of as many. Each bench verifies its output after timing.
#include "quant/group_codec.h"

#include "roofline.h"

namespace lowtide {
namespace {

using quant::FloatType;
using quant::GroupShape;
using quant::Rounding;

constexpr int64_t kCols = 2048;

struct Matrix {
  GroupShape s;
  bench::Aligned<uint8_t> codes, zero;
  bench::Aligned<float> scale;
  explicit Matrix(int64_t n, int bits)
      : s{.rows = n / kCols, .cols = kCols, .group = 256, .bits = bits},
        codes(static_cast<size_t>(s.rows * row_bytes(s))),
        zero(static_cast<size_t>(s.rows * groups_per_row(s))),
        scale(zero.size()) {}
  quant::GroupMatrix out(bool asym) {
    return {codes.data(), scale.data(), asym ? zero.data() : nullptr, s};
  }
  quant::ConstGroupMatrix in(bool asym) const {
    return {codes.data(), scale.data(), asym ? zero.data() : nullptr, s};
  }
};

double bytes_of(const Matrix& m) {
  return 4.0 * static_cast<double>(m.s.rows * m.s.cols) +
         static_cast<double>(m.codes.size() + 4 * m.scale.size());
}

double limit(const Matrix& m) {
  return bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes_of(m) / 2));
}

template <int bits, bool asym, bool sr>
void quantize(benchmark::State& state) {
  const auto x = bench::scattered(state.range(0));
  Matrix m(state.range(0), bits);
  const quant::QuantizeOptions o{.rounding = sr ? Rounding::stochastic : Rounding::nearest,
                                 .stream = {.seed = 1, .role = random::kRoleQuantSr}};
  for (auto _ : state) {
    quant::quantize_groups(x.data(), FloatType::f32, m.out(asym), o);
    benchmark::ClobberMemory();
  }
  Matrix want(std::min<int64_t>(state.range(0), 4 * kCols), bits);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  quant::quantize_groups(x.data(), FloatType::f32, want.out(asym), o);
  set_isa(isa);
  if (std::memcmp(want.codes.data(), m.codes.data(), want.codes.size()) != 0)
    state.SkipWithError("wrong bits");
  bench::report(state, bytes_of(m), limit(m), state.range(0));
}

template <int bits, bool asym>
void dequantize(benchmark::State& state) {
  auto x = bench::scattered(state.range(0));
  Matrix m(state.range(0), bits);
  quant::quantize_groups(x.data(), FloatType::f32, m.out(asym), {});
  for (auto _ : state) {
    quant::dequantize_groups(m.in(asym), x.data(), FloatType::f32);
    benchmark::ClobberMemory();
  }
  const auto original = bench::scattered(4 * kCols);
  for (size_t i = 0; i < original.size() && i < x.size(); ++i)
    if (std::abs(x[i] - original[i]) > m.scale[i / 256]) state.SkipWithError("wrong values");
  bench::report(state, bytes_of(m), limit(m), state.range(0));
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 22},
                             more = {1 << 24, 1 << 25, 1 << 26};
  bench::register_per_isa("quantize_int8_sym", quantize<8, false, false>, sizes, more);
  bench::register_per_isa("quantize_int8_sym_sr", quantize<8, false, true>, sizes, more);
  bench::register_per_isa("quantize_int8_asym_sr", quantize<8, true, true>, sizes, more);
  bench::register_per_isa("quantize_int4_asym", quantize<4, true, false>, sizes, more);
  bench::register_per_isa("quantize_int4_asym_sr", quantize<4, true, true>, sizes, more);
  bench::register_per_isa("dequantize_int8", dequantize<8, false>, sizes, more);
  bench::register_per_isa("dequantize_int4", dequantize<4, true>, sizes, more);
  return 0;
}();

}  // namespace
}  // namespace lowtide
