// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the digest. Internal to csrc/spsa.
#pragma once
#include "base/isa.h"
#include "spsa/digest.h"

namespace lowtide::spsa {

struct DigestTable {
  uint64_t (*sum)(const void* w, int width, int64_t n, uint64_t first);
};

LT_DECLARE_TABLES(DigestTable, digest);

}  // namespace lowtide::spsa
