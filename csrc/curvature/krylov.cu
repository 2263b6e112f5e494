// SPDX-License-Identifier: Apache-2.0
// Gram-Schmidt against a basis on CUDA. Products: a warp takes a chunk of a row, its threads are
// the 32 lanes of the definition, so that it reads 128 bytes (64, 32) at a time and folds by
// shuffles. Subtraction: a thread walks down a column; neighbours read neighbours. Bound by memory.
#include "base/launch.cuh"
#include "curvature/krylov_cuda.h"
#include "curvature/krylov_order.h"

namespace lowtide::curvature::cuda {
namespace kernels {

constexpr int kWarps = kThreads / 32;

LT_HD int64_t chunks_of(int64_t n) { return (n + kKrylovChunk - 1) / kKrylovChunk; }

// part[row][chunk]
template <class T>
__global__ void __launch_bounds__(kThreads)
    krylov_dots(double* __restrict__ part, const T* __restrict__ data,
                const float* __restrict__ scale, const float* __restrict__ w, int64_t rows,
                int64_t n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t chunks = chunks_of(n), groups = krylov_groups(n);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
       piece < rows * chunks; piece += stride) {
    const int64_t row = piece / chunks, begin = piece % chunks * kKrylovChunk;
    const int64_t end = begin + kKrylovChunk < n ? begin + kKrylovChunk : n;
    const T* q = data + row * n;
    double sum = 0.0;
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      const int64_t tile_end = tile + kKrylovTile < end ? tile + kKrylovTile : end;
      float total = 0.0f;
      for (int64_t g = tile; g < tile_end; g += kKrylovGroup) {
        const int64_t last = g + kKrylovGroup < tile_end ? g + kKrylovGroup : tile_end;
        float partial = 0.0f;
        for (int64_t k = g + lane; k < last; k += kKrylovLanes)
          partial = __fadd_rn(partial, __fmul_rn(krylov_raw(q, k), w[k]));
        const float s = scale == nullptr ? 1.0f : scale[row * groups + g / kKrylovGroup];
        total = __fadd_rn(total, __fmul_rn(s, partial));
      }
#pragma unroll
      for (int d = 16; d >= 1; d /= 2)
        total = __fadd_rn(total, __shfl_down_sync(0xffffffffu, total, d));
      sum = __dadd_rn(sum, static_cast<double>(total));
    }
    if (lane == 0) part[piece] = sum;
  }
}

// The tree of base/reduce.h over the chunks of each row, in place: a thread a row.
__global__ void __launch_bounds__(kThreads)
    krylov_join(double* __restrict__ c, double* __restrict__ part, int64_t rows, int64_t chunks) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; row < rows;
       row += stride) {
    double* sums = part + row * chunks;
    for (int64_t width = 1; width < chunks; width *= 2)
      for (int64_t i = 0; i + width < chunks; i += 2 * width)
        sums[i] = __dadd_rn(sums[i], sums[i + width]);
    c[row] = chunks > 0 ? sums[0] : 0.0;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    krylov_subtract(float* __restrict__ w, const T* __restrict__ data,
                    const float* __restrict__ scale, const double* __restrict__ c, int64_t rows,
                    int64_t n) {
  const int64_t groups = krylov_groups(n);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n; k += stride) {
    float x = w[k];
    for (int64_t row = 0; row < rows; ++row) {
      const float s = scale == nullptr ? 1.0f : scale[row * groups + k / kKrylovGroup];
      const float f = __fmul_rn(__double2float_rn(c[row]), s);
      x = __fsub_rn(x, __fmul_rn(f, krylov_raw(data + row * n, k)));
    }
    w[k] = x;
  }
}

template <class T>
int dots(double* c, const Basis& q, const float* w, double* scratch, cudaStream_t stream) {
  const int64_t chunks = chunks_of(q.n);
  if (chunks > 0) {
    krylov_dots<T><<<blocks_for(q.rows * chunks, kWarps), kThreads, 0, stream>>>(
        scratch, static_cast<const T*>(q.data), q.scale, w, q.rows, q.n);
    if (const int e = launched()) return e;
  }
  krylov_join<<<blocks_for(q.rows, kThreads), kThreads, 0, stream>>>(c, scratch, q.rows, chunks);
  return launched();
}

template <class T>
int subtract(float* w, const Basis& q, const double* c, cudaStream_t stream) {
  krylov_subtract<T><<<blocks_for(q.n, kThreads), kThreads, 0, stream>>>(
      w, static_cast<const T*>(q.data), q.scale, c, q.rows, q.n);
  return launched();
}

bool valid(const Basis& q) {
  if (q.rows < 0 || q.n < 0) return false;
  return (q.type == BasisType::int8) == (q.scale != nullptr) || q.rows == 0 || q.n == 0;
}

}  // namespace kernels

int64_t basis_dots_scratch(int64_t rows, int64_t n) {
  return rows > 0 && n > 0 ? rows * kernels::chunks_of(n) : 0;
}

int basis_dots(double* c, const Basis& q, const float* w, double* scratch, void* cuda_stream) {
  if (!kernels::valid(q)) return static_cast<int>(cudaErrorInvalidValue);
  if (q.rows == 0) return 0;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (q.type == BasisType::f32) return kernels::dots<float>(c, q, w, scratch, stream);
  if (q.type == BasisType::bf16) return kernels::dots<uint16_t>(c, q, w, scratch, stream);
  return kernels::dots<uint8_t>(c, q, w, scratch, stream);
}

int basis_subtract(float* w, const Basis& q, const double* c, void* cuda_stream) {
  if (!kernels::valid(q)) return static_cast<int>(cudaErrorInvalidValue);
  if (q.rows == 0 || q.n == 0) return 0;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (q.type == BasisType::f32) return kernels::subtract<float>(w, q, c, stream);
  if (q.type == BasisType::bf16) return kernels::subtract<uint16_t>(w, q, c, stream);
  return kernels::subtract<uint8_t>(w, q, c, stream);
}

}  // namespace lowtide::curvature::cuda
