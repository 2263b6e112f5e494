// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of the group codec. Internal to csrc/quant. Work is a range of groups,
// counted through the matrix row by row.
#pragma once
#include "base/isa.h"
#include "quant/group_codec.h"

namespace lowtide::quant {

struct QuantizeJob {
  const void* x;
  FloatType type;
  GroupMatrix out;
  Scheme scheme;
  bool stochastic;
  Range range;
  uint64_t offset;
  random::Key key;
  uint32_t param, role;
  bool bf16_scale;
};

struct DequantizeJob {
  ConstGroupMatrix in;
  void* out;
  FloatType type;
};

// Where group number g of a matrix lies.
struct GroupSpan {
  int64_t row, col, n;  // n columns from col
};
LT_HD GroupSpan group_span(const GroupShape& s, int64_t g) {
  const int64_t per_row = groups_per_row(s);
  GroupSpan at;
  at.row = g / per_row;
  at.col = (g - at.row * per_row) * s.group;
  at.n = s.cols - at.col < s.group ? s.cols - at.col : s.group;
  return at;
}
// Byte of column `col` (a multiple of 32) within its row.
LT_HD int64_t code_offset(const GroupShape& s, int64_t col) { return s.bits == 8 ? col : col / 2; }

struct GroupCodecTable {
  int64_t (*quantize)(const QuantizeJob& job, int64_t begin, int64_t end);
  void (*dequantize)(const DequantizeJob& job, int64_t begin, int64_t end);
  int64_t (*count_nonfinite)(const void* x, FloatType type, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(GroupCodecTable, group_codec);

}  // namespace lowtide::quant
