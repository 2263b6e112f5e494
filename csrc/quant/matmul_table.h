// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the matrix product. Internal to csrc/quant.
#pragma once
#include "base/isa.h"
#include "quant/matmul_scalar.h"

namespace lowtide::quant {

struct Product {
  Operand a, b;
  bool ta, tb;
  int64_t rows, cols, depth;  // of C: rows x cols, chains of `depth`
  float* c;
};

// Depth of one pass; a packed row of A is kDepthStride long, so that the rows of a strip fall on
// different cache sets.
constexpr int64_t kDepth = 256;
constexpr int64_t kDepthStride = kDepth + 16;
// The smaller side of a range is held packed (up to kHeld wide), the other passes in blocks.
constexpr int64_t kHeld = 512;
constexpr int64_t kPassRows = 112;  // eight full strips of 14
constexpr int64_t kPassCols = 128;
// With few rows a panel is used once or twice: it should not leave L1.
constexpr int64_t kPassFew = 32;
// Sizes of blocks of A and B stay multiples of this, so that vectors of codes never straddle a
// group.
constexpr int64_t kUnit = 16;

struct Block {
  int64_t i0, rows, j0, cols, k0, depth;
};

// y = M x or M' x for a dense matrix (f32, bf16).
struct VectorProduct {
  Operand m;
  bool down;  // k runs down the rows of m (M'), not along them
  const float* x;
  int64_t depth;
  float* y;
};

struct MatmulTable {
  // Rows [i0, i0 + rows) x [k0, k0 + depth) of op(A), row-major with stride kDepthStride.
  void (*pack_a)(const Product& p, const Block& b, float* packed);
  // Columns [j0, j0 + cols) x [k0, k0 + depth) of op(B) in panels; cols rounded up to kUnit.
  void (*pack_b)(const Product& p, const Block& b, float* packed);
  // Continues (k0 > 0) or starts the chains of a block of C.
  void (*multiply)(const Product& p, const Block& b, const float* a, const float* bp);
  // Elements [begin, end) of y.
  void (*vector)(const VectorProduct& p, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(MatmulTable, matmul);

}  // namespace lowtide::quant
