// SPDX-License-Identifier: Apache-2.0
// Both forms read and write each weight once; U and V are small. The limit is axpy's memory speed
// for those bytes.
#include "spsa/low_rank.h"

#include "roofline.h"
#include "schedule_arrays.h"

namespace lowtide {
namespace {

using spsa::FloatType;

constexpr int64_t kCols = 2048;

template <int kRank, bool kReplay>
void low_rank(benchmark::State& state) {
  const int64_t n = state.range(0);
  const bench::ScheduleArrays run(1, 1);
  const int64_t v_step = 0;
  const auto body = [&](float* w, int64_t rows) {
    const spsa::LowRankMatrix m = {rows, kCols, 0, kRank, 4};
    if (kReplay)
      spsa::low_rank_replay(w, FloatType::f32, 1, m, run.schedule(), &v_step);
    else
      spsa::low_rank_perturb(w, FloatType::f32, w, FloatType::f32, 1e-6f, m, {});
  };
  bench::Aligned<float> x(static_cast<size_t>(n), 1.0f);
  for (auto _ : state) {
    body(x.data(), n / kCols);
    benchmark::ClobberMemory();
  }
  std::vector<float> got(2 * kCols, 1.0f), want = got;
  body(got.data(), 2);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  body(want.data(), 2);
  set_isa(isa);
  if (got != want) state.SkipWithError("wrong bits");
  bench::report(state, 8.0 * static_cast<double>(n), bench::axpy_bytes_per_second(n) * 8 / 12, n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 22};
  bench::register_per_isa("perturb/r2", low_rank<2, false>, sizes);
  bench::register_per_isa("perturb/r8", low_rank<8, false>, sizes);
  bench::register_per_isa("replay/r2", low_rank<2, true>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
