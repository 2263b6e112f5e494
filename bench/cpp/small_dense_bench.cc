// SPDX-License-Identifier: Apache-2.0
// The double-precision part of a subspace refresh, at the 136 rows of rank 128 and oversampling 8,
// and the whole refresh of 768 x 2048. Gram: `roofline` against the double multiply-add peak,
// counting the lower triangle. Eigenvectors: latency of the QL recurrence and L2 traffic.
#include "lowrank/small_dense.h"

#include <cmath>

#include "fma_peak.h"
#include "lowrank/eigen.h"
#include "lowrank/orthonormal.h"
#include "lowrank/range_finder.h"
#include "quant/matmul.h"
#include "random/stream.h"
#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kRows = 136, kM = 768, kN = 2048, kRank = 128;

lowrank::Floats gaussian(int64_t n) {
  lowrank::Floats x(static_cast<size_t>(n));
  random::sample(x.data(), n, 0, random::Stream{.seed = 1}, random::Dist::gaussian);
  return x;
}

void gram(benchmark::State& state) {
  const auto y = gaussian(kRows * kN);
  std::vector<double> g(kRows * kRows);
  for (auto _ : state) {
    lowrank::gram(g.data(), y.data(), kRows, kN);
    benchmark::ClobberMemory();
  }
  double want = 0;
  for (int64_t k = 0; k < kN; ++k) want += static_cast<double>(y[k]) * y[kN + k];
  if (std::fabs(g[1] - want) > 1e-9) state.SkipWithError("wrong sum");
  const double work = 0.5 * kRows * (kRows + 1) * kN * static_cast<double>(state.iterations());
  state.counters["roofline"] =
      benchmark::Counter(work / (0.5 * bench::fma_peak()), benchmark::Counter::kIsRate);
}

void eigen(benchmark::State& state) {
  const auto y = gaussian(kRows * kN);
  std::vector<double> g(kRows * kRows), work(g.size()), values(kRows), v(g.size());
  lowrank::gram(g.data(), y.data(), kRows, kN);
  for (auto _ : state) {
    work = g;
    lowrank::symmetric_eigen(work.data(), kRows, values.data(), v.data());
    benchmark::ClobberMemory();
  }
  double trace = 0, sum = 0;
  for (int64_t i = 0; i < kRows; ++i) trace += g[i * kRows + i], sum += values[i];
  if (std::fabs(trace - sum) > 1e-9 * trace) state.SkipWithError("wrong eigenvalues");
}

void orthonormal(benchmark::State& state) {
  const auto y = gaussian(kRows * kN);
  auto q = y;
  for (auto _ : state) {
    q = y;
    lowrank::orthonormalize(q, kRows, kN);
    benchmark::ClobberMemory();
  }
  double norm = 0;
  for (int64_t k = 0; k < kN; ++k) norm += static_cast<double>(q[k]) * q[k];
  if (std::fabs(norm - 1) > 1e-6) state.SkipWithError("not a unit row");
}

void householder(benchmark::State& state) {
  const auto y = gaussian(kRows * kN);
  auto q = y;
  for (auto _ : state) {
    q = y;
    lowrank::orthonormalize_householder(q.data(), kRows, kN);
    benchmark::ClobberMemory();
  }
}

template <bool warm>
void refresh(benchmark::State& state) {
  auto g = gaussian(kM * kN);
  for (int64_t i = 0; i < kM; ++i)
    for (int64_t j = 0; j < kN; ++j) g[i * kN + j] *= 1.0f / static_cast<float>(1 + i);
  const auto op = quant::dense(g.data(), kM, kN);
  std::vector<float> q(kRank * kN);
  const lowrank::RangeFinder how{kRank, 8, 1};
  lowrank::find_range(q.data(), op, lowrank::Side::right, how, {});
  for (auto _ : state) {
    if (warm)
      lowrank::track_range(q.data(), op, lowrank::Side::right, how, q.data(), {});
    else
      lowrank::find_range(q.data(), op, lowrank::Side::right, how, {});
    benchmark::ClobberMemory();
  }
}

const int kRegistered = [] {
  bench::register_per_isa("gram_136x2048", gram, {0});
  bench::register_per_isa("eigen_136", eigen, {0});
  bench::register_per_isa("orthonormalize_136x2048", orthonormal, {0});
  bench::register_per_isa("householder_136x2048", householder, {0});
  bench::register_per_isa("refresh_cold_768x2048_r128", refresh<false>, {0});
  bench::register_per_isa("refresh_warm_768x2048_r128", refresh<true>, {0});
  return 0;
}();

}  // namespace
}  // namespace lowtide
