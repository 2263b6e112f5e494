// SPDX-License-Identifier: Apache-2.0
// One training step of quantized weights, rows of 2048 in groups of 256: reads 4 + bits/8 bytes an
// element and writes bits/8, against a memcpy of as many. Each bench verifies its output.
#include "quant/requant.h"

#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kCols = 2048;

struct Weights {
  quant::GroupShape s;
  bench::Aligned<uint8_t> codes, zero;
  bench::Aligned<float> scale;
  Weights(const bench::Aligned<float>& x, int64_t n, int bits)
      : s{.rows = n / kCols, .cols = kCols, .group = 256, .bits = bits},
        codes(static_cast<size_t>(s.rows * row_bytes(s))),
        zero(static_cast<size_t>(s.rows * groups_per_row(s))),
        scale(zero.size()) {
    quant::quantize_groups(x.data(), quant::FloatType::f32, out(),
                           {.range = quant::Range::headroom});  // as weights that train are
  }
  quant::GroupMatrix out() { return {codes.data(), scale.data(), zero.data(), s}; }
};

template <int bits>
void requant(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto x = bench::scattered(n), delta = bench::scattered(n, 1e-4f);
  Weights w(x, n, bits);
  uint64_t step = 0;
  auto options = [](uint64_t t) {
    return quant::RequantOptions{.alpha = 0.5,
                                 .decay = 1 - 1e-6,
                                 .stream = {.seed = 1, .step = t, .role = random::kRoleWeightSr}};
  };
  while (step < 8)  // until the scales have settled
    quant::requant_add_sr(w.out(), delta.data(), options(step++));
  for (auto _ : state) {
    quant::requant_add_sr(w.out(), delta.data(), options(step++));
    benchmark::ClobberMemory();
  }
  const int64_t m = std::min<int64_t>(n, 4 * kCols);
  Weights got(x, m, bits), want = got;
  for (uint64_t t = 0; t < 3; ++t) quant::requant_add_sr(got.out(), delta.data(), options(t));
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  for (uint64_t t = 0; t < 3; ++t) quant::requant_add_sr(want.out(), delta.data(), options(t));
  set_isa(isa);
  if (got.codes != want.codes || got.scale != want.scale) state.SkipWithError("wrong bits");
  const double bytes = static_cast<double>(4 * n + 2 * static_cast<int64_t>(w.codes.size()));
  bench::report(state, bytes, bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes / 2)), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 22},
                             more = {1 << 24, 1 << 25, 1 << 26};
  bench::register_per_isa("requant_int8", requant<8>, sizes, more);
  bench::register_per_isa("requant_int4", requant<4>, sizes, more);
  return 0;
}();

}  // namespace
}  // namespace lowtide
