// SPDX-License-Identifier: Apache-2.0
#include "optim/combine.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/list_blocks.h"
#include "optim/combine_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(CombineTable, combine);

void check(const CombineMatrix& m) {
  require(m.rows >= 0 && m.cols >= 0, "combine: the matrix has a negative size");
  require(m.offset >= 0 && m.offset % kUpdateBlock == 0,
          "combine: offset must be a multiple of 256, so that shards hold whole blocks");
  require(m.g == nullptr || m.k != nullptr, "combine: a gradient needs its factors k");
  if (m.chosen == Along::all) return;
  const int64_t most = m.chosen == Along::rows ? m.rows : m.cols;
  for (int64_t i = 0; i < m.count; ++i)
    require((i == 0 ? m.index[i] >= 0 : m.index[i] > m.index[i - 1]) && m.index[i] < most,
            "combine: index must hold ascending rows or columns of the matrix");
}

}  // namespace

void combine(const CombineMatrix& m, const UpdateRule& rule, uint64_t seed, uint64_t step) {
  check(m);
  if (m.rows == 0 || m.cols == 0) return;
  CombineMatrix padded = m;
  std::vector<float> factors;
  if (m.g != nullptr && m.along == Along::columns) {
    factors.assign(static_cast<size_t>(m.cols + kFactorPad), 0.0f);
    std::copy(m.k, m.k + m.cols, factors.begin());
    padded.k = factors.data();
  }
  const auto& table = kTables.get();
  const random::Key key = random::derive_key(seed, step, 0);
  for_list_blocks(
      {(m.rows * m.cols + kUpdateBlock - 1) / kUpdateBlock},
      [&](size_t, int64_t begin, int64_t end) { table.blocks(padded, begin, end, rule, key); });
}

}  // namespace lowtide::optim
