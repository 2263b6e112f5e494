// SPDX-License-Identifier: Apache-2.0
// Zeroth-order updates: w' = w * decay + sum_j c_j z_j, z_j drawn again from its address, for one
// step or for any number of them in one read and one write of the weights: what an element becomes
// depends on no other element, so a tile goes through all steps before it is stored. Bit for bit
// what one call for each step gives, and what any cut into shards gives.
//
// Moves 8 bytes a float32 parameter, 4 a bfloat16 or float16 one, whatever the number of steps.
#pragma once
#include <cstdint>
#include <vector>

#include "quant/group_format.h"
#include "spsa/schedule.h"

namespace lowtide::spsa {

using quant::FloatType;

struct ReplayTensor {
  int64_t n = 0;
  uint32_t param = 0;
  int64_t offset = 0;  // global index of the first element
  FloatType type = FloatType::f32;
  float scale = 1;      // of the layer: a direction is scale * z
  float threshold = 0;  // z counts where |w| <= threshold at the start of a step; infinity: always
  float floor = 0;      // w' is at least this; -infinity: none
  void* w = nullptr;
};

// The end of a step: acc is the sum of its directions as a chain of fma, in order.
LT_HD float stepped(float w, float acc, float decay, float threshold, float floor) {
  const float moved = w * decay + (abs_f(w) <= threshold ? acc : 0.0f);
  return moved < floor ? floor : moved;
}

LT_HD float load_master(const void* w, FloatType type, int64_t i) {
  if (type == FloatType::f32) return static_cast<const float*>(w)[i];
  const uint16_t h = static_cast<const uint16_t*>(w)[i];
  return type == FloatType::bf16 ? bf16_to_float(h) : half_to_float(h);
}
// What a master of this type holds after a step; r16 rounds the 16-bit ones stochastically.
LT_HD float rounded_master(float x, FloatType type, uint32_t r16) {
  return type == FloatType::f32    ? x
         : type == FloatType::bf16 ? bf16_to_float(float_to_bf16_sr(x, r16))
                                   : half_to_float(float_to_half_sr(x, r16));
}
// x is a value that the type holds.
LT_HD void store_master(void* w, FloatType type, int64_t i, float x) {
  if (type == FloatType::f32)
    static_cast<float*>(w)[i] = x;
  else
    static_cast<uint16_t*>(w)[i] = type == FloatType::bf16 ? float_to_bf16(x) : float_to_half(x);
}

void replay(const std::vector<ReplayTensor>& tensors, const Schedule& schedule, random::Dist dist);

}  // namespace lowtide::spsa
