// SPDX-License-Identifier: Apache-2.0
#include "optim/apply_update.h"

#include <cmath>

#include "base/error.h"
#include "base/list_blocks.h"
#include "optim/apply_update_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(UpdateTable, apply_update);

float finite(double x, const char* message) {
  require(std::isfinite(static_cast<float>(x)), message);
  return static_cast<float>(x);
}

}  // namespace

UpdateRule make_update_rule(double alpha, double decay_before, double decay_after) {
  return {finite(alpha, "apply_update: alpha must be a finite float32 number"),
          finite(decay_before, "apply_update: decay_before must be a finite factor"),
          finite(decay_after, "apply_update: decay_after must be a finite factor")};
}

void apply_update(const std::vector<UpdateTensor>& tensors, const UpdateRule& rule, uint64_t seed,
                  uint64_t step) {
  std::vector<int64_t> blocks;
  blocks.reserve(tensors.size());
  for (const auto& t : tensors) {
    require(t.n >= 0, "apply_update: the number of elements must be >= 0");
    require(t.offset >= 0 && t.offset % kUpdateBlock == 0,
            "apply_update: offset must be a multiple of 256, so that shards hold whole blocks");
    blocks.push_back((t.n + kUpdateBlock - 1) / kUpdateBlock);
  }
  const auto& table = kTables.get();
  const random::Key key = random::derive_key(seed, step, 0);
  for_list_blocks(blocks, [&](size_t i, int64_t begin, int64_t end) {
    table.blocks(tensors[i], begin, end, rule, key);
  });
}

}  // namespace lowtide::optim
