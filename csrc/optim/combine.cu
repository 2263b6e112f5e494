// SPDX-License-Identifier: Apache-2.0
// p = (p * decay_before + alpha * d) * decay_after with d = k s(g) + u on CUDA. A warp takes 256
// elements, a lane two times four neighbours, which may lie across rows.
#include "base/list_launch.cuh"
#include "optim/combine_cuda.h"
#include "optim/weight_store.cuh"

namespace lowtide::optim::cuda {
namespace kernels {

static_assert(kUpdateBlock == kListBlock);

__global__ void __launch_bounds__(kThreads)
    combine(const __grid_constant__ CombineMatrix m, UpdateRule rule, random::Key key) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t total = m.rows * m.cols, blocks = (total + kListBlock - 1) / kListBlock;
  const bool p_vectors = weight_vectors(m.p, m.weight_store);
  const bool g_vectors = aligned(m.g, m.g_dtype == Dtype::f32 ? 16 : 8);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       b < blocks; b += stride) {
    const int64_t at = b * kListBlock;
    const int n = static_cast<int>(total - at < kListBlock ? total - at : kListBlock);
    const uint64_t e0 = static_cast<uint64_t>(m.offset + at);
    float x[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 128 * h + 4 * lane, live = live4(i, n);
      float g[4] = {};
      if (m.g != nullptr && m.g_dtype == Dtype::f32)
        load4(static_cast<const float*>(m.g) + at + i, live, g_vectors, g);
      else if (m.g != nullptr)
        load4(static_cast<const uint16_t*>(m.g) + at + i, live, g_vectors, g);
      load_weight4(m.p, m.weight_store, at + i, live, p_vectors, x[h]);
      int64_t row = (at + i) / m.cols, col = (at + i) % m.cols;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j < live) {
          const int64_t factor = m.along == Along::rows ? row : m.along == Along::columns ? col : 0;
          const float k = m.g == nullptr ? 0.0f : m.k[factor];
          x[h][j] = updated_weight(rule, x[h][j], combined(m, row, col, g[j], k));
        }
        if (++col == m.cols) col = 0, ++row;
      }
    }
    uint32_t r16[2][4] = {};
    if (m.weight_store == WeightStore::bf16_stochastic) {
      uint32_t* const mine = words[threadIdx.x / 32];
      random::warp_noise(mine, e0, n, {key, m.param, random::kRoleWeightSr}, lane);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 128 * h + 4 * lane;
        random::noise4(mine, e0, i, live4(i, n), r16[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 128 * h + 4 * lane;
      store_weight4(m.p, m.weight_store, at + i, live4(i, n), p_vectors, x[h], r16[h]);
    }
  }
}

}  // namespace kernels

int combine(const CombineMatrix& m, const UpdateRule& rule, uint64_t seed, uint64_t step,
            void* cuda_stream) {
  if (m.rows < 0 || m.cols < 0 || m.offset < 0 || m.offset % kUpdateBlock != 0 ||
      (m.g != nullptr && m.k == nullptr))
    return static_cast<int>(cudaErrorInvalidValue);
  if (m.rows == 0 || m.cols == 0) return 0;
  const int64_t blocks = (m.rows * m.cols + kListBlock - 1) / kListBlock;
  kernels::combine<<<blocks_for(blocks, kThreads / 32), kThreads, 0, as_stream(cuda_stream)>>>(
      m, rule, random::derive_key(seed, step, 0));
  return launched();
}

}  // namespace lowtide::optim::cuda
