// SPDX-License-Identifier: Apache-2.0
// Memory transactions as the hardware would coalesce them, counted while the PTX runs: for each
// access site, 32-byte sectors per warp request against the fewest that could carry the bytes, and
// shared-memory bank passes. LT_EMU_PROFILE=FILE writes them as JSON lines when the program ends.
// Counts, not times.
#pragma once

#include "memory.h"

namespace lowtide::emu {

extern bool profile_enabled;

void ProfileAccess(Space space, uint64_t address, unsigned bytes, const Site& site);
void ProfileEndBlock();

}  // namespace lowtide::emu
