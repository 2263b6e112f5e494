// SPDX-License-Identifier: Apache-2.0
// Block codec of the 8-bit dynamic map on CUDA. A warp takes a block of 256 elements, a lane two
// times four neighbours; 5.02 bytes an element move either way.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "quant/dynamic_map.cuh"
#include "quant/dynamic_map_cuda.h"

namespace lowtide::quant::cuda {
namespace kernels {

__global__ void __launch_bounds__(kThreads, 6)
    quantize_dynamic(uint8_t* __restrict__ codes, float* __restrict__ absmax,
                     const float* __restrict__ x, int64_t n, bool is_signed,
                     unsigned long long* nonfinite) {
  __shared__ DynamicTable table;
  copy_dynamic_table(&table);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const bool x_vectors = aligned(x, 16), code_vectors = aligned(codes, 4);
  const int64_t blocks = (n + kDynamicBlock - 1) / kDynamicBlock;
  unsigned bad = 0;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       b < blocks; b += static_cast<int64_t>(gridDim.x) * (kThreads / 32)) {
    float v[2][4];
    float largest = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t i = b * kDynamicBlock + 128 * h + 4 * lane;
      load4(x + i, live4(i, n), x_vectors, v[h]);  // elements beyond the end are zeros
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!is_finite(v[h][j])) v[h][j] = 0.0f, ++bad;
        largest = abs_f(v[h][j]) > largest ? abs_f(v[h][j]) : largest;
      }
    }
    const float stored = dynamic_absmax(warp_max_magnitude(largest));
    const float inverse = dynamic_inverse(stored);
    if (lane == 0) absmax[b] = stored;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t i = b * kDynamicBlock + 128 * h + 4 * lane;
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        word |= static_cast<uint32_t>(dynamic_encode(table, v[h][j], is_signed, inverse))
                << (8 * j);
      store4(codes + i, live4(i, n), code_vectors, word);
    }
  }
  bad = __reduce_add_sync(0xffffffffu, bad);
  if (lane == 0 && bad != 0) atomicAdd(nonfinite, static_cast<unsigned long long>(bad));
}

__global__ void __launch_bounds__(kThreads)
    dequantize_dynamic(float* __restrict__ x, const uint8_t* __restrict__ codes,
                       const float* __restrict__ absmax, int64_t n, bool is_signed) {
  __shared__ DynamicTable table;
  copy_dynamic_table(&table);
  const bool x_vectors = aligned(x, 16), code_vectors = aligned(codes, 4);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < n;
       i += stride) {
    const uint32_t word = load4(codes + i, live4(i, n), code_vectors);
    const float scale = absmax[i / kDynamicBlock];
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      v[j] = dynamic_decode(table, static_cast<int>(word >> (8 * j) & 255u), is_signed, scale);
    store4(x + i, live4(i, n), x_vectors, v);
  }
}

}  // namespace kernels

int quantize_dynamic(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed,
                     int64_t* nonfinite, void* cuda_stream) {
  if (n < 0) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(nonfinite, 0, sizeof *nonfinite, stream))
    return static_cast<int>(e);
  if (n == 0) return 0;
  kernels::quantize_dynamic<<<blocks_for(dynamic_blocks(n), kThreads / 32), kThreads, 0, stream>>>(
      codes, absmax, x, n, is_signed, reinterpret_cast<unsigned long long*>(nonfinite));
  return launched();
}

int dequantize_dynamic(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                       bool is_signed, void* cuda_stream) {
  if (n < 0) return static_cast<int>(cudaErrorInvalidValue);
  if (n == 0) return 0;
  kernels::dequantize_dynamic<<<blocks_for(n, 4 * kThreads), kThreads, 0, as_stream(cuda_stream)>>>(
      x, codes, absmax, n, is_signed);
  return launched();
}

}  // namespace lowtide::quant::cuda
