// SPDX-License-Identifier: Apache-2.0
// Quantize and dequantize matrices in groups along their rows: 8 or 4 bits, symmetric or
// asymmetric, nearest or stochastic rounding, fp32, bf16 or fp16 on the other side. Numerics:
// group_codec_scalar.h; storage: group_format.h.
//
// Quantize must move 4 + bits/8 bytes an element (fp32), dequantize as many: a group's extremes and
// its codes are taken in one pass from memory, the second look at the group is served by L1.
#pragma once
#include <cstdint>

#include "quant/group_format.h"
#include "random/philox.h"

namespace lowtide::quant {

// Where a quantized matrix lies. zero == nullptr: symmetric. Contiguous:
// codes[rows][row_bytes(shape)], scale[rows][groups_per_row(shape)], zero likewise.
struct GroupMatrix {
  uint8_t* codes = nullptr;
  float* scale = nullptr;
  uint8_t* zero = nullptr;
  GroupShape shape;
};
struct ConstGroupMatrix {
  const uint8_t* codes = nullptr;
  const float* scale = nullptr;
  const uint8_t* zero = nullptr;
  GroupShape shape;
};

struct QuantizeOptions {
  Rounding rounding = Rounding::nearest;
  Range range = Range::tight;  // compat needs zero
  random::Stream stream{};     // stochastic only
  int64_t offset = 0;          // global index of element [0, 0], row-major: addresses the noise
  bool bf16_scale = false;     // scales that bfloat16 holds exactly, and codes computed with them
};

// Throws lowtide::Error on an impossible shape.
void check_shape(const GroupShape& shape);

// x: rows x cols of `type`, contiguous. Returns the number of non-finite elements: they count
// as 0.
int64_t quantize_groups(const void* x, FloatType type, const GroupMatrix& out,
                        const QuantizeOptions& options);

// Non-finite elements among n: for callers that must change nothing when there are any.
int64_t count_nonfinite(const void* x, FloatType type, int64_t n);

void dequantize_groups(const ConstGroupMatrix& in, void* out, FloatType type);

}  // namespace lowtide::quant
