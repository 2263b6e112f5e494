// SPDX-License-Identifier: Apache-2.0
// The distributions of distributions.h in the registers of a half warp or a warp, for the .cu files
// of any family. put(i, z) takes one element, put.four(i, z) four neighbours; i counts from the
// start of the range [offset, offset + n) and never leaves it.
#pragma once
#include "base/launch.cuh"
#include "random/distributions.h"

namespace lowtide::random::cuda {

constexpr int kTile = kTileWords;  // words, and elements of a Gaussian stream
constexpr int kRademacherTile = 2048;
constexpr int kLut8Tile = 256;

struct Source {
  Key key;
  uint32_t param, role;
};

__device__ __forceinline__ void philox_block(uint64_t block, const Source& s, uint32_t x[4]) {
  x[0] = static_cast<uint32_t>(block);
  x[1] = static_cast<uint32_t>(block >> 32);
  x[2] = s.param;
  x[3] = s.role;
  philox4x32(x, s.key, s.role);
}

// Calls put(i, value) for the elements [offset, offset + n) that one lane of a half warp holds of a
// tile.
template <class T, class Put>
__device__ __forceinline__ void put_rows(int64_t at, int64_t n, const T value[4], const Put& put) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const int64_t i = at + 16 * w;
    if (i >= 0 && i < n) put(i, value[w]);
  }
}

template <class Put>
__device__ __forceinline__ void gaussian_tile(uint64_t tile, int lane, int64_t n, int64_t offset,
                                              const Source& s, const Put& put) {
  uint32_t x[4];
  philox_block(tile * 16 + lane, s, x);
  float z[4];
  gaussian_pair(x[0], x[1], &z[0], &z[1]);
  gaussian_pair(x[2], x[3], &z[2], &z[3]);
  put_rows(static_cast<int64_t>(tile) * kTile + lane - offset, n, z, put);
}

template <class Put>
__device__ __forceinline__ void ih4_tile(uint64_t tile, int lane, int64_t n, int64_t offset,
                                         const Source& s, const Put& put) {
  uint32_t x[4];
  philox_block(tile * 16 + lane, s, x);
  const float z[4] = {ih4_value(x[0]), ih4_value(x[1]), ih4_value(x[2]), ih4_value(x[3])};
  put_rows(static_cast<int64_t>(tile) * kTile + lane - offset, n, z, put);
}

// A whole warp, each half with a tile of its own (`tile`, `lane` within the half); `levels` is word
// threadIdx % 32 of the table, so that a lookup is a shuffle. `aligned` as below.
template <class Put>
__device__ __forceinline__ void lut8_tile(uint64_t tile, int lane, int64_t n, int64_t offset,
                                          const Source& s, bool aligned, uint32_t levels,
                                          const Put& put) {
  uint32_t x[4];
  philox_block(tile * 16 + lane, s, x);
  const int64_t start = static_cast<int64_t>(tile) * kLut8Tile - offset;
  const bool whole = aligned && start >= 0 && start + kLut8Tile <= n;
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    float z[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t b = x[row] >> (8 * j) & 255u;
      z[j] = lut8_value(b, __shfl_sync(0xffffffffu, levels, static_cast<int>(lut8_index(b) >> 2)));
    }
    const int64_t i = start + 64 * row + 4 * lane;
    if (whole) {
      put.four(i, make_float4(z[0], z[1], z[2], z[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (i + j >= 0 && i + j < n) put(i + j, z[j]);
    }
  }
}

__device__ __forceinline__ float sign_of(uint32_t bits, int j) {
  return bits >> j & 1 ? -1.0f : 1.0f;
}

// One warp puts the elements of a tile inside [offset, offset + n). `aligned`: where the tile's
// element 0 lies in memory is a 16-byte boundary, so that whole tiles move in vectors.
template <class Put>
__device__ __forceinline__ void rademacher_tile(uint64_t tile, int lane, int64_t n, int64_t offset,
                                                const Source& s, bool aligned, const Put& put) {
  uint32_t x[4];
  philox_block(tile * 16 + (lane & 15), s, x);
  const int64_t start = static_cast<int64_t>(tile) * kRademacherTile - offset;
  const bool whole =
      aligned && start >= 0 && start + kRademacherTile <= n;  // the same for the whole warp
#pragma unroll
  for (int row = 0; row < 4; ++row) {
#pragma unroll 1
    for (int k = 0; k < 4; ++k) {  // 128 elements: words 16 row + 4k .. + 3 of the tile
      const uint32_t word = __shfl_sync(0xffffffffu, x[row], 4 * k + lane / 8);
      const uint32_t bits = word >> (4 * (lane & 7));
      const int64_t i = start + 512 * row + 128 * k + 4 * lane;
      if (whole) {
        put.four(
            i, make_float4(sign_of(bits, 0), sign_of(bits, 1), sign_of(bits, 2), sign_of(bits, 3)));
      } else {
        for (int j = 0; j < 4; ++j)
          if (i + j >= 0 && i + j < n) put(i + j, sign_of(bits, j));
      }
    }
  }
}

namespace kernels {

template <Dist dist, class Put>  // gaussian or ih4: a word an element
__global__ void __launch_bounds__(kThreads)
    stream_rows(Put put, int64_t n, int64_t offset, uint64_t first_tile, uint64_t tiles, Source s) {
  const int lane = static_cast<int>(threadIdx.x) & 15;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / 16);
  for (uint64_t t = static_cast<uint64_t>(blockIdx.x) * (kThreads / 16) + threadIdx.x / 16;
       t < tiles; t += stride) {
    if (dist == Dist::gaussian)
      gaussian_tile(first_tile + t, lane, n, offset, s, put);
    else
      ih4_tile(first_tile + t, lane, n, offset, s, put);
  }
}

// Put::kBlocks blocks an SM, here and below: left alone, ptxas squeezes kernels into 32 registers
// and spills.
template <class Put>
__global__ void __launch_bounds__(kThreads, Put::kBlocks)
    stream_lut8(Put put, int64_t n, int64_t offset, uint64_t first_tile, uint64_t pairs, Source s,
                bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const uint32_t levels = lut8_word(lane);
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / 32);
  for (uint64_t t = static_cast<uint64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       t < pairs; t += stride)
    lut8_tile(first_tile + 2 * t + lane / 16, lane & 15, n, offset, s, aligned, levels, put);
}

template <class Put>
__global__ void __launch_bounds__(kThreads, Put::kBlocks)
    stream_rademacher(Put put, int64_t n, int64_t offset, uint64_t first_tile, uint64_t tiles,
                      Source s, bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / 32);
  for (uint64_t t = static_cast<uint64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       t < tiles; t += stride)
    rademacher_tile(first_tile + t, lane, n, offset, s, aligned, put);
}

}  // namespace kernels

