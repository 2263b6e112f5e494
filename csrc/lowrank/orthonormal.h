// SPDX-License-Identifier: Apache-2.0
// Orthonormal rows: Cholesky-QR twice (Yamamoto et al. 2015) with Gram matrices in double, which
// costs two products; Householder where the rows are too dependent for it.
#pragma once
#include <cstdint>

#include "lowrank/floats.h"

namespace lowtide::lowrank {

// g = L L' for a rows x rows Gram matrix (overwritten): inverse receives L^-1, lower triangular,
// zeros above. False, and inverse undefined, if a row lies within 1e-6 (the sine) of the span of
// those above it.
bool cholesky_inverse(double* g, int64_t rows, double* inverse);

// Every row times a power of two that brings its largest element to [1/2, 1); zero rows stay.
void scale_rows(Floats& y, int64_t rows, int64_t depth);

// One pass of Cholesky-QR: y = L^-1 y. False, and y unchanged, if the rows are too dependent.
bool cholesky_pass(Floats& y, int64_t rows, int64_t depth);

// The rows of y (rows x depth, rows <= depth, finite) become orthonormal: row i lies in the span of
// rows 0 .. i, on the side of row i. Dependent rows are replaced by a completion. Entries of
// Q Q' - I stay within a few 1e-7.
void orthonormalize(Floats& y, int64_t rows, int64_t depth);

// The Householder form alone: works for any rows, in double, several times slower.
void orthonormalize_householder(float* y, int64_t rows, int64_t depth);

// c = a b; a: rows x inner, rounded to float; b: inner x cols.
void multiply_small(Floats& c, const double* a, int64_t rows, int64_t inner, const float* b,
                    int64_t cols);

}  // namespace lowtide::lowrank
