// SPDX-License-Identifier: Apache-2.0
// 4-bit maps in groups of 64, 8-bit ones in groups of 256, float32 on the other side. The limit is
// memcpy of as many bytes. Each bench verifies its output after timing.
#include "quant/group_map.h"

#include <algorithm>
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
  Matrix(int64_t n, LevelMap map)
      : s{.rows = n / kCols,
          .cols = kCols,
          .group = map_bits(map) == 8 ? 256 : 64,
          .bits = map_bits(map)},
        codes(static_cast<size_t>(s.rows * row_bytes(s))),
        scale(static_cast<size_t>(s.rows * groups_per_row(s))) {}
  quant::GroupMatrix out() { return {codes.data(), scale.data(), nullptr, s}; }
  double bytes() const {
    return 4.0 * static_cast<double>(s.rows * s.cols) +
           static_cast<double>(codes.size() + 4 * scale.size());
  }
  double limit() const { return bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes() / 2)); }
};

// bench::scattered over the decades of the 8-bit maps: half of it a thousandth.
bench::Aligned<float> values(int64_t n) {
  auto x = bench::scattered(n);
  for (size_t i = 0; i < x.size(); ++i)
    if (i * 2654435761u & 1 << 20) x[i] *= 1e-3f;
  return x;
}

template <LevelMap map, bool sr>
void quantize(benchmark::State& state) {
  const auto x = values(state.range(0));
  Matrix m(state.range(0), map);
  const quant::MapOptions o{.rounding = sr ? Rounding::stochastic : Rounding::nearest,
                            .stream = {.seed = 1, .role = random::kRoleQuantSr}};
  for (auto _ : state) {
    quant::quantize_map(x.data(), FloatType::f32, map, m.out(), o);
    benchmark::ClobberMemory();
  }
  Matrix want(std::min<int64_t>(state.range(0), 4 * kCols), map);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  quant::quantize_map(x.data(), FloatType::f32, map, want.out(), o);
  set_isa(isa);
  if (std::memcmp(want.codes.data(), m.codes.data(), want.codes.size()) != 0)
    state.SkipWithError("wrong bits");
  bench::report(state, m.bytes(), m.limit(), state.range(0));
}

template <LevelMap map>
void dequantize(benchmark::State& state) {
  auto x = values(state.range(0));
  Matrix m(state.range(0), map);
  quant::quantize_map(x.data(), FloatType::f32, map, m.out(), {});
  auto decode = [&](float* to, const GroupShape& s) {
    quant::dequantize_map({m.codes.data(), m.scale.data(), nullptr, s}, map, to, FloatType::f32);
  };
  for (auto _ : state) {
    decode(x.data(), m.s);
    benchmark::ClobberMemory();
  }
  GroupShape part = m.s;
  part.rows = std::min<int64_t>(part.rows, 4);
  std::vector<float> want(static_cast<size_t>(part.rows * kCols));
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  decode(want.data(), part);
  set_isa(isa);
  if (std::memcmp(want.data(), x.data(), 4 * want.size()) != 0) state.SkipWithError("wrong bits");
  bench::report(state, m.bytes(), m.limit(), state.range(0));
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26};
  bench::register_per_isa("quantize_nf4", quantize<LevelMap::nf4, false>, sizes);
  bench::register_per_isa("quantize_nf4_sr", quantize<LevelMap::nf4, true>, sizes);
  bench::register_per_isa("quantize_dynamic4_sr", quantize<LevelMap::dynamic, true>, sizes);
  bench::register_per_isa("quantize_linear4_sr", quantize<LevelMap::linear_nozero, true>, sizes);
  bench::register_per_isa("quantize_dynamic8", quantize<LevelMap::dynamic8, false>, sizes);
  bench::register_per_isa("quantize_dynamic8_sr", quantize<LevelMap::dynamic8, true>, sizes);
  bench::register_per_isa("quantize_unsigned8", quantize<LevelMap::dynamic8_unsigned, false>,
                          sizes);
  bench::register_per_isa("quantize_unsigned8_sr", quantize<LevelMap::dynamic8_unsigned, true>,
                          sizes);
  bench::register_per_isa("dequantize_nf4", dequantize<LevelMap::nf4>, sizes);
  bench::register_per_isa("dequantize_dynamic8", dequantize<LevelMap::dynamic8>, sizes);
  bench::register_per_isa("dequantize_unsigned8", dequantize<LevelMap::dynamic8_unsigned>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
