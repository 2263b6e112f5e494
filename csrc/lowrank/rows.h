// SPDX-License-Identifier: Apache-2.0
// Rows of stored matrices as floats, and their squares.
#pragma once
#include "lowrank/floats.h"
#include "quant/matmul_scalar.h"

namespace lowtide::lowrank {

// Row i of g: where it lies, or decoded into the buffer.
inline const float* row_of(const quant::Operand& g, int64_t i, Floats& buffer) {
  if (g.store == quant::Store::f32) return static_cast<const float*>(g.data) + i * g.stride;
  buffer.resize(static_cast<size_t>(g.cols));
  if (g.store == quant::Store::bf16) {
    const uint16_t* p = static_cast<const uint16_t*>(g.data) + i * g.stride;
    for (int64_t j = 0; j < g.cols; ++j) buffer[static_cast<size_t>(j)] = bf16_to_float(p[j]);
  } else {
    for (int64_t j = 0; j < g.cols; ++j)
      buffer[static_cast<size_t>(j)] = quant::operand_at(g, i, j);
  }
  return buffer.data();
}

// Eight lanes of doubles, added in fixed order.
inline double square_sum(const float* x, int64_t n) {
  double lane[8] = {};
  int64_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (int j = 0; j < 8; ++j) lane[j] += static_cast<double>(x[k + j]) * x[k + j];
  for (int j = 0; k + j < n; ++j) lane[j] += static_cast<double>(x[k + j]) * x[k + j];
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}
inline double square_sum(const Floats& x) {
  return square_sum(x.data(), static_cast<int64_t>(x.size()));
}

}  // namespace lowtide::lowrank
