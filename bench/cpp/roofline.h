// SPDX-License-Identifier: Apache-2.0
// Shared by the C++ benches: counters for bytes and the machine's own measured limits, so that each
// line says which fraction of the roofline it reaches. Run with --benchmark_repetitions for spread.
#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "base/isa.h"
#include "base/parallel.h"

namespace lowtide::bench {

// Vectors that start where torch's tensors do: a 64-byte store across two cache lines costs double.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(size_t n) {
    return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* p, size_t) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const AlignedAllocator&) const { return true; }
};
template <class T>
using Aligned = std::vector<T, AlignedAllocator<T>>;

// n values in [-scale, scale] in no order.
inline Aligned<float> scattered(int64_t n, float scale = 1.0f) {
  Aligned<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    x[static_cast<size_t>(i)] =
        (static_cast<float>(i * 2654435761u % 4001) / 2000.0f - 1.0f) * scale;
  return x;
}

// The peer must not be handicapped: compiled for the best ISA whatever the build's flags.
#if defined(__x86_64__)
__attribute__((optimize("O3"), target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
static void
axpy(float* __restrict y, const float* __restrict x, float a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// Best of several passes of y[i] += a * x[i] over `n` floats, in bytes per second (12 an element),
// with the same threads as the kernels: the limit that memory (or cache, for small n) sets.
inline double axpy_bytes_per_second(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n), 1.0f), y(static_cast<size_t>(n), 0.0f);
  double best = 0;
  for (int r = 0; r < 7; ++r) {
    const auto t0 = std::chrono::steady_clock::now();
    parallel_for(n, 16384,
                 [&](int64_t b, int64_t e) { axpy(y.data() + b, x.data() + b, 0.5f, e - b); });
    benchmark::DoNotOptimize(y.data());
    const std::chrono::duration<double> dt = std::chrono::steady_clock::now() - t0;
    best = std::max(best, 12.0 * static_cast<double>(n) / dt.count());
  }
  return best;
}

inline double memcpy_bytes_per_second(int64_t bytes) {
  std::vector<char> x(static_cast<size_t>(bytes), 1), y(static_cast<size_t>(bytes), 0);
  double best = 0;
  for (int r = 0; r < 7; ++r) {
    const auto t0 = std::chrono::steady_clock::now();
    parallel_for(bytes, 1 << 16, [&](int64_t b, int64_t e) { std::memcpy(&y[b], &x[b], e - b); });
    benchmark::DoNotOptimize(y.data());
    const std::chrono::duration<double> dt = std::chrono::steady_clock::now() - t0;
    best = std::max(best, 2.0 * static_cast<double>(bytes) / dt.count());
  }
  return best;
}

// `bytes`: read plus written per iteration. `limit`: bytes per second of the roofline.
inline void report(benchmark::State& state, double bytes, double limit, int64_t items) {
  const double total = bytes * static_cast<double>(state.iterations());
  state.SetBytesProcessed(static_cast<int64_t>(total));
  state.SetItemsProcessed(items * state.iterations());
  // A rate of bytes/limit is the fraction of the roofline.
  state.counters["roofline"] = benchmark::Counter(total / limit, benchmark::Counter::kIsRate);
  state.SetLabel(isa_name(active_isa()));
}

// Registers `f(state)` for every ISA of this machine under name/isa; the last of them, the one that
// is used, with `more` sizes.
template <class F>
void register_per_isa(const char* name, const F& f, const std::vector<int64_t>& sizes,
                      const std::vector<int64_t>& more = {}) {
  for (Isa isa : available_isas()) {
    auto* b = benchmark::RegisterBenchmark((std::string(name) + "/" + isa_name(isa)).c_str(),
                                           [isa, f](benchmark::State& state) {
                                             set_isa(isa);
                                             f(state);
                                           });
    for (int64_t n : sizes) b->Arg(n);
    if (isa == available_isas().back())
      for (int64_t n : more) b->Arg(n);
    b->Unit(benchmark::kMicrosecond)->UseRealTime();
  }
}

}  // namespace lowtide::bench
