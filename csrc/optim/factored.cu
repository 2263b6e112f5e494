// SPDX-License-Identifier: Apache-2.0
// Adafactor and Adam-mini on CUDA. Four threads a row, four neighbours each, are the 16 lanes of
// the definition; a thread walks four columns down a chunk of rows. What the host decides on the
// CPU is decided on the device by flags in scratch, so nothing waits. Bound by memory.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "optim/factored_cuda.h"
#include "optim/factored_numerics.h"

namespace lowtide::optim::cuda {
namespace kernels {

constexpr int kRowThreads = kRowLanes / 4;
constexpr int kColumnThreads = 64;

// What is known of a matrix while it is stepped; in scratch.
struct Verdict {
  double mean;
  float shrink;
  int bad;
};

__device__ __forceinline__ void load_any(const RowMatrix& x, int64_t at, int live, bool vectors,
                                         float v[4]) {
  if (x.dtype == Dtype::f32)
    load4(static_cast<const float*>(x.data) + at, live, vectors, v);
  else
    load4(static_cast<const uint16_t*>(x.data) + at, live, vectors, v);
}

// The 16 lanes of four threads; valid in the first.
__device__ __forceinline__ double fold_threads(double acc[4]) {
#pragma unroll
  for (int w = kRowThreads / 2; w >= 1; w /= 2)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      acc[e] = __dadd_rn(acc[e], __shfl_down_sync(0xffffffffu, acc[e], w, kRowThreads));
  return __dadd_rn(__dadd_rn(acc[0], acc[2]), __dadd_rn(acc[1], acc[3]));
}

// Calls f(row, lane) for each row; all threads of a warp stay for shuffles, row may be >= rows.
template <class F>
__device__ __forceinline__ void for_rows(int64_t rows, const F& f) {
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRows;
  const int64_t padded = (rows + 7) / 8 * 8;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kRowThreads; i < padded;
       i += stride)
    f(i, static_cast<int>(threadIdx.x) % kRowThreads);
}

__global__ void __launch_bounds__(kThreads)
    products_of_rows(double* __restrict__ out, RowMatrix x, RowMatrix y, bool vectors) {
  for_rows(x.rows, [&](int64_t i, int lane) {
    double acc[4] = {};
    for (int64_t k = 4 * lane; i < x.rows && k < x.cols; k += kRowLanes) {
      float a[4], b[4];
      load_any(x, i * x.cols + k, live4(k, x.cols), vectors, a);
      load_any(y, i * x.cols + k, live4(k, x.cols), vectors, b);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[e] = __dadd_rn(acc[e], static_cast<double>(a[e]) * static_cast<double>(b[e]));
    }
    const double sum = fold_threads(acc);
    if (lane == 0 && i < x.rows) out[i] = sum;
  });
}

// part[chunk][column]
__global__ void __launch_bounds__(kColumnThreads)
    column_squares(double* __restrict__ part, RowMatrix g, bool vectors) {
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x) * 4;
  if (k >= g.cols) return;
  const int live = live4(k, g.cols);
  const int64_t each = chunk_rows(g.cols), chunks = chunk_count(g.rows, g.cols);
  for (int64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
    const int64_t begin = chunk * each;
    const int64_t end = begin + each < g.rows ? begin + each : g.rows;
    double acc[4] = {};
    for (int64_t i = begin; i < end; ++i) {
      float v[4];
      load_any(g, i * g.cols + k, live, vectors, v);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[e] = __dadd_rn(acc[e], static_cast<double>(v[e]) * static_cast<double>(v[e]));
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (e < live) part[chunk * g.cols + k + e] = acc[e];
  }
}

// next[i] from the sums of `parts` chunks, added in order.
__global__ void __launch_bounds__(kThreads)
    second_moments(float* __restrict__ next, const float* __restrict__ old,
                   const double* __restrict__ sums, int64_t n, int64_t parts, int64_t count,
                   double beta2, double eps, Verdict* verdict) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    double sum = sums[i];
    for (int64_t c = 1; c < parts; ++c) sum = __dadd_rn(sum, sums[c * n + i]);
    const float moment = averaged(old[i], sum, count, beta2, eps);
    next[i] = moment;
    if (!is_moment(moment)) atomicOr(&verdict->bad, 1);
  }
}

