// SPDX-License-Identifier: Apache-2.0
// The Walsh-Hadamard transform on CUDA: a block takes up to eight lines into shared memory, its
// threads share the butterflies of each stage, in place.
#include "base/launch.cuh"
#include "lowrank/fwht_cuda.h"
#include "lowrank/fwht_table.h"

namespace lowtide::lowrank::cuda {
namespace kernels {

extern __shared__ float shared[];

struct LineJob {
  FwhtJob job;
  int64_t lines;
  int width;  // lines of a block
};

__device__ __forceinline__ float element(const DctMatrix& m, int64_t i) {
  return m.type == quant::FloatType::f32 ? static_cast<const float*>(m.x)[i]
                                         : bf16_to_float(static_cast<const uint16_t*>(m.x)[i]);
}

// f(line within the block, value, where the value lies) for the block's live lines, with neighbours
// in memory for neighbouring threads. A barrier follows.
template <class F>
__device__ __forceinline__ void for_values(const LineJob& a, int64_t l0, int live, int values,
                                           const F& f) {
  const bool along_rows = a.job.in.lines == Lines::rows;
  for (int t = static_cast<int>(threadIdx.x); t < live * values; t += kThreads) {
    const int w = along_rows ? t / values : t % live, c = along_rows ? t % values : t / live;
    f(w, c, along_rows ? (l0 + w) * values + c : c * a.lines + l0 + w);
  }
  __syncthreads();
}

__device__ __forceinline__ void span(const LineJob& a, int s, int live) {
  const FwhtPlan& p = a.job.plan;
  const int n = static_cast<int>(p.n), start = static_cast<int>(fwht_start(p, s));
  const int pairs = static_cast<int>(p.h / 2);
  for (int stride = 1; stride <= pairs; stride *= 2) {
    for (int t = static_cast<int>(threadIdx.x); t < live * pairs; t += kThreads) {
      const int k = t % pairs;
      float* const x = shared + t / pairs * n + start + 2 * k - (k & (stride - 1));
      fwht_butterfly(x[0], x[stride]);
    }
    __syncthreads();
  }
}

__device__ __forceinline__ void scale(const LineJob& a, int s, int live) {
  const int n = static_cast<int>(a.job.plan.n);
  for (int t = static_cast<int>(threadIdx.x); t < live * n; t += kThreads)
    shared[t] = shared[t] * a.job.factors[s * n + t % n];
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) fwht_forward(const LineJob a) {
  const FwhtJob& job = a.job;
  const int n = static_cast<int>(job.plan.n);
  const int64_t step = static_cast<int64_t>(gridDim.x) * a.width;
  for (int64_t l0 = static_cast<int64_t>(blockIdx.x) * a.width; l0 < a.lines; l0 += step) {
    const int live = static_cast<int>(a.lines - l0 < a.width ? a.lines - l0 : a.width);
    for_values(a, l0, live, n, [&](int w, int c, int64_t at) {
      shared[w * n + c] = element(job.in, at) * job.factors[c];
    });
    span(a, 0, live);
    if (job.plan.spans > 1) {
      scale(a, 1, live);
      span(a, 1, live);
    }
    for_values(a, l0, live, static_cast<int>(job.count), [&](int w, int j, int64_t at) {
      job.out[at] = shared[w * n + (job.index != nullptr ? job.index[j] : j)];
    });
  }
}

__global__ void __launch_bounds__(kThreads) fwht_inverse(const LineJob a) {
  const FwhtJob& job = a.job;
  const int n = static_cast<int>(job.plan.n);
  const int64_t step = static_cast<int64_t>(gridDim.x) * a.width;
  for (int64_t l0 = static_cast<int64_t>(blockIdx.x) * a.width; l0 < a.lines; l0 += step) {
    const int live = static_cast<int>(a.lines - l0 < a.width ? a.lines - l0 : a.width);
    for (int t = static_cast<int>(threadIdx.x); t < live * n; t += kThreads) shared[t] = 0.0f;
    __syncthreads();
    for_values(a, l0, live, static_cast<int>(job.count), [&](int w, int j, int64_t at) {
      shared[w * n + (job.index != nullptr ? job.index[j] : j)] = element(job.in, at);
    });
    if (job.plan.spans > 1) {
      span(a, 1, live);
      scale(a, 1, live);
    }
    span(a, 0, live);
    for_values(a, l0, live, n,
               [&](int w, int c, int64_t at) { job.out[at] = shared[w * n + c] * job.factors[c]; });
  }
}

}  // namespace kernels

namespace {

using kernels::LineJob;

int launch(void (*kernel)(LineJob), const DctMatrix& x, const float* factors, const int32_t* index,
           int64_t count, float* out, void* cuda_stream) {
  const int64_t n = fwht_length(x);
  const bool valid = x.rows >= 0 && x.cols >= 0 && n >= 1 && n <= kFwhtMostCuda && count >= 0 &&
                     (index != nullptr ? count <= n : count == n) &&
                     (x.type == quant::FloatType::f32 || x.type == quant::FloatType::bf16);
  if (!valid) return static_cast<int>(cudaErrorInvalidValue);
  LineJob a{};
  a.lines = fwht_lines(x);
  if (a.lines == 0) return 0;
  a.job = {fwht_plan(n), factors, x, index, count, out};
  // Two blocks a multiprocessor, and whole sectors of columns where lines are short.
  constexpr int kShared = 96 << 10;
  a.width = 8;
  const auto bytes = [&] { return a.width * static_cast<int>(n * sizeof(float)); };
  while (a.width > 1 && bytes() > kShared) a.width /= 2;
  if (const cudaError_t e =
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes()))
    return static_cast<int>(e);
  kernel<<<blocks_for(a.lines, a.width), kThreads, static_cast<size_t>(bytes()),
           as_stream(cuda_stream)>>>(a);
  return launched();
}

}  // namespace

int fwht_forward(float* out, const DctMatrix& x, const float* factors, const int32_t* index,
                 int64_t count, void* cuda_stream) {
  return launch(kernels::fwht_forward, x, factors, index, count, out, cuda_stream);
}

int fwht_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                 const float* factors, const int32_t* index, int64_t count, void* cuda_stream) {
  const DctMatrix x = {low, quant::FloatType::f32, rows, cols, lines};
  return launch(kernels::fwht_inverse, x, factors, index, count, out, cuda_stream);
}

}  // namespace lowtide::lowrank::cuda
