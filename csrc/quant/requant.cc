// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "quant/requant.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/requant_table.h"

namespace lowtide::quant {
namespace {

constexpr auto kTables = LT_TABLES(RequantTable, requant);
constexpr int64_t kGrainElements = 16384;

}  // namespace

int64_t requant_add_sr(const GroupMatrix& w, const float* delta, const RequantOptions& options) {
  check_shape(w.shape);
  require(options.offset >= 0, "requant: offset must be >= 0 (global index of element [0, 0])");
  require(std::isfinite(options.alpha), "requant: alpha must be finite");
  require(options.decay >= 0 && options.decay <= 1, "requant: decay must be in [0, 1]");
  const random::Stream& s = options.stream;
  const RequantJob job = {w,
                          delta,
                          w.zero == nullptr ? Scheme::symmetric : Scheme::asymmetric,
                          {static_cast<float>(options.alpha), static_cast<float>(options.decay),
                           static_cast<float>(options.decay - 1.0)},
                          static_cast<uint64_t>(options.offset),
                          random::derive_key(s.seed, s.step, s.slot),
                          s.param,
                          s.role};
  const auto& table = kTables.get();
  std::atomic<int64_t> skipped{0};
  parallel_for(w.shape.rows * groups_per_row(w.shape),
               std::max<int64_t>(1, kGrainElements / w.shape.group),
               [&](int64_t begin, int64_t end) {
                 skipped.fetch_add(table.add_sr(job, begin, end), std::memory_order_relaxed);
               });
  return skipped.load();
}

}  // namespace lowtide::quant
