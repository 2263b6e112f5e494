// SPDX-License-Identifier: Apache-2.0
// The 256 levels of the distribution lut8: a byte names one of 256 equally probable slices of the
// normal distribution, and its level is the slice's conditional mean, scaled so that the outermost
// is 127, rounded to an integer. tests/random/test_distributions.py computes the table anew.
#pragma once
#include "base/hd.h"

namespace lowtide::random {

// Levels of bytes 128 to 255, four to a word, the first lowest; byte b below 128 has the negative
// of byte 255 - b.
#define LT_LUT8_WORDS                                                                             \
  0x01010100, 0x03030202, 0x05040404, 0x07060605, 0x08080707, 0x0a0a0909, 0x0c0b0b0a, 0x0d0d0d0c, \
      0x0f0f0e0e, 0x11111010, 0x13121211, 0x15141413, 0x17161615, 0x19181817, 0x1b1a1a19,         \
      0x1d1c1c1b, 0x1f1e1e1d, 0x2120201f, 0x23232221, 0x26252424, 0x28282726, 0x2b2a2929,         \
      0x2e2d2c2c, 0x31302f2e, 0x34333232, 0x38373635, 0x3c3b3a39, 0x41403e3d, 0x47454442,         \
      0x4f4c4a49, 0x5a575451, 0x7f6c645e

struct Lut8Words {
  uint32_t word[32];
};
static constexpr Lut8Words kLut8 = {{LT_LUT8_WORDS}};
#if defined(__CUDACC__)
static __constant__ const Lut8Words kLut8Constant = {{LT_LUT8_WORDS}};
#endif

// 1 / sqrt(mean of the squared levels) = 1 / 42.7717, to float.
constexpr float kLut8Scale = 0x1.7f0e8p-6f;

LT_HD uint32_t lut8_word(uint32_t i) {
#if defined(__CUDA_ARCH__)
  return kLut8Constant.word[i];
#else
  return kLut8.word[i];
#endif
}

// Where byte b's magnitude lies: byte lut8_index(b) % 4 of word lut8_index(b) / 4.
LT_HD uint32_t lut8_index(uint32_t b) { return (b < 128 ? ~b : b) & 127u; }
LT_HD int32_t lut8_level(uint32_t b, uint32_t word) {
  const int32_t magnitude = static_cast<int32_t>(word >> (8 * (lut8_index(b) & 3)) & 255u);
  return b < 128 ? -magnitude : magnitude;
}
LT_HD float lut8_value(uint32_t b, uint32_t word) {
  return static_cast<float>(lut8_level(b, word)) * kLut8Scale;
}

}  // namespace lowtide::random
