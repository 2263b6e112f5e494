// SPDX-License-Identifier: Apache-2.0
// Gram-Schmidt twice against 40 rows; the range is n. Bytes are those of reading the basis twice,
// which is what is needed where the second pass finds nothing. `roofline`: bytes a second against
// axpy. krylov_peer: two products with the basis and two with its transpose, each a loop as a
// matrix-vector product of a library runs it (reads the basis four times); counted as the same
// two reads, so that items per second compare. Outputs are verified after timing.
#include "curvature/krylov.h"

#include <cmath>

#include "curvature/krylov_order.h"
#include "roofline.h"

namespace lowtide {
namespace {

constexpr int64_t kRows = 40;

// Rows of noise are orthogonal but for 1 / sqrt(n): w stays what it is while it is projected again
// and again. bench::scattered repeats after 4001 numbers, its rows are far from that.
bench::Aligned<float> noise(int64_t n, float size) {
  bench::Aligned<float> x(static_cast<size_t>(n));
  uint64_t s = 88172645463325252ull;
  for (float& v : x) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    v = static_cast<float>(static_cast<int32_t>(s >> 32)) * 0x1p-31f * size;
  }
  return x;
}

struct Data {
  bench::Aligned<float> f32, scale, start;
  bench::Aligned<uint16_t> bf16;
  bench::Aligned<uint8_t> int8;
  int64_t n;

  explicit Data(int64_t columns) : n(columns) {
    const float size = 1.7f / std::sqrt(static_cast<float>(n));  // rows of norm one, about
    f32 = noise(kRows * n, size);
    start = noise(n, 1.0f);
    scale.assign(static_cast<size_t>(kRows * curvature::krylov_groups(n)), size / 127.0f);
    for (float v : f32) {
      bf16.push_back(float_to_bf16(v));
      int8.push_back(static_cast<uint8_t>(128.5f + v / size * 127.0f));
    }
  }
  curvature::Basis basis(curvature::BasisType type) const {
    using curvature::BasisType;
    if (type == BasisType::f32) return {f32.data(), nullptr, type, kRows, n};
    if (type == BasisType::bf16) return {bf16.data(), nullptr, type, kRows, n};
    return {int8.data(), scale.data(), type, kRows, n};
  }
};

void report(benchmark::State& state, const Data& data, double element) {
  const double bytes = 2.0 * element * static_cast<double>(kRows * data.n);
  bench::report(state, bytes, bench::axpy_bytes_per_second(kRows * data.n / 3), kRows * data.n);
}

template <curvature::BasisType type>
void project(benchmark::State& state) {
  const Data data(state.range(0));
  const auto q = data.basis(type);
  auto w = data.start;
  std::vector<double> c(kRows), again(kRows);
  curvature::Projection p;
  for (auto _ : state) {
    p = curvature::project(c.data(), q, w.data(), 1e30);
    benchmark::ClobberMemory();
  }
  curvature::basis_dots(again.data(), q, w.data());
  double left = 0, want = 0;
  for (double x : again) left += x * x;
  for (float x : w) want += static_cast<double>(x) * x;
  if (!(std::fabs(left - p.left) <= 1e-9 * left && std::fabs(want - p.after) <= 1e-5 * want))
    state.SkipWithError("wrong sums");
  report(state, data,
         type == curvature::BasisType::f32    ? 4
         : type == curvature::BasisType::bf16 ? 2
                                              : 1);
}

#if defined(__x86_64__)
__attribute__((optimize("O3", "fast-math"),
               target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
static float
dot(const float* __restrict x, const float* __restrict y, int64_t n) {
  float s = 0;
  for (int64_t i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

void peer(benchmark::State& state) {
  const Data data(state.range(0));
  auto w = data.start;
  for (auto _ : state) {
    for (int pass = 0; pass < 2; ++pass) {
      float c[kRows];
      parallel_for(kRows, 1, [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) c[i] = dot(data.f32.data() + i * data.n, w.data(), data.n);
      });
      parallel_for(data.n, 16384, [&](int64_t b, int64_t e) {
        for (int64_t i = 0; i < kRows; ++i)
          bench::axpy(w.data() + b, data.f32.data() + i * data.n + b, -c[i], e - b);
      });
    }
    benchmark::ClobberMemory();
  }
  report(state, data, 4);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 14, 500000};
  using curvature::BasisType;
  bench::register_per_isa("krylov_project_f32", project<BasisType::f32>, sizes);
  bench::register_per_isa("krylov_project_bf16", project<BasisType::bf16>, sizes);
  bench::register_per_isa("krylov_project_int8", project<BasisType::int8>, sizes);
  auto* b = benchmark::RegisterBenchmark("krylov_peer", peer);
  for (int64_t n : sizes) b->Arg(n);
  b->Unit(benchmark::kMicrosecond)->UseRealTime();
  return 0;
}();

}  // namespace
}  // namespace lowtide
