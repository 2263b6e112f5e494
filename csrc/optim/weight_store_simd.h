// SPDX-License-Identifier: Apache-2.0
// weight_store.h on whole blocks of kWeightBlock elements, kLanes at a time. For *_simd.cc files
// only.
//
// A store is made for one block (its constructor draws the random words), then load(p, i) and
// store(p, i, x) work on elements [i, i + kLanes) of the block.
#pragma once
#include "base/simd.h"
#include "optim/weight_store.h"
#include "random/philox_simd.h"

namespace lowtide::optim {
namespace {

constexpr int kWeightBlock = 256;

struct F32Store {
  typedef float Element;
  inline __attribute__((always_inline)) F32Store(int64_t, random::Key, uint32_t) {}
  static inline __attribute__((always_inline)) vf32 load(const float* p, int i) {
    return lowtide::load<vf32>(p + i);
  }
  inline __attribute__((always_inline)) void store(float* p, int i, vf32 x) const {
    lowtide::store(p + i, x);
  }
};

struct Bf16NearestStore {
  typedef uint16_t Element;
  inline __attribute__((always_inline)) Bf16NearestStore(int64_t, random::Key, uint32_t) {}
  static inline __attribute__((always_inline)) vf32 load(const uint16_t* p, int i) {
    return bf16_to_float(lowtide::load<vu16>(p + i));
  }
  inline __attribute__((always_inline)) void store(uint16_t* p, int i, vf32 x) const {
    lowtide::store(p + i, float_to_bf16(x));
  }
};

struct Bf16StochasticStore {
  typedef uint16_t Element;
  // Elements [first, first + 256) use two tiles of 64 words: within 128 elements the first 64 take
  // the low halves, the next 64 the high ones.
  inline __attribute__((always_inline))
  Bf16StochasticStore(int64_t first, random::Key key, uint32_t param) {
    const uint64_t tile = static_cast<uint64_t>(first) / 128;
    for (int t = 0; t < 2; ++t)
      random::tile_words(tile + t, key, param, random::kRoleWeightSr, words + 64 * t);
  }
  static inline __attribute__((always_inline)) vf32 load(const uint16_t* p, int i) {
    return bf16_to_float(lowtide::load<vu16>(p + i));
  }
  inline __attribute__((always_inline)) void store(uint16_t* p, int i, vf32 x) const {
    const vu32 word = lowtide::load<vu32>(words + i / 128 * 64 + i % 64);
    const vu32 r16 = i % 128 < 64 ? word & 0xffffu : word >> 16;
    lowtide::store(p + i, float_to_bf16_sr(x, r16));
  }

  uint32_t words[128];
};

}  // namespace
}  // namespace lowtide::optim