template <class T>
__device__ __forceinline__ double sum_by_lanes(const T* x, int64_t n) {
  const int lane = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  if (lane < kRowLanes)
    for (int64_t i = lane; i < n; i += kRowLanes) sum = __dadd_rn(sum, static_cast<double>(x[i]));
#pragma unroll
  for (int w = kRowLanes / 2; w >= 1; w /= 2)
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, w));
  return sum;
}

__global__ void __launch_bounds__(32)
    mean_of_rows(Verdict* verdict, const float* __restrict__ next, int64_t rows, double least) {
  const double sum = sum_by_lanes(next, rows);
  if (threadIdx.x == 0) verdict->mean = row_mean(sum, rows, least);
}

__global__ void __launch_bounds__(32)
    judge(Verdict* verdict, const double* __restrict__ sums, int64_t rows, double count,
          double threshold, int64_t* skipped) {
  const double total = sum_by_lanes(sums, rows);
  if (threadIdx.x != 0) return;
  if (!(total < 1.0 / 0.0)) verdict->bad = 1;
  verdict->shrink = verdict->bad != 0 ? 0.0f : shrinkage(total, count, threshold);
  skipped[0] = verdict->bad;
}

__global__ void __launch_bounds__(kThreads)
    scaled(float* __restrict__ u, double* __restrict__ sums, RowMatrix g,
           const float* __restrict__ row, const float* __restrict__ col, float cap,
           const Verdict* verdict, bool vectors) {
  const double mean = col != nullptr ? verdict->mean : 1.0;
  for_rows(g.rows, [&](int64_t i, int lane) {
    const float r = i < g.rows ? inverse_root(quotient_d(static_cast<double>(row[i]), mean)) : 0.0f;
    double acc[4] = {};
    for (int64_t k = 4 * lane; i < g.rows && k < g.cols; k += kRowLanes) {
      const int live = live4(k, g.cols);
      float x[4], c[4];
      load_any(g, i * g.cols + k, live, vectors, x);
      if (col != nullptr) load4(col + k, live, vectors, c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[e] = x[e] * capped(col != nullptr ? r * c[e] : r, cap);
        acc[e] = __dadd_rn(acc[e],
                           e < live ? static_cast<double>(x[e]) * static_cast<double>(x[e]) : 0.0);
      }
      store4(u + i * g.cols + k, live, vectors, x);
    }
    const double sum = fold_threads(acc);
    if (lane == 0 && i < g.rows) sums[i] = sum;
  });
}

__global__ void __launch_bounds__(kThreads)
    column_factors(float* __restrict__ c, const float* __restrict__ next, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n; k += stride)
    c[k] = inverse_root(static_cast<double>(next[k]));
}

// Shortens u where it is too long; zero where the matrix is skipped.
__global__ void __launch_bounds__(kThreads)
    shorten(float* __restrict__ u, int64_t n, const Verdict* verdict, bool vectors) {
  const float by = verdict->shrink;
  if (by == 1.0f) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < n;
       i += stride) {
    float x[4];
    load4(u + i, live4(i, n), vectors, x);
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = verdict->bad != 0 ? 0.0f : by * x[e];
    store4(u + i, live4(i, n), vectors, x);
  }
}

__global__ void __launch_bounds__(kThreads)
    keep(float* __restrict__ to, const float* __restrict__ next, int64_t n,
         const Verdict* verdict) {
  if (verdict->bad != 0) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    to[i] = next[i];
}

__global__ void __launch_bounds__(kThreads)
    block_factors(float* __restrict__ factor, float* __restrict__ v, const float* __restrict__ next,
                  int64_t n, double a, double s, double eps, const Verdict* verdict,
                  int64_t* skipped) {
  const bool bad = verdict->bad != 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (first == 0) skipped[0] = bad ? 1 : 0;
  for (int64_t i = first; i < n; i += stride) {
    factor[i] = bad ? 0.0f : block_factor(next[i], a, s, eps);
    if (!bad) v[i] = next[i];
  }
}

