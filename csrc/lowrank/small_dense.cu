// SPDX-License-Identifier: Apache-2.0
// Gram matrix in double on CUDA: tiles of 32 x 32 below the diagonal, one block a tile and chunk of
// the depth, slices of y in shared memory. A chain multiplies and adds by fma: products of floats
// are exact in double, so that is the reference's multiply, then add.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "lowrank/gram_plan.h"
#include "lowrank/small_dense_cuda.h"

namespace lowtide::lowrank::cuda {
namespace kernels {

constexpr int kTile = 32;
constexpr int kSlice = 32;

// slice[k][i] = y[first + i, k0 + k], 0 beyond rows and depth.
__device__ __forceinline__ void load_rows(const float* y, int64_t first, int64_t rows,
                                          int64_t depth, int64_t k0, bool vectors,
                                          float (*slice)[kTile + 1]) {
  const int i = static_cast<int>(threadIdx.x) / 8, k = static_cast<int>(threadIdx.x) % 8 * 4;
  float v[4] = {};
  if (first + i < rows) load4(y + (first + i) * depth + k0 + k, live4(k0 + k, depth), vectors, v);
#pragma unroll
  for (int e = 0; e < 4; ++e) slice[k + e][i] = v[e];
}

// part[chunk][i][j], j <= i: the chain over the columns of a chunk. Grid: tiles of the lower
// triangle x chunks.
__global__ void __launch_bounds__(kThreads)
    gram_chunks(double* __restrict__ part, const float* __restrict__ y, int64_t rows, int64_t depth,
                int64_t step, bool vectors) {
  __shared__ float left[kSlice][kTile + 1], right[kSlice][kTile + 1];
  // Tile number t of the lower triangle, row by row.
  int64_t ti = 0, t = blockIdx.x;
  while (t > ti) t -= ++ti;
  const int64_t i0 = ti * kTile, j0 = t * kTile;
  const int64_t begin = blockIdx.y * step, end = begin + step < depth ? begin + step : depth;
  const int r = static_cast<int>(threadIdx.x) / 16 * 2, c = static_cast<int>(threadIdx.x) % 16 * 2;
  double acc[2][2] = {};
  for (int64_t k0 = begin; k0 < end; k0 += kSlice) {
    load_rows(y, i0, rows, depth, k0, vectors, left);
    load_rows(y, j0, rows, depth, k0, vectors, right);
    __syncthreads();
    const int here = static_cast<int>(end - k0 < kSlice ? end - k0 : kSlice);
    for (int k = 0; k < here; ++k) {
#pragma unroll
      for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int b = 0; b < 2; ++b)
          acc[a][b] = __fma_rn(static_cast<double>(left[k][r + a]),
                               static_cast<double>(right[k][c + b]), acc[a][b]);
    }
    __syncthreads();
  }
  double* out = part + static_cast<int64_t>(blockIdx.y) * rows * rows;
#pragma unroll
  for (int a = 0; a < 2; ++a)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int64_t i = i0 + r + a, j = j0 + c + b;
      if (i < rows && j <= i) out[i * rows + j] = acc[a][b];
    }
}

// g[i, j] = g[j, i] = the chunks of (i, j), added in order.
__global__ void __launch_bounds__(kThreads)
    gram_join(double* __restrict__ g, const double* __restrict__ part, int64_t rows,
              int64_t chunks) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < rows * rows;
       at += stride) {
    const int64_t i = at / rows, j = at % rows;
    if (j > i) continue;
    double sum = part[at];
    for (int64_t c = 1; c < chunks; ++c) sum = __dadd_rn(sum, part[c * rows * rows + at]);
    g[at] = sum;
    g[j * rows + i] = sum;
  }
}

}  // namespace kernels

int64_t gram_scratch(int64_t rows, int64_t depth) {
  return rows <= 0 || depth <= 0 ? 0 : gram_plan(rows, depth).chunks * rows * rows;
}

int gram(double* g, const float* y, int64_t rows, int64_t depth, double* scratch,
         void* cuda_stream) {
  if (rows < 0 || depth < 0 || rows > (int64_t{1} << 20))
    return static_cast<int>(cudaErrorInvalidValue);
  if (rows == 0) return 0;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (depth == 0)
    return static_cast<int>(
        cudaMemsetAsync(g, 0, static_cast<size_t>(rows * rows) * sizeof *g, stream));
  const GramPlan plan = gram_plan(rows, depth);
  const int64_t tiles = (rows + kernels::kTile - 1) / kernels::kTile;
  const dim3 grid(static_cast<unsigned>(tiles * (tiles + 1) / 2),
                  static_cast<unsigned>(plan.chunks));
  kernels::gram_chunks<<<grid, kThreads, 0, stream>>>(scratch, y, rows, depth, plan.step,
                                                      depth % 4 == 0 && aligned(y, 16));
  if (const int e = launched()) return e;
  kernels::gram_join<<<blocks_for(rows * rows, kThreads), kThreads, 0, stream>>>(g, scratch, rows,
                                                                                 plan.chunks);
  return launched();
}

}  // namespace lowtide::lowrank::cuda
