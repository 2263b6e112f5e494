// SPDX-License-Identifier: Apache-2.0
// Zeroth-order updates of INT8 and INT4 weights in place (QuZO, arXiv 2502.12346): scales stay as
// they are, codes move by whole steps, stochastically rounded. Any number of steps in one read and
// one write of the codes, bit for bit what one call for each step gives.
//
// For each element and step, acc as in spsa/replay.h:
//   steps = (code - zero) * (decay - 1) + acc / scale      [acc times the float32 inverse of scale]
//   code  = clamp(code + round(steps))
// An update is a small part of a step (of 1e-4 where INT4 weights meet MeZO's rates), so each
// element rounds with 24 bits of a word of its own (role kRoleWeightSr) instead of the 16 that
// weights in bfloat16 take: unbiased down to steps of 2^-25.
//
// Moves 2 bytes an INT8 parameter, 1 an INT4 one, and the scales.
#pragma once
#include <cstdint>
#include <vector>

#include "quant/group_codec.h"
#include "spsa/schedule.h"

namespace lowtide::spsa {

struct CodesTensor {
  quant::GroupMatrix w;  // scale and zero are only read
  uint32_t param = 0;
  int64_t offset = 0;  // global index of element [0, 0], row-major
  float scale = 1;     // of the layer: a direction is scale * z
};

// A step in units of the scale, held within what any code can move; NaN is the lower end.
LT_HD float code_steps(int k, float decay_minus_1, float acc, float inv) {
  const float s = static_cast<float>(k) * decay_minus_1 + acc * inv;
  const float up = s >= -512.0f ? s : -512.0f;
  return up <= 512.0f ? up : 512.0f;
}

// |steps| <= 512. Goes away from zero with the probability of the fraction, to 2^-24.
LT_HD int round_code(float steps, uint32_t word) {
  const float size = abs_f(steps);
  const int whole = static_cast<int>(size);
  const int fraction = to_int_rne((size - static_cast<float>(whole)) * 0x1p24f);
  const int q = whole + (static_cast<int>(word >> 8) < fraction ? 1 : 0);
  return steps < 0.0f ? -q : q;
}

void replay_codes(const std::vector<CodesTensor>& tensors, const Schedule& schedule,
                  random::Dist dist);

}  // namespace lowtide::spsa
