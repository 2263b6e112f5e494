// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "optim/adamw_table.h"
#include "optim/list_blocks.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(AdamTable, adamw);

float checked(double x, bool ok, const char* message) {
  require(std::isfinite(x) && std::isfinite(static_cast<float>(x)) && ok, message);
  return static_cast<float>(x);
}

}  // namespace

AdamRule make_adam_rule(double a, double s, double eps, double beta1, double beta2,
                        double decay_before, double decay_after) {
  AdamRule r;
  r.a = checked(a, a >= 0, "adamw: a (the step size) must be a finite float32 number >= 0");
  r.s = checked(s, s >= 0, "adamw: s (1 / sqrt(bias correction 2)) must be finite and >= 0");
  r.eps = checked(eps, eps >= 0, "adamw: eps must be finite and >= 0");
  // With eps 0 an element that never saw a gradient would be 0 / 0.
  r.eps = std::max(r.eps, std::numeric_limits<float>::min());
  r.beta1 = checked(beta1, beta1 >= 0 && beta1 <= 1, "adamw: beta1 must be in [0, 1]");
  r.beta2 = checked(beta2, beta2 >= 0 && beta2 <= 1, "adamw: beta2 must be in [0, 1]");
  r.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  r.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  r.decay_before = checked(decay_before, true, "adamw: decay_before must be a finite factor");
  r.decay_after = checked(decay_after, true, "adamw: decay_after must be a finite factor");
  return r;
}

int64_t adamw(const std::vector<AdamTensor>& tensors, const AdamRule& rule, uint64_t seed,
              uint64_t step) {
  std::vector<int64_t> blocks;
  blocks.reserve(tensors.size());
  for (const auto& t : tensors) {
    require(t.n >= 0, "adamw: the number of elements must be >= 0");
    require(t.offset >= 0 && t.offset % kAdamBlock == 0,
            "adamw: offset must be a multiple of 256, so that shards hold whole blocks");
    require((t.m_codes != nullptr) == (t.v_codes != nullptr), "adamw: give both moments alike");
    require(t.target == AdamTarget::weight || t.g_dtype == Dtype::f32,
            "adamw: a direction is written over a float32 gradient only");
    blocks.push_back((t.n + kAdamBlock - 1) / kAdamBlock);
  }
  const auto& table = kTables.get();
  const random::Key key = random::derive_key(seed, step, 0);
  std::atomic<int64_t> skipped{0};
  for_list_blocks(blocks, [&](size_t i, int64_t begin, int64_t end) {
    const int64_t bad = table.blocks(tensors[i], begin, end, rule, key);
    if (bad != 0) skipped.fetch_add(bad, std::memory_order_relaxed);
  });
  return skipped.load();
}

}  // namespace lowtide::optim
