// SPDX-License-Identifier: Apache-2.0
// The 4-bit maps of optimizer states (Li et al., NeurIPS 2023, "Memory Efficient Optimizers with
// 4-bit States", section 4; the same values as torchao's), one element at a time: the definition
// that every target reproduces bit for bit. Blocks of 128 elements share one absmax.
//
// signed, for first moments: the dynamic map of 4 bits, 0, 1 and +-{.0055, .0325, .0775, .2125,
// .4375, .6625, .8875}; code 7 is zero, codes rise with the value, there is no -1.
// positive, for second moments: (code + 1) / 16, no zero: a second moment that vanished beside a
// first one would make the next step m / eps.
//
// Two codes a byte as in quant/group_format.h: byte j of 16 holds code j of 32 low, code 16 + j
// high, so that vectors unpack with a shift and no shuffle.
#pragma once
#include "base/hd.h"

namespace lowtide::quant {

constexpr int kMap4Block = 128;
constexpr int kMap4ZeroSigned = 7;

// Blocks whose largest magnitude is smaller are stored as zeros (absmax 0): reciprocals of smaller
// ones overflow.
constexpr float kMap4Tiny = 0x1p-100f;

// Magnitudes are first rounded to multiples of absmax / 16383, so that vectors may search in 16-bit
// integers; a midpoint of two values is moved by at most 3e-5 of absmax by that.
constexpr int kMap4Unit = 16383;
constexpr int kMap4Midpoints = 8;
// The smallest integer at or above each midpoint.
LT_HD constexpr int map4_midpoint(int i) {
  return i < 4 ? (i < 2 ? (i < 1 ? 46 : 312) : (i < 3 ? 902 : 2376))
               : (i < 6 ? (i < 5 ? 5325 : 9011) : (i < 7 ? 12697 : 15462));
}

LT_HD constexpr float map4_magnitude(int k) {
  return k < 4   ? (k < 2 ? (k < 1 ? 0.0f : 0.0055f) : (k < 3 ? 0.0325f : 0.0775f))
         : k < 8 ? (k < 6 ? (k < 5 ? 0.2125f : 0.4375f) : (k < 7 ? 0.6625f : 0.8875f))
                 : 1.0f;
}
LT_HD constexpr float map4_value(int code, bool is_signed) {
  return !is_signed               ? static_cast<float>(code + 1) * 0.0625f
         : code < kMap4ZeroSigned ? -map4_magnitude(kMap4ZeroSigned - code)
                                  : map4_magnitude(code - kMap4ZeroSigned);
}

LT_HD float map4_decode(int code, bool is_signed, float absmax) {
  return map4_value(code, is_signed) * absmax;
}

LT_HD float map4_absmax(float largest) { return largest >= kMap4Tiny ? largest : 0.0f; }
// What encoding multiplies with; 0 makes the code of zero (signed) or the smallest (positive).
LT_HD float map4_inverse(float absmax, bool is_signed) {
  return absmax > 0.0f ? div_rn(is_signed ? static_cast<float>(kMap4Unit) : 16.0f, absmax) : 0.0f;
}

// Code of the nearest value to x / absmax; x finite, |x| <= absmax, not negative if !is_signed. A
// midpoint belongs to the larger magnitude in the signed map, to the even multiple of 1/16 in the
// other.
LT_HD int map4_encode(float x, bool is_signed, float inverse) {
  const int t = to_int_rne(x * inverse);
  if (!is_signed) return (t < 1 ? 1 : t) - 1;
  const int a = t < 0 ? -t : t;
  int k = 0;
  for (int i = 0; i < kMap4Midpoints; ++i) k += a >= map4_midpoint(i) ? 1 : 0;
  const int code = t < 0 ? kMap4ZeroSigned - k : kMap4ZeroSigned + k;
  return code < 0 ? 0 : code;
}

}  // namespace lowtide::quant
