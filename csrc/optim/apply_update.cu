// SPDX-License-Identifier: Apache-2.0
// p = (p * decay_before + alpha * u) * decay_after over a list of tensors on CUDA. A warp takes 256
// elements, a lane two times four neighbours; 12 bytes an element move (8 for bfloat16 weights).
#include "base/list_launch.cuh"
#include "optim/apply_update_cuda.h"
#include "optim/weight_store.cuh"

namespace lowtide::optim::cuda {
namespace kernels {

static_assert(kUpdateBlock == kListBlock);

__global__ void __launch_bounds__(kThreads)
    apply_update(const __grid_constant__ TensorBatch<UpdateTensor> batch, UpdateRule rule,
                 random::Key key) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for_warp_blocks(batch, [&](const UpdateTensor& t, int64_t block) {
    const int64_t at = block * kUpdateBlock;
    const int n = static_cast<int>(t.n - at < kUpdateBlock ? t.n - at : kUpdateBlock);
    const uint64_t e0 = static_cast<uint64_t>(t.offset + at);
    const bool p_vectors = weight_vectors(t.p, t.weight_store), u_vectors = aligned(t.u, 16);
    float x[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 128 * h + 4 * lane, live = live4(i, n);
      float u[4];
      load_weight4(t.p, t.weight_store, at + i, live, p_vectors, x[h]);
      load4(t.u + at + i, live, u_vectors, u);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[h][j] = updated_weight(rule, x[h][j], u[j]);
    }
    uint32_t r16[2][4] = {};
    if (t.weight_store == WeightStore::bf16_stochastic) {
      uint32_t* const mine = words[threadIdx.x / 32];
      random::warp_noise(mine, e0, n, {key, t.param, random::kRoleWeightSr}, lane);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 128 * h + 4 * lane;
        random::noise4(mine, e0, i, live4(i, n), r16[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 128 * h + 4 * lane;
      store_weight4(t.p, t.weight_store, at + i, live4(i, n), p_vectors, x[h], r16[h]);
    }
  });
}

}  // namespace kernels

int apply_update(const std::vector<UpdateTensor>& tensors, const UpdateRule& rule, uint64_t seed,
                 uint64_t step, void* cuda_stream) {
  for (const UpdateTensor& t : tensors)
    if (t.n < 0 || t.offset < 0 || t.offset % kUpdateBlock != 0)
      return static_cast<int>(cudaErrorInvalidValue);
  const random::Key key = random::derive_key(seed, step, 0);
  return for_batches(tensors, [&](const TensorBatch<UpdateTensor>& batch, unsigned grid) {
    kernels::apply_update<<<grid, kThreads, 0, as_stream(cuda_stream)>>>(batch, rule, key);
  });
}

}  // namespace lowtide::optim::cuda
