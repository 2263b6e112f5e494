// SPDX-License-Identifier: Apache-2.0
// The same bits as ce_rows_ref.cc. In memory bound by reading z and u twice and writing y, from
// which a row that stays in L2 takes the second reading; in cache by two exponentials an element,
// of 17 operations each.
#include "base/exp_simd.h"
#include "base/simd.h"
#include "curvature/ce_rows_order.h"
#include "curvature/ce_rows_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::curvature {
namespace {

constexpr int kVectors = kCeLanes / kLanes;

enum class Sums { one, u, uq, square, cumulant };

struct Row {
  const float *z, *u, *q;
};

// The first n (any number) of kLanes floats at p, `pad` beyond; nothing beyond is read.
LT_SIMD vf32 load_first(const float* p, int64_t n, float pad) {
  if (n >= kLanes) return load<vf32>(p);
#if defined(__AVX512F__)
  const auto live = static_cast<__mmask16>((1u << n) - 1u);
  return (vf32)_mm512_mask_loadu_ps((__m512)splat(pad), live, p);
#elif defined(__AVX2__)
  const vi32 live = (vi32)iota() < splat_i(static_cast<int32_t>(n));
  return live ? (vf32)_mm256_maskload_ps(p, (__m256i)live) : splat(pad);
#else
  vf32 x = splat(pad);
  for (int i = 0; i < kLanes; ++i)
    if (i < n) x[i] = p[i];
  return x;
#endif
}

LT_SIMD void store_first(float* p, int64_t n, vf32 x) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)x);
#elif defined(__AVX2__)
  const vi32 live = (vi32)iota() < splat_i(static_cast<int32_t>(n));
  _mm256_maskstore_ps(p, (__m256i)live, (__m256)x);
#else
  for (int i = 0; i < kLanes; ++i)
    if (i < n) p[i] = x[i];
#endif
}

// ce_fold, in vectors.
LT_SIMD float fold(const vf32* sums) {
  vf32 x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = sums[v];
#pragma GCC unroll 4
  for (int w = kVectors / 2; w >= 1; w /= 2)
    for (int v = 0; v < w; ++v) x[v] += x[v + w];
#pragma GCC unroll 4
  for (int w = kLanes / 2; w >= 1; w /= 2)
    x[0] += __builtin_shuffle(x[0], (vi32)(iota() ^ static_cast<uint32_t>(w)));
  return x[0][0];
}

LT_SIMD float largest(const Row& row, int64_t first, int64_t last) {
  vf32 m[kVectors];
  for (int v = 0; v < kVectors; ++v) m[v] = splat(-ce_infinity());
  int64_t j = first;
  for (; j + kCeLanes <= last; j += kCeLanes)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) m[v] = max_f(m[v], load<vf32>(row.z + j + v * kLanes));
  for (; j < last; j += kLanes) m[0] = max_f(m[0], load_first(row.z + j, last - j, -ce_infinity()));
  for (int v = 1; v < kVectors; ++v) m[0] = max_f(m[0], m[v]);
#pragma GCC unroll 4
  for (int w = kLanes / 2; w >= 1; w /= 2)
    m[0] = max_f(m[0], __builtin_shuffle(m[0], (vi32)(iota() ^ static_cast<uint32_t>(w))));
  return m[0][0];
}

template <Sums sums>
LT_SIMD CeBlock block(const Row& row, const CeScale& means, int64_t first, int64_t last) {
  constexpr bool kU = sums == Sums::u || sums == Sums::uq || sums == Sums::cumulant;
  constexpr bool kQ = sums == Sums::uq || sums == Sums::cumulant;
  const float m = largest(row, first, last);
  const vf32 base = splat(ce_base(m)), mean1 = splat(means.mean1), mean2 = splat(means.mean2);
  vf32 s[kVectors] = {}, t1[kVectors] = {}, t2[kVectors] = {};
  const auto add = [&](int v, vf32 z, vf32 u, vf32 q) __attribute__((always_inline)) {
    const vf32 e = exp_nonpositive(z - base);
    s[v] += e;
    if (sums == Sums::u || sums == Sums::uq) t1[v] += e * u;
    if (sums == Sums::uq) t2[v] += e * q;
    if (sums == Sums::square) t2[v] += e * e;
    if (sums == Sums::cumulant) t1[v] += e * ((u - mean1) * (q - mean2));
  };
  int64_t j = first;
  for (; j + kCeLanes <= last; j += kCeLanes)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * kLanes;
      add(v, load<vf32>(row.z + at), kU ? load<vf32>(row.u + at) : vf32{},
          kQ ? load<vf32>(row.q + at) : vf32{});
    }
    // Beyond the end: e is 0, and what it is multiplied by is 0, too.
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = j + v * kLanes, left = last - at;
    if (left > 0)
      add(v, load_first(row.z + at, left, -ce_infinity()),
          kU ? load_first(row.u + at, left, means.mean1) : vf32{},
          kQ ? load_first(row.q + at, left, means.mean2) : vf32{});
  }
  return {m, fold(s), kU ? fold(t1) : 0.0f, kQ || sums == Sums::square ? fold(t2) : 0.0f};
}

