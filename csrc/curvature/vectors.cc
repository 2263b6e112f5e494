// SPDX-License-Identifier: Apache-2.0
#include "curvature/vectors.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/overlap.h"
#include "curvature/block_sums.h"
#include "curvature/elements.h"
#include "curvature/vectors_table.h"

namespace lowtide::curvature {
namespace {

constexpr auto kTables = LT_TABLES(VectorsTable, vectors);

template <class Pair>
std::vector<int64_t> checked_blocks(const std::vector<Pair>& pairs) {
  std::vector<int64_t> blocks;
  for (const auto& t : pairs) {
    require(t.n >= 0, "vectors: the number of elements must be >= 0");
    blocks.push_back(sum_blocks(t.n));
  }
  return blocks;
}

}  // namespace

void check_apart(const std::vector<AxpbyPair>& pairs) {
  std::vector<MemoryRange> ranges;
  for (const auto& t : pairs) {
    ranges.push_back({t.y, t.n * bytes_of(t.y_dtype), true});
    ranges.push_back({t.x, t.n * bytes_of(t.x_dtype), false});
  }
  require(written_apart(std::move(ranges)), "axpby: each y must lie apart from all other tensors");
}

void check_apart(const Difference& d) {
  require(apart(d.plus, 4 * d.n, d.minus, 4 * d.n) &&
              (d.q == nullptr || apart(d.plus, 4 * d.n, d.q, 4 * d.n)),
          "fd_finish: plus must lie apart from minus and q");
}

void dot(double* out, const std::vector<DotPair>& pairs) {
  const auto& table = kTables.get();
  sum_list(out, checked_blocks(pairs), [&](size_t t, int64_t b) {
    return table.dot(pairs[t], b * kReduceBlock, std::min(pairs[t].n, (b + 1) * kReduceBlock));
  });
}

void axpby(const std::vector<AxpbyPair>& pairs, float a, float b) {
  const auto blocks = checked_blocks(pairs);
  check_apart(pairs);
  const auto& table = kTables.get();
  for_list_blocks<kPieceBlocks>(blocks, [&](size_t t, int64_t begin, int64_t end) {
    table.axpby(pairs[t], a, b, begin * kReduceBlock, std::min(pairs[t].n, end * kReduceBlock));
  });
}

void fd_finish(double* out, const Difference& d) {
  require(d.n >= 0, "fd_finish: the number of elements must be >= 0");
  check_apart(d);
  const auto& table = kTables.get();
  const int64_t blocks = sum_blocks(d.n);
  std::vector<double> squares(static_cast<size_t>(blocks)), products(squares);
  parallel_for(blocks, kPieceBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double sums[2];
      table.fd_finish(sums, d, b * kReduceBlock, std::min(d.n, (b + 1) * kReduceBlock));
      squares[static_cast<size_t>(b)] = sums[0];
      products[static_cast<size_t>(b)] = sums[1];
    }
  });
  PinnedFpEnv pin;
  out[0] = tree_sum(squares);
  out[1] = tree_sum(products);
}

}  // namespace lowtide::curvature
