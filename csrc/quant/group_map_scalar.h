// SPDX-License-Identifier: Apache-2.0
// Quantization to fixed levels, one element at a time: the definition that every target reproduces
// bit for bit. Maps of 16 levels have tables, those of 256 a closed form (dynamic_map_scalar.h).
//
//   value = level[code] * scale, scale = the group's largest magnitude, y = x * (1 / scale)
//
// Of 16 levels nearest takes the number of midpoints below y as code; a midpoint itself belongs to
// the level below it, as in bitsandbytes. Midpoints are rounded down to floats, which decides as
// the exact ones would. Stochastic takes one of the two levels around y, the upper with probability
// (y - lower) / (upper - lower) on a grid of 2^-16: unbiased between the outermost levels. (The
// signed dynamic maps have no -1: below -0.8875, with 8 bits -0.993, they saturate.)
#pragma once
#include "quant/dynamic_map_scalar.h"
#include "quant/group_codec_scalar.h"

namespace lowtide::quant {

enum class LevelMap : int {
  nf4 = 0,               // QLoRA (arXiv 2305.14314), appendix E; zero is exact
  dynamic = 1,           // torchao's signed 4-bit map; zero is exact
  dynamic_unsigned = 2,  // the same construction for values >= 0; zero is exact
  linear_nozero = 3,     // (i + 1) / 16 for second moments (arXiv 2309.01507), values >= 0
  dynamic8 = 4,          // bitsandbytes' signed 8-bit map; zero is exact
  dynamic8_unsigned = 5,
};
constexpr int kLevelMaps = 6;
constexpr int kTabledMaps = 4;

LT_HD bool map_is_signed(LevelMap map) {
  return map <= LevelMap::dynamic || map == LevelMap::dynamic8;
}
LT_HD int map_bits(LevelMap map) { return static_cast<int>(map) < kTabledMaps ? 4 : 8; }
LT_HD bool is_level_map(LevelMap map) {
  return map >= LevelMap::nf4 && map <= LevelMap::dynamic8_unsigned;
}

struct alignas(64) LevelTable {
  float level[16];
  float middle[16];   // between level i and i + 1; the last is never passed
  float per_gap[16];  // 2^16 / (level[i + 1] - level[i]); the last is 0
};

// Of the maps of 16 levels.
constexpr float map_level(LevelMap map, int i) {
  constexpr double nf4[16] = {-1.0,
                              -0.6961928009986877,
                              -0.5250730514526367,
                              -0.39491748809814453,
                              -0.28444138169288635,
                              -0.18477343022823334,
                              -0.09105003625154495,
                              0.0,
                              0.07958029955625534,
                              0.16093020141124725,
                              0.24611230194568634,
                              0.33791524171829224,
                              0.44070982933044434,
                              0.5626170039176941,
                              0.7229568362236023,
                              1.0};
  // Decades [10^(d-3), 10^(d-2)], d = 0, 1, 2, in 2^d (signed) or 2^(d+1) bins, by their centers.
  constexpr double dynamic[8] = {0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0};
  constexpr double dynamic_unsigned[16] = {0.0,     0.00325, 0.00775, 0.02125, 0.04375, 0.06625,
                                           0.08875, 0.15625, 0.26875, 0.38125, 0.49375, 0.60625,
                                           0.71875, 0.83125, 0.94375, 1.0};
  switch (map) {
    case LevelMap::nf4:
      return static_cast<float>(nf4[i]);
    case LevelMap::dynamic:
      return i == 7 ? 0.0f : static_cast<float>(i < 7 ? -dynamic[6 - i] : dynamic[i - 8]);
    case LevelMap::dynamic_unsigned:
      return static_cast<float>(dynamic_unsigned[i]);
    default:
      break;
  }
  return static_cast<float>(i + 1) * 0.0625f;
}

constexpr LevelTable make_level_table(LevelMap map) {
  LevelTable t{};
  for (int i = 0; i < 16; ++i) t.level[i] = map_level(map, i);
  for (int i = 0; i < 15; ++i) {
    const double lower = t.level[i], upper = t.level[i + 1];
    const double exact = (lower + upper) * 0.5;
    const double nearest = static_cast<float>(exact);
    const double magnitude = nearest < 0 ? -nearest : nearest;
    // 0.75 to 1.5 units of the last place, which rounds to the next float down
    t.middle[i] = static_cast<float>(nearest > exact ? nearest - magnitude * 0x1.8p-24 : nearest);
    t.per_gap[i] = static_cast<float>(65536.0 / (upper - lower));
  }
  t.middle[15] = 0x1.fffffep127f;
  return t;
}

struct LevelTables {
  LevelTable of[kTabledMaps];
};
constexpr LevelTables make_level_tables() {
  return {{make_level_table(LevelMap::nf4), make_level_table(LevelMap::dynamic),
           make_level_table(LevelMap::dynamic_unsigned),
           make_level_table(LevelMap::linear_nozero)}};
}

// Groups below the smallest normal number are stored as zeros with scale 0.
constexpr float kTinyMap = 0x1p-126f;

// largest: of the group's magnitudes (signed maps) or of its values and 0.
LT_HD GroupParams map_params(float largest, bool bf16_scale) {
  GroupParams p;
  if (!(largest >= kTinyMap)) return p;
  p.scale = bf16_scale ? bf16_above(largest) : largest;
  p.inv = div_rn(1.0f, p.scale);
  return p;
}

// Codes by bisection: of 16 candidates, 4 comparisons.
LT_HD int map_nearest(const LevelTable& t, float y) {
  int code = 0;
  for (int step = 8; step > 0; step /= 2)
    if (y > t.middle[code + step - 1]) code += step;
  return code;
}

LT_HD int map_stochastic(const LevelTable& t, float y, uint32_t r16) {
  const float at = clamp_f(y, t.level[0], t.level[15]);
  int code = 0;
  for (int step = 8; step > 0; step /= 2)
    if (at >= t.level[code + step]) code += step;
  const int up = to_int_rne((at - t.level[code]) * t.per_gap[code]);  // 0 .. 2^16
  return code + ((up + static_cast<int>(r16)) >> 16);
}

}  // namespace lowtide::quant
