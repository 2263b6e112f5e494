// SPDX-License-Identifier: Apache-2.0
// The vector algebra of Krylov methods and finite differences over lists of tensors: one parallel
// region a call, each element read once. Tensors are contiguous, float32 or bfloat16; arithmetic is
// in float32, sums are in double over exact products, in the order of sums.h.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/hd.h"

namespace lowtide::curvature {

struct DotPair {
  const void* x = nullptr;
  const void* y = nullptr;  // may be x
  Dtype x_dtype = Dtype::f32, y_dtype = Dtype::f32;
  int64_t n = 0;
};

struct AxpbyPair {  // y lies apart from all other tensors
  void* y = nullptr;
  const void* x = nullptr;
  Dtype y_dtype = Dtype::f32, x_dtype = Dtype::f32;
  int64_t n = 0;
};

// plus, minus and q lie apart.
struct Difference {
  float* plus = nullptr;
  const float* minus = nullptr;
  const float* q = nullptr;  // nullptr: not wanted
  int64_t n = 0;
  float scale = 1;
};

LT_HD float axpby_at(float a, float y, float b, float x) {
  const float add = b * x;
  return a == 0.0f ? add : a * y + add;
}

// Throw lowtide::Error where memory that is written is shared; the functions on CPU tensors do so
// themselves.
void check_apart(const std::vector<AxpbyPair>& pairs);
void check_apart(const Difference& d);

// out[t] = <x, y> of each pair.
void dot(double* out, const std::vector<DotPair>& pairs);
// y = a y + b x: products and sum are rounded, to bfloat16 by one more rounding, nearest even. With
// a = 0 y is not read.
void axpby(const std::vector<AxpbyPair>& pairs, float a, float b);
// plus = (plus - minus) scale; out[0] = |plus|², out[1] = <plus, q> or 0, of the new plus.
void fd_finish(double* out, const Difference& d);

}  // namespace lowtide::curvature
