// SPDX-License-Identifier: Apache-2.0
// One step along one direction reads and writes each weight once: the limit is axpy's memory speed
// for those bytes. More directions and steps move no more bytes; the same column then says how many
// times longer the arithmetic takes. `dirs/s` counts parameter-directions.
#include "spsa/replay.h"

#include <cmath>

#include "roofline.h"
#include "schedule_arrays.h"

namespace lowtide {
namespace {

using random::Dist;
using spsa::FloatType;

template <Dist dist, FloatType dtype, int kSteps, int kDirections>
void replay(benchmark::State& state) {
  const int64_t n = state.range(0);
  const bench::ScheduleArrays run(kSteps, kDirections);
  bench::Aligned<float> x(static_cast<size_t>(n), 0.0f);
  const auto tensor = [&](void* w, int64_t count) {
    spsa::ReplayTensor t;
    t.n = count, t.type = dtype, t.w = w, t.threshold = INFINITY, t.floor = -INFINITY;
    return t;
  };
  for (auto _ : state) {
    spsa::replay({tensor(x.data(), n)}, run.schedule(), dist);
    benchmark::ClobberMemory();
  }
  const int64_t m = std::min<int64_t>(n, 3000);
  std::vector<float> got(static_cast<size_t>(m), 0.0f), want = got;
  spsa::replay({tensor(got.data(), m)}, run.schedule(), dist);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  spsa::replay({tensor(want.data(), m)}, run.schedule(), dist);
  set_isa(isa);
  if (std::memcmp(got.data(), want.data(), got.size() * 4) != 0) state.SkipWithError("wrong bits");
  const double bytes = dtype == FloatType::f32 ? 8.0 : 4.0;
  bench::report(state, bytes * static_cast<double>(n), bench::axpy_bytes_per_second(n) * 8 / 12, n);
  state.counters["dirs/s"] = benchmark::Counter(
      static_cast<double>(n) * kSteps * kDirections * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

template <Dist dist, FloatType dtype>
void register_all(const std::string& name) {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 22};
  bench::register_per_isa((name + "/1x1").c_str(), replay<dist, dtype, 1, 1>, sizes);
  bench::register_per_isa((name + "/1x8").c_str(), replay<dist, dtype, 1, 8>, sizes);
  bench::register_per_isa((name + "/1x64").c_str(), replay<dist, dtype, 1, 64>, sizes);
  bench::register_per_isa((name + "/64x1").c_str(), replay<dist, dtype, 64, 1>, sizes);
}

const int kRegistered = [] {
  register_all<Dist::rademacher, FloatType::f32>("rademacher_f32");
  register_all<Dist::rademacher, FloatType::bf16>("rademacher_bf16");
  register_all<Dist::gaussian, FloatType::f32>("gaussian_f32");
  return 0;
}();

}  // namespace
}  // namespace lowtide