// u_i = [u_i -] c[i] w_i
template <bool shear>
__global__ void __launch_bounds__(kThreads)
    rows_times(float* __restrict__ u, const float* __restrict__ c, RowMatrix w, bool vectors) {
  for_rows(w.rows, [&](int64_t i, int lane) {
    for (int64_t k = 4 * lane; i < w.rows && k < w.cols; k += kRowLanes) {
      const int live = live4(k, w.cols);
      float x[4], y[4];
      load_any(w, i * w.cols + k, live, vectors, x);
      if (shear) load4(u + i * w.cols + k, live, vectors, y);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = shear ? y[e] - c[i] * x[e] : c[i] * x[e];
      store4(u + i * w.cols + k, live, vectors, x);
    }
  });
}

}  // namespace kernels

namespace {

using kernels::Verdict;

bool valid(const RowMatrix& x) {
  return x.rows >= 0 && x.cols >= 0 && x.cols <= kMaxBlocks * 4 * kernels::kColumnThreads;
}
bool rows_of_vectors(const RowMatrix& x) {
  return x.cols % 4 == 0 && aligned(x.data, x.dtype == Dtype::f32 ? 16 : 8);
}
unsigned row_blocks(int64_t rows) { return blocks_for(rows, kThreads / kernels::kRowThreads); }
unsigned flat_blocks(int64_t n) { return blocks_for(n, kThreads); }

struct Room {
  double *row_sums, *sums, *parts;
  Verdict* verdict;
  float *row, *col, *c;
  Room(void* at, int64_t rows, int64_t cols) {
    verdict = static_cast<Verdict*>(at);
    row_sums = reinterpret_cast<double*>(verdict + 1);
    sums = row_sums + rows;
    parts = sums + rows;
    row = reinterpret_cast<float*>(parts + chunk_count(rows, cols) * cols);
    c = row + (rows + 3) / 4 * 4;
    col = c + (cols + 3) / 4 * 4;
  }
};

}  // namespace

int64_t factored_scratch(int64_t rows, int64_t cols) {
  if (rows <= 0 || cols <= 0) return static_cast<int64_t>(sizeof(Verdict));
  return static_cast<int64_t>(sizeof(Verdict)) + 8 * (2 * rows + chunk_count(rows, cols) * cols) +
         4 * ((rows + 3) / 4 * 4 + 2 * ((cols + 3) / 4 * 4)) + 16;
}

