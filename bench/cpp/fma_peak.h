// SPDX-License-Identifier: Apache-2.0
// The machine's multiply-add limit, measured on registers with the threads of the own pool.
#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/parallel.h"

namespace lowtide::bench {

// Ten independent chains hide the latency of two multiply-add ports.
#define LT_FMA_CHAINS(name, bytes, ...)                                                \
  __VA_ARGS__ __attribute__((optimize("O3,fp-contract=fast"))) float name(int64_t n) { \
    typedef float V __attribute__((vector_size(bytes)));                               \
    V acc[10] = {};                                                                    \
    V x = V{} + 0.999f, y = V{} + 1e-3f;                                               \
    for (int64_t i = 0; i < n; ++i)                                                    \
      for (int c = 0; c < 10; ++c) acc[c] = acc[c] * x + y;                            \
    V sum = {};                                                                        \
    for (int c = 0; c < 10; ++c) sum += acc[c];                                        \
    return sum[0];                                                                     \
  }
#if defined(__x86_64__)
LT_FMA_CHAINS(chains512, 64, __attribute__((target("arch=x86-64-v4"))))
LT_FMA_CHAINS(chains256, 32, __attribute__((target("arch=x86-64-v3"))))
#endif
LT_FMA_CHAINS(chains128, 16)

// Float multiply-adds per second over all threads; doubles run at half of it.
inline double fma_peak() {
  float (*chains)(int64_t) = chains128;
  int lanes = 4;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4"))
    chains = chains512, lanes = 16;
  else if (__builtin_cpu_supports("x86-64-v3"))
    chains = chains256, lanes = 8;
#endif
  constexpr int64_t kSteps = 200000;
  const int threads = num_threads();
  double best = 0;
  for (int r = 0; r < 5; ++r) {
    const auto t0 = std::chrono::steady_clock::now();
    parallel_for(threads, 1, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) benchmark::DoNotOptimize(chains(kSteps));
    });
    const std::chrono::duration<double> dt = std::chrono::steady_clock::now() - t0;
    best = std::max(best, 10.0 * lanes * kSteps * threads / dt.count());
  }
  return best;
}

}  // namespace lowtide::bench
