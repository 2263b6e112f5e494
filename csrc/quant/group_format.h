// SPDX-License-Identifier: Apache-2.0
// The storage format of group-quantized matrices, one element at a time. A matrix of `rows` x
// `cols` is cut along each row into groups of `group` columns; the last group of a row may be
// short. Codes are unsigned:
//   value = (code - zero) * scale
// symmetric: zero is the constant 2^(bits-1), codes 1 .. 2^bits-1; asymmetric: one uint8 zero a
// group, always a code, so that 0.0 is exact in every group.
//
// INT8: one byte a code, row-major. INT4: blocks of 32 codes in 16 bytes; byte j of a block holds
// code j in its low nibble and code 16 + j in its high one, so that 16 lanes unpack with a mask or
// a shift and no shuffle. A short last block of t codes takes min(t, 16) bytes. Rows start at byte
// boundaries.
#pragma once
#include "base/hd.h"

namespace lowtide::quant {

// The type on the other side of a codec.
enum class FloatType : int { f32 = 0, bf16 = 1, f16 = 2 };
// fp16 in memory; bf16 is a plain uint16_t.
struct Half {
  uint16_t bits;
};

enum class Scheme : int { symmetric = 0, asymmetric = 1 };
enum class Rounding : int { nearest = 0, stochastic = 1 };
// How a group's extremes become its range: as they are; with room to grow; or as Q-GaLore does it.
enum class Range : int { tight = 0, headroom = 1, compat = 2 };

struct GroupShape {
  int64_t rows = 0, cols = 0;
  int64_t group = 256;  // a multiple of 32
  int bits = 8;         // 8 or 4
};

LT_HD int64_t groups_per_row(const GroupShape& s) { return (s.cols + s.group - 1) / s.group; }
LT_HD int64_t int4_bytes(int64_t cols) {
  const int64_t tail = cols % 32;
  return cols / 32 * 16 + (tail < 16 ? tail : 16);
}
LT_HD int64_t row_bytes(const GroupShape& s) { return s.bits == 8 ? s.cols : int4_bytes(s.cols); }
LT_HD int max_code(int bits) { return (1 << bits) - 1; }
LT_HD int symmetric_zero(int bits) { return 1 << (bits - 1); }

// Code of column `col` in a row that starts at `row`.
LT_HD int get_code(const uint8_t* row, int64_t col, int bits) {
  if (bits == 8) return row[col];
  const int byte = row[col / 32 * 16 + col % 16];
  return (col % 32) < 16 ? (byte & 15) : (byte >> 4);
}

// Not atomic: one writer a byte. The high nibble of a fresh byte must be written after the low one.
LT_HD void put_code(uint8_t* row, int64_t col, int bits, int code) {
  if (bits == 8) {
    row[col] = static_cast<uint8_t>(code);
    return;
  }
  uint8_t* byte = row + col / 32 * 16 + col % 16;
  if ((col % 32) < 16)
    *byte = static_cast<uint8_t>(code);
  else
    *byte = static_cast<uint8_t>((*byte & 15) | (code << 4));
}

// The same where both codes of the byte are already there.
LT_HD void replace_code(uint8_t* row, int64_t col, int bits, int code) {
  if (bits == 8) {
    row[col] = static_cast<uint8_t>(code);
    return;
  }
  uint8_t* byte = row + col / 32 * 16 + col % 16;
  *byte =
      static_cast<uint8_t>((col % 32) < 16 ? (*byte & 0xf0) | code : (*byte & 15) | (code << 4));
}

// A finite value becomes a finite half: codes may decode to a little more than was quantized.
LT_HD uint16_t saturated_half(float x) {
  const float y = x < -65504.0f ? -65504.0f : x;
  return float_to_half(65504.0f < y ? 65504.0f : y);
}

LT_HD float load_element(const void* x, FloatType type, int64_t i) {
  if (type == FloatType::f32) return static_cast<const float*>(x)[i];
  const uint16_t h = static_cast<const uint16_t*>(x)[i];
  return type == FloatType::bf16 ? bf16_to_float(h) : half_to_float(h);
}
LT_HD void store_element(void* out, FloatType type, int64_t i, float x) {
  if (type == FloatType::f32)
    static_cast<float*>(out)[i] = x;
  else
    static_cast<uint16_t*>(out)[i] = type == FloatType::bf16 ? float_to_bf16(x) : saturated_half(x);
}

LT_HD float decode(int code, int zero, float scale) {
  return static_cast<float>(code - zero) * scale;
}

}  // namespace lowtide::quant
