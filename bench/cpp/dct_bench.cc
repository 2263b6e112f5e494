// SPDX-License-Identifier: Apache-2.0
// Rows of 768, the gradient's dimension of a small model, and of 4096. `roofline`: bytes that must
// move (float32 in, coefficients out) against a memcpy of as many. Each bench verifies one row
// after timing.
#include "lowrank/dct.h"

#include <cmath>

#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kElements = int64_t{1} << 23;
constexpr int64_t kRank = 128;

struct Input {
  int64_t n, rows;
  bench::Aligned<float> x, out;
  std::vector<int32_t> index;
  explicit Input(int64_t length)
      : n(length),
        rows(kElements / length),
        x(bench::scattered(rows * length)),
        out(static_cast<size_t>(rows * length)) {
    for (int64_t j = 0; j < kRank; ++j) index.push_back(static_cast<int32_t>(j * n / kRank));
  }
  lowrank::DctMatrix matrix(bool columns) const {
    return {x.data(), quant::FloatType::f32, columns ? n : rows, columns ? rows : n,
            columns ? lowrank::Lines::columns : lowrank::Lines::rows};
  }
  // Coefficient k of line 0.
  double want(int64_t k, bool columns) const {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c)
      sum += x[static_cast<size_t>(columns ? c * rows : c)] *
             std::cos(std::acos(-1.0) * static_cast<double>((2 * c + 1) * k) /
                      static_cast<double>(2 * n));
    return sum * std::sqrt(2.0 / static_cast<double>(n));
  }
};

template <bool columns>
void forward(benchmark::State& state) {
  Input in(state.range(0));
  const auto m = in.matrix(columns);
  for (auto _ : state) {
    lowrank::dct_forward(in.out.data(), m, in.index.data(), kRank);
    benchmark::ClobberMemory();
  }
  if (std::abs(in.out[static_cast<size_t>(columns ? in.rows : 1)] - in.want(in.index[1], columns)) >
      1e-4)
    state.SkipWithError("wrong coefficient");
  const double bytes = 4.0 * static_cast<double>(in.rows * (in.n + kRank));
  bench::report(state, bytes, bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes / 2)),
                in.rows * in.n);
}

template <bool columns>
void power(benchmark::State& state) {
  Input in(state.range(0));
  const auto m = in.matrix(columns);
  for (auto _ : state) {
    lowrank::dct_power(in.out.data(), m, lowrank::Power::square);
    benchmark::ClobberMemory();
  }
  double total = 0, want = 0;
  for (int64_t k = 0; k < in.n; ++k) total += in.out[static_cast<size_t>(k)];
  for (float v : in.x) want += static_cast<double>(v) * v;
  if (std::abs(total - want) > 1e-3 * want) state.SkipWithError("wrong energy");
  const double bytes = 4.0 * static_cast<double>(in.rows * in.n);
  bench::report(state, bytes, bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes / 2)),
                in.rows * in.n);
}

template <bool columns>
void inverse(benchmark::State& state) {
  Input in(state.range(0));
  const auto m = in.matrix(columns);
  bench::Aligned<float> low(static_cast<size_t>(in.rows * kRank));
  lowrank::dct_forward(low.data(), m, in.index.data(), kRank);
  for (auto _ : state) {
    lowrank::dct_inverse(in.out.data(), m.rows, m.cols, m.lines, low.data(), in.index.data(),
                         kRank);
    benchmark::ClobberMemory();
  }
  double energy = 0, want = 0;
  for (float v : in.out) energy += static_cast<double>(v) * v;
  for (float v : low) want += static_cast<double>(v) * v;
  if (std::abs(energy - want) > 1e-3 * want) state.SkipWithError("wrong energy");
  const double bytes = 4.0 * static_cast<double>(in.rows * (in.n + kRank));
  bench::report(state, bytes, bench::memcpy_bytes_per_second(static_cast<int64_t>(bytes / 2)),
                in.rows * in.n);
}

const int kRegistered = [] {
  const std::vector<int64_t> lengths = {768, 4096};
  bench::register_per_isa("dct_rows", forward<false>, lengths);
  bench::register_per_isa("dct_columns", forward<true>, lengths);
  bench::register_per_isa("dct_power_rows", power<false>, lengths);
  bench::register_per_isa("dct_power_columns", power<true>, lengths);
  bench::register_per_isa("dct_inverse_rows", inverse<false>, lengths);
  bench::register_per_isa("dct_inverse_columns", inverse<true>, lengths);
  return 0;
}();

}  // namespace
}  // namespace lowtide
