// SPDX-License-Identifier: Apache-2.0
// Quantize and dequantize matrices in groups along their rows with 16 fixed levels: NF4, the 4-bit
// dynamic maps, and 4-bit linear without zero. One code a nibble, laid out as INT4
// (group_format.h); one scale a group, no zero points. Numerics and levels: group_map_scalar.h.
//
// Either way moves 4.5 bytes an element and a scale a group (fp32).
#pragma once
#include "quant/group_codec.h"
#include "quant/group_map_scalar.h"

namespace lowtide::quant {

struct MapOptions {
  Rounding rounding = Rounding::nearest;
  random::Stream stream{};  // stochastic only
  int64_t offset = 0;       // global index of element [0, 0], row-major: addresses the noise
  bool bf16_scale = false;  // scales that bfloat16 holds exactly, and codes computed with them
};

// x: rows x cols of `type`, contiguous; out.shape.bits must be 4 and out.zero null. Returns the
// number of non-finite elements: they count as 0. Throws lowtide::Error on an impossible argument.
int64_t quantize_map(const void* x, FloatType type, LevelMap map, const GroupMatrix& out,
                     const MapOptions& options);

void dequantize_map(const ConstGroupMatrix& in, LevelMap map, void* out, FloatType type);

}  // namespace lowtide::quant
