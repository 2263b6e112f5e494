// SPDX-License-Identifier: Apache-2.0
// Block codec of the 8-bit dynamic map, compatible with bitsandbytes' blockwise format: flat blocks
// of 256 elements, one uint8 code an element, one float absmax a block (the last block may be
// short). Memory traffic: 5.02 bytes an element either way.
#pragma once
#include <cstdint>

#include "quant/dynamic_map_scalar.h"

namespace lowtide::quant {

inline int64_t dynamic_blocks(int64_t n) { return (n + kDynamicBlock - 1) / kDynamicBlock; }

// codes[n], absmax[dynamic_blocks(n)]. Returns how many elements were not finite: they are coded as
// zero and do not count for absmax.
int64_t quantize_dynamic(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed);
// x[i] = value(codes[i]) * absmax[i / 256].
void dequantize_dynamic(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                        bool is_signed);

}  // namespace lowtide::quant
