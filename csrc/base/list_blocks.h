// SPDX-License-Identifier: Apache-2.0
// One parallel region over the blocks of a whole list of tensors, so that a model's many small
// tensors cost no region each. Pieces are cut by constants.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/parallel.h"

namespace lowtide {

// f(tensor, first_block, last_block) over pieces of at most kPiece blocks. blocks[i]: of tensor i.
// kPiece: 64 blocks of 256 elements are 16384.
template <int64_t kPiece = 64, class F>
void for_list_blocks(const std::vector<int64_t>& blocks, const F& f) {
  std::vector<int64_t> end(blocks.size());  // pieces up to and with tensor i
  int64_t pieces = 0;
  for (size_t i = 0; i < blocks.size(); ++i) end[i] = pieces += (blocks[i] + kPiece - 1) / kPiece;
  parallel_for(pieces, 1, [&](int64_t lo, int64_t hi) {
    size_t i = static_cast<size_t>(std::upper_bound(end.begin(), end.end(), lo) - end.begin());
    for (int64_t piece = lo; piece < hi; ++piece) {
      while (piece >= end[i]) ++i;
      const int64_t first = (piece - (i == 0 ? 0 : end[i - 1])) * kPiece;
      f(i, first, std::min(blocks[i], first + kPiece));
    }
  });
}

}  // namespace lowtide
