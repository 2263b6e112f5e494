// SPDX-License-Identifier: Apache-2.0
// Eigenvalues and eigenvectors of a small symmetric matrix in double precision.
#pragma once
#include <cstdint>

namespace lowtide::lowrank {

// a: n x n symmetric, row-major, overwritten. values: n, descending. vectors: n x n, row i is the
// unit eigenvector of values[i]. Residual and orthogonality within a few n 2^-53 |a|. Throws
// lowtide::Error if the QL iteration does not converge (non-finite input).
void symmetric_eigen(double* a, int64_t n, double* values, double* vectors);

}  // namespace lowtide::lowrank
