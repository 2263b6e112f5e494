// SPDX-License-Identifier: Apache-2.0
// From words to numbers, one element at a time: the definition that every target reproduces bit for
// bit.
#pragma once
#include "random/lut8.h"
#include "random/philox.h"

namespace lowtide::random {

enum class Dist : int { rademacher = 0, gaussian = 1, ih4 = 2, lut8 = 3 };
constexpr int kDists = 4;
constexpr bool is_dist(Dist dist) { return static_cast<unsigned>(dist) < kDists; }

// Box-Muller on two words. Radius: -2 ln(u), u = (a>>8)+1 in 1..2^24 over 2^24; angle: 24 bits of b
// in a quarter turn, two bits choose the quadrant. Polynomials fitted by Remez; |error| of the
// radius 5.3e-7, of sine and cosine 9.3e-8; |z| <= 5.77.
LT_HD void gaussian_pair(uint32_t a, uint32_t b, float* z0, float* z1) {
  const float u = static_cast<float>(static_cast<int32_t>((a >> 8) + 1u));
  const uint32_t ix = float_bits(u) - 0x3f3504f3u;
  const int32_t e = (static_cast<int32_t>(ix) >> 23) - 24;
  const float f = bits_float((ix & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 0x1.79ec44p-4f;
  p = fma_rn(p, f, -0x1.25ef5ep-3f);
  p = fma_rn(p, f, 0x1.2e979cp-3f);
  p = fma_rn(p, f, -0x1.5330b2p-3f);
  p = fma_rn(p, f, 0x1.9913b2p-3f);
  p = fma_rn(p, f, -0x1.000566p-2f);
  p = fma_rn(p, f, 0x1.555624p-2f);
  p = fma_rn(p, f, -0x1.fffffcp-2f);
  float ln = fma_rn(f * f, p, f);
  ln = fma_rn(static_cast<float>(e), 0x1.62e430p-1f, ln);
  float r = sqrt_rn(ln * -2.0f);
  const float t =
      static_cast<float>(static_cast<int32_t>((b >> 6) & 0xffffffu) - 0x800000) * 0x1p-24f;
  const float q = t * t;
  float s = -0x1.2d9bc6p-8f;
  s = fma_rn(s, q, 0x1.465ec6p-4f);
  s = fma_rn(s, q, -0x1.4abbbap-1f);
  s = fma_rn(s, q, 0x1.921fb6p+0f);
  s = s * t;
  float c = 0x1.d9c372p-11f;
  c = fma_rn(c, q, -0x1.55c57cp-6f);
  c = fma_rn(c, q, 0x1.03c1dcp-2f);
  c = fma_rn(c, q, -0x1.3bd3ccp+0f);
  c = fma_rn(c, q, 1.0f);
  const bool swap = ((b >> 30) & 1u) != 0;
  r = bits_float(float_bits(r) ^ (b & 0x80000000u));
  *z0 = r * (swap ? s : c);
  *z1 = r * (swap ? c : s);
}

// Element e of a Gaussian stream: one word an element; rows 0,1 and rows 2,3 of a tile are pairs.
LT_HD float gaussian_at(uint64_t e, Key key, uint32_t param, uint32_t role) {
  const uint64_t first = e & ~static_cast<uint64_t>(16);
  float z0, z1;
  gaussian_pair(stream_word(first, key, param, role), stream_word(first + 16, key, param, role),
                &z0, &z1);
  return (e & 16) ? z1 : z0;
}

// Element e of a Rademacher stream: one bit an element, 0 -> +1, 1 -> -1.
LT_HD float rademacher_at(uint64_t e, Key key, uint32_t param, uint32_t role) {
  return ((stream_word(e >> 5, key, param, role) >> (e & 31)) & 1u) ? -1.0f : 1.0f;
}

// The four bytes of a word added up (Irwin-Hall): mean 510, variance 21845; kurtosis 2.70, |z|
// <= 3.46.
LT_HD float ih4_value(uint32_t word) {
  const uint32_t pairs = (word & 0x00ff00ffu) + ((word >> 8) & 0x00ff00ffu);
  const uint32_t sum = (pairs + (pairs >> 16)) & 0xffffu;
  return static_cast<float>(static_cast<int32_t>(sum) - 510) * 0x1.bb688cp-8f;
}

// Element e of an ih4 stream: one word an element.
LT_HD float ih4_at(uint64_t e, Key key, uint32_t param, uint32_t role) {
  return ih4_value(stream_word(e, key, param, role));
}

// Element e of a lut8 stream: one byte an element, the lowest of a word first.
LT_HD float lut8_at(uint64_t e, Key key, uint32_t param, uint32_t role) {
  const uint32_t b = (stream_word(e >> 2, key, param, role) >> (8 * (e & 3))) & 255u;
  return lut8_value(b, lut8_word(lut8_index(b) >> 2));
}

LT_HD float sample_at(Dist dist, uint64_t e, Key key, uint32_t param, uint32_t role) {
  switch (dist) {
    case Dist::gaussian:
      return gaussian_at(e, key, param, role);
    case Dist::ih4:
      return ih4_at(e, key, param, role);
    case Dist::lut8:
      return lut8_at(e, key, param, role);
    default:
      return rademacher_at(e, key, param, role);
  }
}

}  // namespace lowtide::random
