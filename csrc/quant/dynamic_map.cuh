// SPDX-License-Identifier: Apache-2.0
// The constants of the dynamic map where lanes that look at different regions do not wait for each
// other: a copy in the shared memory of each block.
#pragma once
#include "quant/dynamic_map_scalar.h"

namespace lowtide::quant {

static __constant__ const DynamicTable kDynamicConstant = make_dynamic_table();

static __constant__ const DynamicLines kLinesConstant = make_dynamic_lines();

template <class T>
__device__ __forceinline__ void copy_words(T* shared, const T& constant) {
  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(T) / 4);
       i += static_cast<int>(blockDim.x))
    reinterpret_cast<float*>(shared)[i] = reinterpret_cast<const float*>(&constant)[i];
}

// All threads of a block, at its start.
__device__ __forceinline__ void copy_dynamic_table(DynamicTable* shared) {
  copy_words(shared, kDynamicConstant);
  __syncthreads();
}
__device__ __forceinline__ void copy_dynamic_tables(DynamicTable* table, DynamicLines* lines) {
  copy_words(lines, kLinesConstant);
  copy_dynamic_table(table);
}

// Largest of 32 lanes' magnitudes (finite, >= 0): the order of their bits is the order of their
// values.
__device__ __forceinline__ float warp_max_magnitude(float x) {
  return bits_float(__reduce_max_sync(0xffffffffu, float_bits(x)));
}

}  // namespace lowtide::quant
