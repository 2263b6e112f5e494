// SPDX-License-Identifier: Apache-2.0
// Counter-based random arrays on CUDA: generated in registers, so memory carries only what must
// move (4 bytes an element written for sample, 8 read and written for add_scaled, 4 read for dot).
//
// Gaussian: half a warp takes a tile of 64 words, one Philox block a lane; a lane's four words are
// elements 16 apart, so each of the four stores of a half warp fills 64 contiguous bytes. Whole
// sectors without 16-byte vectors: those would need a transpose by shuffles. ih4 goes the same way.
// Rademacher: a warp takes a tile of 64 words = 2048 elements, a lane moves 4 neighbours (16 bytes)
// at a time; lut8: half a warp takes 256 elements, the four bytes of a word are neighbours.
#include "base/launch.cuh"
#include "base/reduce_order.h"
#include "base/vector4.cuh"
#include "random/distributions.cuh"
#include "random/stream_cuda.h"

namespace lowtide::random::cuda {
namespace kernels {

struct Words {
  uint32_t* out;
  __device__ __forceinline__ void operator()(int64_t i, uint32_t w) const { out[i] = w; }
};
struct Sample {
  static constexpr int kBlocks = 6;
  float* out;
  __device__ __forceinline__ void operator()(int64_t i, float z) const { out[i] = z; }
  __device__ __forceinline__ void four(int64_t i, float4 z) const { store_vector(out + i, z); }
};
struct AddScaled {
  static constexpr int kBlocks = 6;
  float* x;
  float scale;
  __device__ __forceinline__ float one(float v, float z) const { return v + scale * z; }
  __device__ __forceinline__ void operator()(int64_t i, float z) const { x[i] = one(x[i], z); }
  __device__ __forceinline__ void four(int64_t i, float4 z) const {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    store_vector(x + i, make_float4(one(v.x, z.x), one(v.y, z.y), one(v.z, z.z), one(v.w, z.w)));
  }
};
struct Product {  // for dot: into shared memory
  const float* x;
  float* products;
  __device__ __forceinline__ void operator()(int64_t i, float z) const { products[i] = x[i] * z; }
  __device__ __forceinline__ void four(int64_t i, float4 z) const {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<float4*>(products + i) =
        make_float4(v.x * z.x, v.y * z.y, v.z * z.z, v.w * z.w);
  }
};

__global__ void __launch_bounds__(kThreads)
    stream_words(Words put, int64_t n, int64_t offset, uint64_t first_tile, uint64_t tiles,
                 Source s) {
  const int lane = static_cast<int>(threadIdx.x) & 15;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / 16);
  for (uint64_t t = static_cast<uint64_t>(blockIdx.x) * (kThreads / 16) + threadIdx.x / 16;
       t < tiles; t += stride) {
    uint32_t x[4];
    philox_block((first_tile + t) * 16 + lane, s, x);
    put_rows(static_cast<int64_t>(first_tile + t) * kTile + lane - offset, n, x, put);
  }
}

// One block a reduce block of 4096 elements: products to shared memory, 64 lane sums in order, the
// fixed tree.
template <Dist dist>
__global__ void __launch_bounds__(kThreads)
    stream_dot(const float* __restrict__ x, int64_t n, int64_t offset, Source s,
               double* __restrict__ part) {
  __shared__ __align__(16) float products[kReduceBlock];
  __shared__ float lanes[kReduceLanes];
  const int t = static_cast<int>(threadIdx.x);
  const int64_t blocks = (n + kReduceBlock - 1) / kReduceBlock;
  const bool aligned = offset % 4 == 0 && reinterpret_cast<uint64_t>(x) % 16 == 0;
  for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
    const int64_t at = b * kReduceBlock;
    const int64_t here = n - at < kReduceBlock ? n - at : kReduceBlock;
    const int64_t from = offset + at;
    const Product put{x + at, products};
    if (dist == Dist::gaussian || dist == Dist::ih4) {
      const uint64_t last = static_cast<uint64_t>(from + here - 1) / kTile;
      for (uint64_t tile = static_cast<uint64_t>(from) / kTile + t / 16; tile <= last;
           tile += kThreads / 16) {
        if (dist == Dist::gaussian)
          gaussian_tile(tile, t & 15, here, from, s, put);
        else
          ih4_tile(tile, t & 15, here, from, s, put);
      }
    } else if (dist == Dist::lut8) {
      const uint32_t levels = lut8_word(t & 31);
      const uint64_t last = static_cast<uint64_t>(from + here - 1) / kLut8Tile;
      for (uint64_t tile = static_cast<uint64_t>(from) / kLut8Tile + t / 32 * 2; tile <= last;
           tile += kThreads / 16)
        lut8_tile(tile + t % 32 / 16, t & 15, here, from, s, aligned, levels, put);
    } else {
      const uint64_t last = static_cast<uint64_t>(from + here - 1) / kRademacherTile;
      for (uint64_t tile = static_cast<uint64_t>(from) / kRademacherTile + t / 32; tile <= last;
           tile += kThreads / 32)
        rademacher_tile(tile, t & 31, here, from, s, aligned, put);
    }
    __syncthreads();
    if (t < kReduceLanes) {
      float sum = 0.0f;
      for (int i = t; i < here; i += kReduceLanes) sum = sum + products[i];
      lanes[t] = sum;
    }
    __syncthreads();
    if (t < 32) {
      float v = lanes[t] + lanes[t + 32];
#pragma unroll
      for (int w = 16; w >= 1; w /= 2) v = v + __shfl_down_sync(0xffffffffu, v, w);
      if (t == 0) part[b] = static_cast<double>(v);
    }
    __syncthreads();  // products and lanes are free again
  }
}

}  // namespace kernels

