// SPDX-License-Identifier: Apache-2.0
// Fused AdamW over a list of tensors, with first and second moments in float32 or in the 8-bit
// dynamic map (blocks of 256: decode, update and encode in one pass; the weight sees the moments
// before they are rounded).
//
// Memory traffic a parameter: 28 bytes in float32; 16.06 with 8-bit states; 10.06 with 8-bit
// states, bfloat16 weights and gradients.
//
// Blocks of 256 elements from the start of each tensor are the unit of work and of skipping: a
// block in which a new moment would not be finite (a non-finite gradient, or one whose square
// overflows) is left alone, weight and states, and counted. A direction block that is skipped
// becomes zero.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "optim/adamw_scalar.h"
#include "optim/weight_store.h"

namespace lowtide::optim {

constexpr int64_t kAdamBlock = 256;

enum class AdamTarget : int {
  weight = 0,    // p is updated in place
  direction = 1  // p is null; g (float32) is overwritten with a * m / (sqrt(v) * s + eps)
};

struct AdamTensor {
  int64_t n = 0;
  uint32_t param = 0;  // stream of the stochastic rounding, and the global index of the first
  int64_t offset = 0;  // element in it, a multiple of kAdamBlock
  AdamTarget target = AdamTarget::weight;
  WeightStore weight_store = WeightStore::f32;
  void* p = nullptr;
  Dtype g_dtype = Dtype::f32;
  void* g = nullptr;  // written only for AdamTarget::direction
  // Either float32 moments ...
  float* m = nullptr;
  float* v = nullptr;
  // ... or 8-bit ones: m in the signed, v in the unsigned map; an absmax for each block.
  uint8_t* m_codes = nullptr;
  uint8_t* v_codes = nullptr;
  float* m_absmax = nullptr;
  float* v_absmax = nullptr;
};

// Checks and rounds the scalars: a, s, eps finite and >= 0, betas in [0, 1], decays finite.
AdamRule make_adam_rule(double a, double s, double eps, double beta1, double beta2,
                        double decay_before, double decay_after);

// Returns the number of skipped blocks. seed and step address the stochastic rounding. Tensors must
// not overlap.
int64_t adamw(const std::vector<AdamTensor>& tensors, const AdamRule& rule, uint64_t seed,
              uint64_t step);

}  // namespace lowtide::optim
