// SPDX-License-Identifier: Apache-2.0
// Matrix product over packed operands: C = op(A) op(B), C fp32, each operand fp32, bf16, or
// INT8, INT4 or NF4 groups, optionally transposed. Quantized operands are decoded tile by tile into
// the buffers that the micro-kernel reads anyway: the fp32 matrix never exists.
//
// Every element of C is one chain of fused multiply-adds over k = 0, 1, ... from 0, so the result
// is the same on every target, for any blocking and any number of threads (NaN payloads aside).
#pragma once
#include <cstdint>

#include "quant/matmul_scalar.h"

namespace lowtide::quant {

// Bytes of workspace that one thread may hold, whatever the sizes of the operands.
constexpr int64_t kMatmulWorkspace = 1 << 20;

// c: op(A).rows x op(B).cols, row-major, contiguous, and apart from the operands.
// Throws lowtide::Error if sizes disagree, a group is not a multiple of 32, or c overlaps.
void matmul(float* c, const Operand& a, bool ta, const Operand& b, bool tb);

// Dense operands, contiguous.
inline Operand dense(const float* data, int64_t rows, int64_t cols) {
  return {Store::f32, data, rows, cols, cols, nullptr, nullptr, 256};
}

}  // namespace lowtide::quant
