// SPDX-License-Identifier: Apache-2.0
// Decoding and packing of operand tiles, kLanes elements at a time. For *_simd.cc files only.
#pragma once
#include "base/lookup_simd.h"
#include "base/transpose_simd.h"
#include "quant/matmul_table.h"
#include "quant/matmul_tiles.h"

namespace lowtide::quant {
namespace {

// One group of one stored row, ready to be decoded.
template <Store S>
struct Decoder {
  static constexpr bool kCodes = S != Store::f32 && S != Store::bf16;
  const Operand& m;
  int64_t row;
  vi32 zero;
  float scale;

  // `g` is the index of the group within its row.
  inline __attribute__((always_inline))
  Decoder(const Operand& op, int64_t r, int64_t per_row, int64_t g)
      : m(op), row(r) {
    if constexpr (kCodes) {
      const int64_t at = r * per_row + g;
      zero = splat_i(op.zero != nullptr ? op.zero[at] : symmetric_zero(store_bits(S)));
      scale = op.scale[at];
    }
  }

  // Columns [col, col + kLanes), col a multiple of kLanes for codes.
  inline __attribute__((always_inline)) vf32 at(int64_t col) const {
    if constexpr (S == Store::f32) {
      return load<vf32>(static_cast<const float*>(m.data) + row * m.stride + col);
    } else if constexpr (S == Store::bf16) {
      return bf16_to_float(load<vu16>(static_cast<const uint16_t*>(m.data) + row * m.stride + col));
    } else {
      const uint8_t* p = static_cast<const uint8_t*>(m.data) + row * m.stride;
      vi32 code;
      if constexpr (S == Store::int8) {
        code = load_bytes(p + col);
      } else {
        const vi32 byte = load_bytes(p + col / 32 * 16 + col % 16);
        code = (col & 16) == 0 ? byte & 15 : byte >> 4;
      }
      if constexpr (S == Store::nf4) return Lookup16(kNf4Levels.level).at(code) * scale;
      return to_float(code - zero) * scale;
    }
  }
};

// The first n < kLanes elements from `col` on, the rest 0; touches nothing beyond.
vf32 load_tail(const Operand& m, int64_t row, int64_t col, int64_t n) {
  vf32 v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = operand_at(m, row, col + i);
  return v;
}

template <Store S>
LT_SIMD int64_t groups_of(const Operand& m) {
  return Decoder<S>::kCodes ? (m.cols + m.group - 1) / m.group : 0;
}

// Bytes of a stored row: columns per byte are 1/4, 1/2, 1 or 2.
template <Store S>
LT_SIMD const char* address(const Operand& m, int64_t row, int64_t col) {
  const char* p = static_cast<const char*>(m.data);
  if constexpr (S == Store::f32) return p + (row * m.stride + col) * 4;
  if constexpr (S == Store::bf16) return p + (row * m.stride + col) * 2;
  return p + row * m.stride + (S == Store::int8 ? col : col / 2);
}

// f(first, last, g) over [c0, c1) cut at the borders of groups.
template <Store S, class F>
LT_SIMD void for_groups(const Operand& m, int64_t c0, int64_t c1, const F& f) {
  if constexpr (Decoder<S>::kCodes) {
    for (int64_t c = c0; c < c1;) {
      const int64_t g = c / m.group;
      const int64_t end = (g + 1) * m.group < c1 ? (g + 1) * m.group : c1;
      f(c, end, g);
      c = end;
    }
  } else {
    f(c0, c1, int64_t{0});
  }
}

// Rows become rows: `out.at(r, c)` receives kLanes consecutive columns (zeros beyond the last).
template <Store S, class Out>
LT_SIMD void copy_block(const Operand& m, int64_t r0, int64_t rows, int64_t c0, int64_t cols,
                        const Out& out) {
  const int64_t per_row = groups_of<S>(m);
  constexpr int64_t kAhead = 8;
  for (int64_t r = 0; r < rows; ++r) {
    // Rows lie pages apart, where the hardware does not look ahead.
    if (r0 + r + kAhead < m.rows) {
      const char* p = address<S>(m, r0 + r + kAhead, c0);
      const char* end = address<S>(m, r0 + r + kAhead, c0 + cols);
      for (; p < end; p += 64) __builtin_prefetch(p);
    }
    for_groups<S>(m, c0, c0 + cols, [&](int64_t first, int64_t last, int64_t g) {
      const Decoder<S> d(m, r0 + r, per_row, g);
      int64_t c = first;
      for (; c + kLanes <= last; c += kLanes) store(out.at(r, c - c0), d.at(c));
      if (c < last) store(out.at(r, c - c0), load_tail(m, r0 + r, c, last - c));
    });
  }
}

// kSets pieces of 16 bytes of kLanes rows from column c on; columns go to out, `step` apart.
template <Store S, int kSets>
LT_SIMD void transpose_pieces(const Operand& m, int64_t row, int64_t c, vi32 zero, vf32 scale,
                              float* out, int64_t step) {
  vbytes q[kSets][4];
  load_pieces<kSets>(address<S>(m, row, c), S == Store::f32 ? m.stride * 4 : m.stride, q);
#pragma GCC unroll 4
  for (int s = 0; s < kSets; ++s) {
    if constexpr (S == Store::f32) {
      vf32 v[4];
      columns_of_floats(q[s], v);
      for (int i = 0; i < 4; ++i) store(out + (4 * s + i) * step, v[i]);
    } else {
      uint8_t bytes[16 * kLanes];
      columns_of_bytes(q[s], bytes);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        const vi32 code = load_bytes(bytes + j * kLanes);
        if constexpr (S == Store::int8) {
          store(out + (16 * s + j) * step, to_float(code - zero) * scale);
        } else if constexpr (S == Store::nf4) {
          const Lookup16 level(kNf4Levels.level);
          store(out + (32 * s + j) * step, level.at(code & 15) * scale);
          store(out + (32 * s + 16 + j) * step, level.at(code >> 4) * scale);
        } else {
          store(out + (32 * s + j) * step, to_float((code & 15) - zero) * scale);
          store(out + (32 * s + 16 + j) * step, to_float((code >> 4) - zero) * scale);
        }
      }
    }
  }
}

// Whole pieces of kLanes whole rows; returns the first column that is left. A segment lies in one
// group of each row, whose scales and zeros become lanes.
template <Store S>
LT_SIMD int64_t transpose_segment(const Operand& m, int64_t row, int64_t first, int64_t last,
                                  int64_t per_row, int64_t g, float* out, int64_t step) {
  constexpr int64_t kColumns = S == Store::f32 ? 4 : S == Store::int8 ? 16 : 32;
  if (S == Store::bf16 || first % kColumns != 0) return first;
  vi32 zero = {};
  vf32 scale = {};
  if constexpr (Decoder<S>::kCodes)
    for (int i = 0; i < kLanes; ++i) {
      const int64_t at = (row + i) * per_row + g;
      zero[i] = m.zero != nullptr ? m.zero[at] : symmetric_zero(store_bits(S));
      scale[i] = m.scale[at];
    }
  int64_t c = first;
  if constexpr (S != Store::bf16) {
    for (; c + 4 * kColumns <= last; c += 4 * kColumns)
      transpose_pieces<S, 4>(m, row, c, zero, scale, out + (c - first) * step, step);
    for (; c + kColumns <= last; c += kColumns)
      transpose_pieces<S, 1>(m, row, c, zero, scale, out + (c - first) * step, step);
  }
  return c;
}

// Columns become rows: `out.at(c, r)` receives kLanes consecutive rows (zeros beyond the last).
template <Store S, class Out>
LT_SIMD void transpose_block(const Operand& m, int64_t r0, int64_t rows, int64_t c0, int64_t cols,
                             const Out& out) {
  const int64_t per_row = groups_of<S>(m);
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t height = rows - r < kLanes ? rows - r : kLanes;
    float* column = out.at(0, r);
    const int64_t step = out.step(r);
    for_groups<S>(m, c0, c0 + cols, [&](int64_t first, int64_t last, int64_t g) {
      int64_t c = first;
      if (height == kLanes)
        c = transpose_segment<S>(m, r0 + r, first, last, per_row, g, column + (first - c0) * step,
                                 step);
      for (; c < last; c += kLanes) {
        vf32 v[kLanes];
        const int64_t width = last - c < kLanes ? last - c : kLanes;
        if (height == kLanes && width == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) v[i] = Decoder<S>(m, r0 + r + i, per_row, g).at(c);
        } else {
          for (int i = 0; i < kLanes; ++i)
            v[i] = i < height ? load_tail(m, r0 + r + i, c, width) : vf32{};
        }
        transpose(v);
        if (width == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) store(column + (c - c0 + i) * step, v[i]);
        } else {
          for (int64_t i = 0; i < width; ++i) store(column + (c - c0 + i) * step, v[i]);
        }
      }
    });
  }
}

template <class Out>
void pack(const Operand& m, bool transposed, int64_t r0, int64_t rows, int64_t c0, int64_t cols,
          const Out& out) {
  const auto run = [&]<Store S>() {
    if (transposed)
      transpose_block<S>(m, c0, cols, r0, rows, out);
    else
      copy_block<S>(m, r0, rows, c0, cols, out);
  };
  switch (m.store) {
    case Store::f32:
      return run.template operator()<Store::f32>();
    case Store::bf16:
      return run.template operator()<Store::bf16>();
    case Store::int8:
      return run.template operator()<Store::int8>();
    case Store::int4:
      return run.template operator()<Store::int4>();
    case Store::nf4:
      return run.template operator()<Store::nf4>();
  }
}

}  // namespace
}  // namespace lowtide::quant
