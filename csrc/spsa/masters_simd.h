// SPDX-License-Identifier: Apache-2.0
// Masters of each type, kLanes at a time. For *_simd.cc files only. rounded() is what a master
// holds after a step (rounded_master of spsa/replay.h); store() takes such a value, store_nearest()
// any.
#pragma once
#include "base/simd.h"

namespace lowtide::spsa {
namespace {

struct F32Master {
  typedef float Element;
  static constexpr bool kRounds = false;
  static inline vf32 load(const float* p) { return lowtide::load<vf32>(p); }
  static inline void store(float* p, vf32 x) { lowtide::store(p, x); }
  static inline void store_nearest(float* p, vf32 x) { lowtide::store(p, x); }
  static inline vf32 rounded(vf32 x, vu32) { return x; }
};

struct Bf16Master {
  typedef uint16_t Element;
  static constexpr bool kRounds = true;
  static inline vf32 load(const uint16_t* p) { return bf16_to_float(lowtide::load<vu16>(p)); }
  static inline void store(uint16_t* p, vf32 x) {
    lowtide::store(p, __builtin_convertvector(as_u(x) >> 16, vu16));
  }
  static inline void store_nearest(uint16_t* p, vf32 x) { lowtide::store(p, float_to_bf16(x)); }
  // bf16_to_float(float_to_bf16_sr(x, r16)) without narrowing in between.
  static inline vf32 rounded(vf32 x, vu32 r16) {
    const vu32 u = as_u(x);
    const vu32 quiet = (u & 0x7fffffffu) > splat_u(0x7f800000u) ? u | 0x400000u : u;
    const vu32 bits = (u & 0x7f800000u) == splat_u(0x7f800000u) ? quiet : u + r16;
    return as_f(bits & 0xffff0000u);
  }
};

struct HalfMaster {
  typedef uint16_t Element;
  static constexpr bool kRounds = true;
  static inline vf32 load(const uint16_t* p) { return half_to_float(lowtide::load<vu16>(p)); }
  static inline void store(uint16_t* p, vf32 x) { lowtide::store(p, float_to_half(x)); }
  static inline void store_nearest(uint16_t* p, vf32 x) { lowtide::store(p, float_to_half(x)); }
  static inline vf32 rounded(vf32 x, vu32 r16) { return half_to_float(float_to_half_sr(x, r16)); }
};

}  // namespace
}  // namespace lowtide::spsa
