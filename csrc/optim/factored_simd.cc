// SPDX-License-Identifier: Apache-2.0
// The same bits as factored_ref.cc, 16 elements at a time. Sums of squares are bound by memory with
// AVX-512 (of 16 elements: two conversions, four additions, two loads and stores of column sums in
// L1); the scaled gradient reads, converts and adds back what it has just stored.
#include "base/doubles_simd.h"
#include "optim/factored_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

constexpr int kVectors = kRowLanes / kWide;

constexpr int kRowVectors = kRowLanes / kLanes;

// Sixteen elements of a row; zeros from `live`.
template <class Element>
LT_SIMD void load_row(const Element* p, int64_t live, vf32* x) {
  Element part[kRowLanes] = {};
  if (live < kRowLanes) {
    for (int64_t k = 0; k < live; ++k) part[k] = p[k];
    p = part;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kRowVectors; ++j) {
    if constexpr (sizeof(Element) == 4)
      x[j] = load<vf32>(p + j * kLanes);
    else
      x[j] = bf16_to_float(load<vu16>(p + j * kLanes));
  }
}

LT_SIMD double folded(const vd* sum) {
  double lane[kRowLanes];
  for (int v = 0; v < kVectors; ++v) store_d(lane + v * kWide, sum[v]);
  return fold_row(lane);
}

template <class Element>
void squares_of(double* row, double* col, const RowMatrix& g, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Element* p = static_cast<const Element*>(g.data) + i * g.cols;
    vd sum[kVectors] = {};
    for (int64_t k = 0; k < g.cols; k += kRowLanes) {
      const int64_t live = g.cols - k;
      vf32 x[kRowVectors];
      load_row(p + k, live, x);
      vd square[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const vd wide = widened(x[v / 2], v % 2);
        square[v] = wide * wide;
        sum[v] += square[v];
      }
      if (col == nullptr) continue;
      if (live >= kRowLanes) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          store_d(col + k + v * kWide, load_d(col + k + v * kWide) + square[v]);
      } else {
        double part[kRowLanes];
        for (int v = 0; v < kVectors; ++v) store_d(part + v * kWide, square[v]);
        for (int64_t j = 0; j < live; ++j) col[k + j] += part[j];
      }
    }
    row[i] = folded(sum);
  }
}

void squares_simd(double* row, double* col, const RowMatrix& g, int64_t begin, int64_t end) {
  if (g.dtype == Dtype::f32)
    squares_of<float>(row, col, g, begin, end);
  else
    squares_of<uint16_t>(row, col, g, begin, end);
}

template <class X, class Y>
void dots_of(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const X* px = static_cast<const X*>(x.data) + i * x.cols;
    const Y* py = static_cast<const Y*>(y.data) + i * x.cols;
    vd sum[kVectors] = {};
    for (int64_t k = 0; k < x.cols; k += kRowLanes) {
      vf32 a[kRowVectors], b[kRowVectors];
      load_row(px + k, x.cols - k, a), load_row(py + k, x.cols - k, b);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[v] = add_product(sum[v], widened(a[v / 2], v % 2), widened(b[v / 2], v % 2));
    }
    out[i] = folded(sum);
  }
}

template <class X>
void dots_with(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end) {
  if (y.dtype == Dtype::f32)
    dots_of<X, float>(out, x, y, begin, end);
  else
    dots_of<X, uint16_t>(out, x, y, begin, end);
}

void dots_simd(double* out, const RowMatrix& x, const RowMatrix& y, int64_t begin, int64_t end) {
  if (x.dtype == Dtype::f32)
    dots_with<float>(out, x, y, begin, end);
  else
    dots_with<uint16_t>(out, x, y, begin, end);
}

LT_SIMD vf32 capped(vf32 x, float cap) {
  const vu32 over = (vu32)(x > cap);
  return as_f((as_u(splat(cap)) & over) | (as_u(x) & ~over));
}

