// SPDX-License-Identifier: Apache-2.0
// The same bits as channel_energy_ref.cc. Bound by reading the matrix: 16 floats take two
// conversions to double, two multiply-adds and (columns) a sixteenth of the traffic of their sums,
// 3 cycles on two 512-bit ports, less than caches beyond L2 deliver 64 bytes in. A product of two
// floats is exact in double, so one rounding or two is the same.
#include "base/doubles_simd.h"
#include "optim/channel_energy_order.h"
#include "optim/channel_energy_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

typedef float vh __attribute__((vector_size(2 * LT_LANES)));

LT_SIMD vd add_square(vd acc, const float* x) {
  vh half;
  __builtin_memcpy(&half, x, sizeof half);
  const vd v = __builtin_convertvector(half, vd);
  return add_product(acc, v, v);
}

// n <= kPart floats of either type at p, zeros beyond.
constexpr int kPart = 32;
LT_SIMD const float* floats_at(const float* p, int64_t n, float* buffer) {
  if (n >= kPart) return p;
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  for (int64_t i = n; i < kPart; ++i) buffer[i] = 0.0f;
  return buffer;
}
LT_SIMD const float* floats_at(const uint16_t* p, int64_t n, float* buffer) {
  if (n >= kPart) {
    for (int i = 0; i < kPart; i += kLanes) store(buffer + i, bf16_to_float(load<vu16>(p + i)));
    return buffer;
  }
  for (int64_t i = 0; i < n; ++i) buffer[i] = bf16_to_float(p[i]);
  for (int64_t i = n; i < kPart; ++i) buffer[i] = 0.0f;
  return buffer;
}

template <class T>
void rows_of(double* energy, const EnergyMatrix& m, int64_t begin, int64_t end) {
  constexpr int kParts = kEnergyLanes / kWide;
  static_assert(kPart == kEnergyLanes);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(m.x) + i * m.cols;
    vd acc[kParts] = {};
    for (int64_t j = 0; j < m.cols; j += kEnergyLanes) {
      float buffer[kPart];
      const float* x = floats_at(row + j, m.cols - j, buffer);
#pragma GCC unroll 16
      for (int p = 0; p < kParts; ++p) acc[p] = add_square(acc[p], x + p * kWide);
    }
    double lanes[kEnergyLanes];
    for (int p = 0; p < kParts; ++p) store_d(lanes + p * kWide, acc[p]);
    energy[i] = fold_lanes(lanes);
  }
}

// kRows rows of kPart columns at a time: their sums are loaded and stored once.
template <int kRows, class T>
LT_SIMD void add_rows(double* sums, const T* x, int64_t ld, int64_t n) {
  for (int64_t j = 0; j < n; j += kPart) {
    float buffer[kRows][kPart];
    const float* at[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) at[r] = floats_at(x + r * ld + j, n - j, buffer[r]);
    if (n - j >= kPart) {
#pragma GCC unroll 16
      for (int p = 0; p < kPart; p += kWide) {
        vd acc = load_d(sums + j + p);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) acc = add_square(acc, at[r] + p);
        store_d(sums + j + p, acc);
      }
    } else {
      for (int64_t p = 0; p < n - j; ++p)
        for (int r = 0; r < kRows; ++r) sums[j + p] += square_d(at[r][p]);
    }
  }
}

template <class T>
void columns_of(double* sums, const EnergyMatrix& m, int64_t begin, int64_t end, int64_t first,
                int64_t last) {
  constexpr int kRows = 8;
  for (int64_t j = first; j < last; ++j) sums[j] = 0.0;
  const T* x = static_cast<const T*>(m.x) + first;
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows)
    add_rows<kRows>(sums + first, x + i * m.cols, m.cols, last - first);
  for (; i < end; ++i) add_rows<1>(sums + first, x + i * m.cols, m.cols, last - first);
}

void rows_simd(double* energy, const EnergyMatrix& m, int64_t begin, int64_t end) {
  if (m.dtype == Dtype::f32) return rows_of<float>(energy, m, begin, end);
  rows_of<uint16_t>(energy, m, begin, end);
}

void columns_simd(double* sums, const EnergyMatrix& m, int64_t begin, int64_t end, int64_t first,
                  int64_t last) {
  if (m.dtype == Dtype::f32) return columns_of<float>(sums, m, begin, end, first, last);
  columns_of<uint16_t>(sums, m, begin, end, first, last);
}

}  // namespace

extern const EnergyTable LT_CAT(channel_energy_, LT_ISA);
const EnergyTable LT_CAT(channel_energy_, LT_ISA) = {rows_simd, columns_simd};

}  // namespace lowtide::optim
