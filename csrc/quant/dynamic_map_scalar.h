// SPDX-License-Identifier: Apache-2.0
// The 8-bit dynamic map of bitsandbytes (Dettmers et al., ICLR 2022, section 2) in closed form, one
// element at a time: the definition that every target reproduces bit for bit. No table of 256, no
// gather.
//
// Magnitudes of [0, 1] fall into nine regions: 0 holds zero alone; r = 1..7 is the decade
// [10^(r-8), 10^(r-7)], cut into 2^(r-1) equal bins (signed map) or 2^r (unsigned map) and
// represented by their centers; 8 holds one alone. Bins are numbered through: signed k = 0..128,
// code 127 + k for positive and 127 - k for negative values (there is no -1.0: k stops at 127);
// unsigned k = code. Zero is exact in both maps: code 127 and code 0.
#pragma once
#include "base/hd.h"

namespace lowtide::quant {

constexpr int kDynamicBlock = 256;  // elements that share one absmax
constexpr int kDynamicZeroSigned = 127;
constexpr int kDynamicRegions = 9;

// Blocks whose largest magnitude is below the smallest normal number are stored as zeros: the
// reciprocal of a smaller one could overflow.
constexpr float kDynamicTiny = 0x1p-126f;

// Constants of region r, computed in double and rounded once.
LT_HD constexpr double dynamic_decade(int r) {
  constexpr double decade[kDynamicRegions] = {0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 0};
  return decade[r];
}
LT_HD constexpr double dynamic_bins(int r, bool is_signed) {
  return static_cast<double>(1 << (is_signed ? r - 1 : r));
}

// Decoding: value = (f - offset) * slope, where f is the bin's center k + 1/2 (signed) or k + 3/2
// (unsigned), which has the region in its exponent. In region 8 that is 1 exactly.
LT_HD constexpr float dynamic_offset(int r, bool is_signed) {
  if (r == 0 || r == 8) return 0.5f;
  return static_cast<float>(dynamic_bins(r, is_signed) * (0.8 / 0.9));
}
LT_HD constexpr float dynamic_slope(int r, bool is_signed) {
  if (r == 0) return 0.0f;
  if (r == 8) return is_signed ? 0x1p-7f : 0x1p-8f;
  const float x = static_cast<float>(0.9 * dynamic_decade(r) / dynamic_bins(r, is_signed));
  // bitsandbytes' table was computed in float and is up to 1.4e-7 from the exact centers; in these
  // decades the next float up comes closer to it.
  const bool up = is_signed ? r == 4 : r == 1 || r == 4 || r == 7;
  return up ? x + x * 0x1.8p-24f : x;  // the added 0.75 to 1.5 units round to one
}

// Encoding: k = min(floor(fma(a, scale, shift)), last). Regions 0 and 8 share their constants,
// which give k = 0 below 1e-6 and the last code above 0.99: eight entries are enough for a vector
// permute.
LT_HD constexpr int dynamic_last(int r, bool is_signed) {
  if (r == 0 || r == 8) return is_signed ? 128 : 255;
  return 2 * (1 << (is_signed ? r - 1 : r)) - (is_signed ? 1 : 2);
}
LT_HD constexpr float dynamic_scale(int r, bool is_signed) {
  if (r == 0 || r == 8) return is_signed ? 128.6f : 255.9f;
  return static_cast<float>(dynamic_bins(r, is_signed) / (0.9 * dynamic_decade(r)));
}
LT_HD constexpr float dynamic_shift(int r, bool is_signed) {
  if (r == 0 || r == 8) return 0.0f;
  return static_cast<float>(dynamic_bins(r, is_signed) * (0.8 / 0.9) - (is_signed ? 0 : 1));
}

// The smallest magnitude that belongs to region r + 1 and not to region r: the midpoint between the
// last center below and the first center above.
LT_HD constexpr float dynamic_boundary(int r, bool is_signed) {
  const double below = r == 0 ? 0 : dynamic_decade(r) * (1 - 0.45 / dynamic_bins(r, is_signed));
  const double above =
      r == 7 ? 1 : dynamic_decade(r + 1) * (0.1 + 0.45 / dynamic_bins(r + 1, is_signed));
  return static_cast<float>(0.5 * (below + above));
}

// The constants by [is_signed][region], padded to 16 entries for vector permutes. Functions take
// the table as an argument, so that a CUDA kernel can keep it in constant memory.
struct alignas(64) DynamicTable {
  float offset[2][16], slope[2][16];
  float scale[2][16], shift[2][16], last[2][16], boundary[2][16];
};

constexpr DynamicTable make_dynamic_table() {
  DynamicTable t{};
  for (int s = 0; s < 2; ++s) {
    for (int r = 0; r < kDynamicRegions; ++r) {
      t.offset[s][r] = dynamic_offset(r, s != 0);
      t.slope[s][r] = dynamic_slope(r, s != 0) * (s != 0 ? 0x1p-8f : 1.0f);
      t.scale[s][r] = dynamic_scale(r, s != 0);
      t.shift[s][r] = dynamic_shift(r, s != 0);
      t.last[s][r] = static_cast<float>(dynamic_last(r, s != 0));
      if (r < 8) t.boundary[s][r] = dynamic_boundary(r, s != 0);
    }
  }
  return t;
}

constexpr DynamicTable kDynamic = make_dynamic_table();

// Stochastic rounding takes one of the two levels around a magnitude a. Where a lies among the
// levels, k + (a - level k) / (level k+1 - level k), is a chain of straight lines: one within each
// region and one from each to the next. Their slopes fall up to the last level below 1, so segment
// j, from the last level of region j (0: from zero) to that of region j + 1, is the smaller of two
// lines; segment 7, up to 1, has one.
struct alignas(64) DynamicLines {
  float end[2][8];                       // where segment j ends; the last does not
  float cross_slope[2][8], cross[2][8];  // from region j into the next, in steps of 2^-16
  float inner_slope[2][8], inner[2][8];  // within region j + 1
};

constexpr DynamicLines make_dynamic_lines() {
  DynamicLines t{};
  for (int s = 0; s < 2; ++s) {
    double last = 0, k_last = 0;  // level and number
    for (int j = 0; j < 7; ++j) {
      const double bins = dynamic_bins(j + 1, s != 0), decade = dynamic_decade(j + 1);
      const double first = decade * (0.1 + 0.45 / bins), k_first = k_last + 1;
      t.cross_slope[s][j] = static_cast<float>(65536 / (first - last));
      t.cross[s][j] = static_cast<float>(65536 * k_last - last * double{t.cross_slope[s][j]});
      t.inner_slope[s][j] = static_cast<float>(65536 * bins / (0.9 * decade));
      t.inner[s][j] = static_cast<float>(65536 * k_first - first * double{t.inner_slope[s][j]});
      last = decade * (1 - 0.45 / bins), k_last = k_last + bins;
      t.end[s][j] = static_cast<float>(last);
    }
    t.end[s][7] = 0x1.fffffep127f;
    // 1 comes out exact: these two constants are integers
    t.cross_slope[s][7] = static_cast<float>(65536 / (1 - last));
    t.cross[s][7] = static_cast<float>(65536 * (k_last + 1) - double{t.cross_slope[s][7]});
    t.inner[s][7] = static_cast<float>(65536 * (k_last + 1));
  }
  return t;
}

constexpr DynamicLines kDynamicLines = make_dynamic_lines();

// Value of a code in a block with this absmax. For absmax 1 within 1.4e-7 (relative) of
// bitsandbytes' create_dynamic_map and within 1.3e-7 of the exact centers.
LT_HD float dynamic_decode(const DynamicTable& t, int code, bool is_signed, float absmax) {
  const int d = is_signed ? code - kDynamicZeroSigned : code;
  const float f = static_cast<float>(d < 0 ? -d : d) + (is_signed ? 0.5f : 1.5f);
  const int r = static_cast<int>(float_bits(f) >> 23) - (is_signed ? 126 : 127);
  // Signed slopes are stored scaled by 2^-8 (which moves no rounding but of subnormal products):
  // vectors find the region of a signed code in the exponent of 256 times it.
  const float scale = is_signed ? 256.0f : 1.0f;
  const float value = (f - t.offset[is_signed][r]) * (t.slope[is_signed][r] * absmax * scale);
  return d < 0 ? -value : value;
}

// Number of region boundaries at or below a.
LT_HD int dynamic_region(const DynamicTable& t, float a, bool is_signed) {
  int r = 0;
  while (r < 8 && a >= t.boundary[is_signed][r]) ++r;
  return r;
}

// Code of the nearest value to y, an element in units of its absmax. A midpoint itself belongs to
// the larger magnitude; rounding of y and of the fma may move a point that lies within 5e-5 of a
// bin from its midpoint. (bitsandbytes' search puts midpoints down; its CPU path is off by up to a
// bin.) The unsigned map takes negative y as zero.
LT_HD uint8_t dynamic_nearest(const DynamicTable& t, float y, bool is_signed) {
  const float a = is_signed ? abs_f(y) : (y > 0.0f ? y : 0.0f);
  const int r = dynamic_region(t, a, is_signed);
  const float at = fma_rn(a, t.scale[is_signed][r], t.shift[is_signed][r]);
  const float last = t.last[is_signed][r];
  const int k = static_cast<int>(last < at ? last : at);  // floor
  if (!is_signed) return static_cast<uint8_t>(k);
  const int code = float_bits(y) >> 31 ? kDynamicZeroSigned - k : kDynamicZeroSigned + k;
  return static_cast<uint8_t>(code < 0 ? 0 : code);
}

// One of the two values around y, each with the probability that makes the mean y, on a grid of
// 2^-16 of their distance. 0 and 1 stay as they are, and below the lowest value (there is no -1) it
// is that. Other values may leave their code once in 2^15 draws: constants and levels are floats,
// and 2^-24 of a value are up to 2^-17 of a bin each.
LT_HD uint8_t dynamic_stochastic(const DynamicLines& t, float y, bool is_signed, uint32_t r16) {
  const float a = is_signed ? abs_f(y) : (y > 0.0f ? y : 0.0f);
  int j = 0;
  while (j < 7 && a >= t.end[is_signed][j]) ++j;
  const float cross = fma_rn(a, t.cross_slope[is_signed][j], t.cross[is_signed][j]);
  const float inner = fma_rn(a, t.inner_slope[is_signed][j], t.inner[is_signed][j]);
  const int at = to_int_rne(inner < cross ? inner : cross);
  const int k = (at + static_cast<int>(r16)) >> 16;
  if (!is_signed) return static_cast<uint8_t>(k);
  const int code = float_bits(y) >> 31 ? kDynamicZeroSigned - k : kDynamicZeroSigned + k;
  return static_cast<uint8_t>(code < 0 ? 0 : code);
}

// dynamic_nearest of x / absmax, given inverse = dynamic_inverse(absmax); x finite.
LT_HD uint8_t dynamic_encode(const DynamicTable& t, float x, bool is_signed, float inverse) {
  return dynamic_nearest(t, x * inverse, is_signed);
}

// The unsigned map for second moments: a positive value never becomes zero. With v rounded to zero
// beside a first moment that is not, the next step would be m / eps.
LT_HD uint8_t dynamic_encode_positive(const DynamicTable& t, float x, float inverse) {
  const uint8_t code = dynamic_encode(t, x, false, inverse);
  return code == 0 && x * inverse > 0.0f ? uint8_t{1} : code;
}

// What is stored for a block with this largest magnitude, and its reciprocal (0 codes all as zero).
LT_HD float dynamic_absmax(float largest) { return largest >= kDynamicTiny ? largest : 0.0f; }
LT_HD float dynamic_inverse(float absmax) { return absmax > 0.0f ? div_rn(1.0f, absmax) : 0.0f; }

}  // namespace lowtide::quant
