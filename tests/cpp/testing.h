// SPDX-License-Identifier: Apache-2.0
// Shared by the C++ tests: run a body on every ISA, at several thread counts, and compare bits.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/isa.h"
#include "base/parallel.h"

namespace lowtide::testing {

// Lane counts minus and plus one, tiles, groups, and sizes that are nobody's multiple.
inline const std::vector<int64_t> kAwkward = {0,   1,   3,    15,   16,   17,   31,
                                              33,  63,  64,   65,   127,  129,  255,
                                              256, 257, 1000, 2047, 2049, 4097, 40001};

inline uint64_t digest(const void* data, size_t bytes, uint64_t h = 0xcbf29ce484222325ull) {
  const auto* p = static_cast<const uint8_t*>(data);  // FNV-1a
  for (size_t i = 0; i < bytes; ++i) h = (h ^ p[i]) * 0x100000001b3ull;
  return h;
}

template <class T, class A>
uint64_t digest(const std::vector<T, A>& v) {
  return digest(v.data(), v.size() * sizeof(T));
}

class IsaGuard {
 public:
  explicit IsaGuard(Isa isa) : saved_(active_isa()) { set_isa(isa); }
  ~IsaGuard() { set_isa(saved_); }

 private:
  Isa saved_;
};

// Sanitizers look for races and stray addresses, for which one split of the work by each ISA will
// do; the other counts are a matter of bits, which plain builds compare.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline const std::vector<int> kThreadCounts = {3};
#else
inline const std::vector<int> kThreadCounts = {1, 2, 3};
#endif

// f() under every ISA with each of kThreadCounts; f returns a digest, which must be one and the
// same.
template <class F>
uint64_t same_everywhere(const F& f) {
  const int threads = num_threads();
  uint64_t want;
  {
    IsaGuard guard(Isa::scalar);
    set_num_threads(1);
    want = f();
  }
  for (Isa isa : available_isas()) {
    IsaGuard guard(isa);
    for (int t : kThreadCounts) {
      set_num_threads(t);
      EXPECT_EQ(f(), want) << isa_name(isa) << " with " << t << " threads";
    }
  }
  set_num_threads(threads);
  return want;
}

// Deterministic test data in [-1, 1) with a spread of magnitudes.
inline std::vector<float> noise(int64_t n, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t s = seed * 0x9E3779B97F4A7C15ull + 1;
  for (auto& v : x) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    v = static_cast<float>(static_cast<int32_t>(s >> 32)) * 0x1p-31f;
    if ((s & 15) == 0) v *= 0x1p-12f;
  }
  return x;
}

}  // namespace lowtide::testing
