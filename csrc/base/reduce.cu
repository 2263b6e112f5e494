// SPDX-License-Identifier: Apache-2.0
#include "base/launch.cuh"

namespace lowtide {
namespace kernels {

// Block b folds part[1024 b, 1024 b + 1024) to out[b]. The tree of tree_sum pairs neighbours first,
// so an aligned kilobyte of it is a tree of its own and the passes compose to the same sum.
__global__ void __launch_bounds__(512)
    fold_1024(const double* __restrict__ part, int64_t n, double* __restrict__ out) {
  __shared__ double s[1024];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 1024;
  const int here = static_cast<int>(n - first < 1024 ? n - first : 1024);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < here; i += 512) s[i] = part[first + i];
  for (int w = 1; w < here; w *= 2) {
    __syncthreads();
    const int i = 2 * w * t;
    if (i + w < here) s[i] = __dadd_rn(s[i], s[i + w]);
  }
  __syncthreads();
  if (t == 0) out[blockIdx.x] = s[0];
}

struct PartBatch {
  static constexpr int kSize = 64;
  PartSum sum[kSize];
};

// A block a sum, by the definition: sums of many tensors are short.
__global__ void __launch_bounds__(kThreads) fold_list(const __grid_constant__ PartBatch batch) {
  const PartSum s = batch.sum[blockIdx.x];
  for (int64_t w = 1; w < s.n; w *= 2) {
    for (int64_t i = 2 * w * static_cast<int64_t>(threadIdx.x); i + w < s.n; i += 2 * w * kThreads)
      s.part[i] = __dadd_rn(s.part[i], s.part[i + w]);
    __syncthreads();
  }
  if (threadIdx.x == 0) s.out[0] = s.n == 0 ? 0.0 : s.part[0];
}

}  // namespace kernels

int tree_sum_device(double* out, double* part, int64_t n, cudaStream_t stream) {
  if (n == 0) return static_cast<int>(cudaMemsetAsync(out, 0, sizeof(double), stream));
  do {
    const int64_t blocks = (n + 1023) / 1024;
    double* to = blocks == 1 ? out : part + n;
    kernels::fold_1024<<<static_cast<unsigned>(blocks), 512, 0, stream>>>(part, n, to);
    part = to;
    n = blocks;
  } while (n > 1);
  return launched();
}

int tree_sums_device(const std::vector<PartSum>& sums, cudaStream_t stream) {
  using kernels::PartBatch;
  for (size_t at = 0; at < sums.size(); at += PartBatch::kSize) {
    PartBatch batch{};
    unsigned count = 0;
    while (count < PartBatch::kSize && at + count < sums.size()) {
      batch.sum[count] = sums[at + count];
      ++count;
    }
    kernels::fold_list<<<count, kThreads, 0, stream>>>(batch);
    if (const int e = launched()) return e;
  }
  return 0;
}

}  // namespace lowtide