template <Sums sums>
LT_SIMD CeRow statistics(const Row& row, int64_t cols, const CeScale& means) {
  CeRow total = ce_start();
  for (int64_t first = 0; first < cols; first += kCeBlock) {
    const int64_t last = first + kCeBlock < cols ? first + kCeBlock : cols;
    ce_join(total, block<sums>(row, means, first, last), sums == Sums::square);
  }
  return total;
}

LT_SIMD Row row_of(const CeRows& a, int64_t i) {
  const int64_t at = i * a.cols;
  return {a.z + at, a.u == nullptr ? nullptr : a.u + at, a.q == nullptr ? nullptr : a.q + at};
}

// y = of(e, u, q) for each vector of the row.
template <bool kU, bool kQ, class F>
LT_SIMD void write(float* y, const Row& row, int64_t cols, const CeScale& c, const F& of) {
  if (!c.valid) {
    for (int64_t j = 0; j < cols; ++j) y[j] = ce_nan();
    return;
  }
  const vf32 base = splat(c.base);
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes)
    store(y + j, of(exp_nonpositive(load<vf32>(row.z + j) - base),
                    kU ? load<vf32>(row.u + j) : vf32{}, kQ ? load<vf32>(row.q + j) : vf32{}));
  const int64_t left = cols - j;
  if (left > 0)
    store_first(y + j, left,
                of(exp_nonpositive(load_first(row.z + j, left, -ce_infinity()) - base),
                   kU ? load_first(row.u + j, left, 0.0f) : vf32{},
                   kQ ? load_first(row.q + j, left, 0.0f) : vf32{}));
}

constexpr CeScale kNoMeans = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, true};

void product_simd(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Row row = row_of(a, i);
    const CeScale c = ce_scale(statistics<Sums::u>(row, a.cols, kNoMeans), a.r[i]);
    const vf32 scale = splat(c.scale), mean = splat(c.mean1);
    write<true, false>(
        y + i * a.cols, row, a.cols, c, [&](vf32 e, vf32 u, vf32) __attribute__((always_inline)) {
          return (e * scale) * (u - mean);
        });
  }
}

void cumulant_simd(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Row row = row_of(a, i);
    CeScale c = ce_scale(statistics<Sums::uq>(row, a.cols, kNoMeans), a.r[i]);
    const CeScale joint = ce_scale(statistics<Sums::cumulant>(row, a.cols, c), a.r[i]);
    c.valid = c.valid && joint.valid;
    const vf32 scale = splat(c.scale), mean1 = splat(c.mean1), mean2 = splat(c.mean2);
    const vf32 mean = splat(joint.mean1);
    write<true, true>(
        y + i * a.cols, row, a.cols, c, [&](vf32 e, vf32 u, vf32 q) __attribute__((always_inline)) {
          return (e * scale) * ((u - mean1) * (q - mean2) - mean);
        });
  }
}

void diagonal_simd(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Row row = row_of(a, i);
    const CeScale c = ce_scale(statistics<Sums::one>(row, a.cols, kNoMeans), a.r[i]);
    const vf32 scale = splat(c.scale), inverse = splat(c.inverse);
    write<false, false>(
        y + i * a.cols, row, a.cols, c, [&](vf32 e, vf32, vf32) __attribute__((always_inline)) {
          return (e * scale) * (1.0f - e * inverse);
        });
  }
}

void weighted_simd(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Row row = row_of(a, i);
    const CeScale c = ce_scale(statistics<Sums::one>(row, a.cols, kNoMeans), a.r[i]);
    const vf32 scale = splat(c.scale);
    write<false, false>(
        y + i * a.cols, row, a.cols,
        c, [&](vf32 e, vf32, vf32) __attribute__((always_inline)) { return e * scale; });
  }
}

void trace_simd(float* y, const CeRows& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    y[i] = a.cols == 0
               ? 0.0f
               : ce_trace_of(statistics<Sums::square>(row_of(a, i), a.cols, kNoMeans), a.r[i]);
}

}  // namespace

extern const CeTable LT_CAT(ce_rows_, LT_ISA);
const CeTable LT_CAT(ce_rows_, LT_ISA) = {product_simd, cumulant_simd, diagonal_simd, weighted_simd,
                                          trace_simd};

}  // namespace lowtide::curvature
