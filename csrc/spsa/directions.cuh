// SPDX-License-Identifier: Apache-2.0
// Directions in registers: a block of 256 threads takes a chunk of 2048 elements, and of each 128 a
// half warp takes those that one Philox block serves: lane l has elements l, 16 + l, ..., 112 + l.
// So do the 16-bit halves that round them. Sixteen lanes are 64 bytes of float32 neighbours.
#pragma once
#include "base/launch.cuh"
#include "random/distributions.cuh"
#include "spsa/schedule.h"

namespace lowtide::spsa {

constexpr int kChunkElements = 2048;
constexpr int kOwn = kChunkElements / kThreads;

// Position in the chunk of element i of this thread.
__device__ __forceinline__ int own_position(int i) {
  return static_cast<int>(threadIdx.x) / 16 * 128 + 16 * i + static_cast<int>(threadIdx.x) % 16;
}

// Words that several elements share, drawn by the whole block for as many directions as fit.
template <random::Dist dist>
struct SharedWords {
  static constexpr int kWords = dist == random::Dist::rademacher ? 64
                                : dist == random::Dist::lut8     ? 512
                                                                 : 0;
  static constexpr int kBatch = kWords == 0 ? 1 : 4 * kThreads / kWords;
};

// z of direction `at` of this thread's elements; all threads of the block call it, with `at` going
// up by one. `words`: 1024 words of shared memory; [first, first + kBatch) is what they hold.
template <random::Dist dist>
__device__ __forceinline__ void own_direction(const Direction* directions, int64_t at, int64_t end,
                                              uint64_t chunk, uint32_t param, uint32_t* words,
                                              int64_t& first, uint32_t levels, float z[kOwn]) {
  const int t = static_cast<int>(threadIdx.x), half = t / 16, lane = t % 16;
  if constexpr (SharedWords<dist>::kWords == 0) {
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      uint32_t x[4];
      random::cuda::philox_block((chunk * 32 + 2 * half + a) * 16 + lane,
                                 {directions[at].key, param, random::kRoleZ}, x);
      if constexpr (dist == random::Dist::gaussian) {
        random::gaussian_pair(x[0], x[1], &z[4 * a], &z[4 * a + 1]);
        random::gaussian_pair(x[2], x[3], &z[4 * a + 2], &z[4 * a + 3]);
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) z[4 * a + w] = random::ih4_value(x[w]);
      }
    }
  } else {
    constexpr int kWords = SharedWords<dist>::kWords, kBatch = SharedWords<dist>::kBatch;
    if (at >= first + kBatch) {  // the same for the whole block
      __syncthreads();
      first = at;
      const int b = t / (kWords / 4), block = t % (kWords / 4);
      if (at + b < end) {
        uint32_t x[4];
        random::cuda::philox_block(chunk * (kWords / 4) + block,
                                   {directions[at + b].key, param, random::kRoleZ}, x);
#pragma unroll
        for (int w = 0; w < 4; ++w)
          words[b * kWords + block / 16 * 64 + 16 * w + block % 16] = x[w];
      }
      __syncthreads();
    }
    const uint32_t* mine = words + (at - first) * kWords;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if constexpr (dist == random::Dist::rademacher) {
        const uint32_t bits = mine[4 * half + i / 2] >> (16 * (i % 2) + lane);
        z[i] = bits & 1u ? -1.0f : 1.0f;
      } else {
        const uint32_t b = mine[32 * half + 4 * i + lane / 4] >> (8 * (lane % 4)) & 255u;
        z[i] = random::lut8_value(
            b, __shfl_sync(0xffffffffu, levels, static_cast<int>(random::lut8_index(b) >> 2)));
      }
    }
  }
}

// The 16 bits that round each of this thread's elements.
__device__ __forceinline__ void own_noise(random::Key key, uint64_t chunk, uint32_t param,
                                          uint32_t r16[kOwn]) {
  const int t = static_cast<int>(threadIdx.x);
  uint32_t x[4];
  random::cuda::philox_block((chunk * 16 + t / 16) * 16 + t % 16,
                             {key, param, random::kRoleWeightSr}, x);
#pragma unroll
  for (int w = 0; w < 4; ++w) r16[w] = x[w] & 0xffffu, r16[4 + w] = x[w] >> 16;
}

}  // namespace lowtide::spsa
