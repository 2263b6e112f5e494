// SPDX-License-Identifier: Apache-2.0
// A warp over one group of a quantized matrix, in windows of 256 columns: a lane holds two times
// four neighbours. Storage: group_format.h.
#pragma once
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "quant/group_format.h"

namespace lowtide::quant {

constexpr int kWindow = 256;

// Four elements of an array of floats of any type.
__device__ __forceinline__ void load_any4(const void* x, FloatType type, int64_t at, int live,
                                          float v[4]) {
  if (type == FloatType::f32) {
    const float* p = static_cast<const float*>(x) + at;
    load4(p, live, aligned(p, 16), v);
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(x) + at;
  if (type == FloatType::bf16)
    load4(p, live, aligned(p, 8), v);
  else
    load4_half(p, live, aligned(p, 8), v);
}
__device__ __forceinline__ void store_any4(void* out, FloatType type, int64_t at, int live,
                                           const float v[4]) {
  if (type == FloatType::f32) {
    float* p = static_cast<float*>(out) + at;
    store4(p, live, aligned(p, 16), v);
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(out) + at;
  uint16_t h[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    h[j] = type == FloatType::bf16 ? float_to_bf16(v[j]) : saturated_half(v[j]);
  store4(p, live, aligned(p, 8), h);
}

// The group of this warp, and how many groups on its next one lies.
__device__ __forceinline__ int64_t first_group() {
  return static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
}
__device__ __forceinline__ int64_t group_stride() {
  return static_cast<int64_t>(gridDim.x) * (kThreads / 32);
}

// Where a group lies and how its codes may be accessed.
struct WarpGroup {
  uint8_t* codes;  // byte of the group's first code
  int64_t first;   // row-major index of its first element
  int64_t n;       // columns
  bool four_bits;
  bool code_vectors;

  __device__ __forceinline__ WarpGroup(uint8_t* matrix, const GroupShape& s, int64_t g) {
    const int64_t per_row = groups_per_row(s);
    const int64_t row = g / per_row, col = (g - row * per_row) * s.group;
    four_bits = s.bits == 4;
    codes = matrix + row * row_bytes(s) + (four_bits ? col / 2 : col);
    first = row * s.cols + col;
    n = s.cols - col < s.group ? s.cols - col : s.group;
    code_vectors = aligned(codes, 4);
  }
};

// Bytes that hold the codes of columns i .. i + 3 (i a multiple of 4), from which on, and how many
// there are.
__device__ __forceinline__ int64_t byte_of(const WarpGroup& w, int64_t i) {
  return w.four_bits ? i / 32 * 16 + i % 16 : i;
}
__device__ __forceinline__ bool in_high_nibbles(const WarpGroup& w, int64_t i) {
  return w.four_bits && i % 32 >= 16;
}

// The four codes in the bytes of a word. Nibbles that no column uses come along as they are stored.
__device__ __forceinline__ uint32_t load_codes4(const WarpGroup& w, int64_t i) {
  const bool high = in_high_nibbles(w, i);
  const uint32_t bytes =
      load4(w.codes + byte_of(w, i), live4(high ? i - 16 : i, w.n), w.code_vectors);
  return w.four_bits ? bytes >> (high ? 4 : 0) & 0x0f0f0f0fu : bytes;
}

// All 32 lanes, i = window + 128 * half + 4 * lane: stores four codes a lane. Of INT4 the lane of
// columns 0..15 of a block also writes the codes that its partner, 16 columns on, holds.
__device__ __forceinline__ void store_codes4(const WarpGroup& w, int64_t i, uint32_t word) {
  if (w.four_bits) {
    const uint32_t high = __shfl_xor_sync(0xffffffffu, word, 4);
    if (in_high_nibbles(w, i)) return;
    word |= high << 4;
  }
  store4(w.codes + byte_of(w, i), live4(i, w.n), w.code_vectors, word);
}

__device__ __forceinline__ float warp_min(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x = fminf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

}  // namespace lowtide::quant
