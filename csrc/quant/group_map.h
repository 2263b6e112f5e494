// SPDX-License-Identifier: Apache-2.0
// Quantize and dequantize matrices in groups along their rows with fixed levels: NF4, the dynamic
// maps of 4 and of 8 bits, and 4-bit linear without zero. Codes are laid out as those of INT4 and
// INT8 (group_format.h); one scale a group, no zero points. Numerics and levels:
// group_map_scalar.h. One row in groups of 256 is the format of bitsandbytes and of the 8-bit
// optimizer states.
//
// Either way moves 4.5 or 5 bytes an element and a scale a group (fp32).
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

// x: rows x cols of `type`, contiguous; out.shape.bits must be map_bits(map) and out.zero
// null. Returns the
// number of non-finite elements: they count as 0. Throws lowtide::Error on an impossible argument.
int64_t quantize_map(const void* x, FloatType type, LevelMap map, const GroupMatrix& out,
                     const MapOptions& options);

void dequantize_map(const ConstGroupMatrix& in, LevelMap map, void* out, FloatType type);

}  // namespace lowtide::quant
