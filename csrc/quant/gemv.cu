// SPDX-License-Identifier: Apache-2.0
// Packed matrix times vector on CUDA. Half a warp takes a row, a thread one of its sixteen lanes of
// columns. Codes come in 16-byte accesses, 256 bytes of a row at a time, and are dealt to the lanes
// through shared memory, where the slice of x that they meet also lies. Codes and scales move once;
// x is read once a block of 16 rows, from L2.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "quant/gemv_cuda.h"
#include "quant/gemv_scalar.h"

namespace lowtide::quant::cuda {
namespace kernels {

static __constant__ const LevelTable kNf4Levels = make_level_table(LevelMap::nf4);

constexpr int kStage = 16 * kGemvLanes;  // bytes of a row
constexpr int kRowsPerBlock = kThreads / kGemvLanes;

// Bytes [at, at + 16) of a row of n; those beyond its end are 0.
__device__ __forceinline__ uint4 load_bytes16(const uint8_t* row, int64_t at, int64_t n,
                                              bool vectors) {
  if (vectors && at + 16 <= n) return *reinterpret_cast<const uint4*>(row + at);
  uint32_t word[4] = {};
#pragma unroll
  for (int j = 0; j < 16; ++j)
    if (at + j < n) word[j / 4] |= static_cast<uint32_t>(row[at + j]) << (8 * (j % 4));
  return make_uint4(word[0], word[1], word[2], word[3]);
}

__global__ void __launch_bounds__(kThreads)
    gemv_rows(float* __restrict__ y, const ConstGroupMatrix w, Coding coding,
              const float* __restrict__ x) {
  __shared__ float levels[16];
  __shared__ __align__(16) uint8_t stage[kRowsPerBlock][kStage];
  __shared__ __align__(16) float slice[2 * kStage];
  if (threadIdx.x < 16) levels[threadIdx.x] = kNf4Levels.level[threadIdx.x];
  const GroupShape& s = w.shape;
  const int lane = static_cast<int>(threadIdx.x) % kGemvLanes;
  uint8_t* const mine = stage[threadIdx.x / kGemvLanes];
  const int64_t per_row = groups_per_row(s), bytes = row_bytes(s);
  const bool vectors = aligned(w.codes, 16) && bytes % 16 == 0, x_vectors = aligned(x, 16);
  const int block_bytes = s.bits == 8 ? 32 : 16;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < s.rows;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t want = first + threadIdx.x / kGemvLanes;
    const int64_t row = want < s.rows ? want : s.rows - 1;  // blocks stay whole
    const uint8_t* const codes = w.codes + row * bytes;
    float total = 0.0f, chain = 0.0f, scale = 0.0f, scales = 0.0f;
    int zero = 0, zeros = symmetric_zero(s.bits);
    int64_t col = 0, group = 0, left = 0;  // columns left in the group
    for (int64_t at = 0; at < bytes; at += kStage) {
      __syncthreads();  // whoever still reads what was there before
      *reinterpret_cast<uint4*>(mine + 16 * lane) =
          load_bytes16(codes, at + 16 * lane, bytes, vectors);
      const int i = 4 * static_cast<int>(threadIdx.x);
      if (i < kStage * 32 / block_bytes) {
        float v[4];
        load4(x + col + i, live4(col + i, s.cols), x_vectors, v);
        *reinterpret_cast<float4*>(slice + i) = make_float4(v[0], v[1], v[2], v[3]);
      }
      __syncthreads();
      for (int b = 0, k = lane; b < kStage && col < s.cols; b += block_bytes, k += 32, col += 32) {
        if (left == 0) {
          if (group % kGemvLanes == 0 &&
              group + lane < per_row) {  // a lane each, for sixteen groups
            scales = w.scale[row * per_row + group + lane];
            if (w.zero != nullptr) zeros = w.zero[row * per_row + group + lane];
          }
          const int from = static_cast<int>(group % kGemvLanes);
          scale = __shfl_sync(0xffffffffu, scales, from, kGemvLanes);
          zero = __shfl_sync(0xffffffffu, zeros, from, kGemvLanes);
          chain = 0.0f, left = s.group, ++group;
        }
        const int byte = mine[b + lane];
        const int low = s.bits == 8 ? byte : byte & 15;
        const int high = s.bits == 8 ? mine[b + 16 + lane] : byte >> 4;
        chain = fma_rn(slice[k], code_value(low, zero, coding, levels), chain);
        chain = fma_rn(slice[k + 16], code_value(high, zero, coding, levels), chain);
        left -= 32;
        if (left == 0 || col + 32 >= s.cols) total = fma_rn(scale, chain, total);
      }
    }
#pragma unroll
    for (int d = kGemvLanes / 2; d > 0; d /= 2)
      total = total + __shfl_down_sync(0xffffffffu, total, d, kGemvLanes);
    if (lane == 0 && want < s.rows) y[row] = total;
  }
}

}  // namespace kernels

int gemv(float* y, const ConstGroupMatrix& w, Coding coding, const float* x, void* cuda_stream) {
  const GroupShape& s = w.shape;
  const bool valid =
      s.rows >= 0 && s.cols >= 0 && (s.bits == 8 || s.bits == 4) && s.group >= 32 &&
      s.group % 32 == 0 && s.group <= (int64_t{1} << 30) &&
      (coding == Coding::integer || (coding == Coding::nf4 && s.bits == 4 && w.zero == nullptr));
  if (!valid) return static_cast<int>(cudaErrorInvalidValue);
  if (s.rows == 0) return 0;
  kernels::gemv_rows<<<blocks_for(s.rows, kernels::kRowsPerBlock), kThreads, 0,
                       as_stream(cuda_stream)>>>(y, w, coding, x);
  return launched();
}

}  // namespace lowtide::quant::cuda
