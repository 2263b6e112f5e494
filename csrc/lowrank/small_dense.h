// SPDX-License-Identifier: Apache-2.0
// Double-precision building blocks for the few hundred rows of a basis: Gram matrices and the row
// operations of factorizations. All are elementwise or sums in a fixed order, multiply then add, so
// that factorizations written on them give the same bits on every target.
#pragma once
#include <cstdint>

namespace lowtide::lowrank {

// g[i, j] = sum_k y[i, k] y[j, k] in double, full symmetric rows x rows matrix. Products of floats
// are exact in double; columns are cut into chunks by constants, chunk sums are chains over k,
// added in order. y: rows x depth, row-major, contiguous.
void gram(double* g, const float* y, int64_t rows, int64_t depth);

// The active ISA's row operations. x, y and z must not overlap unless they are the same row.
struct RowOps {
  // y += a x
  void (*axpy)(double* y, double a, const double* x, int64_t n);
  // y = (y + a x) + b z
  void (*axpy2)(double* y, double a, const double* x, double b, const double* z, int64_t n);
  // Plane rotations of neighbouring rows of z (stride ld), for i = last, last - 1, ..., first:
  //   z[i + 1], z[i] = s z[i] + c z[i + 1], c z[i] - s z[i + 1]   with c[i], s[i]
  void (*rotate)(double* z, int64_t ld, int64_t n, const double* c, const double* s, int64_t first,
                 int64_t last);
  // 16 lane sums (element k goes to lane k % 16), folded by halves.
  double (*dot)(const double* x, const double* y, int64_t n);
};
const RowOps& row_ops();

// Householder: turns x (m >= 1 values) into v, v[0] = 1, and returns beta such that
// (I - beta v v') x = norm e1. norm >= 0 unless x[1 ..] is zero already (then beta is 0, norm
// x[0]).
double reflector(double* x, int64_t m, double* norm, const RowOps& ops);

}  // namespace lowtide::lowrank
