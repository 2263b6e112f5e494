// SPDX-License-Identifier: Apache-2.0
// The orthonormal basis of a subspace that is closest to another basis.
#pragma once
#include <cstdint>

#include "lowrank/floats.h"

namespace lowtide::lowrank {

// Rows that are orthonormal to about 1e-4 become so to a few 1e-7. False, and y unchanged, if they
// are further off.
bool polish(Floats& y, int64_t rows, int64_t depth);

// w (r x r, singular values up to 1) becomes its orthogonal polar factor. False, and w undefined,
// if some are too near zero.
bool polar(Floats& w, int64_t r);

// Rows y (r x d), none nearly dependent on the others, become the orthonormal basis of their
// subspace that is closest to prev: orthogonal Procrustes. Where a direction of prev is orthogonal
// to all of y there is no closest one, and the rows are orthonormalised as they are.
void align(Floats& y, int64_t r, int64_t d, const float* prev);

}  // namespace lowtide::lowrank
