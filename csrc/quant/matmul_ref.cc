// SPDX-License-Identifier: Apache-2.0
// The scalar definition: three loops over the operands as they are stored, nothing packed.
#include "quant/matmul_table.h"

namespace lowtide::quant {
namespace {

void pack_nothing(const Product&, const Block&, float*) {}

void multiply_ref(const Product& p, const Block& b, const float*, const float*) {
  for (int64_t i = b.i0; i < b.i0 + b.rows; ++i)
    for (int64_t j = b.j0; j < b.j0 + b.cols; ++j) {
      float* c = p.c + i * p.cols + j;
      *c = matmul_chain(b.k0 == 0 ? 0.0f : *c, p.a, p.ta, p.b, p.tb, i, j, b.k0, b.k0 + b.depth);
    }
}

void vector_ref(const VectorProduct& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float acc = 0;
    for (int64_t k = 0; k < p.depth; ++k)
      acc = fma_rn(p.down ? operand_at(p.m, k, i) : operand_at(p.m, i, k), p.x[k], acc);
    p.y[i] = acc;
  }
}

}  // namespace

const MatmulTable matmul_scalar = {pack_nothing, pack_nothing, multiply_ref, vector_ref};

}  // namespace lowtide::quant