template <class Element, bool columns>
void scale_of(float* u, double* sums, const RowMatrix& g, const float* r, const float* c, float cap,
              int64_t begin, int64_t end) {
  const int64_t cols = g.cols;
  for (int64_t i = begin; i < end; ++i) {
    const Element* p = static_cast<const Element*>(g.data) + i * cols;
    float* q = u + i * cols;
    const float row = r[i];
    vd sum[kVectors] = {};
    for (int64_t k = 0; k < cols; k += kRowLanes) {
      const int64_t live = cols - k;
      vf32 x[kRowVectors], by[kRowVectors];
      load_row(p + k, live, x);
      if (columns) load_row(c + k, live, by);
#pragma GCC unroll 4
      for (int j = 0; j < kRowVectors; ++j)
        x[j] = x[j] * capped(columns ? row * by[j] : splat(row), cap);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const vd wide = widened(x[v / 2], v % 2);
        sum[v] = add_product(sum[v], wide, wide);
      }
      if (live >= kRowLanes) {
#pragma GCC unroll 4
        for (int j = 0; j < kRowVectors; ++j) store(q + k + j * kLanes, x[j]);
      } else {
        float out[kRowLanes];
        for (int j = 0; j < kRowVectors; ++j) store(out + j * kLanes, x[j]);
        for (int64_t j = 0; j < live; ++j) q[k + j] = out[j];
      }
    }
    sums[i] = folded(sum);
  }
}

template <class Element>
void scale_of(float* u, double* sums, const RowMatrix& g, const float* r, const float* c, float cap,
              int64_t begin, int64_t end) {
  return c == nullptr ? scale_of<Element, false>(u, sums, g, r, c, cap, begin, end)
                      : scale_of<Element, true>(u, sums, g, r, c, cap, begin, end);
}

void scale_simd(float* u, double* sums, const RowMatrix& g, const float* r, const float* c,
                float cap, int64_t begin, int64_t end) {
  return g.dtype == Dtype::f32 ? scale_of<float>(u, sums, g, r, c, cap, begin, end)
                               : scale_of<uint16_t>(u, sums, g, r, c, cap, begin, end);
}

template <class Element>
void shear_of(float* u, const float* c, const RowMatrix& w, int64_t begin, int64_t end) {
  const int64_t cols = w.cols;
  for (int64_t i = begin; i < end; ++i) {
    const Element* p = static_cast<const Element*>(w.data) + i * cols;
    float* q = u + i * cols;
    for (int64_t k = 0; k < cols; k += kRowLanes) {
      const int64_t live = cols - k;
      vf32 x[kRowVectors], y[kRowVectors];
      load_row(p + k, live, x), load_row(q + k, live, y);
      float out[kRowLanes];
      float* to = live >= kRowLanes ? q + k : out;
#pragma GCC unroll 4
      for (int j = 0; j < kRowVectors; ++j) store(to + j * kLanes, y[j] - c[i] * x[j]);
      if (live < kRowLanes)
        for (int64_t j = 0; j < live; ++j) q[k + j] = out[j];
    }
  }
}

void shear_simd(float* u, const float* c, const RowMatrix& w, int64_t begin, int64_t end) {
  if (w.dtype == Dtype::f32)
    shear_of<float>(u, c, w, begin, end);
  else
    shear_of<uint16_t>(u, c, w, begin, end);
}

void multiply_simd(float* u, const float* c, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float* q = u + i * cols;
    int64_t k = 0;
    for (; k + kLanes <= cols; k += kLanes) store(q + k, c[i] * load<vf32>(q + k));
    for (; k < cols; ++k) q[k] = c[i] * q[k];
  }
}

}  // namespace

extern const FactoredTable LT_CAT(factored_, LT_ISA);
const FactoredTable LT_CAT(factored_, LT_ISA) = {squares_simd, dots_simd, scale_simd, shear_simd,
                                                 multiply_simd};

}  // namespace lowtide::optim
