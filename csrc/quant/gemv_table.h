// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the packed matrix-vector product. Internal to csrc/quant. Work is a
// range of rows.
#pragma once
#include "base/isa.h"
#include "quant/gemv.h"
#include "quant/group_codec_table.h"

namespace lowtide::quant {

struct GemvJob {
  float* y;
  ConstGroupMatrix w;
  Coding coding;
  const float* levels;  // of NF4
  const float* x;       // padded with zeros to blocks of 32
};

struct GemvTable {
  void (*rows)(const GemvJob& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(GemvTable, gemv);

}  // namespace lowtide::quant
