// SPDX-License-Identifier: Apache-2.0
// Where CUDA threads meet: block barriers, warp barriers, shuffles, votes and warp reductions.
// Only BlockBarrier (a block) and WarpBarrier (a warp) order memory for the race detector; shuffles
// and votes do not, as in CUDA.
#pragma once

#include <cstdint>

#include "machine.h"

namespace lowtide::emu {

// bar.sync / bar.red over the whole block. Returns how many threads gave a true predicate.
uint64_t BlockBarrier(const Site& site, bool predicate = false);

// bar.warp.sync
void WarpBarrier(uint32_t mask, const Site& site);

// vote.sync.ballot over the lanes of mask; any, all and uni follow from it.
uint32_t Ballot(uint32_t mask, bool predicate, const Site& site);

struct Shuffled {
  uint32_t value;
  bool in_range;
};
// shfl.sync: mode 'u' up, 'd' down, 'b' butterfly, 'i' index; `clamp` is operand c of the PTX
// instruction.
Shuffled Shuffle(char mode, uint32_t mask, uint32_t value, uint32_t b, uint32_t clamp,
                 const Site& site);

// redux.sync over 32-bit values: 'a' add, 'm' min, 'M' max, '&', '|', '^'.
uint32_t Reduce(char op, bool is_signed, uint32_t mask, uint32_t value, const Site& site);

}  // namespace lowtide::emu
