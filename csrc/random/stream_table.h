// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the stream kernel. Internal to csrc/random.
#pragma once
#include "base/isa.h"
#include "random/stream.h"

namespace lowtide::random {

struct StreamTable {
  void (*words)(uint32_t* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role);
  void (*sample)(float* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role,
                 Dist dist);
  void (*add_scaled)(float* x, float scale, int64_t n, int64_t offset, Key key, uint32_t param,
                     uint32_t role, Dist dist);
  // n <= kReduceBlock
  float (*dot_block)(const float* x, int64_t n, int64_t offset, Key key, uint32_t param,
                     uint32_t role, Dist dist);
};

LT_DECLARE_TABLES(StreamTable, stream);

}  // namespace lowtide::random
