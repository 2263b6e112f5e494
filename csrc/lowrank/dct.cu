// SPDX-License-Identifier: Apache-2.0
// The DCT on CUDA: a block takes up to eight lines into shared memory, its threads share the
// butterflies of each stage. Coefficients of dct_power pass through memory, so that their sums keep
// the reference's order. Constants come from L1 and L2.
#include "base/launch.cuh"
#include "lowrank/dct_cuda.h"
#include "lowrank/dct_scalar.h"
#include "lowrank/dct_table.h"

namespace lowtide::lowrank::cuda {
namespace kernels {

extern __shared__ float shared[];

struct LineJob {
  DctJob job;
  int64_t lines;
  int width;         // lines of a block
  int room;          // floats of a line's buffer
  bool low_by_line;  // low is lines x count whatever the lines are
};

__device__ __forceinline__ float element(const DctMatrix& m, int64_t i) {
  return m.type == quant::FloatType::f32 ? static_cast<const float*>(m.x)[i]
                                         : bf16_to_float(static_cast<const uint16_t*>(m.x)[i]);
}

// Value c of line l in a matrix of `values` a line. Threads that follow each other should touch
// neighbours: by values along rows, by lines along columns.
__device__ __forceinline__ int64_t position(bool along_rows, int64_t l, int64_t c, int64_t values,
                                            int64_t lines) {
  return along_rows ? l * values + c : c * lines + l;
}

// f(line within the block, value) for the block's live lines, all threads together.
template <class F>
__device__ __forceinline__ void for_values(bool along_rows, int live, int values, const F& f) {
  for (int t = static_cast<int>(threadIdx.x); t < live * values; t += kThreads)
    along_rows ? f(t / values, t % values) : f(t % live, t / live);
}

// The FFT of buffer x; returns the buffer with the result.
__device__ __forceinline__ float* transform(const LineJob& a, float* x, float* y, int live) {
  const DctPlan& plan = a.job.plan;
  const float* twiddles = a.job.table;
  int left = static_cast<int>(plan.m), stride = 1;
  for (int s = 0; s < plan.stages; ++s) {
    const int p = plan.radix[s], groups = left / p, each = groups * stride;
    for (int t = static_cast<int>(threadIdx.x); t < live * each; t += kThreads) {
      const int w = t / each, b = t % each;
      dct_butterfly(p, x + w * a.room, y + w * a.room, groups, stride, b / stride, b % stride,
                    twiddles);
    }
    __syncthreads();
    twiddles += dct_stage_floats(p, left);
    left = groups, stride *= p;
    float* const other = x;
    x = y, y = other;
  }
  return x;
}

// f(buffers of a line, k) for k = 0 .. pairs - 1 of the live lines.
template <class F>
__device__ __forceinline__ void for_pairs(const LineJob& a, int live, const F& f) {
  const int pairs = static_cast<int>(dct_pairs(a.job.plan));
  for (int t = static_cast<int>(threadIdx.x); t < live * pairs; t += kThreads)
    f(t / pairs * a.room, t % pairs);
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) dct_forward(const LineJob a) {
  const DctJob& job = a.job;
  const DctPlan& plan = job.plan;
  const bool along_rows = job.in.lines == Lines::rows;
  float* const first = shared;
  float* const second = shared + a.width * a.room;
  const int64_t step = static_cast<int64_t>(gridDim.x) * a.width;
  for (int64_t l0 = static_cast<int64_t>(blockIdx.x) * a.width; l0 < a.lines; l0 += step) {
    const int live = static_cast<int>(a.lines - l0 < a.width ? a.lines - l0 : a.width);
    if (!dct_even(plan))
      for (int t = static_cast<int>(threadIdx.x); t < live * a.room; t += kThreads) first[t] = 0.0f;
    __syncthreads();
    for_values(along_rows, live, static_cast<int>(plan.n), [&](int w, int c) {
      first[w * a.room + dct_slot(plan, c)] =
          element(job.in, position(along_rows, l0 + w, c, plan.n, a.lines));
    });
    __syncthreads();
    float* const z = transform(a, first, second, live);
    float* const s = z == first ? second : first;
    for_pairs(a, live,
              [&](int at, int k) { dct_coefficients(plan, job.table, z + at, s + at, k); });
    const bool by_line = along_rows || a.low_by_line;
    for_values(by_line, live, static_cast<int>(job.count), [&](int w, int j) {
      job.out[position(by_line, l0 + w, j, job.count, a.lines)] =
          s[w * a.room + (job.index != nullptr ? job.index[j] : j)];
    });
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) dct_inverse(const LineJob a) {
  const DctJob& job = a.job;
  const DctPlan& plan = job.plan;
  const bool along_rows = job.in.lines == Lines::rows;
  float* const first = shared;
  float* const second = shared + a.width * a.room;
  const int64_t step = static_cast<int64_t>(gridDim.x) * a.width;
  for (int64_t l0 = static_cast<int64_t>(blockIdx.x) * a.width; l0 < a.lines; l0 += step) {
    const int live = static_cast<int>(a.lines - l0 < a.width ? a.lines - l0 : a.width);
    for (int t = static_cast<int>(threadIdx.x); t < live * a.room; t += kThreads) first[t] = 0.0f;
    __syncthreads();
    for_values(along_rows, live, static_cast<int>(job.count), [&](int w, int j) {
      first[w * a.room + (job.index != nullptr ? job.index[j] : j)] =
          element(job.in, position(along_rows, l0 + w, j, job.count, a.lines));
    });
    __syncthreads();
    for_pairs(a, live,
              [&](int at, int k) { dct_points(plan, job.table, first + at, second + at, k); });
    const float* const x = transform(a, second, first, live);
    for_values(along_rows, live, static_cast<int>(plan.n), [&](int w, int c) {
      job.out[position(along_rows, l0 + w, c, plan.n, a.lines)] =
          x[w * a.room + dct_slot_back(plan, c)];
    });
    __syncthreads();
  }
}

// dct_fold, with indices that the compiler keeps in registers.
template <int kWidth>
__device__ __forceinline__ void fold(float* lane) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) lane[i] = lane[i] + lane[i + kWidth];
  if constexpr (kWidth > 1) fold<kWidth / 2>(lane);
}

// part[b][k]: of kDctPowerLines lines, in the lanes of the reference.
__global__ void __launch_bounds__(kThreads)
    dct_power_blocks(float* __restrict__ part, const float* __restrict__ s, int64_t lines,
                     int64_t n, Power power) {
  const int64_t blocks = (lines + kDctPowerLines - 1) / kDctPowerLines;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < blocks * n;
       t += stride) {
    const int64_t b = t / n, k = t % n;
    const int64_t begin = b * kDctPowerLines;
    const int64_t end = begin + kDctPowerLines < lines ? begin + kDctPowerLines : lines;
    float lane[kDctLanes] = {};
    for (int64_t base = begin; base < end; base += kDctLanes) {
#pragma unroll
      for (int i = 0; i < kDctLanes; ++i)
        if (base + i < end) {
          const float v = s[(base + i) * n + k];
          lane[i] = lane[i] + (power == Power::square ? v * v : abs_f(v));
        }
    }
    fold<kDctLanes / 2>(lane);
    part[t] = lane[0];
  }
}

