// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the dynamic-map codec: runs of whole blocks, the last of which may be
// short. Internal to csrc/quant.
#pragma once
#include "base/isa.h"
#include "quant/dynamic_map.h"

namespace lowtide::quant {

struct DynamicMapTable {
  int64_t (*quantize)(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed);
  void (*dequantize)(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                     bool is_signed);
};

LT_DECLARE_TABLES(DynamicMapTable, dynamic_map);

}  // namespace lowtide::quant
