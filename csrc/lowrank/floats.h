// SPDX-License-Identifier: Apache-2.0
// Buffers of the refresh algorithms.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/hd.h"

namespace lowtide::lowrank {

// Memory that was just given back is given out again by the same thread, up to kSpareBytes of it:
// touching fresh pages would cost a refresh of a usual layer a tenth of its time.
void* take_buffer(size_t bytes);
void give_buffer(void* p, size_t bytes) noexcept;
constexpr size_t kSpareBytes = size_t{8} << 20;

// Leaves new elements uninitialised: every buffer is written by a kernel before it is read.
template <class T>
struct Uninitialised : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  T* allocate(size_t n) { return static_cast<T*>(take_buffer(n * sizeof(T))); }
  void deallocate(T* p, size_t n) noexcept { give_buffer(p, n * sizeof(T)); }
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
using Doubles = std::vector<double, Uninitialised<double>>;

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
