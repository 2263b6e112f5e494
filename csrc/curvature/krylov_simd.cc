// SPDX-License-Identifier: Apache-2.0
// The same bits as krylov_ref.cc. Compiled once per ISA with LT_ISA naming the table.
//
// Bound by reading the basis. On AVX-512 16 floats take a load, a multiply and an addition, one
// cycle for 64 bytes; bfloat16 two operations more for half the bytes; INT8 three more (extend,
// subtract, convert) for a quarter of them: 2.5 cycles for 16 bytes on two ports, about what one
// core gets from memory. A few rows at a time share the loads of w and hide the latency of the
// additions.
#include "base/simd.h"
#include "curvature/krylov_order.h"
#include "curvature/krylov_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::curvature {
namespace {

constexpr int kParts = kKrylovLanes / kLanes;  // vectors that hold the lanes of a row
#if defined(__AVX512F__)
constexpr int kDotRows = 4;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kDotRows = 2;
#else
constexpr int kDotRows = 1;
#endif
constexpr int kSubtractRows = 8;  // w is loaded and stored once for them

LT_SIMD vf32 raw(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 raw(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD vf32 raw(const uint8_t* p) { return to_float(load_bytes(p) - 128); }

template <class T>
constexpr bool kScaled = sizeof(T) == 1;
// What adds nothing: the number that pads a row.
template <class T>
constexpr T kZero = static_cast<T>(kScaled<T> ? 128 : 0);

LT_SIMD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Some rows of one tile of n columns; scale: of the first group, `groups` apart from row to row.
template <class T, int R>
LT_SIMD void dot_tile(double* c, const T* rows, int64_t stride, const float* scale, int64_t groups,
                      const float* w, int64_t n) {
  vf32 total[R][kParts] = {};
  for (int64_t g = 0; g < n; g += kKrylovGroup, ++scale) {
    const int64_t end = smaller(n, g + kKrylovGroup);
    vf32 lane[R][kParts] = {};
    int64_t k = g;
    for (; k + kKrylovLanes <= end; k += kKrylovLanes)
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) {
        const vf32 x = load<vf32>(w + k + p * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) lane[r][p] += raw(rows + r * stride + k + p * kLanes) * x;
      }
    if (k < end) {
      float x[kKrylovLanes] = {};
      for (int64_t i = k; i < end; ++i) x[i - k] = w[i];
      for (int r = 0; r < R; ++r) {
        T q[kKrylovLanes];
        for (int64_t i = 0; i < kKrylovLanes; ++i)
          q[i] = i < end - k ? rows[r * stride + k + i] : kZero<T>;
        for (int p = 0; p < kParts; ++p)
          lane[r][p] += raw(q + p * kLanes) * load<vf32>(x + p * kLanes);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) {
        if constexpr (kScaled<T>)
          total[r][p] += splat(scale[r * groups]) * lane[r][p];
        else
          total[r][p] += lane[r][p];
      }
  }
  for (int r = 0; r < R; ++r) {
    float lanes[kKrylovLanes];
    for (int p = 0; p < kParts; ++p) store(lanes + p * kLanes, total[r][p]);
    c[r] += krylov_fold(lanes);
  }
}

template <class T, int R>
LT_SIMD void dot_rows(double* c, const Basis& q, int64_t row, const float* w, int64_t begin,
                      int64_t end) {
  const int64_t groups = krylov_groups(q.n);
  const T* rows = static_cast<const T*>(q.data) + row * q.n;
  const float* scale = kScaled<T> ? q.scale + row * groups : nullptr;
  for (int64_t tile = begin; tile < end; tile += kKrylovTile)
    dot_tile<T, R>(c + row, rows + tile, q.n, kScaled<T> ? scale + tile / kKrylovGroup : nullptr,
                   groups, w + tile, smaller(kKrylovTile, end - tile));
}

template <class T>
void dots_of(double* c, const Basis& q, const float* w, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + kDotRows <= q.rows; row += kDotRows) dot_rows<T, kDotRows>(c, q, row, w, begin, end);
  for (; row < q.rows; ++row) dot_rows<T, 1>(c, q, row, w, begin, end);
}

template <class T, int R>
LT_SIMD void subtract_rows(float* w, const Basis& q, int64_t row, const float* c, int64_t begin,
                           int64_t end) {
  const int64_t groups = krylov_groups(q.n);
  const T* rows = static_cast<const T*>(q.data) + row * q.n;
  for (int64_t g = begin; g < end; g += kKrylovGroup) {
    float f[R];
    for (int r = 0; r < R; ++r) {
      f[r] = c[row + r];
      if constexpr (kScaled<T>) f[r] *= q.scale[(row + r) * groups + g / kKrylovGroup];
    }
    const int64_t last = smaller(end, g + kKrylovGroup);
    int64_t k = g;
    for (; k + kKrylovLanes <= last; k += kKrylovLanes) {
      vf32 x[kParts];
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) x[p] = load<vf32>(w + k + p * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T* p = rows + r * q.n + k;
        // Rows lie far apart: what comes next in each is not what the hardware expects.
        constexpr int64_t kBytes = kKrylovLanes * static_cast<int64_t>(sizeof(T));
#pragma GCC unroll 2
        for (int64_t line = 0; line < kBytes; line += 64)
          prefetch(p, R * q.n * static_cast<int64_t>(sizeof(T)) + line);
#pragma GCC unroll 8
        for (int v = 0; v < kParts; ++v) x[v] -= splat(f[r]) * raw(p + v * kLanes);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) store(w + k + p * kLanes, x[p]);
    }
    for (; k < last; ++k)
      for (int r = 0; r < R; ++r) w[k] = w[k] - f[r] * krylov_raw(rows + r * q.n, k);
  }
}

template <class T>
void subtract_of(float* w, const Basis& q, const float* c, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + kSubtractRows <= q.rows; row += kSubtractRows)
    subtract_rows<T, kSubtractRows>(w, q, row, c, begin, end);
  for (; row < q.rows; ++row) subtract_rows<T, 1>(w, q, row, c, begin, end);
}

void dots_simd(double* c, const Basis& q, const float* w, int64_t begin, int64_t end) {
  if (q.type == BasisType::f32) return dots_of<float>(c, q, w, begin, end);
  if (q.type == BasisType::bf16) return dots_of<uint16_t>(c, q, w, begin, end);
  dots_of<uint8_t>(c, q, w, begin, end);
}

void subtract_simd(float* w, const Basis& q, const float* c, int64_t begin, int64_t end) {
  if (q.type == BasisType::f32) return subtract_of<float>(w, q, c, begin, end);
  if (q.type == BasisType::bf16) return subtract_of<uint16_t>(w, q, c, begin, end);
  subtract_of<uint8_t>(w, q, c, begin, end);
}

}  // namespace

extern const KrylovTable LT_CAT(krylov_, LT_ISA);
const KrylovTable LT_CAT(krylov_, LT_ISA) = {dots_simd, subtract_simd};

}  // namespace lowtide::curvature
