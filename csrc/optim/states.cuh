// SPDX-License-Identifier: Apache-2.0
// The moments of a block of 256 elements in each store, held by one warp: a lane has two times four
// neighbours. `moments` says how many of m, v, w the rule has; the others are left alone.
#pragma once
#include "base/vector4.cuh"
#include "optim/fused_step.h"
#include "quant/dynamic_map.cuh"
#include "quant/group_format.h"
#include "quant/map4_scalar.h"

namespace lowtide::optim {

struct Lane {  // which elements a lane holds of a block of n
  int lane, n;
  __device__ __forceinline__ int at(int half) const { return 128 * half + 4 * lane; }
  __device__ __forceinline__ int live(int half) const { return live4(at(half), n); }
};

struct FloatStates {
  struct Shared {};
  __device__ __forceinline__ explicit FloatStates(const Shared*) {}
  static __device__ __forceinline__ void prepare(Shared*) {}

  __device__ __forceinline__ void load(const StepTensor& t, int64_t block, const Lane& l,
                                       int moments, float m[2][4], float v[2][4],
                                       float w[2][4]) const {
    const bool m_vectors = aligned(t.m, 16), v_vectors = aligned(t.v, 16);
    const bool w_vectors = aligned(t.w, 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = block * kStepBlock + l.at(h);
      if (moments > 0) load4(t.m + at, l.live(h), m_vectors, m[h]);
      if (moments > 1) load4(t.v + at, l.live(h), v_vectors, v[h]);
      if (moments > 2) load4(t.w + at, l.live(h), w_vectors, w[h]);
    }
  }
  __device__ __forceinline__ void store(const StepTensor& t, int64_t block, const Lane& l,
                                        int moments, const float m[2][4], const float v[2][4],
                                        const float w[2][4]) const {
    const bool m_vectors = aligned(t.m, 16), v_vectors = aligned(t.v, 16);
    const bool w_vectors = aligned(t.w, 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = block * kStepBlock + l.at(h);
      if (moments > 0) store4(t.m + at, l.live(h), m_vectors, m[h]);
      if (moments > 1) store4(t.v + at, l.live(h), v_vectors, v[h]);
      if (moments > 2) store4(t.w + at, l.live(h), w_vectors, w[h]);
    }
  }
};

// Largest magnitude of the elements that a warp holds of one half.
__device__ __forceinline__ float warp_largest(const float x[4], int live, float largest) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < live && abs_f(x[j]) > largest) largest = abs_f(x[j]);
  return largest;
}

class Dynamic8States {
 public:
  typedef quant::DynamicTable Shared;
  __device__ __forceinline__ explicit Dynamic8States(const Shared* table) : table_(table) {}
  static __device__ __forceinline__ void prepare(Shared* table) {
    quant::copy_dynamic_table(table);
  }

  __device__ __forceinline__ void load(const StepTensor& t, int64_t block, const Lane& l,
                                       int moments, float m[2][4], float v[2][4],
                                       float w[2][4]) const {
    if (moments > 0) load_one<true>(t.m_codes, t.m_absmax, block, l, m);
    if (moments > 1) load_one<false>(t.v_codes, t.v_absmax, block, l, v);
    if (moments > 2) load_one<true>(t.w_codes, t.w_absmax, block, l, w);
  }
  __device__ __forceinline__ void store(const StepTensor& t, int64_t block, const Lane& l,
                                        int moments, const float m[2][4], const float v[2][4],
                                        const float w[2][4]) const {
    if (moments > 0) store_one<true>(t.m_codes, t.m_absmax, block, l, m);
    if (moments > 1) store_one<false>(t.v_codes, t.v_absmax, block, l, v);
    if (moments > 2) store_one<true>(t.w_codes, t.w_absmax, block, l, w);
  }