int words(uint32_t* out, int64_t n, int64_t offset, const Stream& stream, void* cuda_stream) {
  if (bad_range(n, offset)) return static_cast<int>(cudaErrorInvalidValue);
  if (n == 0) return 0;
  const Tiles t = tiles_of(n, offset, kTile);
  kernels::stream_words<<<blocks_for(static_cast<int64_t>(t.count), kThreads / 16), kThreads, 0,
                          as_stream(cuda_stream)>>>(kernels::Words{out}, n, offset, t.first,
                                                    t.count, source_of(stream));
  return launched();
}

int sample(float* out, int64_t n, int64_t offset, const Stream& stream, Dist dist,
           void* cuda_stream) {
  return put_stream(kernels::Sample{out}, n, offset, stream, dist, starts_vector(out, 4, offset),
                    cuda_stream);
}

int add_scaled(float* x, float scale, int64_t n, int64_t offset, const Stream& stream, Dist dist,
               void* cuda_stream) {
  return put_stream(kernels::AddScaled{x, scale}, n, offset, stream, dist,
                    starts_vector(x, 4, offset), cuda_stream);
}

int64_t dot_scratch(int64_t n) {
  const int64_t blocks = (n + kReduceBlock - 1) / kReduceBlock;
  return blocks + tree_scratch(blocks);
}

int dot(double* out, const float* x, int64_t n, int64_t offset, const Stream& stream, Dist dist,
        double* scratch, void* cuda_stream) {
  if (bad_range(n, offset) || !is_dist(dist)) return static_cast<int>(cudaErrorInvalidValue);
  const int64_t blocks = (n + kReduceBlock - 1) / kReduceBlock;
  if (blocks != 0) {
    const unsigned grid = blocks_for(blocks, 1);
    const Source s = source_of(stream);
    const auto go = [&](auto kernel) {
      kernel<<<grid, kThreads, 0, as_stream(cuda_stream)>>>(x, n, offset, s, scratch);
    };
    switch (dist) {
      case Dist::gaussian:
        go(kernels::stream_dot<Dist::gaussian>);
        break;
      case Dist::ih4:
        go(kernels::stream_dot<Dist::ih4>);
        break;
      case Dist::lut8:
        go(kernels::stream_dot<Dist::lut8>);
        break;
      default:
        go(kernels::stream_dot<Dist::rademacher>);
    }
    if (const int e = launched()) return e;
  }
  return tree_sum_device(out, scratch, blocks, as_stream(cuda_stream));
}

}  // namespace lowtide::random::cuda
