// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of requant. Internal to csrc/quant.
#pragma once
#include "base/isa.h"
#include "quant/group_codec_table.h"
#include "quant/requant.h"
#include "quant/requant_scalar.h"

namespace lowtide::quant {

struct RequantJob {
  GroupMatrix w;
  const float* delta;
  Scheme scheme;
  RequantScalars scalars;
  uint64_t offset;
  random::Key key;
  uint32_t param, role;
};

struct RequantTable {
  int64_t (*add_sr)(const RequantJob& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(RequantTable, requant);

}  // namespace lowtide::quant
