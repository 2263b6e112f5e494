// SPDX-License-Identifier: Apache-2.0
// weight_store.h for four neighbouring elements a thread.
#pragma once
#include "base/vector4.cuh"
#include "optim/weight_store.h"
#include "random/warp_noise.cuh"

namespace lowtide::optim {

// Whether the elements of a weight of this storage may move in vectors.
__host__ __device__ __forceinline__ bool weight_vectors(const void* p, WeightStore store) {
  return aligned(p, store == WeightStore::f32 ? 16 : 8);
}

__device__ __forceinline__ void load_weight4(const void* p, WeightStore store, int64_t i, int live,
                                             bool vectors, float x[4]) {
  if (store == WeightStore::f32)
    load4(static_cast<const float*>(p) + i, live, vectors, x);
  else
    load4(static_cast<const uint16_t*>(p) + i, live, vectors, x);
}

// r16: the noise of the four, used for bf16_stochastic only.
__device__ __forceinline__ void store_weight4(void* p, WeightStore store, int64_t i, int live,
                                              bool vectors, const float x[4],
                                              const uint32_t r16[4]) {
  if (store == WeightStore::f32) {
    store4(static_cast<float*>(p) + i, live, vectors, x);
    return;
  }
  uint16_t h[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    h[j] = store == WeightStore::bf16_stochastic ? float_to_bf16_sr(x[j], r16[j])
                                                 : float_to_bf16(x[j]);
  store4(static_cast<uint16_t*>(p) + i, live, vectors, h);
}

}  // namespace lowtide::optim
