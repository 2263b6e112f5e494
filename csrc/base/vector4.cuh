// SPDX-License-Identifier: Apache-2.0
// Four neighbouring elements a thread: one vector access where memory is aligned and whole, element
// by element at the ends. A warp then moves 128 elements a request, in full sectors.
#pragma once
#include "base/hd.h"

namespace lowtide {

// How many of the four elements from i on lie below n.
__device__ __forceinline__ int live4(int64_t i, int64_t n) {
  const int64_t left = n - i;
  return left >= 4 ? 4 : left > 0 ? static_cast<int>(left) : 0;
}

__host__ __device__ __forceinline__ bool aligned(const void* p, int bytes) {
  return reinterpret_cast<uint64_t>(p) % static_cast<uint64_t>(bytes) == 0;
}

// Elements that are not there read as 0. `vectors`: p is aligned to its vector.
__device__ __forceinline__ void load4(const float* p, int live, bool vectors, float x[4]) {
  if (vectors && live == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = j < live ? p[j] : 0.0f;
  }
}
__device__ __forceinline__ void load4(const uint16_t* p, int live, bool vectors,
                                      float x[4]) {  // bf16
  if (vectors && live == 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    x[0] = bits_float(v.x << 16), x[1] = bits_float(v.x & 0xffff0000u);
    x[2] = bits_float(v.y << 16), x[3] = bits_float(v.y & 0xffff0000u);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = j < live ? bf16_to_float(p[j]) : 0.0f;
  }
}
__device__ __forceinline__ void load4_half(const uint16_t* p, int live, bool vectors, float x[4]) {
  if (vectors && live == 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    x[0] = half_to_float(static_cast<uint16_t>(v.x)), x[1] = half_to_float(v.x >> 16);
    x[2] = half_to_float(static_cast<uint16_t>(v.y)), x[3] = half_to_float(v.y >> 16);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = j < live ? half_to_float(p[j]) : 0.0f;
  }
}
// Four bytes in one word, the first lowest.
__device__ __forceinline__ uint32_t load4(const uint8_t* p, int live, bool vectors) {
  if (vectors && live == 4) return *reinterpret_cast<const uint32_t*>(p);
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < live) word |= static_cast<uint32_t>(p[j]) << (8 * j);
  return word;
}

// To global memory, write-back as any store. Written as an assignment, nvcc takes the vector apart
// and merges its elements with those of the other branch, and machine code with four narrow stores
// is what is left.
__device__ __forceinline__ void store_vector(float* p, float4 v) {
  __stwb(reinterpret_cast<float4*>(p), v);
}
__device__ __forceinline__ void store_vector(uint16_t* p, uint2 v) {
  __stwb(reinterpret_cast<uint2*>(p), v);
}

__device__ __forceinline__ void store4(float* p, int live, bool vectors, const float x[4]) {
  if (vectors && live == 4) {
    store_vector(p, make_float4(x[0], x[1], x[2], x[3]));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < live) p[j] = x[j];
  }
}
__device__ __forceinline__ void store4(uint16_t* p, int live, bool vectors, const uint16_t x[4]) {
  if (vectors && live == 4) {
    store_vector(p, make_uint2(static_cast<uint32_t>(x[1]) << 16 | x[0],
                               static_cast<uint32_t>(x[3]) << 16 | x[2]));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < live) p[j] = x[j];
  }
}
__device__ __forceinline__ void store4(uint8_t* p, int live, bool vectors, uint32_t word) {
  if (vectors && live == 4) {
    *reinterpret_cast<uint32_t*>(p) = word;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < live) p[j] = static_cast<uint8_t>(word >> (8 * j));
  }
}

}  // namespace lowtide
