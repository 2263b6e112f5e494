// SPDX-License-Identifier: Apache-2.0
// Where the fused step reads gradients and puts directions, kLanes elements at a time. For
// *_simd.cc files only.
#pragma once
#include "optim/fused_step.h"
#include "optim/weight_store_simd.h"

namespace lowtide::optim {
namespace {

struct F32Gradient {
  typedef float Element;
  static inline __attribute__((always_inline)) vf32 load(const float* g) {
    return lowtide::load<vf32>(g);
  }
};

struct Bf16Gradient {
  typedef uint16_t Element;
  static inline __attribute__((always_inline)) vf32 load(const uint16_t* g) {
    return bf16_to_float(lowtide::load<vu16>(g));
  }
};

// A target is made for one block; put(p, i, direction) serves elements [i, i + kLanes) of it.
// Into the weight ...
template <class Store>
struct WeightTarget {
  typedef typename Store::Element Element;

  static inline Element* data(const StepTensor& t) { return static_cast<Element*>(t.p); }
  inline __attribute__((always_inline)) WeightTarget(int64_t first, random::Key key, uint32_t param)
      : store(first, key, param) {}
  inline __attribute__((always_inline)) void put(Element* p, int i, vf32 direction,
                                                 const StepRule& rule) const {
    vf32 weight = Store::load(p, i) * rule.decay_before - direction;
    if (rule.decay_after != 1.0f) weight = weight * rule.decay_after;
    store.store(p, i, weight);
  }
  static inline void skip(Element*) {}

  Store store;
};

// ... or over the gradient.
struct DirectionTarget {
  typedef float Element;

  static inline float* data(const StepTensor& t) { return static_cast<float*>(t.g); }
  inline __attribute__((always_inline)) DirectionTarget(int64_t, random::Key, uint32_t) {}
  inline __attribute__((always_inline)) void put(float* r, int i, vf32 direction,
                                                 const StepRule&) const {
    lowtide::store(r + i, direction);
  }
  static inline void skip(float* r) {
    for (int i = 0; i < kWeightBlock; i += kLanes) lowtide::store(r + i, vf32{});
  }
};

}  // namespace
}  // namespace lowtide::optim
