// SPDX-License-Identifier: Apache-2.0
// One launch over the blocks of many tensors: their descriptions travel as a kernel parameter (at
// most 4 KB), so a step needs no device memory of its own and nothing waits for a copy. A warp
// takes a block.
#pragma once
#include <vector>

#include "base/launch.cuh"

namespace lowtide {

constexpr int kListBlock = 256;  // elements, where a kernel does not say otherwise

template <class Tensor>
struct TensorBatch {
  static constexpr int kSize = 32;
  Tensor tensor[kSize];
  int64_t end[kSize];  // blocks up to and with tensor i
  int count;
};

// Calls f(tensor, block) for the blocks that fall to this warp.
template <class Tensor, class F>
__device__ __forceinline__ void for_warp_blocks(const TensorBatch<Tensor>& batch, const F& f) {
  const int64_t total = batch.end[batch.count - 1];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; b < total;
       b += stride) {
    int i = 0;
    while (b >= batch.end[i]) ++i;
    f(batch.tensor[i], b - (i == 0 ? 0 : batch.end[i - 1]));
  }
}

// Calls launch(batch, grid) for batches of the tensors that are not empty; stops at the first
// error.
template <int64_t kBlock = kListBlock, class Tensor, class F>
int for_batches(const std::vector<Tensor>& tensors, const F& launch) {
  TensorBatch<Tensor> batch{};
  auto flush = [&]() -> int {
    if (batch.count == 0) return 0;
    launch(batch, blocks_for(batch.end[batch.count - 1], kThreads / 32));
    batch.count = 0;
    return launched();
  };
  for (const Tensor& t : tensors) {
    if (t.n == 0) continue;
    if (batch.count == TensorBatch<Tensor>::kSize) {
      if (const int e = flush()) return e;
    }
    const int64_t before = batch.count == 0 ? 0 : batch.end[batch.count - 1];
    batch.tensor[batch.count] = t;
    batch.end[batch.count] = before + (t.n + kBlock - 1) / kBlock;
    ++batch.count;
  }
  return flush();
}

}  // namespace lowtide
