// SPDX-License-Identifier: Apache-2.0
// Probes on CUDA. Signs come in registers: half a warp holds the 64 words of a tile, a word is the
// signs of 32 neighbours. Sums: a lane takes one neighbour each, in the order of the definition.
// The rest: four neighbours a lane, in vectors. Bound by memory.
#include "base/vector4.cuh"
#include "curvature/elements.h"
#include "curvature/probe_cuda.h"
#include "curvature/warp_sums.cuh"
#include "random/distributions.cuh"

namespace lowtide::curvature::cuda {
namespace kernels {

using random::cuda::Source;
constexpr int kTile = random::cuda::kRademacherTile;

// The sum of lane `lane` over one tile, continued from `sum`.
template <class T>
__device__ __forceinline__ double add_tile(double sum, const T* x, int64_t begin, int64_t n,
                                           const Source& s, int lane) {
  uint32_t words[4];
  random::cuda::philox_block(static_cast<uint64_t>(begin / kTile) * 16 + (lane & 15), s, words);
#pragma unroll
  for (int row = 0; row < 4; ++row) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const uint32_t word = __shfl_sync(0xffffffffu, words[row], k);
      const int64_t i = begin + 512 * row + 32 * k + lane;
      float v = 0.0f;
      if (i < n) {
        if constexpr (sizeof(T) == 4)
          v = x[i];
        else
          v = bf16_to_float(x[i]);
      }
      if (i < n) sum = __dadd_rn(sum, static_cast<double>(with_sign(v, word, lane)));
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    sign_dot(const __grid_constant__ TensorBatch<Summed<SignedInput>> batch, random::Key key) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for_warp_blocks(batch, [&](const Summed<SignedInput>& in, int64_t block) {
    const SignedInput& t = in.t;
    const Source s{key, t.param, random::kRoleZ};
    double sum = 0.0;
    for (int64_t begin = block * kReduceBlock; begin < (block + 1) * kReduceBlock && begin < t.n;
         begin += kTile)
      sum = t.dtype == Dtype::f32
                ? add_tile(sum, static_cast<const float*>(t.x), begin, t.n, s, lane)
                : add_tile(sum, static_cast<const uint16_t*>(t.x), begin, t.n, s, lane);
    sum = warp_fold(sum);
    if (lane == 0) in.part[block] = sum;
  });
}

__device__ __forceinline__ void load_four(const void* x, Dtype dtype, int64_t i, float v[4]) {
  if (dtype == Dtype::f32)
    load4(static_cast<const float*>(x) + i, 4, true, v);
  else
    load4(static_cast<const uint16_t*>(x) + i, 4, true, v);
}

__device__ __forceinline__ void store_four(void* x, Dtype dtype, int64_t i, const float v[4]) {
  if (dtype == Dtype::f32) {
    store4(static_cast<float*>(x) + i, 4, true, v);
    return;
  }
  const uint16_t h[4] = {float_to_bf16(v[0]), float_to_bf16(v[1]), float_to_bf16(v[2]),
                         float_to_bf16(v[3])};
  store4(static_cast<uint16_t*>(x) + i, 4, true, h);
}

__device__ __forceinline__ bool vectors(const void* x, Dtype dtype) {
  return aligned(x, dtype == Dtype::f32 ? 16 : 8);
}

template <bool kAdd>
struct Move {
  void* x;
  Dtype dtype;
  float scale;
  __device__ __forceinline__ void operator()(int64_t i, float z) const {
    const float step = scale * z;
    put_element(x, dtype, i, kAdd ? element(x, dtype, i) + step : step);
  }
  __device__ __forceinline__ void four(int64_t i, float4 z) const {
    float v[4] = {scale * z.x, scale * z.y, scale * z.z, scale * z.w};
    if (kAdd) {
      float old[4];
      load_four(x, dtype, i, old);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = old[j] + v[j];
    }
    store_four(x, dtype, i, v);
  }
};

struct Joined {
  float* acc;
  const void* x;
  Dtype dtype;
  Join join;
  __device__ __forceinline__ float one(float old, float v, float z) const {
    return joined(old, join.squared ? v * v : v * z, join);
  }
  __device__ __forceinline__ void operator()(int64_t i, float z) const {
    acc[i] = one(acc[i], element(x, dtype, i), z);
  }
  __device__ __forceinline__ void four(int64_t i, float4 z) const {
    float v[4], old[4];
    load_four(x, dtype, i, v);
    load4(acc + i, 4, true, old);
    const float sum[4] = {one(old[0], v[0], z.x), one(old[1], v[1], z.y), one(old[2], v[2], z.z),
                          one(old[3], v[3], z.w)};
    store4(acc + i, 4, true, sum);
  }
};

template <bool kAdd>
__global__ void __launch_bounds__(kThreads, 4)
    sign_move(const __grid_constant__ TensorBatch<SignedTarget> batch, float scale,
              random::Key key) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for_warp_blocks(batch, [&](const SignedTarget& t, int64_t tile) {
    random::cuda::rademacher_tile(static_cast<uint64_t>(tile), lane, t.n, 0,
                                  Source{key, t.param, random::kRoleZ}, vectors(t.x, t.dtype),
                                  Move<kAdd>{t.x, t.dtype, scale});
  });
}

__global__ void __launch_bounds__(kThreads, 4)
    sign_fma(const __grid_constant__ TensorBatch<SignedPair> batch, Join join, random::Key key) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for_warp_blocks(batch, [&](const SignedPair& t, int64_t tile) {
    random::cuda::rademacher_tile(
        static_cast<uint64_t>(tile), lane, t.n, 0, Source{key, t.param, random::kRoleZ},
        vectors(t.acc, Dtype::f32) && vectors(t.x, t.x_dtype), Joined{t.acc, t.x, t.x_dtype, join});
  });
}

}  // namespace kernels

