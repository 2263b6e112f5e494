// SPDX-License-Identifier: Apache-2.0
// Weights moved along a random direction: out = w + scale z, and for the antithetic pair also
// minus = w - scale z, from one reading of w and one z. The product is rounded, then the sum, both
// in float32, then the sum to the type of the output, nearest even. z is element offset + i of a
// stream of random/stream.h (role z) and is never stored.
//
// Sparse-MeZO's mask (arXiv 2402.15751): where |w| > threshold, z counts as 0 and w goes through as
// it is.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "quant/group_format.h"
#include "random/distributions.h"

namespace lowtide::spsa {

using quant::FloatType;

constexpr float kNoThreshold = std::numeric_limits<float>::infinity();

// One tensor, contiguous, or the part of one that starts at its element `offset`. `out` may be w
// itself if the types agree; no other overlap.
struct Perturbation {
  void* out = nullptr;
  const void* w = nullptr;
  FloatType out_type = FloatType::f32, w_type = FloatType::f32;
  int64_t n = 0, offset = 0;
  float scale = 0;
  float threshold = kNoThreshold;
  uint32_t param = 0;
  void* minus = nullptr;  // of the type of out; nullptr: not wanted
};

// Throws lowtide::Error on sizes, a threshold or overlaps that perturb() refuses.
void check_perturbation(const Perturbation& t);

// All tensors in one parallel region. Throws lowtide::Error before anything is written.
void perturb(const std::vector<Perturbation>& tensors, uint64_t seed, uint64_t step, uint32_t slot,
             random::Dist dist);

}  // namespace lowtide::spsa
