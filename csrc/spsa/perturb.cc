// SPDX-License-Identifier: Apache-2.0
#include "spsa/perturb.h"

#include <algorithm>

#include "base/error.h"
#include "base/list_blocks.h"
#include "base/overlap.h"
#include "spsa/perturb_scalar.h"
#include "spsa/perturb_table.h"

namespace lowtide::spsa {
namespace {

constexpr auto kTables = LT_TABLES(PerturbTable, perturb);
constexpr int64_t kBlock = 256;          // for_list_blocks hands out 64 of them
constexpr int64_t kAlign = 64 * kBlock;  // a multiple of every distribution's tile

}  // namespace

void check_perturbation(const Perturbation& t) {
  require(t.n >= 0, "perturb: the number of elements must be >= 0");
  require(t.offset >= 0, "perturb: offset must be >= 0 (the global index of the first element)");
  require(t.threshold >= 0, "perturb: threshold must be >= 0, infinity for none");
  const int64_t out = t.n * bytes_of(t.out_type), w = t.n * bytes_of(t.w_type);
  require((t.out == t.w && t.out_type == t.w_type) || apart(t.out, out, t.w, w),
          "perturb: out must be w itself, of the same type, or lie apart from it");
  require(t.minus == nullptr || (apart(t.minus, out, t.w, w) && apart(t.minus, out, t.out, out)),
          "perturb: minus must lie apart from w and plus");
}

void perturb(const std::vector<Perturbation>& tensors, uint64_t seed, uint64_t step, uint32_t slot,
             random::Dist dist) {
  require(random::is_dist(dist), "perturb: dist must be 0, 1, 2 or 3");
  std::vector<int64_t> blocks;
  for (const auto& t : tensors) {
    check_perturbation(t);
    blocks.push_back(t.n == 0 ? 0 : (t.offset % kAlign + t.n + kBlock - 1) / kBlock);
  }
  const random::Key key = random::derive_key(seed, step, slot);
  const auto& table = kTables.get();
  // Cuts at multiples of kAlign of the global index, so that tiles stay whole.
  for_list_blocks(blocks, [&](size_t i, int64_t first, int64_t last) {
    const auto& t = tensors[i];
    const int64_t start = t.offset % kAlign;
    table.perturb(t, key, dist, std::max<int64_t>(0, first * kBlock - start),
                  std::min(t.n, last * kBlock - start));
  });
}

}  // namespace lowtide::spsa
