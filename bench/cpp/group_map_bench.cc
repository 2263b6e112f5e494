// SPDX-License-Identifier: Apache-2.0
#include "quant/group_map.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "roofline.h"

namespace lowtide {
namespace {

using quant::FloatType;
using quant::GroupShape;
using quant::LevelMap;
using quant::Rounding;

constexpr int64_t kCols = 2048;

struct Matrix {
  GroupShape s;
  bench::Aligned<uint8_t> codes;
  bench::Aligned<float> scale;
  explicit Matrix(int64_t n)
      : s{.rows = n / kCols, .cols = kCols, .group = 64, .bits = 4},
        codes(static_cast<size_t>(s.rows * row_bytes(s))),
        scale(static_cast<size_t>(s.rows * groups_per_row(s))) {}
  quant::GroupMatrix out() { return {codes.data(), scale.data(), nullptr, s}; }
  double bytes() const {
    return 4.0 * static_cast<double>(s.rows * s.cols) +
           static_cast<double>(codes.size() + 4 * scale.size());
  }
  double limit() const { return bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes() / 2)); }
};

template <LevelMap map, bool sr>
void quantize(benchmark::State& state) {
  const auto x = bench::scattered(state.range(0));
  Matrix m(state.range(0));
  const quant::MapOptions o{.rounding = sr ? Rounding::stochastic : Rounding::nearest,
                            .stream = {.seed = 1, .role = random::kRoleQuantSr}};
  for (auto _ : state) {
    quant::quantize_map(x.data(), FloatType::f32, map, m.out(), o);
    benchmark::ClobberMemory();
  }
  Matrix want(std::min<int64_t>(state.range(0), 4 * kCols));
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  quant::quantize_map(x.data(), FloatType::f32, map, want.out(), o);
  set_isa(isa);
  if (std::memcmp(want.codes.data(), m.codes.data(), want.codes.size()) != 0)
    state.SkipWithError("wrong bits");
  bench::report(state, m.bytes(), m.limit(), state.range(0));
}

void dequantize(benchmark::State& state) {
  auto x = bench::scattered(state.range(0));
  Matrix m(state.range(0));
  quant::quantize_map(x.data(), FloatType::f32, LevelMap::nf4, m.out(), {});
  for (auto _ : state) {
    quant::dequantize_map({m.codes.data(), m.scale.data(), nullptr, m.s}, LevelMap::nf4, x.data(),
                          FloatType::f32);
    benchmark::ClobberMemory();
  }
  const auto original = bench::scattered(4 * kCols);
  for (size_t i = 0; i < original.size() && i < x.size(); ++i)
    if (std::abs(x[i] - original[i]) > 0.16f * m.scale[i / 64]) state.SkipWithError("wrong values");
  bench::report(state, m.bytes(), m.limit(), state.range(0));
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 25};
  bench::register_per_isa("quantize_nf4", quantize<LevelMap::nf4, false>, sizes);
  bench::register_per_isa("quantize_nf4_sr", quantize<LevelMap::nf4, true>, sizes);
  bench::register_per_isa("quantize_dynamic4_sr", quantize<LevelMap::dynamic, true>, sizes);
  bench::register_per_isa("quantize_linear4_sr", quantize<LevelMap::linear_nozero, true>, sizes);
  bench::register_per_isa("dequantize_nf4", dequantize, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
