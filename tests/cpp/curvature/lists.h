// SPDX-License-Identifier: Apache-2.0
// Lists of tensors of both types and awkward sizes, for the tests of the curvature kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/hd.h"
#include "testing.h"

namespace lowtide::testing {

// A tensor in memory of its type; `read` is what its elements are in float32.
struct Buffer {
  Dtype dtype;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;

  Buffer(Dtype dtype, const std::vector<float>& values) : dtype(dtype) {
    if (dtype == Dtype::f32) f32 = values;
    if (dtype == Dtype::bf16)
      for (float v : values) bf16.push_back(float_to_bf16(v));
  }
  int64_t size() const { return static_cast<int64_t>(f32.size() + bf16.size()); }
  void* data() { return dtype == Dtype::f32 ? static_cast<void*>(f32.data()) : bf16.data(); }
  float read(int64_t i) const {
    const auto at = static_cast<size_t>(i);
    return dtype == Dtype::f32 ? f32[at] : bf16_to_float(bf16[at]);
  }
  // What a float32 result is once it is stored here.
  float rounded(float x) const { return dtype == Dtype::f32 ? x : bf16_to_float(float_to_bf16(x)); }
  uint64_t bits() const { return digest(f32) ^ digest(bf16); }
};

// One tensor of each awkward size, types in turn; `which` shifts them.
inline std::vector<Buffer> buffers(uint64_t seed, size_t which) {
  std::vector<Buffer> list;
  for (int64_t n : kAwkward)
    list.emplace_back((list.size() + which) % 3 == 0 ? Dtype::bf16 : Dtype::f32,
                      noise(n, seed + list.size()));
  return list;
}

inline uint64_t bits(const std::vector<Buffer>& list) {
  uint64_t h = 0;
  for (const auto& b : list) h = h * 0x100000001b3ull ^ b.bits();
  return h;
}

}  // namespace lowtide::testing
