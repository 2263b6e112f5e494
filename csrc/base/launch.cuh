// SPDX-License-Identifier: Apache-2.0
// Shared by the .cu files: grid sizes, and the fixed tree that joins the partial sums of blocks.
//
// Every launcher is a plain function: device pointers, sizes, `void* stream` (a cudaStream_t); it
// returns a cudaError_t as int, 0 for success, and does not wait for the kernels.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

#include <vector>

namespace lowtide {

constexpr int kThreads = 256;
// Kernels walk their work in strides of the grid, so a cap costs nothing and 2^31 blocks are never
// asked for.
constexpr int64_t kMaxBlocks = int64_t{1} << 20;

inline unsigned blocks_for(int64_t items, int64_t items_per_block) {
  const int64_t blocks = (items + items_per_block - 1) / items_per_block;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }
inline int launched() { return static_cast<int>(cudaGetLastError()); }

// Room, in doubles, that tree_sum_device needs behind its `n` inputs.
inline int64_t tree_scratch(int64_t n) {
  int64_t more = 0;
  for (int64_t m = n; m > 1;) {
    m = (m + 1023) / 1024;
    more += m;
  }
  return more;
}

// out[0] = the sum of part[0, n) in the order of tree_sum (base/reduce.h). `part` has
// tree_scratch(n) more elements behind it and is overwritten there. n = 0 gives 0.
int tree_sum_device(double* out, double* part, int64_t n, cudaStream_t stream);

// out[0] = the sum of part[0, n), which is overwritten; 0 for n = 0.
struct PartSum {
  double* out;
  double* part;
  int64_t n;
};
// All of them in the order of tree_sum, in a launch for each 64; out and part may lie anywhere.
int tree_sums_device(const std::vector<PartSum>& sums, cudaStream_t stream);

}  // namespace lowtide
