// SPDX-License-Identifier: Apache-2.0
// Fused optimizer steps over a list of tensors: decode the moments, apply a rule (optim/rules.h),
// encode them and move the weight, in one pass. Moments (none to three) are float32, in the 8-bit
// dynamic map (blocks of 256) or in 4 bits (blocks of 128); the weight sees them before they are
// rounded.
//
// Memory traffic a parameter with float32 weights and gradients: 12 bytes, and for each moment 8
// (float32), 2.03 (8-bit) or 1.06 (4-bit); 6 less where weights and gradients are bfloat16.
//
// Blocks of 256 elements from the start of each tensor are the unit of work and of skipping: a
// block in which a new moment would not be finite (a non-finite gradient, or one whose square
// overflows) is left alone, weight and states, and counted. A direction block that is skipped
// becomes zero.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "optim/rules.h"
#include "optim/weight_store.h"

namespace lowtide::optim {

constexpr int64_t kStepBlock = 256;

enum class StepTarget : int {
  weight = 0,    // p is updated in place
  direction = 1  // p is null; g (float32) is overwritten with the rule's direction
};

enum class StateKind : int {
  f32 = 0,
  dynamic8 = 1,  // quant/dynamic_map_scalar.h: m signed, v unsigned
  dynamic4 = 2   // quant/map4_scalar.h: m signed, v linear without zero; int4_bytes(n) bytes each
};

struct StepTensor {
  int64_t n = 0;
  uint32_t param = 0;  // stream of the stochastic rounding, and the global index of the first
  int64_t offset = 0;  // element in it, a multiple of kStepBlock
  StepTarget target = StepTarget::weight;
  WeightStore weight_store = WeightStore::f32;
  void* p = nullptr;
  Dtype g_dtype = Dtype::f32;
  void* g = nullptr;  // written only for StepTarget::direction
  // The moments, null where the rule has fewer (moment_count); m and w take both signs.
  StateKind states = StateKind::f32;
  float *m = nullptr, *v = nullptr, *w = nullptr;                       // f32
  uint8_t *m_codes = nullptr, *v_codes = nullptr, *w_codes = nullptr;   // dynamic8, dynamic4
  float *m_absmax = nullptr, *v_absmax = nullptr, *w_absmax = nullptr;  // one a state_block
};

inline int64_t state_block(StateKind kind) { return kind == StateKind::dynamic4 ? 128 : 256; }

// These check and round the scalars: a, s, eps finite and >= 0, betas in [0, 1], decays finite.
StepRule make_adam_rule(double a, double s, double eps, double beta1, double beta2,
                        double decay_before, double decay_after);
StepRule make_adabelief_rule(double a, double s, double eps, double beta1, double beta2,
                             double decay_before, double decay_after);
StepRule make_lion_rule(double a, double beta1, double beta2, double decay_before,
                        double decay_after);
// weight: of the gradient in the moment, 1 - dampening.
StepRule make_sgd_rule(double a, double momentum, double weight, bool nesterov, double decay_before,
                       double decay_after);
StepRule make_sign_rule(double a, double decay_before, double decay_after);
StepRule make_diffgrad_rule(double a, double s, double eps, double beta1, double beta2,
                            double decay_before, double decay_after);
// One of these by kind, its arguments in a list.
StepRule make_rule(int64_t kind, const std::vector<double>& scalars);

// Returns the number of skipped blocks. seed and step address the stochastic rounding. Tensors must
// not overlap.
int64_t fused_step(const std::vector<StepTensor>& tensors, const StepRule& rule, uint64_t seed,
                   uint64_t step);

}  // namespace lowtide::optim
