// SPDX-License-Identifier: Apache-2.0
// Rows and columns of 1024 and 4096 (one span) and of 768 (two), all signs drawn. `roofline`: bytes
// that must move (float32 in, chosen coefficients out) against a memcpy of as many. Each bench
// verifies the kept energy or one line after timing.
#include "lowrank/fwht.h"

#include <cmath>

#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kElements = int64_t{1} << 23;
constexpr int64_t kRank = 128;

struct Input {
  int64_t n, rows;
  bench::Aligned<float> x, low, out;
  std::vector<float> signs;
  std::vector<int32_t> index;
  explicit Input(int64_t length)
      : n(length),
        rows(kElements / length),
        x(bench::scattered(rows * length)),
        low(static_cast<size_t>(rows * kRank)),
        out(static_cast<size_t>(rows * length)),
        signs(static_cast<size_t>(lowrank::fwht_spans(length) * length)) {
    for (size_t i = 0; i < signs.size(); ++i) signs[i] = i * i % 7 < 3 ? -1.0f : 1.0f;
    for (int64_t j = 0; j < kRank; ++j) index.push_back(static_cast<int32_t>(j * n / kRank));
  }
  lowrank::DctMatrix matrix(bool columns) const {
    return {x.data(), quant::FloatType::f32, columns ? n : rows, columns ? rows : n,
            columns ? lowrank::Lines::columns : lowrank::Lines::rows};
  }
  double bytes() const { return 4.0 * static_cast<double>(rows * (n + kRank)); }
};

double energy(const bench::Aligned<float>& v) {
  double sum = 0;
  for (float e : v) sum += static_cast<double>(e) * e;
  return sum;
}

template <bool columns>
void forward(benchmark::State& state) {
  Input in(state.range(0));
  const auto m = in.matrix(columns);
  for (auto _ : state) {
    lowrank::fwht_forward(in.low.data(), m, in.signs.data(), in.index.data(), kRank);
    benchmark::ClobberMemory();
  }
  lowrank::fwht_forward(in.out.data(), m, in.signs.data(), nullptr, in.n);
  if (std::abs(energy(in.out) / energy(in.x) - 1) > 1e-5) state.SkipWithError("wrong energy");
  for (int64_t j = 0; j < kRank; ++j) {
    const int64_t k = in.index[static_cast<size_t>(j)];
    if (in.low[static_cast<size_t>(columns ? j * in.rows : j)] !=
        in.out[static_cast<size_t>(columns ? k * in.rows : k)])
      state.SkipWithError("wrong coefficient");
  }
  bench::report(state, in.bytes(),
                bench::memcpy_bytes_per_second(static_cast<int64_t>(in.bytes() / 2)),
                in.rows * in.n);
}

template <bool columns>
void inverse(benchmark::State& state) {
  Input in(state.range(0));
  const auto m = in.matrix(columns);
  lowrank::fwht_forward(in.low.data(), m, in.signs.data(), in.index.data(), kRank);
  for (auto _ : state) {
    lowrank::fwht_inverse(in.out.data(), m.rows, m.cols, m.lines, in.low.data(), in.signs.data(),
                          in.index.data(), kRank);
    benchmark::ClobberMemory();
  }
  if (std::abs(energy(in.out) / energy(in.low) - 1) > 1e-5) state.SkipWithError("wrong energy");
  bench::report(state, in.bytes(),
                bench::memcpy_bytes_per_second(static_cast<int64_t>(in.bytes() / 2)),
                in.rows * in.n);
}

const int kRegistered = [] {
  const std::vector<int64_t> lengths = {768, 1024, 4096};
  bench::register_per_isa("fwht_rows", forward<false>, lengths);
  bench::register_per_isa("fwht_columns", forward<true>, lengths);
  bench::register_per_isa("fwht_inverse_rows", inverse<false>, lengths);
  bench::register_per_isa("fwht_inverse_columns", inverse<true>, lengths);
  return 0;
}();

}  // namespace
}  // namespace lowtide
