// SPDX-License-Identifier: Apache-2.0
// Orthonormal Walsh-Hadamard transform of the lines of a matrix, with signs: the random rotation of
// a subsampled randomized Hadamard transform (Ailon and Chazelle 2009; Tropp 2011).
//
// Lines are rows (n = cols) or columns (n = rows). With h the largest power of two <= n and
// H[i, j] = (-1)^popcount(i & j) / sqrt(h) on h values (Sylvester's order):
//
//   s = H D0 x                              n = h
//   s = H(values n - h .. n - 1) D1 H(values 0 .. h - 1) D0 x      otherwise
//
// D0, D1 multiply by the signs. Lines whose length is no power of two are not padded: the two spans
// overlap (2 h > n), so that the transform is orthogonal for every n and no memory is added. One
// order of operations on every target. A line of zeros gives zeros, exactly. Non-finite values
// spoil their own line. Error: log2(h) / 2 + 1 units of the last place of the line's norm, a span.
//
// forward: 4 + 4 count / n bytes an element, inverse the same.
#pragma once
#include <cstdint>

#include "lowrank/dct.h"

namespace lowtide::lowrank {

// Longest line.
constexpr int64_t kFwhtMost = int64_t{1} << 20;

// Spans of a line of n values: 1 if n is a power of two, else 2.
int fwht_spans(int64_t n);

// What values are multiplied by before each span, fwht_spans(n) x n: the signs (+1 or -1; null: all
// +1) with 1 / sqrt(h) inside of the span. For a device; on the CPU the transforms make it.
void make_fwht_factors(float* factors, int64_t n, const float* signs);

// The coefficients index[0 .. count) of each line: out is rows x count (lines are rows) or count x
// cols. index: ascending, in [0, n); null with count = n for all. signs: fwht_spans(n) x n, each
// +1 or -1, or null.
void fwht_forward(float* out, const DctMatrix& x, const float* signs, const int32_t* index,
                  int64_t count);

// out: the matrix whose lines have these coefficients and zeros elsewhere. low: as fwht_forward's
// out.
void fwht_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                  const float* signs, const int32_t* index, int64_t count);

}  // namespace lowtide::lowrank
