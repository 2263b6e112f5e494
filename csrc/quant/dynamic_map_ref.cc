// SPDX-License-Identifier: Apache-2.0
// The scalar definition of the block codec.
#include "quant/dynamic_map_table.h"

namespace lowtide::quant {
namespace {

int64_t quantize_ref(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed) {
  int64_t nonfinite = 0;
  for (int64_t at = 0; at < n; at += kDynamicBlock) {
    const int64_t end = at + kDynamicBlock < n ? at + kDynamicBlock : n;
    float largest = 0.0f;
    for (int64_t i = at; i < end; ++i) {
      if (!is_finite(x[i]))
        ++nonfinite;
      else if (abs_f(x[i]) > largest)
        largest = abs_f(x[i]);
    }
    absmax[at / kDynamicBlock] = dynamic_absmax(largest);
    const float inverse = dynamic_inverse(absmax[at / kDynamicBlock]);
    for (int64_t i = at; i < end; ++i)
      codes[i] = dynamic_encode(kDynamic, is_finite(x[i]) ? x[i] : 0.0f, is_signed, inverse);
  }
  return nonfinite;
}

void dequantize_ref(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                    bool is_signed) {
  for (int64_t i = 0; i < n; ++i)
    x[i] = dynamic_decode(kDynamic, codes[i], is_signed, absmax[i / kDynamicBlock]);
}

}  // namespace

const DynamicMapTable dynamic_map_scalar = {quantize_ref, dequantize_ref};

}  // namespace lowtide::quant
