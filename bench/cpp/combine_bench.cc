// SPDX-License-Identifier: Apache-2.0
// 12 bytes a float32 weight with a scaled gradient (as axpy), 16 with an update beside it. Matrices
// of n / 2048 x 2048, factors by column. Outputs are verified after timing.
#include "optim/combine.h"

#include "roofline.h"

namespace lowtide {
namespace {

using namespace optim;

template <bool kWhole, bool kSign>
void run(benchmark::State& state) {
  const int64_t cols = 2048, n = state.range(0);
  const auto g = bench::scattered(n), k = bench::scattered(cols), u = bench::scattered(n, 0.5f);
  bench::Aligned<float> p(static_cast<size_t>(n), 0.25f);
  CombineMatrix m;
  m.rows = n / cols, m.cols = cols, m.sign = kSign, m.along = Along::columns;
  m.p = p.data(), m.g = g.data(), m.k = k.data(), m.u = kWhole ? u.data() : nullptr;
  const UpdateRule rule = make_update_rule(-1e-3, 0.9999, 1.0);
  for (auto _ : state) {
    combine(m, rule, 1, 2);
    benchmark::ClobberMemory();
  }
  bench::Aligned<float> got(2 * cols, 0.5f), want = got;
  m.rows = 2, m.p = got.data();
  combine(m, rule, 1, 2);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  m.p = want.data();
  combine(m, rule, 1, 2);
  set_isa(isa);
  if (got != want) state.SkipWithError("wrong bits");
  const double moved = static_cast<double>(n) * (kWhole ? 16 : 12);
  bench::report(state, moved, bench::axpy_bytes_per_second(static_cast<int64_t>(moved / 12)), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 768 * 2048, 1 << 25};
  bench::register_per_isa("combine_scaled", run<false, false>, sizes);
  bench::register_per_isa("combine_scaled_and_update", run<true, false>, sizes);
  bench::register_per_isa("combine_sign", run<false, true>, {768 * 2048});
  return 0;
}();

}  // namespace
}  // namespace lowtide
