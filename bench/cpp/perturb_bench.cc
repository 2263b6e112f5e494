// SPDX-License-Identifier: Apache-2.0
// out = w + c z against what memory allows: an axpy (12 bytes an element) of as many elements, its
// bytes a second times the bytes that move here. In place 8 bytes move, into a scratch buffer of
// another type also those that its lines are fetched for. Outputs are verified after timing.
#include "spsa/perturb.h"

#include "roofline.h"
#include "spsa/perturb_scalar.h"

namespace lowtide {
namespace {

using random::Dist;
using spsa::FloatType;
using spsa::Perturbation;

template <Dist dist, FloatType in, FloatType to, bool kInPlace>
void perturb(benchmark::State& state) {
  const int64_t n = state.range(0);
  const int64_t in_bytes = spsa::bytes_of(in), out_bytes = spsa::bytes_of(to);
  bench::Aligned<uint8_t> w(static_cast<size_t>(n * in_bytes)),
      out(static_cast<size_t>(n * out_bytes));
  const auto values = bench::scattered(n, 0.02f);
  for (int64_t i = 0; i < n; ++i) spsa::put_element(w.data(), in, i, values[i]);
  const Perturbation t{kInPlace ? w.data() : out.data(), w.data(), to, in, n, 0, 1e-3f};
  for (auto _ : state) {
    spsa::perturb({t}, 1, 2, 3, dist);
    benchmark::ClobberMemory();
  }
  const int64_t m = std::min<int64_t>(n, 5000);
  std::vector<uint8_t> got(static_cast<size_t>(m * out_bytes)), want = got;
  Perturbation check{got.data(), w.data(), to, in, m, 0, 1e-3f};
  spsa::perturb({check}, 1, 2, 3, dist);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  check.out = want.data();
  spsa::perturb({check}, 1, 2, 3, dist);
  set_isa(isa);
  if (got != want) state.SkipWithError("wrong bits");
  const double bytes =
      static_cast<double>(n * (kInPlace ? 2 * in_bytes : in_bytes + 2 * out_bytes));
  bench::report(state, bytes, bench::axpy_bytes_per_second(n), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 24};
  const auto f32 = FloatType::f32, bf16 = FloatType::bf16;
  bench::register_per_isa("gaussian_f32_in_place", perturb<Dist::gaussian, f32, f32, true>, sizes);
  bench::register_per_isa("rademacher_f32_in_place", perturb<Dist::rademacher, f32, f32, true>,
                          sizes);
  bench::register_per_isa("ih4_f32_in_place", perturb<Dist::ih4, f32, f32, true>, sizes);
  bench::register_per_isa("lut8_f32_in_place", perturb<Dist::lut8, f32, f32, true>, sizes);
  bench::register_per_isa("gaussian_f32_to_bf16", perturb<Dist::gaussian, f32, bf16, false>, sizes);
  bench::register_per_isa("rademacher_f32_to_bf16", perturb<Dist::rademacher, f32, bf16, false>,
                          sizes);
  bench::register_per_isa("rademacher_f32", perturb<Dist::rademacher, f32, f32, false>, sizes);
  bench::register_per_isa("rademacher_bf16", perturb<Dist::rademacher, bf16, bf16, false>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
