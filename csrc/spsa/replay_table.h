// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the replay. Internal to csrc/spsa.
#pragma once
#include "base/isa.h"
#include "spsa/replay.h"

namespace lowtide::spsa {

// Elements whose global index is in [kChunk c, kChunk (c + 1)): a tile of every distribution.
constexpr int64_t kChunk = 2048;

struct ReplayJob {
  const Step* steps;
  int64_t count;
  const Direction* directions;
  random::Dist dist;
};

struct ReplayTable {
  // Chunks [begin, end), counted from the one that holds the tensor's first element.
  void (*chunks)(const ReplayTensor& tensor, const ReplayJob& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(ReplayTable, replay);

// The elements of a chunk that a tensor has, as positions in it: [lo, hi), lo < kChunk.
struct ChunkSpan {
  int64_t start;  // global index of the chunk
  int64_t lo, hi;
};
LT_HD ChunkSpan chunk_span(int64_t n, int64_t offset, int64_t chunk) {
  const int64_t start = (offset / kChunk + chunk) * kChunk;
  const int64_t lo = offset > start ? offset - start : 0;
  const int64_t end = offset + n - start;
  return {start, lo, end < kChunk ? end : kChunk};
}

}  // namespace lowtide::spsa
