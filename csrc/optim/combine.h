// SPDX-License-Identifier: Apache-2.0
// The end of a low-rank step that trains outside of its subspace too, in one pass over a matrix:
//
//   p = (p * decay_before + alpha * d) * decay_after,    d = k s(g) + u
//
// g: the gradient; s(g): itself, or its sign; k: one factor, or one a row or column; u: the update
// of the subspace, or nothing. A subspace of chosen columns or rows hands in those alone, and d
// there is u alone. Multiply, then add. Each element is read once and written once: 12 bytes with
// float32 weights and gradients, 4 more where u is whole.
#pragma once
#include "base/dtype.h"
#include "optim/apply_update.h"

namespace lowtide::optim {

enum class Along : int { all = 0, rows = 1, columns = 2 };

struct CombineMatrix {  // row-major, contiguous
  int64_t rows = 0, cols = 0;
  uint32_t param = 0;  // of the stochastic rounding, and the global index of the first element in
  int64_t offset = 0;  // it, a multiple of kUpdateBlock
  WeightStore weight_store = WeightStore::f32;
  void* p = nullptr;
  Dtype g_dtype = Dtype::f32;
  const void* g = nullptr;  // rows x cols, may be p; nullptr: zero
  bool sign = false;        // s
  Along along = Along::all;
  const float* k = nullptr;   // 1, rows or cols of them; not read without g
  const float* u = nullptr;   // rows x cols or nullptr; with an index rows x count or count x cols
  Along chosen = Along::all;  // rows or columns: u holds those that `index` names
  const int32_t* index = nullptr;  // ascending, in range
  int64_t count = 0;
};

LT_HD float sign_of(float x) {
  return static_cast<float>(static_cast<int>(x > 0.0f) - static_cast<int>(x < 0.0f));
}

// The first of n ascending numbers that is not below x.
LT_HD int64_t first_not_below(const int32_t* index, int64_t n, int64_t x) {
  int64_t at = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (index[at + half] < x)
      at += half + 1, n -= half + 1;
    else
      n = half;
  }
  return at;
}

// d of one element. k: its factor.
LT_HD float combined(const CombineMatrix& m, int64_t row, int64_t col, float g, float k) {
  if (m.chosen != Along::all) {
    const int64_t want = m.chosen == Along::rows ? row : col;
    const int64_t at = first_not_below(m.index, m.count, want);
    if (at < m.count && m.index[at] == want)
      return m.chosen == Along::rows ? m.u[at * m.cols + col] : m.u[row * m.count + at];
  }
  const float scaled = m.g == nullptr ? 0.0f : k * (m.sign ? sign_of(g) : g);
  return m.u == nullptr || m.chosen != Along::all ? scaled : scaled + m.u[row * m.cols + col];
}

// Throws lowtide::Error on an impossible argument, before anything is changed.
void combine(const CombineMatrix& m, const UpdateRule& rule, uint64_t seed, uint64_t step);

}  // namespace lowtide::optim
