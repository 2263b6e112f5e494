// SPDX-License-Identifier: Apache-2.0
// Probes over one tensor against what memory allows: sign_dot reads 4 bytes an element (2 in
// bfloat16), sign_axpy moves 8, sign_fill writes 4 and, as any store, fetches its lines first,
// sign_fma moves 12. Outputs are verified after timing.
#include "curvature/probe.h"

#include "roofline.h"

namespace lowtide {
namespace {

using namespace curvature;
const Probe kProbe{.seed = 1, .step = 2, .slot = 3};

// f() gives comparable values of a small problem; they must not depend on the ISA.
template <class F>
void verify(benchmark::State& state, const F& f) {
  const auto got = f();
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  if (got != f()) state.SkipWithError("wrong bits");
  set_isa(isa);
}

template <Dtype dtype>
void sign_dot_bench(benchmark::State& state) {
  const int64_t n = state.range(0), width = dtype == Dtype::f32 ? 4 : 2;
  const auto x = bench::scattered(n * width / 4);
  const SignedInput t{x.data(), dtype, n, 7};
  double out = 0;
  for (auto _ : state) {
    sign_dot(&out, {t}, kProbe);
    benchmark::DoNotOptimize(out);
  }
  verify(state, [&] {
    sign_dot(&out, {{x.data(), dtype, std::min<int64_t>(n, 5000), 7}}, kProbe);
    return out;
  });
  bench::report(state, static_cast<double>(n * width),
                bench::memcpy_bytes_per_second(n * width) / 2, n);
}

enum class Move { axpy, fill, fma, squares };

template <Move kMove>
void move(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto x = bench::scattered(n);
  bench::Aligned<float> y(static_cast<size_t>(n), 1.0f);
  const auto once = [&](float* to, int64_t count) {
    const SignedTarget t{to, Dtype::f32, count, 7};
    if (kMove == Move::axpy) return sign_axpy({t}, 1e-3f, kProbe);
    if (kMove == Move::fill) return sign_fill({t}, 1.0f, kProbe);
    sign_fma({{to, x.data(), Dtype::f32, count, 7}}, {0.9f, 0.1f, kMove == Move::squares}, kProbe);
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
  const bool pair = kMove == Move::fma || kMove == Move::squares;
  bench::report(state, static_cast<double>(n) * (pair ? 12 : 8), bench::axpy_bytes_per_second(n),
                n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 24};
  bench::register_per_isa("sign_dot_f32", sign_dot_bench<Dtype::f32>, sizes);
  bench::register_per_isa("sign_dot_bf16", sign_dot_bench<Dtype::bf16>, sizes);
  bench::register_per_isa("sign_axpy", move<Move::axpy>, sizes);
  bench::register_per_isa("sign_fill", move<Move::fill>, sizes);
  bench::register_per_isa("sign_fma", move<Move::fma>, sizes);
  bench::register_per_isa("sign_fma_squared", move<Move::squares>, {1 << 24});
  return 0;
}();

}  // namespace
}  // namespace lowtide
