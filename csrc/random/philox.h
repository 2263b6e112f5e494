// SPDX-License-Identifier: Apache-2.0
// Philox4x32 (Salmon et al., SC 2011) and the addressing scheme of the library: every random word
// is a pure function of (seed, step, slot, parameter, role, global element index).
#pragma once
#include "base/hd.h"

namespace lowtide::random {

// Which consumer a stream feeds: streams of different roles never share words.
enum Role : uint32_t {
  kRoleZ = 0,         // perturbation, projection sketch
  kRoleWeightSr = 1,  // stochastic rounding of weights
  kRoleU = 2,
  kRoleV = 3,
  kRoleMask = 4,
  kRoleQuantSr = 5,  // stochastic rounding of quantizers
};

struct Stream {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t slot = 0;   // direction, worker or probe within a step
  uint32_t param = 0;  // position of the parameter in the model's manifest, never traversal order
  uint32_t role = kRoleZ;
};

struct Key {
  uint32_t k0, k1;
};

LT_HD void philox_round(uint32_t x[4], uint32_t k0, uint32_t k1) {
  const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * x[0];
  const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * x[2];
  const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0;
  const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1;
  x[1] = static_cast<uint32_t>(p1);
  x[3] = static_cast<uint32_t>(p0);
  x[0] = y0;
  x[2] = y2;
}

LT_HD void philox_rounds(uint32_t x[4], Key& key, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    philox_round(x, key.k0, key.k1);
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
}

constexpr int kRounds = 10;
// Seven rounds are the fewest that pass BigCrush (the paper's table 2). Stochastic rounding
// compares 16 bits of a word with a fraction and no more; half of its arithmetic is Philox.
constexpr int kRoundsSr = 7;

LT_HD bool is_rounding(uint32_t role) { return role == kRoleWeightSr || role == kRoleQuantSr; }

LT_HD void philox4x32_10(uint32_t x[4], Key key) { philox_rounds(x, key, kRounds); }

// As many rounds as the role takes.
LT_HD void philox4x32(uint32_t x[4], Key key, uint32_t role) {
  philox_rounds(x, key, is_rounding(role) ? kRoundsSr : kRounds);
}

// The key of a step: the seed hashed with (step, slot), so that all 64 bits of the seed count and
// consecutive steps share nothing. 0x6c74 ("lt") keeps key derivation apart from data blocks.
LT_HD Key derive_key(uint64_t seed, uint64_t step, uint32_t slot) {
  uint32_t x[4] = {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), slot, 0x6c74u};
  philox4x32_10(x, Key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return Key{x[0], x[1]};
}

// The canonical word stream is laid out in tiles of 64 words made of 16 Philox blocks, word-major:
//   R[64 T + 16 w + lane] = block(16 T + lane).word[w]
// so that 16 lanes fill four 64-byte rows without a transpose on any target.
constexpr int kTileWords = 64;

LT_HD uint32_t stream_word(uint64_t index, Key key, uint32_t param, uint32_t role) {
  const uint64_t block = (index / 64) * 16 + (index % 16);
  uint32_t x[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), param, role};
  philox4x32(x, key, role);
  return x[(index % 64) / 16];
}

// 16 random bits of element e for stochastic rounding: 128 elements share a tile of 64 words, the
// first 64 take the low halves, the next 64 the high halves.
LT_HD uint64_t sr16_word(uint64_t e) { return (e / 128) * 64 + (e % 64); }
LT_HD int sr16_shift(uint64_t e) { return (e % 128) < 64 ? 0 : 16; }
LT_HD uint32_t sr16(uint64_t e, Key key, uint32_t param, uint32_t role) {
  return (stream_word(sr16_word(e), key, param, role) >> sr16_shift(e)) & 0xffffu;
}

}  // namespace lowtide::random
