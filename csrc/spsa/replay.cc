// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "spsa/replay.h"

#include <cmath>

#include "base/error.h"
#include "base/list_blocks.h"
#include "spsa/replay_table.h"

namespace lowtide::spsa {
namespace {

constexpr auto kTables = LT_TABLES(ReplayTable, replay);

}  // namespace

void replay(const std::vector<ReplayTensor>& tensors, const Schedule& schedule, random::Dist dist) {
  const auto id = static_cast<int>(dist);
  require(id >= 0 && id < random::kDists, "replay: dist must be one of the known distributions");
  std::vector<int64_t> chunks;
  chunks.reserve(tensors.size());
  for (const auto& t : tensors) {
    require(t.n >= 0, "replay: the number of elements must be >= 0");
    require(t.offset >= 0, "replay: offset must be >= 0 (the global index of the first element)");
    require(std::isfinite(t.scale), "replay: scales must be finite");
    require(t.threshold >= 0, "replay: thresholds must be >= 0 (infinity: no mask)");
    require(t.floor < HUGE_VALF, "replay: floors must be below infinity (-infinity: none)");
    chunks.push_back(t.n == 0 ? 0 : (t.offset + t.n - 1) / kChunk - t.offset / kChunk + 1);
  }
  const Steps steps = resolve(schedule);
  if (steps.steps.empty()) return;
  const ReplayJob job = {steps.steps.data(), static_cast<int64_t>(steps.steps.size()),
                         steps.directions.data(), dist};
  const auto& table = kTables.get();
  for_list_blocks<8>(chunks, [&](size_t i, int64_t begin, int64_t end) {
    table.chunks(tensors[i], job, begin, end);
  });
}

}  // namespace lowtide::spsa
