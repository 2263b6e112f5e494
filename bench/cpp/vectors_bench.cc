// SPDX-License-Identifier: Apache-2.0
// dot reads 8 bytes an element (4 of one vector with itself), axpby moves 12, fd_finish 12 and 16
// with q. Outputs are verified after timing.
#include "curvature/vectors.h"

#include <utility>

#include "roofline.h"

namespace lowtide {
namespace {

using namespace curvature;

template <class F>
void verify(benchmark::State& state, const F& f) {
  const auto got = f();
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  if (got != f()) state.SkipWithError("wrong bits");
  set_isa(isa);
}

template <bool kNorm>
void dot_bench(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto x = bench::scattered(n), y = bench::scattered(n, 0.5f);
  const auto once = [&](int64_t count) {
    double out = 0;
    dot(&out, {{x.data(), kNorm ? x.data() : y.data(), Dtype::f32, Dtype::f32, count}});
    return out;
  };
  for (auto _ : state) benchmark::DoNotOptimize(once(n));
  verify(state, [&] { return once(std::min<int64_t>(n, 5000)); });
  const int64_t bytes = n * (kNorm ? 4 : 8);
  bench::report(state, static_cast<double>(bytes), bench::memcpy_bytes_per_second(bytes) / 2, n);
}

void axpby_bench(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto x = bench::scattered(n);
  bench::Aligned<float> y(static_cast<size_t>(n), 1.0f);
  const auto once = [&](float* to, int64_t count) {
    axpby({{to, x.data(), Dtype::f32, Dtype::f32, count}}, 0.9f, 0.1f);
  };
  for (auto _ : state) {
    once(y.data(), n);
    benchmark::ClobberMemory();
  }
  verify(state, [&] {
    std::vector<float> small(static_cast<size_t>(std::min<int64_t>(n, 5000)), 1.0f);
    once(small.data(), static_cast<int64_t>(small.size()));
    return small;
  });
  bench::report(state, 12.0 * static_cast<double>(n), bench::axpy_bytes_per_second(n), n);
}

template <bool kQ>
void fd_finish_bench(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto minus = bench::scattered(n), q = bench::scattered(n, 0.5f);
  bench::Aligned<float> plus(static_cast<size_t>(n), 1.0f);
  const auto once = [&](float* to, int64_t count) {
    double out[2];
    fd_finish(out, {to, minus.data(), kQ ? q.data() : nullptr, count, 0.5f});
    return std::make_pair(out[0], out[1]);
  };
  for (auto _ : state) benchmark::DoNotOptimize(once(plus.data(), n));
  verify(state, [&] {
    std::vector<float> small(static_cast<size_t>(std::min<int64_t>(n, 5000)), 1.0f);
    const auto sums = once(small.data(), static_cast<int64_t>(small.size()));
    return std::make_pair(sums, small);
  });
  bench::report(state, static_cast<double>(n) * (kQ ? 16 : 12), bench::axpy_bytes_per_second(n), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 24};
  bench::register_per_isa("dot", dot_bench<false>, sizes);
  bench::register_per_isa("norm", dot_bench<true>, sizes);
  bench::register_per_isa("axpby", axpby_bench, sizes);
  bench::register_per_isa("fd_finish", fd_finish_bench<false>, sizes);
  bench::register_per_isa("fd_finish_q", fd_finish_bench<true>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
