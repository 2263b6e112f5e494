// SPDX-License-Identifier: Apache-2.0
#include "curvature/probe.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/overlap.h"
#include "curvature/block_sums.h"
#include "curvature/elements.h"
#include "curvature/probe_table.h"

namespace lowtide::curvature {
namespace {

constexpr auto kTables = LT_TABLES(ProbeTable, probe);

random::Key key_of(const Probe& p) { return random::derive_key(p.seed, p.step, p.slot); }

template <class Tensor>
std::vector<int64_t> checked_blocks(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> blocks;
  for (const auto& t : tensors) {
    require(t.n >= 0, "sign: the number of elements must be >= 0");
    blocks.push_back(sum_blocks(t.n));
  }
  return blocks;
}

// f(t, begin, end) over ranges of elements of all tensors.
template <class Tensor, class F>
void for_ranges(const std::vector<Tensor>& tensors, const F& f) {
  for_list_blocks<kPieceBlocks>(checked_blocks(tensors), [&](size_t t, int64_t begin, int64_t end) {
    f(tensors[t], begin * kReduceBlock, std::min(tensors[t].n, end * kReduceBlock));
  });
}

}  // namespace

void check_apart(const std::vector<SignedTarget>& xs) {
  std::vector<MemoryRange> ranges;
  for (const auto& t : xs) ranges.push_back({t.x, t.n * bytes_of(t.dtype), true});
  require(written_apart(std::move(ranges)), "sign: the tensors of a list must lie apart");
}

void check_apart(const std::vector<SignedPair>& pairs) {
  std::vector<MemoryRange> ranges;
  for (const auto& t : pairs) {
    ranges.push_back({t.acc, 4 * t.n, true});
    if (t.acc != t.x || t.x_dtype != Dtype::f32)
      ranges.push_back({t.x, t.n * bytes_of(t.x_dtype), false});
  }
  require(
      written_apart(std::move(ranges)),
      "sign_fma: each accumulator must be its own x, in float32, or lie apart from all tensors");
}

void sign_dot(double* out, const std::vector<SignedInput>& xs, const Probe& probe) {
  const auto& table = kTables.get();
  sum_list(out, checked_blocks(xs), [&, key = key_of(probe)](size_t t, int64_t b) {
    return table.dot(xs[t], key, b * kReduceBlock, std::min(xs[t].n, (b + 1) * kReduceBlock));
  });
}

void sign_axpy(const std::vector<SignedTarget>& xs, float scale, const Probe& probe) {
  check_apart(xs);
  const auto& table = kTables.get();
  for_ranges(xs, [&, key = key_of(probe)](const SignedTarget& t, int64_t begin, int64_t end) {
    table.axpy(t, scale, key, begin, end);
  });
}

void sign_fill(const std::vector<SignedTarget>& xs, float scale, const Probe& probe) {
  check_apart(xs);
  const auto& table = kTables.get();
  for_ranges(xs, [&, key = key_of(probe)](const SignedTarget& t, int64_t begin, int64_t end) {
    table.fill(t, scale, key, begin, end);
  });
}

void sign_fma(const std::vector<SignedPair>& pairs, const Join& join, const Probe& probe) {
  check_apart(pairs);
  const auto& table = kTables.get();
  for_ranges(pairs, [&, key = key_of(probe)](const SignedPair& t, int64_t begin, int64_t end) {
    table.fma(t, join, key, begin, end);
  });
}

}  // namespace lowtide::curvature
