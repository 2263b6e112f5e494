// SPDX-License-Identifier: Apache-2.0
// A dense matrix times one vector, with the chains of matmul_scalar.h. For matmul_simd.cc only.
//
// Nothing is packed: the matrix is read once, in order. Where k runs along its rows, eight of them
// are added to a stripe of results that stays in L1; where it runs along columns, tiles are
// transposed in registers so that lanes are rows: 64 shuffles for 256 elements, about what caches
// beyond L2 take to deliver them.
#pragma once
#include "base/transpose_simd.h"
#include "quant/matmul_table.h"

namespace lowtide::quant {
namespace {

LT_SIMD vf32 load_floats(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 load_floats(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD float load_float(const float* p) { return *p; }
LT_SIMD float load_float(const uint16_t* p) { return bf16_to_float(*p); }

// y[0, n) continues its chains over kDeep rows of m.
template <int kDeep, class T>
LT_SIMD void add_deep(float* y, const T* m, int64_t stride, const float* x, int64_t n) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    vf32 acc = load<vf32>(y + j);
#pragma GCC unroll 8
    for (int d = 0; d < kDeep; ++d) acc = fma_rn(splat(x[d]), load_floats(m + d * stride + j), acc);
    store(y + j, acc);
  }
  if (j == n) return;
  float part[kLanes] = {}, row[kLanes] = {};
  for (int64_t i = j; i < n; ++i) part[i - j] = y[i];
  vf32 acc = load<vf32>(part);
  for (int d = 0; d < kDeep; ++d) {
    for (int64_t i = j; i < n; ++i) row[i - j] = load_float(m + d * stride + i);
    acc = fma_rn(splat(x[d]), load<vf32>(row), acc);
  }
  store(part, acc);
  for (int64_t i = j; i < n; ++i) y[i] = part[i - j];
}

template <class T>
void down_rows(const VectorProduct& p, int64_t begin, int64_t end) {
  constexpr int kDeep = 8;
  constexpr int64_t kStripe = 2048;
  const T* m = static_cast<const T*>(p.m.data);
  for (int64_t j = begin; j < end; j += kStripe) {
    const int64_t n = end - j < kStripe ? end - j : kStripe;
    float* y = p.y + j;
    for (int64_t i = 0; i < n; ++i) y[i] = 0.0f;
    int64_t k = 0;
    for (; k + kDeep <= p.depth; k += kDeep)
      add_deep<kDeep>(y, m + k * p.m.stride + j, p.m.stride, p.x + k, n);
    for (; k < p.depth; ++k) add_deep<1>(y, m + k * p.m.stride + j, p.m.stride, p.x + k, n);
  }
}

template <class T>
void along_rows(const VectorProduct& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t height = end - i < kLanes ? end - i : kLanes;
    const T* row[kLanes];  // a last one stands in for those that are missing
    for (int r = 0; r < kLanes; ++r)
      row[r] = static_cast<const T*>(p.m.data) + (i + (r < height ? r : 0)) * p.m.stride;
    vf32 acc{};
    int64_t k = 0;
    for (; k + kLanes <= p.depth; k += kLanes) {
      vf32 v[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) v[r] = load_floats(row[r] + k);
      transpose(v);
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) acc = fma_rn(splat(p.x[k + c]), v[c], acc);
    }
    for (; k < p.depth; ++k) {
      float v[kLanes];
      for (int r = 0; r < kLanes; ++r) v[r] = load_float(row[r] + k);
      acc = fma_rn(splat(p.x[k]), load<vf32>(v), acc);
    }
    float y[kLanes];
    store(y, acc);
    for (int64_t r = 0; r < height; ++r) p.y[i + r] = y[r];
  }
}

void vector_simd(const VectorProduct& p, int64_t begin, int64_t end) {
  if (p.m.store == Store::f32)
    return p.down ? down_rows<float>(p, begin, end) : along_rows<float>(p, begin, end);
  p.down ? down_rows<uint16_t>(p, begin, end) : along_rows<uint16_t>(p, begin, end);
}

}  // namespace
}  // namespace lowtide::quant
