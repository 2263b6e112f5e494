// SPDX-License-Identifier: Apache-2.0
// 12 bytes a float32 weight (as axpy), 8 a bfloat16 one. Outputs are verified after timing.
#include "optim/apply_update.h"

#include "roofline.h"

namespace lowtide {
namespace {

using namespace optim;

template <WeightStore store>
void apply(benchmark::State& state) {
  const int64_t n = state.range(0);
  const size_t bytes = store == WeightStore::f32 ? 4 : 2;
  const UpdateRule rule = make_update_rule(-1e-3, 0.9999, 1.0);
  std::vector<float> u(static_cast<size_t>(n), 0.25f);
  auto run = [&](std::vector<char>& p, int64_t count) {
    UpdateTensor t;
    t.n = count;
    t.weight_store = store;
    t.p = p.data();
    t.u = u.data();
    apply_update({t}, rule, 1, 2);
  };
  std::vector<char> p(static_cast<size_t>(n) * bytes, 0x3c);
  for (auto _ : state) {
    run(p, n);
    benchmark::ClobberMemory();
  }
  const int64_t few = std::min<int64_t>(n, 1000);
  std::vector<char> got(static_cast<size_t>(few) * bytes, 0x3c), want = got;
  run(got, few);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  run(want, few);
  set_isa(isa);
  if (got != want) state.SkipWithError("wrong bits");
  const double moved = static_cast<double>(n) * static_cast<double>(4 + 2 * bytes);
  bench::report(state, moved, bench::axpy_bytes_per_second(static_cast<int64_t>(moved / 12)), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 25};
  bench::register_per_isa("apply_update_f32", apply<WeightStore::f32>, sizes);
  bench::register_per_isa("apply_update_bf16_sr", apply<WeightStore::bf16_stochastic>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
