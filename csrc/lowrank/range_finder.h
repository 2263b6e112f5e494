// SPDX-License-Identifier: Apache-2.0
// Randomized SVD (Halko, Martinsson and Tropp 2011) and its warm start: an orthonormal basis of the
// leading singular directions of a gradient, for projected optimizers (GaLore 2, arXiv 2504.20437).
//
// G is m x n. Side right: basis Q is r x n and G ~ (G Q') Q; side left: r x m and G ~ Q' (Q G). The
// basis is always stored r x d with its long side last. All arithmetic is float chains of fma
// (quant/matmul.h) and double in fixed order: the same bits on every target, for any threads.
//
// Products with G are nearly all of the cost. Where its other side is long, they start on a folded
// G (fold.h) that costs a fraction of it, and end with an iteration on the whole.
#pragma once
#include <cstdint>

#include "quant/matmul_scalar.h"
#include "random/philox.h"

namespace lowtide::lowrank {

enum class Side : int { right = 0, left = 1 };

// What rank is clamped to: the rows of the basis.
int64_t basis_rows(const quant::Operand& g, int64_t rank);
inline int64_t basis_cols(const quant::Operand& g, Side side) {
  return side == Side::right ? g.cols : g.rows;
}

struct RangeFinder {
  int64_t rank = 1;
  int64_t oversample = 8;
  // Products with G'G after the sketch, at least: spectra so flat that the last one gained much
  // energy get one more. 0: two passes over G, 1: three, 2: five.
  int64_t power_iters = 1;
};

// Rows of q (basis_rows x basis_cols) in the order of singular values. The sketch has the
// address of `stream`. A zero matrix gives an orthonormal basis too. Throws lowtide::Error for
// rank < 1 and for non-finite g; q is unchanged then.
void find_range(float* q, const quant::Operand& g, Side side, const RangeFinder& how,
                const random::Stream& stream);

// Subspace iterations from `prev` (basis_rows x basis_cols, roughly orthonormal; may be q): one if
// prev still holds nine tenths of the energy, else one on the folded G and up to three on the
// whole, until the gain is small; then the orthonormal basis of the new subspace that is closest to
// prev (orthogonal Procrustes): row i keeps its meaning and its sign, so that moments held in the
// old basis stay valid.
void track_range(float* q, const quant::Operand& g, Side side, const RangeFinder& how,
                 const float* prev, const random::Stream& stream);

}  // namespace lowtide::lowrank
