// SPDX-License-Identifier: Apache-2.0
// Rows of cross entropy's Hessian on CUDA. A warp takes a block of columns: its threads are the 32
// lanes of the definition. Short rows have a warp each, long ones a thread block whose warps take
// blocks in turn and join them in order. 128 bytes a warp and request. z is read three times and u
// twice, the last readings of a row from L2 or, of a short row, L1.
#include "base/launch.cuh"
#include "curvature/ce_rows_cuda.h"
#include "curvature/ce_rows_order.h"

namespace lowtide::curvature::cuda {
namespace kernels {

constexpr int kWarps = kThreads / kCeLanes;
constexpr int64_t kShortRow = 2 * kCeBlock;
constexpr unsigned kAll = 0xffffffffu;

enum class Sums { one, u, uq, square, cumulant };
enum class Result { product, cumulant, diagonal, weighted, trace };

struct Row {
  const float *z, *u, *q;
};

__device__ __forceinline__ float fold(float x) {
#pragma unroll
  for (int w = kCeLanes / 2; w >= 1; w /= 2) x = x + __shfl_down_sync(kAll, x, w);
  return __shfl_sync(kAll, x, 0);
}

template <Sums sums>
__device__ CeBlock block(const Row& row, const CeScale& means, int64_t first, int64_t last) {
  const int lane = static_cast<int>(threadIdx.x) % kCeLanes;
  float m = -ce_infinity();
  for (int64_t j = first + lane; j < last; j += kCeLanes) m = row.z[j] > m ? row.z[j] : m;
#pragma unroll
  for (int w = kCeLanes / 2; w >= 1; w /= 2) {
    const float other = __shfl_xor_sync(kAll, m, w);
    m = other > m ? other : m;
  }
  const float base = ce_base(m);
  float s = 0.0f, t1 = 0.0f, t2 = 0.0f;
  for (int64_t j = first + lane; j < last; j += kCeLanes) {
    const float e = exp_nonpositive(row.z[j] - base);
    s = s + e;
    if (sums == Sums::u || sums == Sums::uq) t1 = t1 + e * row.u[j];
    if (sums == Sums::uq) t2 = t2 + e * row.q[j];
    if (sums == Sums::square) t2 = t2 + e * e;
    if (sums == Sums::cumulant) t1 = t1 + e * ((row.u[j] - means.mean1) * (row.q[j] - means.mean2));
  }
  return {m, fold(s), fold(t1), fold(t2)};
}

// kTogether warps share a row; each of their threads gets the row's sums.
template <Sums sums, int kTogether>
__device__ CeRow statistics(const Row& row, int64_t cols, const CeScale& means, CeBlock* shared) {
  CeRow total = ce_start();
  if constexpr (kTogether == 1) {
    for (int64_t first = 0; first < cols; first += kCeBlock)
      ce_join(total,
              block<sums>(row, means, first, first + kCeBlock < cols ? first + kCeBlock : cols),
              sums == Sums::square);
  } else {
    const int warp = static_cast<int>(threadIdx.x) / kCeLanes;
    for (int64_t round = 0; round < cols; round += kTogether * kCeBlock) {
      const int64_t first = round + warp * kCeBlock;
      if (first < cols) {
        const CeBlock b =
            block<sums>(row, means, first, first + kCeBlock < cols ? first + kCeBlock : cols);
        if (threadIdx.x % kCeLanes == 0) shared[warp] = b;
      }
      __syncthreads();
      for (int w = 0; w < kTogether && round + w * kCeBlock < cols; ++w)
        ce_join(total, shared[w], sums == Sums::square);
      __syncthreads();
    }
  }
  return total;
}

template <Result result, int kTogether>
__global__ void __launch_bounds__(kThreads) ce_rows(float* y, const CeRows a) {
  __shared__ CeBlock shared[kWarps];
  constexpr int kRows = kWarps / kTogether;
  constexpr int kStep = kTogether * kCeLanes;
  const int lane = static_cast<int>(threadIdx.x) % kStep;
  const CeScale none = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, true};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kStep; i < a.rows;
       i += stride) {
    const int64_t at = i * a.cols;
    const Row row = {a.z + at, a.u + at, a.q + at};
    constexpr Sums kSums = result == Result::product    ? Sums::u
                           : result == Result::cumulant ? Sums::uq
                           : result == Result::trace    ? Sums::square
                                                        : Sums::one;
    const CeRow total = statistics<kSums, kTogether>(row, a.cols, none, shared);
    const float r = a.r[i];
    if constexpr (result == Result::trace) {
      if (lane == 0) y[i] = a.cols == 0 ? 0.0f : ce_trace_of(total, r);
      continue;
    }
    CeScale c = ce_scale(total, r);
    float joint = 0.0f;
    if constexpr (result == Result::cumulant) {
      const CeScale more =
          ce_scale(statistics<Sums::cumulant, kTogether>(row, a.cols, c, shared), r);
      c.valid = c.valid && more.valid;
      joint = more.mean1;
    }
    // In place: every thread of the row has read what the sums need.
    if constexpr (kTogether == 1) __syncwarp();
    for (int64_t j = lane; j < a.cols; j += kStep) {
      const float e = exp_nonpositive(row.z[j] - c.base);
      float v;
      if constexpr (result == Result::product)
        v = (e * c.scale) * (row.u[j] - c.mean1);
      else if constexpr (result == Result::cumulant)
        v = (e * c.scale) * ((row.u[j] - c.mean1) * (row.q[j] - c.mean2) - joint);
      else if constexpr (result == Result::diagonal)
        v = (e * c.scale) * (1.0f - e * c.inverse);
      else
        v = e * c.scale;
      y[at + j] = c.valid ? v : ce_nan();
    }
  }
}

template <Result result>
int launch(float* y, const CeRows& a, void* cuda_stream) {
  if (a.rows < 0 || a.cols < 0) return static_cast<int>(cudaErrorInvalidValue);
  if (a.rows == 0) return 0;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (a.cols <= kShortRow)
    ce_rows<result, 1><<<blocks_for(a.rows, kWarps), kThreads, 0, stream>>>(y, a);
  else
    ce_rows<result, kWarps><<<blocks_for(a.rows, 1), kThreads, 0, stream>>>(y, a);
  return launched();
}

}  // namespace kernels

int ce_product(float* y, const CeRows& a, void* cuda_stream) {
  return kernels::launch<kernels::Result::product>(y, a, cuda_stream);
}
int ce_cumulant(float* y, const CeRows& a, void* cuda_stream) {
  return kernels::launch<kernels::Result::cumulant>(y, a, cuda_stream);
}
int ce_diagonal(float* y, const CeRows& a, void* cuda_stream) {
  return kernels::launch<kernels::Result::diagonal>(y, a, cuda_stream);
}
int ce_weighted(float* y, const CeRows& a, void* cuda_stream) {
  return kernels::launch<kernels::Result::weighted>(y, a, cuda_stream);
}
int ce_trace(float* y, const CeRows& a, void* cuda_stream) {
  return kernels::launch<kernels::Result::trace>(y, a, cuda_stream);
}

}  // namespace lowtide::curvature::cuda