__global__ void __launch_bounds__(kThreads)
    dct_power_join(float* __restrict__ sums, const float* __restrict__ part, int64_t blocks,
                   int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n; k += stride) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum = __dadd_rn(sum, static_cast<double>(part[b * n + k]));
    sums[k] = __double2float_rn(sum);
  }
}

}  // namespace kernels

namespace {

using kernels::LineJob;

bool valid(const DctMatrix& x, const int32_t* index, int64_t count) {
  const int64_t n = dct_length(x);
  return x.rows >= 0 && x.cols >= 0 && n >= 1 && n <= kDctMostCuda && count >= 0 &&
         (index != nullptr ? count <= n : count == n) &&
         (x.type == quant::FloatType::f32 || x.type == quant::FloatType::bf16);
}

int launch(void (*kernel)(LineJob), const DctMatrix& x, const int32_t* index, int64_t count,
           const float* table, float* out, bool low_by_line, void* cuda_stream) {
  LineJob a{};
  a.lines = dct_lines(x);
  if (a.lines == 0) return 0;
  a.job.plan = dct_plan(dct_length(x));
  a.job.table = table;
  a.job.in = x;
  a.job.index = index;
  a.job.count = count;
  a.job.out = out;
  a.low_by_line = low_by_line;
  const DctPlan& p = a.job.plan;
  a.room = static_cast<int>(dct_room(p));
  // Two blocks a multiprocessor, and whole sectors of columns where lines are short.
  constexpr int kShared = 96 << 10;
  a.width = 8;
  const auto bytes = [&] { return 2 * a.width * a.room * static_cast<int>(sizeof(float)); };
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

int64_t dct_power_scratch(int64_t rows, int64_t cols, Lines lines) {
  const DctMatrix x = {nullptr, quant::FloatType::f32, rows, cols, lines};
  const int64_t blocks = (dct_lines(x) + kDctPowerLines - 1) / kDctPowerLines;
  return rows * cols + blocks * dct_length(x);
}

int dct_forward(float* out, const DctMatrix& x, const int32_t* index, int64_t count,
                const float* table, void* cuda_stream) {
  if (!valid(x, index, count)) return static_cast<int>(cudaErrorInvalidValue);
  return launch(kernels::dct_forward, x, index, count, table, out, false, cuda_stream);
}

int dct_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                const int32_t* index, int64_t count, const float* table, void* cuda_stream) {
  const DctMatrix x = {low, quant::FloatType::f32, rows, cols, lines};
  if (!valid(x, index, count)) return static_cast<int>(cudaErrorInvalidValue);
  return launch(kernels::dct_inverse, x, index, count, table, out, false, cuda_stream);
}

int dct_power(float* sums, const DctMatrix& x, Power power, const float* table, float* scratch,
              void* cuda_stream) {
  const int64_t n = dct_length(x);
  if (!valid(x, nullptr, n)) return static_cast<int>(cudaErrorInvalidValue);
  if (const int e = launch(kernels::dct_forward, x, nullptr, n, table, scratch, true, cuda_stream))
    return e;
  const int64_t lines = dct_lines(x);
  const int64_t blocks = (lines + kDctPowerLines - 1) / kDctPowerLines;
  float* const part = scratch + lines * n;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (blocks > 0) {
    kernels::dct_power_blocks<<<blocks_for(blocks * n, kThreads), kThreads, 0, stream>>>(
        part, scratch, lines, n, power);
    if (const int e = launched()) return e;
  }
  kernels::dct_power_join<<<blocks_for(n, kThreads), kThreads, 0, stream>>>(sums, part, blocks, n);
  return launched();
}

}  // namespace lowtide::lowrank::cuda
