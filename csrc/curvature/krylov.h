// SPDX-License-Identifier: Apache-2.0
// Gram-Schmidt against a Krylov basis stored as float32, bfloat16 or INT8, and the three-term step
// of Lanczos. Numerics: krylov_order.h, the same bits on every target and for any number of
// threads.
//
// Classical Gram-Schmidt, twice, reads the basis four times: coefficients, subtraction, and both
// again. Here the second coefficients are taken tile by tile right after the subtraction, while the
// tile is in L2: two reads, and a third only where those coefficients say that it is needed.
#pragma once
#include <cstdint>

namespace lowtide::curvature {

// f32 and bf16: one number an element. int8: code - 128 times the scale of its group of 256, a row
// starting a new group (quant/group_format.h, symmetric).
enum class BasisType : int { f32 = 0, bf16 = 1, int8 = 2 };

struct Basis {  // rows x n, row-major, contiguous
  const void* data = nullptr;
  const float* scale = nullptr;  // int8: rows x ceil(n / 256)
  BasisType type = BasisType::f32;
  int64_t rows = 0, n = 0;
};

struct Projection {
  double before = 0, after = 0;  // squares of the norm of w
  double left = 0;  // of the norm of the coefficients after the last pass that took any
  int passes = 0;   // subtractions: 1 or 2
};

// c[i] = <q_i, w>.
void basis_dots(double* c, const Basis& q, const float* w);

// w -= Q' (Q w), a second time if what is left along the basis exceeds `again` times what is left
// of w. c: the sums of the coefficients of all passes, q.rows doubles. Throws lowtide::Error on an
// impossible argument.
Projection project(double* c, const Basis& q, float* w, double again);

struct LanczosStep {
  double alpha = 0, norm2 = 0;
};

// w -= beta * previous (none: nullptr); alpha = <w, q>; w -= alpha * q; the square of w's norm.
LanczosStep lanczos_step(float* w, const float* q, const float* previous, double beta, int64_t n);

}  // namespace lowtide::curvature
