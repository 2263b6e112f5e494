// SPDX-License-Identifier: Apache-2.0
// Packed matrix times vector on CUDA. Half a warp takes a row, a thread one of its sixteen lanes of
// columns. Codes come in 16-byte accesses, 256 bytes of a row at a time, and are dealt to the lanes
// through shared memory; x stays in L1. Codes and scales move once.
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
  if (threadIdx.x < 16) levels[threadIdx.x] = kNf4Levels.level[threadIdx.x];
  __syncthreads();
  const GroupShape& s = w.shape;
  const int lane = static_cast<int>(threadIdx.x) % kGemvLanes;
  uint8_t* const mine = stage[threadIdx.x / kGemvLanes];
  const int64_t per_row = groups_per_row(s), bytes = row_bytes(s);
  const bool vectors = aligned(w.codes, 16) && bytes % 16 == 0;
  const int block_bytes = s.bits == 8 ? 32 : 16;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock; first < s.rows;
       first += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const int64_t want = first + threadIdx.x / kGemvLanes;
    const int64_t row = want < s.rows ? want : s.rows - 1;  // warps stay whole
    const uint8_t* const codes = w.codes + row * bytes;
    float total = 0.0f, chain = 0.0f, scale = 0.0f;
    int zero = 0;
    int64_t col = 0, group = row * per_row, left = 0;  // columns left in the group
    for (int64_t at = 0; at < bytes; at += kStage) {
      __syncwarp();  // whoever still reads what was there before
      *reinterpret_cast<uint4*>(mine + 16 * lane) =
          load_bytes16(codes, at + 16 * lane, bytes, vectors);
      __syncwarp();
      for (int b = 0; b < kStage && col < s.cols; b += block_bytes, col += 32) {
        if (left == 0) {
          scale = w.scale[group];
          zero = w.zero != nullptr ? w.zero[group] : symmetric_zero(s.bits);
          chain = 0.0f, left = s.group, ++group;
        }
        const int byte = mine[b + lane];
        const int low = s.bits == 8 ? byte : byte & 15;
        const int high = s.bits == 8 ? mine[b + 16 + lane] : byte >> 4;
        const float x0 = col + lane < s.cols ? x[col + lane] : 0.0f;
        const float x1 = col + 16 + lane < s.cols ? x[col + 16 + lane] : 0.0f;
        chain = fma_rn(x0, code_value(low, zero, coding, levels), chain);
        chain = fma_rn(x1, code_value(high, zero, coding, levels), chain);
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
