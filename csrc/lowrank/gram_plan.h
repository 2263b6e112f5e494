// SPDX-License-Identifier: Apache-2.0
// How a Gram matrix's depth is cut into chunks: part of its definition, shared by every target.
#pragma once
#include <stdint.h>

namespace lowtide::lowrank {

// Rows and columns of a Gram matrix under construction are padded to this.
constexpr int64_t kGramPad = 16;
// Columns of y that a chunk transposes at a time: 144 rows of them fill most of L1 as doubles.
constexpr int64_t kGramDepth = 32;
constexpr int64_t kGramPartialDoubles = int64_t{1} << 21;  // 16 MiB of partial sums at most

struct GramPlan {
  int64_t padded;  // rows, rounded up
  int64_t chunks, step;
};

// rows, depth >= 1
inline GramPlan gram_plan(int64_t rows, int64_t depth) {
  const int64_t padded = (rows + kGramPad - 1) / kGramPad * kGramPad;
  int64_t most = kGramPartialDoubles / (padded * padded);
  most = most < 1 ? 1 : most > 8 ? 8 : most;
  int64_t chunks = depth / 256;
  chunks = chunks < 1 ? 1 : chunks > most ? most : chunks;
  const int64_t step = ((depth + chunks - 1) / chunks + kGramDepth - 1) / kGramDepth * kGramDepth;
  return {padded, chunks, step};
}

}  // namespace lowtide::lowrank
