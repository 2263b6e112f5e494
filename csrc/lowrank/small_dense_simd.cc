// SPDX-License-Identifier: Apache-2.0
// Gram: columns are transposed to doubles once a block, then 8 x 2-vector register tiles of the
// lower triangle; double multiply-adds are the limit. The row operations stream rows of at most a
// few kilobytes from L1 and L2.
#include "base/doubles_simd.h"
#include "base/transpose_simd.h"
#include "lowrank/small_dense_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::lowrank {
namespace {

typedef float vh __attribute__((vector_size(2 * LT_LANES)));
typedef int64_t vl __attribute__((vector_size(4 * LT_LANES), unused));

LT_SIMD vd splat_d(double x) { return x - vd{}; }

// The first n < kWide elements, zeros beyond; nothing else is touched. Rows of small matrices are
// mostly tails.
LT_SIMD vd load_part_d(const double* p, int64_t n) {
#if defined(__AVX512F__)
  return (vd)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p);
#elif defined(__AVX2__)
  const vl mask = vl{0, 1, 2, 3} < n;
  return (vd)_mm256_maskload_pd(p, (__m256i)mask);
#else
  vd v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
LT_SIMD void store_part_d(double* p, vd v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), (__m512d)v);
#elif defined(__AVX2__)
  const vl mask = vl{0, 1, 2, 3} < n;
  _mm256_maskstore_pd(p, (__m256i)mask, (__m256d)v);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

constexpr int kTile = kLanes == 4 ? 4 : 8;  // rows; 2 kTile accumulators

void gram_tile(double* g, int64_t ldg, const double* t, int64_t ld, int64_t i, int64_t j,
               int64_t depth) {
  vd acc[kTile][2];
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < 2; ++v) acc[r][v] = load_d(g + (i + r) * ldg + j + v * kWide);
  for (int64_t k = 0; k < depth; ++k) {
    const vd b0 = load_d(t + k * ld + j), b1 = load_d(t + k * ld + j + kWide);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      const vd a = splat_d(t[k * ld + i + r]);
      acc[r][0] = add_product(acc[r][0], a, b0);
      acc[r][1] = add_product(acc[r][1], a, b1);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r)
    for (int v = 0; v < 2; ++v) store_d(g + (i + r) * ldg + j + v * kWide, acc[r][v]);
}

LT_SIMD vf32 load_part(const float* p, int64_t n) {
  if (n >= kLanes) return load<vf32>(p);
  vf32 v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

void gram_block_simd(double* g, const float* y, int64_t ld, int64_t rows, int64_t depth,
                     int64_t padded, double* t) {
  for (int64_t k = 0; k < depth; k += kLanes)
    for (int64_t r = 0; r < padded; r += kLanes) {
      vf32 v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        v[i] = r + i < rows ? load_part(y + (r + i) * ld + k, depth - k) : vf32{};
      transpose(v);
      const int64_t width = depth - k < kLanes ? depth - k : kLanes;
      for (int64_t i = 0; i < width; ++i) {
        float buffer[kLanes];
        store(buffer, v[i]);
        for (int h = 0; h < 2; ++h) {
          vh half;
          __builtin_memcpy(&half, buffer + h * kWide, sizeof half);
          store_d(t + (k + i) * padded + r + h * kWide, __builtin_convertvector(half, vd));
        }
      }
    }
  for (int64_t i = 0; i < padded; i += kTile)
    for (int64_t j = 0; j < i + kTile; j += 2 * kWide) gram_tile(g, padded, t, padded, i, j, depth);
}

void axpy_simd(double* y, double a, const double* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) store_d(y + i, load_d(y + i) + a * load_d(x + i));
  if (i < n) store_part_d(y + i, load_part_d(y + i, n - i) + a * load_part_d(x + i, n - i), n - i);
}

void axpy2_simd(double* y, double a, const double* x, double b, const double* z, int64_t n) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide)
    store_d(y + i, (load_d(y + i) + a * load_d(x + i)) + b * load_d(z + i));
  if (i < n) {
    const int64_t m = n - i;
    const vd v = load_part_d(y + i, m) + a * load_part_d(x + i, m);
    store_part_d(y + i, v + b * load_part_d(z + i, m), m);
  }
}

// Down the rows with the lower row of the next rotation kept in registers: one load and one store
// a rotation.
template <int V>
LT_SIMD void rotate_columns(double* z, int64_t ld, const double* c, const double* s, int64_t first,
                            int64_t last) {
  vd lower[V];
  for (int v = 0; v < V; ++v) lower[v] = load_d(z + (last + 1) * ld + v * kWide);
  for (int64_t i = last; i >= first; --i)
    for (int v = 0; v < V; ++v) {
      const vd upper = load_d(z + i * ld + v * kWide);
      store_d(z + (i + 1) * ld + v * kWide, s[i] * upper + c[i] * lower[v]);
      lower[v] = c[i] * upper - s[i] * lower[v];
    }
  for (int v = 0; v < V; ++v) store_d(z + first * ld + v * kWide, lower[v]);
}

void rotate_simd(double* z, int64_t ld, int64_t n, const double* c, const double* s, int64_t first,
                 int64_t last) {
  if (last < first) return;
  int64_t k = 0;
  for (; k + 4 * kWide <= n; k += 4 * kWide) rotate_columns<4>(z + k, ld, c, s, first, last);
  for (; k + kWide <= n; k += kWide) rotate_columns<1>(z + k, ld, c, s, first, last);
  for (; k < n; ++k) {
    double lower = z[(last + 1) * ld + k];
    for (int64_t i = last; i >= first; --i) {
      const double upper = z[i * ld + k];
      z[(i + 1) * ld + k] = s[i] * upper + c[i] * lower;
      lower = c[i] * upper - s[i] * lower;
    }
    z[first * ld + k] = lower;
  }
}

double dot_simd(const double* x, const double* y, int64_t n) {
  constexpr int kVecs = kDotLanes / kWide;
  vd sum[kVecs] = {};
  int64_t i = 0;
  for (; i + kDotLanes <= n; i += kDotLanes)
    for (int v = 0; v < kVecs; ++v)
      sum[v] = sum[v] + load_d(x + i + v * kWide) * load_d(y + i + v * kWide);
  for (int v = 0; v < kVecs && i < n; ++v, i += kWide) {
    const bool whole = n - i >= kWide;
    sum[v] = sum[v] + (whole ? load_d(x + i) * load_d(y + i)
                             : load_part_d(x + i, n - i) * load_part_d(y + i, n - i));
  }
  double lane[kDotLanes];
  for (int v = 0; v < kVecs; ++v) store_d(lane + v * kWide, sum[v]);
  return fold_lanes(lane);
}

}  // namespace

extern const SmallDenseTable LT_CAT(small_dense_, LT_ISA);
const SmallDenseTable LT_CAT(small_dense_, LT_ISA) = {
    gram_block_simd, {axpy_simd, axpy2_simd, rotate_simd, dot_simd}};

}  // namespace lowtide::lowrank
