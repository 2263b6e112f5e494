// SPDX-License-Identifier: Apache-2.0
// Buffers of the refresh algorithms.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "base/hd.h"

namespace lowtide::lowrank {

// Leaves new elements uninitialised: every buffer is written by a kernel before it is read.
template <class T>
struct Uninitialised : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  template <class U>
  void construct(U* p) noexcept {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class... A>
  void construct(U* p, A&&... args) {
    ::new (static_cast<void*>(p)) U(static_cast<A&&>(args)...);
  }
};

using Floats = std::vector<float, Uninitialised<float>>;

// Bits of the largest |x[i]|: ordered like the values, above every finite one for inf and NaN.
inline int32_t largest_bits(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = static_cast<int32_t>(float_bits(x[i]) & 0x7fffffffu);
    most = bits > most ? bits : most;
  }
  return most;
}
constexpr int32_t kInfinityBits = 0x7f800000;

}  // namespace lowtide::lowrank
