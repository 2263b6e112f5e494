// SPDX-License-Identifier: Apache-2.0
// The 16 bits that stochastic rounding takes an element (sr16 of philox.h), for a warp at a time:
// up to 256 consecutive elements share at most 48 Philox blocks, generated once into shared memory.
#pragma once
#include "random/philox.h"

namespace lowtide::random {

struct NoiseSource {
  Key key;
  uint32_t param, role;
};

constexpr int kNoiseWords = 3 * kTileWords;  // shared memory a warp, 16-byte aligned

// All 32 lanes: fills `words` for elements [first, first + n), n <= 256.
__device__ __forceinline__ void warp_noise(uint32_t* words, uint64_t first, int n,
                                           const NoiseSource& s, int lane) {
  const uint64_t tile = first / 128;
  const int tiles = static_cast<int>((first + static_cast<uint64_t>(n) - 1) / 128 - tile) + 1;
  __syncwarp();  // whoever still reads what was there before
  for (int b = lane; b < 16 * tiles; b += 32) {
    const uint64_t block = tile * 16 + static_cast<uint64_t>(b);
    uint32_t x[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), s.param,
                     s.role};
    philox4x32(x, s.key, s.role);
#pragma unroll
    for (int w = 0; w < 4; ++w) words[b / 16 * kTileWords + 16 * w + b % 16] = x[w];
  }
  __syncwarp();
}

// The noise of elements first + i .. first + i + live - 1.
__device__ __forceinline__ void noise4(const uint32_t* words, uint64_t first, int i, int live,
                                       uint32_t r16[4]) {
  const uint64_t e = first + static_cast<uint64_t>(i);
  auto index = [&](uint64_t at) {
    return static_cast<int>(at / 128 - first / 128) * kTileWords + static_cast<int>(at % 64);
  };
  if (e % 4 == 0) {  // then they share a half tile
    if (live == 0) return;
    const uint4 w = *reinterpret_cast<const uint4*>(words + index(e));
    const int shift = sr16_shift(e);
    r16[0] = w.x >> shift & 0xffffu, r16[1] = w.y >> shift & 0xffffu;
    r16[2] = w.z >> shift & 0xffffu, r16[3] = w.w >> shift & 0xffffu;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint64_t at = e + static_cast<uint64_t>(j);
      if (j < live) r16[j] = words[index(at)] >> sr16_shift(at) & 0xffffu;
    }
  }
}

}  // namespace lowtide::random
