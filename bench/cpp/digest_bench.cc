// SPDX-License-Identifier: Apache-2.0
// The digest reads its tensor once; the limit is a read, taken as half of what a copy moves.
#include "spsa/digest.h"

#include "roofline.h"

namespace lowtide {
namespace {

template <int kWidth>
void digest(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto x = bench::scattered(n * kWidth / 4);
  uint64_t got = 0;
  for (auto _ : state) benchmark::DoNotOptimize(got = spsa::digest(x.data(), kWidth, n, 0));
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  if (got != spsa::digest(x.data(), kWidth, n, 0)) state.SkipWithError("wrong digest");
  set_isa(isa);
  bench::report(state, static_cast<double>(n) * kWidth,
                bench::memcpy_bytes_per_second(n * kWidth) / 2, n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 24};
  bench::register_per_isa("digest_f32", digest<4>, sizes);
  bench::register_per_isa("digest_bf16", digest<2>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
