// SPDX-License-Identifier: Apache-2.0
// The sums of curvature/sums.h on CUDA: a warp takes a block of 4096 elements, its lanes are the 32
// sums, so that a request of a warp is 32 neighbours.
#pragma once
#include <vector>

#include "base/list_launch.cuh"
#include "curvature/sums.h"

namespace lowtide::curvature::cuda {

static_assert(kSums == 32);

// fold_sums: in lane 0.
__device__ __forceinline__ double warp_fold(double sum) {
#pragma unroll
  for (int w = kSums / 2; w >= 1; w /= 2)
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, w));
  return sum;
}

__device__ __forceinline__ float load_element(const void* x, Dtype dtype, int64_t i) {
  return dtype == Dtype::f32 ? static_cast<const float*>(x)[i]
                             : bf16_to_float(static_cast<const uint16_t*>(x)[i]);
}

// One tensor of a list and where the sums of its blocks go.
template <class Tensor>
struct Summed {
  Tensor t;
  double* part;
  int64_t n;
};

template <class Tensor>
int64_t parts_of(const std::vector<Tensor>& tensors) {
  int64_t parts = 0;
  for (const Tensor& t : tensors) parts += sum_blocks(t.n);
  return parts;
}

// out[t] = the sum over the blocks of tensor t, which launch(batch, grid) puts into their parts.
template <class Tensor, class F>
int sum_list(double* out, const std::vector<Tensor>& tensors, double* scratch, cudaStream_t stream,
             const F& launch) {
  std::vector<Summed<Tensor>> list;
  std::vector<PartSum> sums;
  for (const Tensor& t : tensors) {
    list.push_back({t, scratch, t.n});
    sums.push_back({out++, scratch, sum_blocks(t.n)});
    scratch += sum_blocks(t.n);
  }
  if (const int e = for_batches<kReduceBlock>(list, launch)) return e;
  return tree_sums_device(sums, stream);
}

template <class Tensor>
bool bad_sizes(const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors)
    if (t.n < 0) return true;
  return false;
}

}  // namespace lowtide::curvature::cuda
