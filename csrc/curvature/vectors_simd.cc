// SPDX-License-Identifier: Apache-2.0
// The same bits as vectors_ref.cc. Compiled once per ISA with LT_ISA naming the table. Bound by
// memory: 16 floats of a dot take eight conversions and additions on two ports, four cycles for 128
// bytes, which no cache beyond the first delivers faster.
#include "curvature/rows_simd.h"
#include "curvature/vectors_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::curvature {
namespace {

template <class X, class Y>
LT_SIMD void dot_32(Sums& sums, const X* x, const Y* y) {
#pragma GCC unroll 8
  for (int b = 0; b < 32; b += kLanes) sums.add_products(b, load_row(x + b), load_row(y + b));
}

template <class X, class Y>
double dot_of(const DotPair& t, int64_t begin, int64_t end) {
  const X* x = static_cast<const X*>(t.x);
  const Y* y = static_cast<const Y*>(t.y);
  Sums sums;
  int64_t i = begin;
  for (; i + 32 <= end; i += 32) {
    prefetch_32(x + i);
    prefetch_32(y + i);
    dot_32(sums, x + i, y + i);
  }
  if (i < end) {
    X xs[32];
    Y ys[32];
    copy_in(xs, x + i, end - i);
    copy_in(ys, y + i, end - i);
    dot_32(sums, xs, ys);
  }
  return sums.fold();
}

template <bool kKeep, class Y, class X>
LT_SIMD void axpby_32(Y* y, const X* x, float a, float b) {
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const vf32 add = b * load_row(x + j);
    store_row(y + j, kKeep ? a * load_row(y + j) + add : add);
  }
}

template <bool kKeep, class Y, class X>
void axpby_of(const AxpbyPair& t, float a, float b, int64_t begin, int64_t end) {
  Y* y = static_cast<Y*>(t.y);
  const X* x = static_cast<const X*>(t.x);
  int64_t i = begin;
  for (; i + 32 <= end; i += 32) axpby_32<kKeep>(y + i, x + i, a, b);
  if (i < end) {
    Y ys[32];
    X xs[32];
    copy_in(ys, y + i, end - i);
    copy_in(xs, x + i, end - i);
    axpby_32<kKeep>(ys, xs, a, b);
    copy_out(y + i, ys, end - i);
  }
}

template <bool kQ>
LT_SIMD void finish_32(Sums& squares, Sums& products, float* plus, const float* minus,
                       const float* q, float scale) {
#pragma GCC unroll 8
  for (int b = 0; b < 32; b += kLanes) {
    const vf32 v = (load_row(plus + b) - load_row(minus + b)) * scale;
    store_row(plus + b, v);
    squares.add_products(b, v, v);
    if constexpr (kQ) products.add_products(b, v, load_row(q + b));
  }
}

template <bool kQ>
void finish_of(double* out, const Difference& d, int64_t begin, int64_t end) {
  Sums squares, products;
  int64_t i = begin;
  for (; i + 32 <= end; i += 32) {
    prefetch_32(d.plus + i);
    prefetch_32(d.minus + i);
    if constexpr (kQ) prefetch_32(d.q + i);
    finish_32<kQ>(squares, products, d.plus + i, d.minus + i, kQ ? d.q + i : nullptr, d.scale);
  }
  if (i < end) {
    float plus[32], minus[32], q[32];
    copy_in(plus, d.plus + i, end - i);
    copy_in(minus, d.minus + i, end - i);
    if constexpr (kQ) copy_in(q, d.q + i, end - i);
    finish_32<kQ>(squares, products, plus, minus, q, d.scale);
    copy_out(d.plus + i, plus, end - i);
  }
  out[0] = squares.fold();
  out[1] = products.fold();
}

double dot_simd(const DotPair& t, int64_t begin, int64_t end) {
  const bool x32 = t.x_dtype == Dtype::f32, y32 = t.y_dtype == Dtype::f32;
  if (x32)
    return y32 ? dot_of<float, float>(t, begin, end) : dot_of<float, uint16_t>(t, begin, end);
  return y32 ? dot_of<uint16_t, float>(t, begin, end) : dot_of<uint16_t, uint16_t>(t, begin, end);
}

template <bool kKeep>
void axpby_any(const AxpbyPair& t, float a, float b, int64_t begin, int64_t end) {
  const bool x32 = t.x_dtype == Dtype::f32;
  if (t.y_dtype == Dtype::f32) {
    if (x32) return axpby_of<kKeep, float, float>(t, a, b, begin, end);
    return axpby_of<kKeep, float, uint16_t>(t, a, b, begin, end);
  }
  if (x32) return axpby_of<kKeep, uint16_t, float>(t, a, b, begin, end);
  axpby_of<kKeep, uint16_t, uint16_t>(t, a, b, begin, end);
}

void axpby_simd(const AxpbyPair& t, float a, float b, int64_t begin, int64_t end) {
  if (a != 0.0f) return axpby_any<true>(t, a, b, begin, end);
  axpby_any<false>(t, a, b, begin, end);
}

void fd_finish_simd(double* out, const Difference& d, int64_t begin, int64_t end) {
  if (d.q != nullptr) return finish_of<true>(out, d, begin, end);
  finish_of<false>(out, d, begin, end);
}

}  // namespace

extern const VectorsTable LT_CAT(vectors_, LT_ISA);
const VectorsTable LT_CAT(vectors_, LT_ISA) = {dot_simd, axpby_simd, fd_finish_simd};

}  // namespace lowtide::curvature