 private:
  template <bool is_signed>
  __device__ __forceinline__ void load_one(const uint8_t* codes, const float* absmax, int64_t block,
                                           const Lane& l, float x[2][4]) const {
    const float scale = absmax[block];
    const bool vectors = aligned(codes, 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t word = load4(codes + block * kStepBlock + l.at(h), l.live(h), vectors);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        x[h][j] = quant::dynamic_decode(*table_, static_cast<int>(word >> (8 * j) & 255u),
                                        is_signed, scale);
    }
  }
  template <bool is_signed>
  __device__ __forceinline__ void store_one(uint8_t* codes, float* absmax, int64_t block,
                                            const Lane& l, const float x[2][4]) const {
    const float largest = warp_largest(x[1], l.live(1), warp_largest(x[0], l.live(0), 0.0f));
    const float scale = quant::dynamic_absmax(quant::warp_max_magnitude(largest));
    const float inverse = quant::dynamic_inverse(scale);
    __syncwarp();  // every lane has read the old one
    if (l.lane == 0) absmax[block] = scale;
    const bool vectors = aligned(codes, 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint8_t code = is_signed ? quant::dynamic_encode(*table_, x[h][j], true, inverse)
                                       : quant::dynamic_encode_positive(*table_, x[h][j], inverse);
        word |= static_cast<uint32_t>(code) << (8 * j);
      }
      store4(codes + block * kStepBlock + l.at(h), l.live(h), vectors, word);
    }
  }

  const quant::DynamicTable* table_;
};

// A half is one block of 128. Eight lanes share 16 bytes: lane i of the first four has the low
// nibbles of four of them, lane i + 4 the high ones.
class Dynamic4States {
 public:
  struct Shared {};
  __device__ __forceinline__ explicit Dynamic4States(const Shared*) {}
  static __device__ __forceinline__ void prepare(Shared*) {}
  static_assert(quant::kMap4Block == 128, "a half");

  __device__ __forceinline__ void load(const StepTensor& t, int64_t block, const Lane& l,
                                       int moments, float m[2][4], float v[2][4],
                                       float w[2][4]) const {
    if (moments > 0) load_one<true>(t.m_codes, t.m_absmax, block, l, m);
    if (moments > 1) load_one<false>(t.v_codes, t.v_absmax, block, l, v);
    if (moments > 2) load_one<true>(t.w_codes, t.w_absmax, block, l, w);
  }
  __device__ __forceinline__ void store(const StepTensor& t, int64_t block, const Lane& l,
                                        int moments, const float m[2][4], const float v[2][4],
                                        const float w[2][4]) const {
    if (moments > 0) store_one<true>(t.m_codes, t.m_absmax, block, l, m);
    if (moments > 1) store_one<false>(t.v_codes, t.v_absmax, block, l, v);
    if (moments > 2) store_one<true>(t.w_codes, t.w_absmax, block, l, w);
  }

 private:
  // Byte of the lane's first code, in the block.
  static __device__ __forceinline__ int byte(const Lane& l, int half) {
    return 64 * half + l.lane / 8 * 16 + l.lane % 4 * 4;
  }
  static __device__ __forceinline__ bool high(const Lane& l) { return l.lane % 8 >= 4; }
  static __device__ __forceinline__ int live_bytes(const Lane& l, int half) {
    return live4(byte(l, half), quant::int4_bytes(l.n));
  }

  template <bool is_signed>
  __device__ __forceinline__ void load_one(const uint8_t* codes, const float* absmax, int64_t block,
                                           const Lane& l, float x[2][4]) const {
    const bool vectors = aligned(codes, 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float scale = 128 * h < l.n ? absmax[2 * block + h] : 0.0f;
      const uint32_t word =
          load4(codes + block * (kStepBlock / 2) + byte(l, h), live_bytes(l, h), vectors);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int code = static_cast<int>(word >> (8 * j + (high(l) ? 4 : 0)) & 15u);
        x[h][j] = j < l.live(h) ? quant::map4_decode(code, is_signed, scale) : 0.0f;
      }
    }
  }
  template <bool is_signed>
  __device__ __forceinline__ void store_one(uint8_t* codes, float* absmax, int64_t block,
                                            const Lane& l, const float x[2][4]) const {
    const bool vectors = aligned(codes, 4);
    __syncwarp();  // every lane has read the old ones
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float largest = warp_largest(x[h], l.live(h), 0.0f);
      const float scale = quant::map4_absmax(quant::warp_max_magnitude(largest));
      const float inverse = quant::map4_inverse(scale, is_signed);
      if (l.lane == 0 && 128 * h < l.n) absmax[2 * block + h] = scale;
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float value = j < l.live(h) ? x[h][j] : 0.0f;
        word |= static_cast<uint32_t>(quant::map4_encode(value, is_signed, inverse)) << (8 * j);
      }
      const uint32_t other = __shfl_xor_sync(0xffffffffu, word, 4);
      if (!high(l))
        store4(codes + block * (kStepBlock / 2) + byte(l, h), live_bytes(l, h), vectors,
               word | other << 4);
    }
  }
};

}  // namespace lowtide::optim
