// SPDX-License-Identifier: Apache-2.0
// Low-rank directions on CUDA: a thread takes an element, factors come from cache. Neighbouring
// threads share a row of U and read V's rows next to each other.
#include <cmath>

#include "base/launch.cuh"
#include "spsa/low_rank_cuda.h"
#include "spsa/word_block.cuh"

namespace lowtide::spsa::cuda {
namespace kernels {

struct Factors {
  const float *u, *v;  // [directions, rows, rank], [directions, cols, rank]
  float norm;
};

// out[i] = Gaussian offset + i of the stream; half a warp takes a tile of 64.
__global__ void __launch_bounds__(kThreads)
    low_rank_factors(float* out, int64_t n, int64_t offset, random::cuda::Tiles tiles,
                     random::cuda::Source s) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * (kThreads / 16);
  for (uint64_t t = static_cast<uint64_t>(blockIdx.x) * (kThreads / 16) + threadIdx.x / 16;
       t < tiles.count; t += stride)
    random::cuda::gaussian_tile(tiles.first + t, static_cast<int>(threadIdx.x) % 16, n, offset, s,
                                [&](int64_t i, float z) { out[i] = z; });
}

__device__ __forceinline__ float z_at(const Factors& f, const LowRankMatrix& m, int64_t d,
                                      int64_t i, int64_t j) {
  const float* u = f.u + (d * m.rows + i) * m.rank;
  const float* v = f.v + (d * m.cols + j) * m.rank;
  float z = 0.0f;
#pragma unroll 1
  for (int64_t k = 0; k < m.rank; ++k) z = fma_rn(u[k], v[k], z);
  return z * f.norm;
}

__global__ void __launch_bounds__(kThreads)
    low_rank_perturb(void* out, FloatType out_type, const void* w, FloatType w_type, float scale,
                     const LowRankMatrix m, const Factors f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < m.rows * m.cols;
       at += stride) {
    const int64_t i = at / m.cols;
    const float z = z_at(f, m, 0, i, at - i * m.cols);
    store_master(out, out_type, at, load_master(w, w_type, at) + scale * z);
  }
}

template <FloatType type>
__global__ void __launch_bounds__(kThreads)
    low_rank_replay(void* w, float scale, const LowRankMatrix m, const Factors f,
                    const Step* __restrict__ steps, int64_t count,
                    const Direction* __restrict__ directions) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < m.rows * m.cols;
       at += stride) {
    const int64_t i = at / m.cols, j = at - i * m.cols;
    const auto e = static_cast<uint64_t>(m.first_row * m.cols + at);
    float x = load_master(w, type, at);
#pragma unroll 1
    for (int64_t k = 0; k < count; ++k) {
      const Step step = steps[k];
      float acc = 0.0f;
#pragma unroll 1
      for (int64_t d = step.begin; d < step.end; ++d)
        acc = fma_rn(directions[d].coeff * scale, z_at(f, m, d, i, j), acc);
      x = x * step.decay + acc;
      if (type != FloatType::f32) {
        const uint32_t word =
            Block(random::sr16_word(e), step.round, m.param, random::kRoleWeightSr).word();
        x = rounded_master(x, type, word >> random::sr16_shift(e) & 0xffffu);
      }
    }
    store_master(w, type, at, x);
  }
}

bool valid(const LowRankMatrix& m, float scale) {
  return m.rows >= 0 && m.cols >= 0 && m.first_row >= 0 && m.rank >= 1 && m.rank <= kMostRank &&
         std::isfinite(scale);
}

int draw_factor(float* out, int64_t n, int64_t offset, const random::Stream& s,
                cudaStream_t stream) {
  const random::cuda::Tiles tiles = random::cuda::tiles_of(n, offset, random::kTileWords);
  low_rank_factors<<<blocks_for(static_cast<int64_t>(tiles.count), kThreads / 16), kThreads, 0,
                     stream>>>(out, n, offset, tiles, random::cuda::source_of(s));
  return launched();
}

int draw(float* u, float* v, const LowRankMatrix& m, const LowRankPoint& at, void* cuda_stream) {
  const cudaStream_t stream = as_stream(cuda_stream);
  random::Stream s{at.seed, at.step, at.slot, m.param, random::kRoleU};
  if (const int e = draw_factor(u, m.rows * m.rank, m.first_row * m.rank, s, stream)) return e;
  s.step = at.v_step, s.role = random::kRoleV;
  return draw_factor(v, m.cols * m.rank, 0, s, stream);
}

float norm_of(int64_t rank) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(rank)));
}

}  // namespace kernels

int64_t low_rank_scratch(const LowRankMatrix& m, int64_t directions) {
  return directions * (m.rows + m.cols) * m.rank;
}

int low_rank_perturb(void* out, FloatType out_type, const void* w, FloatType w_type, float scale,
                     const LowRankMatrix& m, const LowRankPoint& at, float* scratch,
                     void* cuda_stream) {
  if (!kernels::valid(m, scale)) return static_cast<int>(cudaErrorInvalidValue);
  if (m.rows * m.cols == 0) return 0;
  float* v = scratch + m.rows * m.rank;
  if (const int e = kernels::draw(scratch, v, m, at, cuda_stream)) return e;
  kernels::low_rank_perturb<<<blocks_for(m.rows * m.cols, kThreads), kThreads, 0,
                              as_stream(cuda_stream)>>>(
      out, out_type, w, w_type, scale, m, kernels::Factors{scratch, v, kernels::norm_of(m.rank)});
  return launched();
}

int low_rank_replay(void* w, FloatType type, float scale, const LowRankMatrix& m,
                    const Schedule& schedule, const int64_t* v_steps, const Step* steps,
                    int64_t count, const Direction* directions, float* scratch, void* cuda_stream) {
  if (!kernels::valid(m, scale) || count < 0) return static_cast<int>(cudaErrorInvalidValue);
  if (m.rows * m.cols == 0 || count == 0) return 0;
  float* v = scratch + schedule.directions * m.rows * m.rank;
  for (int64_t j = 0; j < schedule.directions; ++j) {
    const LowRankPoint at = {schedule.seed, static_cast<uint64_t>(schedule.dir_steps[j]),
                             static_cast<uint64_t>(v_steps[j]),
                             static_cast<uint32_t>(schedule.dir_slots[j])};
    if (const int e = kernels::draw(scratch + j * m.rows * m.rank, v + j * m.cols * m.rank, m, at,
                                    cuda_stream))
      return e;
  }
  const auto go = [&](auto kernel) {
    kernel<<<blocks_for(m.rows * m.cols, kThreads), kThreads, 0, as_stream(cuda_stream)>>>(
        w, scale, m, kernels::Factors{scratch, v, kernels::norm_of(m.rank)}, steps, count,
        directions);
  };
  switch (type) {
    case FloatType::f32:
      go(kernels::low_rank_replay<FloatType::f32>);
      break;
    case FloatType::bf16:
      go(kernels::low_rank_replay<FloatType::bf16>);
      break;
    case FloatType::f16:
      go(kernels::low_rank_replay<FloatType::f16>);
      break;
  }
  return launched();
}

}  // namespace lowtide::spsa::cuda