// The tiles that a range of elements touches.
struct Tiles {
  uint64_t first, count;
};
inline Tiles tiles_of(int64_t n, int64_t offset, int64_t tile) {
  const uint64_t first = static_cast<uint64_t>(offset) / tile;
  return {first, static_cast<uint64_t>(offset + n - 1) / tile - first + 1};
}

inline Source source_of(const Stream& s) {
  return {derive_key(s.seed, s.step, s.slot), s.param, s.role};
}

inline bool bad_range(int64_t n, int64_t offset) { return n < 0 || offset < 0; }

// Whether element 0 of a tensor whose element `offset` lies at p begins a vector of four elements
// of `bytes` each: what `aligned` means.
inline bool starts_vector(const void* p, int64_t bytes, int64_t offset) {
  const uint64_t origin = reinterpret_cast<uint64_t>(p) - static_cast<uint64_t>(offset * bytes);
  return origin % static_cast<uint64_t>(4 * bytes) == 0;
}

// put(i, z[offset + i]) for every i in [0, n).
template <class Put>
int put_stream(const Put& put, int64_t n, int64_t offset, const Stream& stream, Dist dist,
               bool aligned, void* cuda_stream) {
  if (bad_range(n, offset) || !is_dist(dist)) return static_cast<int>(cudaErrorInvalidValue);
  if (n == 0) return 0;
  const Source s = source_of(stream);
  const cudaStream_t on = as_stream(cuda_stream);
  if (dist == Dist::gaussian || dist == Dist::ih4) {
    const Tiles t = tiles_of(n, offset, kTile);
    const unsigned grid = blocks_for(static_cast<int64_t>(t.count), kThreads / 16);
    if (dist == Dist::gaussian)
      kernels::stream_rows<Dist::gaussian>
          <<<grid, kThreads, 0, on>>>(put, n, offset, t.first, t.count, s);
    else
      kernels::stream_rows<Dist::ih4>
          <<<grid, kThreads, 0, on>>>(put, n, offset, t.first, t.count, s);
  } else if (dist == Dist::lut8) {
    const Tiles t = tiles_of(n, offset, kLut8Tile);
    const uint64_t pairs = (t.count + 1) / 2;
    kernels::
        stream_lut8<<<blocks_for(static_cast<int64_t>(pairs), kThreads / 32), kThreads, 0, on>>>(
            put, n, offset, t.first, pairs, s, aligned);
  } else {
    const Tiles t = tiles_of(n, offset, kRademacherTile);
    kernels::stream_rademacher<<<blocks_for(static_cast<int64_t>(t.count), kThreads / 32), kThreads,
                                 0, on>>>(put, n, offset, t.first, t.count, s, aligned);
  }
  return launched();
}

}  // namespace lowtide::random::cuda