int adafactor(float* u, float* row, float* col, const RowMatrix& g, const FactoredRule& rule,
              void* scratch, int64_t* skipped, void* cuda_stream) {
  if (!valid(g)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  const int64_t rows = g.rows, cols = g.cols, n = rows * cols;
  if (n == 0) return static_cast<int>(cudaMemsetAsync(skipped, 0, sizeof *skipped, stream));
  const Room room(scratch, rows, cols);
  if (const cudaError_t e = cudaMemsetAsync(room.verdict, 0, sizeof(Verdict), stream))
    return static_cast<int>(e);
  const bool vectors = rows_of_vectors(g);
  kernels::products_of_rows<<<row_blocks(rows), kThreads, 0, stream>>>(room.row_sums, g, g,
                                                                       vectors);
  kernels::second_moments<<<flat_blocks(rows), kThreads, 0, stream>>>(
      room.row, row, room.row_sums, rows, 1, cols, rule.beta2, rule.eps, room.verdict);
  if (col != nullptr) {
    const int64_t chunks = chunk_count(rows, cols);
    const dim3 grid(blocks_for(cols, 4 * kernels::kColumnThreads),
                    static_cast<unsigned>(chunks < 65535 ? chunks : 65535));
    kernels::column_squares<<<grid, kernels::kColumnThreads, 0, stream>>>(room.parts, g, vectors);
    kernels::second_moments<<<flat_blocks(cols), kThreads, 0, stream>>>(
        room.col, col, room.parts, cols, chunks, rows, rule.beta2, rule.eps, room.verdict);
    kernels::column_factors<<<flat_blocks(cols), kThreads, 0, stream>>>(room.c, room.col, cols);
    kernels::mean_of_rows<<<1, 32, 0, stream>>>(room.verdict, room.row, rows, rule.mean_least);
  }
  const bool all_vectors = vectors && aligned(u, 16) && aligned(room.c, 16);
  kernels::scaled<<<row_blocks(rows), kThreads, 0, stream>>>(
      u, room.sums, g, room.row, col != nullptr ? room.c : nullptr, inverse_root(rule.least),
      room.verdict, all_vectors);
  kernels::judge<<<1, 32, 0, stream>>>(room.verdict, room.sums, rows, static_cast<double>(n),
                                       rule.threshold, skipped);
  kernels::shorten<<<blocks_for(n, 4 * kThreads), kThreads, 0, stream>>>(u, n, room.verdict,
                                                                         aligned(u, 16));
  kernels::keep<<<flat_blocks(rows), kThreads, 0, stream>>>(row, room.row, rows, room.verdict);
  if (col != nullptr)
    kernels::keep<<<flat_blocks(cols), kThreads, 0, stream>>>(col, room.col, cols, room.verdict);
  return launched();
}

int block_adam(float* factor, float* v, const RowMatrix& g, const BlockRule& rule, void* scratch,
               int64_t* skipped, void* cuda_stream) {
  if (!valid(g)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  const int64_t rows = g.rows;
  if (rows * g.cols == 0)
    return static_cast<int>(cudaMemsetAsync(skipped, 0, sizeof *skipped, stream));
  const Room room(scratch, rows, g.cols);
  if (const cudaError_t e = cudaMemsetAsync(room.verdict, 0, sizeof(Verdict), stream))
    return static_cast<int>(e);
  kernels::products_of_rows<<<row_blocks(rows), kThreads, 0, stream>>>(room.row_sums, g, g,
                                                                       rows_of_vectors(g));
  kernels::second_moments<<<flat_blocks(rows), kThreads, 0, stream>>>(
      room.row, v, room.row_sums, rows, 1, g.cols, rule.beta2, 0.0, room.verdict);
  kernels::block_factors<<<flat_blocks(rows), kThreads, 0, stream>>>(
      factor, v, room.row, rows, rule.a, rule.s, rule.eps, room.verdict, skipped);
  return launched();
}

int row_dots(double* out, const RowMatrix& x, const RowMatrix& y, void* cuda_stream) {
  if (!valid(x) || x.rows != y.rows || x.cols != y.cols)
    return static_cast<int>(cudaErrorInvalidValue);
  if (x.rows == 0) return 0;
  kernels::products_of_rows<<<row_blocks(x.rows), kThreads, 0, as_stream(cuda_stream)>>>(
      out, x, y, rows_of_vectors(x) && rows_of_vectors(y));
  return launched();
}

int shear_rows(float* u, const float* c, const RowMatrix& w, void* cuda_stream) {
  if (!valid(w)) return static_cast<int>(cudaErrorInvalidValue);
  if (w.rows * w.cols == 0) return 0;
  kernels::rows_times<true><<<row_blocks(w.rows), kThreads, 0, as_stream(cuda_stream)>>>(
      u, c, w, rows_of_vectors(w) && aligned(u, 16));
  return launched();
}

int scale_rows(float* u, const float* c, int64_t rows, int64_t cols, void* cuda_stream) {
  const RowMatrix w = {u, Dtype::f32, rows, cols};
  if (!valid(w)) return static_cast<int>(cudaErrorInvalidValue);
  if (rows * cols == 0) return 0;
  kernels::rows_times<false>
      <<<row_blocks(rows), kThreads, 0, as_stream(cuda_stream)>>>(u, c, w, rows_of_vectors(w));
  return launched();
}

}  // namespace lowtide::optim::cuda
