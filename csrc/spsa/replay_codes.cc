// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "spsa/replay_codes.h"

#include <cmath>

#include "base/error.h"
#include "base/list_blocks.h"
#include "spsa/replay_codes_table.h"

namespace lowtide::spsa {
namespace {

constexpr auto kTables = LT_TABLES(ReplayCodesTable, replay_codes);

}  // namespace

void replay_codes(const std::vector<CodesTensor>& tensors, const Schedule& schedule,
                  random::Dist dist) {
  const auto id = static_cast<int>(dist);
  require(id >= 0 && id < random::kDists,
          "replay_codes: dist must be one of the known distributions");
  std::vector<int64_t> segments;
  segments.reserve(tensors.size());
  for (const auto& t : tensors) {
    quant::check_shape(t.w.shape);
    require(t.offset >= 0, "replay_codes: offset must be >= 0 (global index of element [0, 0])");
    require(std::isfinite(t.scale), "replay_codes: scales of layers must be finite");
    segments.push_back(t.w.shape.rows * segments_per_row(t.w.shape));
  }
  const Steps steps = resolve(schedule);
  if (steps.steps.empty()) return;
  const CodesJob job = {steps.steps.data(), static_cast<int64_t>(steps.steps.size()),
                        steps.directions.data(), dist};
  const auto& table = kTables.get();
  for_list_blocks<8>(segments, [&](size_t i, int64_t begin, int64_t end) {
    table.segments(tensors[i], job, begin, end);
  });
}

}  // namespace lowtide::spsa
