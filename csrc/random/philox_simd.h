// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 on kLanes blocks at once. For *_simd.cc files only.
#pragma once
#include "base/simd.h"
#include "random/philox.h"

namespace lowtide::random {
namespace {

LT_SIMD void philox4x32_10(vu32 x[4], Key key) {
#pragma GCC unroll 10
  for (int r = 0; r < 10; ++r) {
    vu32 h0, l0, h1, l1;
    mul_hi_lo(x[0], 0xD2511F53u, h0, l0);
    mul_hi_lo(x[2], 0xCD9E8D57u, h1, l1);
    const vu32 y0 = h1 ^ x[1] ^ key.k0;
    const vu32 y2 = h0 ^ x[3] ^ key.k1;
    x[0] = y0;
    x[1] = l1;
    x[2] = y2;
    x[3] = l0;
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
}

// Words of tile T, lanes [lane, lane + kLanes): x[w] is the part of row w.
LT_SIMD void tile_words(uint64_t tile, uint32_t lane, Key key, uint32_t param, uint32_t role,
                        vu32 x[4]) {
  const uint64_t block = tile * 16 + lane;  // the 16 blocks of a tile share their high word
  x[0] = iota() + static_cast<uint32_t>(block);
  x[1] = splat_u(static_cast<uint32_t>(block >> 32));
  x[2] = splat_u(param);
  x[3] = splat_u(role);
  philox4x32_10(x, key);
}

// All 64 words of a tile.
LT_SIMD void tile_words(uint64_t tile, Key key, uint32_t param, uint32_t role, uint32_t* out) {
  for (uint32_t lane = 0; lane < 16; lane += kLanes) {
    vu32 x[4];
    tile_words(tile, lane, key, param, role, x);
    for (int w = 0; w < 4; ++w) store(out + 16 * w + lane, x[w]);
  }
}

}  // namespace
}  // namespace lowtide::random
