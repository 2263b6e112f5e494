// SPDX-License-Identifier: Apache-2.0
// The numbers and orders of factored.h, shared by every target: IEEE double and float, one rounding
// an operation.
#pragma once
#include "base/hd.h"

namespace lowtide::optim {

constexpr int kRowLanes = 16;

// The sum of 16 lanes, by halves.
LT_HD double fold_row(double* lane) {
  for (int w = kRowLanes / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] = lane[i] + lane[i + w];
  return lane[0];
}

// Rows whose columns are summed in one chain: about 64 k elements, but not so few that sums by
// column, one set a chunk, outweigh the matrix.
LT_HD int64_t chunk_rows(int64_t cols) {
  const int64_t rows = 65536 / (cols > 1 ? cols : 1);
  return rows < 16 ? 16 : (rows > 4096 ? 4096 : rows);
}
LT_HD int64_t chunk_count(int64_t rows, int64_t cols) {
  const int64_t each = chunk_rows(cols);
  return (rows + each - 1) / each;
}

// The larger of two numbers would hide a NaN: what is not above the cap is as it was.
LT_HD float capped(float x, float cap) { return x > cap ? cap : x; }

LT_HD double root_d(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}
LT_HD double quotient_d(double x, double y) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(x, y);
#else
  return x / y;
#endif
}

constexpr double kMostFloat = 3.4028234663852886e38, kTinyFloat = 1.1754943508222875e-38;

// 1 / sqrt(x), at most the largest float.
LT_HD float inverse_root(double x) {
  constexpr double kLeast = 1.0 / (kMostFloat * kMostFloat);
  const double y = quotient_d(1.0, root_d(x > kLeast ? x : kLeast));
  return static_cast<float>(y < kMostFloat ? y : kMostFloat);
}

// A second moment after one step; the sum of squares of `count` elements.
LT_HD float averaged(float old, double sum, int64_t count, double beta2, double eps) {
  const double square = quotient_d(sum, static_cast<double>(count)) + eps;
  return static_cast<float>(beta2 * static_cast<double>(old) + (1.0 - beta2) * square);
}
LT_HD bool is_moment(float x) { return float_bits(x) < 0x7f800000u; }

// By what a row is divided: the mean of the second moments of all rows, from their sum.
LT_HD double row_mean(double sum, int64_t rows, double least) {
  const double mean = quotient_d(sum, static_cast<double>(rows));
  const double floor = least > kTinyFloat ? least : kTinyFloat;
  return mean > floor ? mean : floor;
}

// What the direction is multiplied by, from the sum of its squares: 1 unless it is too long.
LT_HD float shrinkage(double total, double count, double threshold) {
  const double excess = quotient_d(root_d(quotient_d(total, count)), threshold);
  return excess > 1.0 ? static_cast<float>(quotient_d(1.0, excess)) : 1.0f;
}

LT_HD float block_factor(float v, double a, double s, double eps) {
  const double root = root_d(static_cast<double>(v)) * s + (eps > kTinyFloat ? eps : kTinyFloat);
  const double factor = quotient_d(a, root);
  return static_cast<float>(factor < kMostFloat ? factor : kMostFloat);
}

}  // namespace lowtide::optim
