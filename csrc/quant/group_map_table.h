// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the codec with fixed levels. Internal to csrc/quant. Work is a range
// of groups, counted through the matrix row by row.
#pragma once
#include "base/isa.h"
#include "quant/group_codec_table.h"
#include "quant/group_map.h"

namespace lowtide::quant {

struct QuantizeMapJob {
  const void* x;
  FloatType type;
  LevelMap map;
  const LevelTable* levels;  // of 4-bit maps
  GroupMatrix out;
  bool stochastic;
  bool bf16_scale;
  uint64_t offset;
  random::Key key;
  uint32_t param, role;
};

struct DequantizeMapJob {
  ConstGroupMatrix in;
  LevelMap map;
  const LevelTable* levels;
  void* out;
  FloatType type;
};

struct GroupMapTable {
  int64_t (*quantize)(const QuantizeMapJob& job, int64_t begin, int64_t end);
  void (*dequantize)(const DequantizeMapJob& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(GroupMapTable, group_map);

}  // namespace lowtide::quant
