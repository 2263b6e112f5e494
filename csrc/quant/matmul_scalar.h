// SPDX-License-Identifier: Apache-2.0
// One element of a product of packed operands: the definition that every target reproduces bit for
// bit.
#pragma once
#include "quant/group_map_scalar.h"

namespace lowtide::quant {

enum class Store : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, nf4 = 4 };

// A row-major matrix as it lies in memory. For int8, int4 and nf4 `data` holds the codes of
// group_format.h, `stride` is the bytes of a row, and `zero` may be null (symmetric; nf4: must).
struct Operand {
  Store store = Store::f32;
  const void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // elements (f32, bf16) or bytes (int8, int4) from row to row
  const float* scale = nullptr;
  const uint8_t* zero = nullptr;
  int64_t group = 256;
};

LT_HD int store_bits(Store s) { return s == Store::int4 || s == Store::nf4 ? 4 : 8; }

constexpr LevelTable kNf4Levels = make_level_table(LevelMap::nf4);
#if defined(__CUDACC__)
static __constant__ const LevelTable kNf4Constant = make_level_table(LevelMap::nf4);
#endif
LT_HD float nf4_level(int code) {
#if defined(__CUDA_ARCH__)
  return kNf4Constant.level[code];
#else
  return kNf4Levels.level[code];
#endif
}

LT_HD float operand_at(const Operand& m, int64_t row, int64_t col) {
  if (m.store == Store::f32) return static_cast<const float*>(m.data)[row * m.stride + col];
  if (m.store == Store::bf16)
    return bf16_to_float(static_cast<const uint16_t*>(m.data)[row * m.stride + col]);
  const int bits = store_bits(m.store);
  const int64_t g = row * ((m.cols + m.group - 1) / m.group) + col / m.group;
  const int code = get_code(static_cast<const uint8_t*>(m.data) + row * m.stride, col, bits);
  if (m.store == Store::nf4) return nf4_level(code) * m.scale[g];
  return decode(code, m.zero != nullptr ? m.zero[g] : symmetric_zero(bits), m.scale[g]);
}

// op(A)[i, 0..depth) . op(B)[0..depth, j]: one chain of fused multiply-adds in the order of k.
LT_HD float matmul_chain(float acc, const Operand& a, bool ta, const Operand& b, bool tb, int64_t i,
                         int64_t j, int64_t k0, int64_t k1) {
  for (int64_t k = k0; k < k1; ++k) {
    const float x = ta ? operand_at(a, k, i) : operand_at(a, i, k);
    const float y = tb ? operand_at(b, j, k) : operand_at(b, k, j);
    acc = fma_rn(x, y, acc);
  }
  return acc;
}

}  // namespace lowtide::quant
