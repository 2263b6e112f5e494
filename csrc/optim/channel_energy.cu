// SPDX-License-Identifier: Apache-2.0
// Sums of squares of rows or columns on CUDA. Rows: eight threads a row, four neighbours each, are
// the 32 lanes of the definition. Columns: a thread walks four columns down a run of rows. Both
// read 512 bytes a warp and request; bound by memory.
#include "base/launch.cuh"
#include "base/vector4.cuh"
#include "optim/channel_energy_cuda.h"
#include "optim/channel_energy_order.h"

namespace lowtide::optim::cuda {
namespace kernels {

constexpr int kRowThreads = kEnergyLanes / 4;
constexpr int kColumnThreads = 64;

template <class T>
__global__ void __launch_bounds__(kThreads)
    row_energy(double* __restrict__ energy, const T* __restrict__ x, int64_t rows, int64_t cols,
               bool vectors) {
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / kRowThreads);
  // All threads of a warp stay for the shuffles.
  const int64_t padded = (rows + 3) / 4 * 4;
  for (int64_t i =
           static_cast<int64_t>(blockIdx.x) * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
       i < padded; i += stride) {
    double acc[4] = {};
    for (int64_t j = 4 * lane; i < rows && j < cols; j += kEnergyLanes) {
      float v[4];
      load4(x + i * cols + j, live4(j, cols), vectors, v);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[e] = __dadd_rn(acc[e], square_d(v[e]));
    }
#pragma unroll
    for (int w = kRowThreads / 2; w >= 1; w /= 2)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[e] = __dadd_rn(acc[e], __shfl_down_sync(0xffffffffu, acc[e], w, kRowThreads));
    if (lane == 0 && i < rows)
      energy[i] = __dadd_rn(__dadd_rn(acc[0], acc[2]), __dadd_rn(acc[1], acc[3]));
  }
}

// part[run][column]
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    column_energy(double* __restrict__ part, const T* __restrict__ x, int64_t rows, int64_t cols,
                  bool vectors) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x) * 4;
  if (j >= cols) return;
  const int live = live4(j, cols);
  const int64_t runs = energy_runs(rows);
  for (int64_t run = blockIdx.y; run < runs; run += gridDim.y) {
    const int64_t begin = run * kEnergyRun;
    const int64_t end = begin + kEnergyRun < rows ? begin + kEnergyRun : rows;
    double acc[4] = {};
    for (int64_t i = begin; i < end; ++i) {
      float v[4];
      load4(x + i * cols + j, live, vectors, v);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[e] = __dadd_rn(acc[e], square_d(v[e]));
    }
    double* to = part + run * cols + j;
    if (vectors && live == 4) {
      __stwb(reinterpret_cast<double2*>(to), make_double2(acc[0], acc[1]));
      __stwb(reinterpret_cast<double2*>(to) + 1, make_double2(acc[2], acc[3]));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < live) to[e] = acc[e];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    join_runs(double* __restrict__ energy, const double* __restrict__ part, int64_t cols,
              int64_t runs) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < cols;
       j += stride) {
    double sum = part[j];
    for (int64_t run = 1; run < runs; ++run) sum = __dadd_rn(sum, part[run * cols + j]);
    energy[j] = sum;
  }
}

// One warp, whose lanes are those of the definition: n is the number of a matrix's channels.
__global__ void __launch_bounds__(kEnergyLanes)
    ordered_sum(double* __restrict__ sum, const double* __restrict__ x, int64_t n) {
  double acc = 0;
  for (int64_t j = threadIdx.x; j < n; j += kEnergyLanes) acc = __dadd_rn(acc, x[j]);
#pragma unroll
  for (int w = kEnergyLanes / 2; w >= 1; w /= 2)
    acc = __dadd_rn(acc, __shfl_down_sync(0xffffffffu, acc, w));
  if (threadIdx.x == 0) sum[0] = acc;
}

template <class T>
int launch(double* energy, const T* x, int64_t rows, int64_t cols, Channels channels,
           double* scratch, cudaStream_t stream) {
  const bool vectors =
      cols % 4 == 0 && aligned(x, 4 * sizeof(T)) && aligned(energy, 16) && aligned(scratch, 16);
  if (channels == Channels::rows) {
    row_energy<T><<<blocks_for(rows, kThreads / kRowThreads), kThreads, 0, stream>>>(
        energy, x, rows, cols, vectors);
    return launched();
  }
  const int64_t runs = energy_runs(rows);
  const dim3 grid(blocks_for(cols, 4 * kColumnThreads),
                  static_cast<unsigned>(runs < 65535 ? runs : 65535));
  column_energy<T>
      <<<grid, kColumnThreads, 0, stream>>>(runs == 1 ? energy : scratch, x, rows, cols, vectors);
  if (const int e = launched()) return e;
  if (runs == 1) return 0;
  join_runs<<<blocks_for(cols, kThreads), kThreads, 0, stream>>>(energy, scratch, cols, runs);
  return launched();
}

}  // namespace kernels

int64_t channel_energy_scratch(int64_t rows, int64_t cols, Channels channels) {
  const int64_t runs = channels == Channels::columns && rows > 0 ? energy_runs(rows) : 0;
  return runs > 1 && cols > 0 ? runs * cols : 0;
}

int channel_energy(double* energy, const EnergyMatrix& m, Channels channels, double* scratch,
                   void* cuda_stream) {
  constexpr int64_t kMostColumns = kMaxBlocks * 4 * kernels::kColumnThreads;
  if (m.rows < 0 || m.cols < 0 || (channels == Channels::columns && m.cols > kMostColumns))
    return static_cast<int>(cudaErrorInvalidValue);
  const int64_t count = channels == Channels::rows ? m.rows : m.cols;
  const cudaStream_t stream = as_stream(cuda_stream);
  if (count == 0) return 0;
  if (m.rows == 0 || m.cols == 0)
    return static_cast<int>(
        cudaMemsetAsync(energy, 0, static_cast<size_t>(count) * sizeof *energy, stream));
  return m.dtype == Dtype::f32 ? kernels::launch(energy, static_cast<const float*>(m.x), m.rows,
                                                 m.cols, channels, scratch, stream)
                               : kernels::launch(energy, static_cast<const uint16_t*>(m.x), m.rows,
                                                 m.cols, channels, scratch, stream);
}

int ordered_sum(double* sum, const double* x, int64_t n, void* cuda_stream) {
  if (n < 0) return static_cast<int>(cudaErrorInvalidValue);
  kernels::ordered_sum<<<1, kEnergyLanes, 0, as_stream(cuda_stream)>>>(sum, x, n);
  return launched();
}

}  // namespace lowtide::optim::cuda
