// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the replay on codes. Internal to csrc/spsa.
#pragma once
#include "base/isa.h"
#include "spsa/replay_codes.h"

namespace lowtide::spsa {

// A piece of work: columns [kSegment s, kSegment (s + 1)) of one row. Whole blocks of 32, so that
// no byte belongs to two pieces.
constexpr int64_t kSegment = 2048;

LT_HD int64_t segments_per_row(const quant::GroupShape& s) {
  return (s.cols + kSegment - 1) / kSegment;
}

struct CodesJob {
  const Step* steps;
  int64_t count;
  const Direction* directions;
  random::Dist dist;
};

struct ReplayCodesTable {
  void (*segments)(const CodesTensor& tensor, const CodesJob& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(ReplayCodesTable, replay_codes);

}  // namespace lowtide::spsa
