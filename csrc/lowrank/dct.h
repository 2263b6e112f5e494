// SPDX-License-Identifier: Apache-2.0
// Orthonormal DCT-II of the lines of a matrix, by a fast transform of any length (DCT subspaces:
// arXiv 2505.17967; their basis is a choice of coefficients):
//
//   s[k] = sqrt(2 / n) cos(pi (2 c + 1) k / (2 n)) x[c], summed over c, times sqrt(1/2) for k = 0
//
// Lines are rows (n = cols) or columns (n = rows). A line of zeros gives zeros, exactly. Non-finite
// values spoil their own line. One order of operations on every target. Error: a few units of the
// last place of the line's norm; about (f / 2 + 3) of them for a prime factor f of n.
//
// forward: 4 + 4 count / n bytes an element, inverse the same, power 4.
#pragma once
#include <cstdint>

#include "quant/group_format.h"

namespace lowtide::lowrank {

enum class Lines : int { rows = 0, columns = 1 };
// What dct_power adds up.
enum class Power : int { magnitude = 1, square = 2 };

// Longest line.
constexpr int64_t kDctMost = int64_t{1} << 20;

// Floats in the table of constants of length n, and the table itself, for a device; 1 <= n <=
// kDctMost. On the CPU the tables of the lengths in use are made once and kept.
int64_t dct_table_size(int64_t n);
void make_dct_table(float* table, int64_t n);

// x: rows x cols, contiguous, f32 or bf16.
struct DctMatrix {
  const void* x;
  quant::FloatType type;
  int64_t rows, cols;
  Lines lines;
};

// The coefficients index[0 .. count) of each line: out is rows x count (lines are rows) or count x
// cols. index: ascending, in [0, n); null with count = n for all.
void dct_forward(float* out, const DctMatrix& x, const int32_t* index, int64_t count);

// sums[k] = sum over the lines of |s[k]| or s[k]^2, k = 0 .. n - 1. Lines in order by 16 lanes,
// which are folded; blocks of 128 lines are added in double.
void dct_power(float* sums, const DctMatrix& x, Power power);

// out: the matrix whose lines have these coefficients and zeros elsewhere. low: as dct_forward's
// out.
void dct_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                 const int32_t* index, int64_t count);

}  // namespace lowtide::lowrank
