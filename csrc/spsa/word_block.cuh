// SPDX-License-Identifier: Apache-2.0
// Words of a stream for a thread that needs one at an index of its own.
#pragma once
#include "random/distributions.cuh"

namespace lowtide::spsa {

// The Philox block that word `index` of a stream is in, and the word. Chosen by comparisons: an
// index into registers would put them on the stack.
struct Block {
  uint32_t x[4];
  uint32_t row;

  __device__ __forceinline__ Block(uint64_t index, random::Key key, uint32_t param, uint32_t role)
      : row(static_cast<uint32_t>(index % 64) / 16) {
    random::cuda::philox_block(index / 64 * 16 + index % 16, {key, param, role}, x);
  }
  __device__ __forceinline__ uint32_t word() const {
    return row < 2 ? (row == 0 ? x[0] : x[1]) : (row == 2 ? x[2] : x[3]);
  }
};

}  // namespace lowtide::spsa
