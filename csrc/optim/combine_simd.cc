// SPDX-License-Identifier: Apache-2.0
// The same bits as combine_ref.cc. Blocks of 256 weights, as stochastic rounding wants them, lie
// across rows: d of a block is put together row by row in L1, then the block is updated. Bound by
// memory, as apply_update is.
#include "optim/combine_table.h"
#include "optim/targets_simd.h"
#include "optim/update_block_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

constexpr int kBlock = kWeightBlock;

LT_SIMD float load_one(const float* g) { return *g; }
LT_SIMD float load_one(const uint16_t* g) { return bf16_to_float(*g); }

// d[0, n) = k s(g) + u; up to `room` >= n elements may be read and written.
template <class Gradient, bool kColumns, bool kSign, bool kAdd>
void fill(float* d, const void* gradient, const float* k, const float* u, int64_t n, int64_t room) {
  const auto* g = static_cast<const typename Gradient::Element*>(gradient);
  int64_t j = 0;
  for (; j < n && j + kLanes <= room; j += kLanes) {
    vf32 x = Gradient::load(g + j);
    if constexpr (kSign) x = to_float((vi32)(x < 0.0f) - (vi32)(x > 0.0f));
    vf32 v = (kColumns ? load<vf32>(k + j) : splat(*k)) * x;
    if constexpr (kAdd) v = v + load<vf32>(u + j);
    store(d + j, v);
  }
  for (; j < n; ++j) {
    const float x = load_one(g + j);
    d[j] = k[kColumns ? j : 0] * (kSign ? sign_of(x) : x);
    if constexpr (kAdd) d[j] = d[j] + u[j];
  }
}

using Fill = void (*)(float*, const void*, const float*, const float*, int64_t, int64_t);

template <class Gradient>
Fill fill_of(const CombineMatrix& m) {
  static constexpr Fill kFills[2][2][2] = {
      {{fill<Gradient, false, false, false>, fill<Gradient, false, false, true>},
       {fill<Gradient, false, true, false>, fill<Gradient, false, true, true>}},
      {{fill<Gradient, true, false, false>, fill<Gradient, true, false, true>},
       {fill<Gradient, true, true, false>, fill<Gradient, true, true, true>}}};
  return kFills[m.along == Along::columns][m.sign][m.u != nullptr && m.chosen == Along::all];
}

// Puts the chosen ones into d = columns [col, col + n) of a row.
LT_SIMD void put_chosen(float* d, const CombineMatrix& m, int64_t row, int64_t col, int64_t n) {
  if (m.chosen == Along::rows) {
    const int64_t at = first_not_below(m.index, m.count, row);
    if (at < m.count && m.index[at] == row)
      __builtin_memcpy(d, m.u + at * m.cols + col, static_cast<size_t>(n) * sizeof *d);
    return;
  }
  const float* low = m.u + row * m.count;
  for (int64_t at = first_not_below(m.index, m.count, col); at < m.count && m.index[at] < col + n;
       ++at)
    d[m.index[at] - col] = low[at];
}

// d of elements [first, first + n) of the matrix.
LT_SIMD void directions(float* d, const CombineMatrix& m, Fill f, int64_t first, int64_t n) {
  const bool whole = m.u != nullptr && m.chosen == Along::all;
  const int64_t size = m.g_dtype == Dtype::f32 ? 4 : 2;
  int64_t row = first / m.cols, col = first % m.cols;
  for (int64_t i = 0; i < n; ++row, col = 0) {
    const int64_t rest = m.cols - col, here = rest < n - i ? rest : n - i;
    if (m.g != nullptr) {
      const float* k = m.k + (m.along == Along::columns ? col : m.along == Along::rows ? row : 0);
      f(d + i, static_cast<const char*>(m.g) + (first + i) * size, k,
        whole ? m.u + first + i : nullptr, here, n - i);
    } else {
      for (int64_t j = 0; j < here; ++j) d[i + j] = 0.0f;
    }
    if (m.chosen != Along::all) put_chosen(d + i, m, row, col, here);
    i += here;
  }
}

template <class Store>
void combine_blocks(const CombineMatrix& m, int64_t begin, int64_t end, const UpdateRule& rule,
                    random::Key key) {
  auto* p = static_cast<typename Store::Element*>(m.p);
  const Fill f = m.g_dtype == Dtype::f32 ? fill_of<F32Gradient>(m) : fill_of<Bf16Gradient>(m);
  alignas(64) float d[kBlock] = {};
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * kBlock, left = m.rows * m.cols - at;
    const Store target(m.offset + at, key, m.param);
    directions(d, m, f, at, left < kBlock ? left : kBlock);
    if (left >= kBlock)
      update_block(p + at, d, rule, target);
    else
      update_last_block(p + at, d, left, rule, target);
  }
}

void blocks(const CombineMatrix& m, int64_t begin, int64_t end, const UpdateRule& rule,
            random::Key key) {
  switch (m.weight_store) {
    case WeightStore::f32:
      return combine_blocks<F32Store>(m, begin, end, rule, key);
    case WeightStore::bf16_nearest:
      return combine_blocks<Bf16NearestStore>(m, begin, end, rule, key);
    case WeightStore::bf16_stochastic:
      return combine_blocks<Bf16StochasticStore>(m, begin, end, rule, key);
  }
}

}  // namespace

extern const CombineTable LT_CAT(combine_, LT_ISA);
const CombineTable LT_CAT(combine_, LT_ISA) = {blocks};

}  // namespace lowtide::optim
