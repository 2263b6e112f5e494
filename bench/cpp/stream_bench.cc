// SPDX-License-Identifier: Apache-2.0
// Rademacher add moves 8 bytes an element (read and write x); Gaussian add the same, but Philox and
// Box-Muller cost more than memory does. Each bench verifies its output after timing.
#include "random/stream.h"

#include "roofline.h"

namespace lowtide {
namespace {

using random::Dist;

void verify(benchmark::State& state, const std::vector<float>& got,
            const std::vector<float>& want) {
  if (std::memcmp(got.data(), want.data(), got.size() * 4) != 0) state.SkipWithError("wrong bits");
}

template <Dist dist>
void add_scaled(benchmark::State& state) {
  const int64_t n = state.range(0);
  const random::Stream s{.seed = 1};
  std::vector<float> x(static_cast<size_t>(n), 1.0f);
  for (auto _ : state) {
    random::add_scaled(x.data(), 1e-3f, n, 0, s, dist);
    benchmark::ClobberMemory();
  }
  const int64_t m = std::min<int64_t>(n, 5000);
  std::vector<float> got(static_cast<size_t>(m), 1.0f), want = got;
  random::add_scaled(got.data(), 1e-3f, m, 0, s, dist);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  random::add_scaled(want.data(), 1e-3f, m, 0, s, dist);
  set_isa(isa);
  verify(state, got, want);
  bench::report(state, 8.0 * static_cast<double>(n), bench::axpy_bytes_per_second(n) * 8 / 12, n);
}

void words(benchmark::State& state) {
  const int64_t n = state.range(0);
  std::vector<uint32_t> w(static_cast<size_t>(n));
  for (auto _ : state) {
    random::words(w.data(), n, 0, random::Stream{.seed = 1});
    benchmark::ClobberMemory();
  }
  bench::report(state, 4.0 * static_cast<double>(n), bench::memcpy_bytes_per_second(4 * n) / 2, n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 24};
  bench::register_per_isa("words", words, sizes);
  bench::register_per_isa("add_gaussian", add_scaled<Dist::gaussian>, sizes);
  bench::register_per_isa("add_rademacher", add_scaled<Dist::rademacher>, sizes);
  bench::register_per_isa("add_ih4", add_scaled<Dist::ih4>, sizes);
  bench::register_per_isa("add_lut8", add_scaled<Dist::lut8>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