namespace {

random::Key key_of(const Probe& p) { return random::derive_key(p.seed, p.step, p.slot); }

template <bool kAdd>
int move(const std::vector<SignedTarget>& xs, float scale, const Probe& probe, void* cuda_stream) {
  if (bad_sizes(xs)) return static_cast<int>(cudaErrorInvalidValue);
  return for_batches<kernels::kTile>(
      xs, [&](const TensorBatch<SignedTarget>& batch, unsigned grid) {
        kernels::sign_move<kAdd>
            <<<grid, kThreads, 0, as_stream(cuda_stream)>>>(batch, scale, key_of(probe));
      });
}

}  // namespace

int64_t sign_dot_scratch(const std::vector<SignedInput>& xs) { return parts_of(xs); }

int sign_dot(double* out, const std::vector<SignedInput>& xs, const Probe& probe, double* scratch,
             void* cuda_stream) {
  if (bad_sizes(xs)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  return sum_list(out, xs, scratch, stream,
                  [&](const TensorBatch<Summed<SignedInput>>& batch, unsigned grid) {
                    kernels::sign_dot<<<grid, kThreads, 0, stream>>>(batch, key_of(probe));
                  });
}

int sign_axpy(const std::vector<SignedTarget>& xs, float scale, const Probe& probe,
              void* cuda_stream) {
  return move<true>(xs, scale, probe, cuda_stream);
}

int sign_fill(const std::vector<SignedTarget>& xs, float scale, const Probe& probe,
              void* cuda_stream) {
  return move<false>(xs, scale, probe, cuda_stream);
}

int sign_fma(const std::vector<SignedPair>& pairs, const Join& join, const Probe& probe,
             void* cuda_stream) {
  if (bad_sizes(pairs)) return static_cast<int>(cudaErrorInvalidValue);
  return for_batches<kernels::kTile>(pairs, [&](const TensorBatch<SignedPair>& batch,
                                                unsigned grid) {
    kernels::sign_fma<<<grid, kThreads, 0, as_stream(cuda_stream)>>>(batch, join, key_of(probe));
  });
}

}  // namespace lowtide::curvature::cuda
