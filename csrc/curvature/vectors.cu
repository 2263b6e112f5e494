// SPDX-License-Identifier: Apache-2.0
// Vector algebra on CUDA. Sums: a warp takes 4096 elements, a lane one neighbour each, in the order
// of the definition. axpby: a warp takes 256 elements, a lane two times four. Bound by memory.
#include "base/vector4.cuh"
#include "curvature/vectors_cuda.h"
#include "curvature/warp_sums.cuh"

namespace lowtide::curvature::cuda {
namespace kernels {

// f(i) for the elements of a block that fall to this lane.
template <class F>
__device__ __forceinline__ void for_lane(int64_t block, int64_t n, const F& f) {
  const int64_t first = block * kReduceBlock + (threadIdx.x & 31);
  const int64_t end = n < (block + 1) * kReduceBlock ? n : (block + 1) * kReduceBlock;
#pragma unroll 8
  for (int64_t i = first; i < end; i += 32) f(i);
}

__global__ void __launch_bounds__(kThreads)
    dot(const __grid_constant__ TensorBatch<Summed<DotPair>> batch) {
  for_warp_blocks(batch, [&](const Summed<DotPair>& in, int64_t block) {
    const DotPair& t = in.t;
    double sum = 0.0;
    for_lane(block, t.n, [&](int64_t i) {
      sum = __dadd_rn(
          sum, exact_product(load_element(t.x, t.x_dtype, i), load_element(t.y, t.y_dtype, i)));
    });
    sum = warp_fold(sum);
    if ((threadIdx.x & 31) == 0) in.part[block] = sum;
  });
}

template <bool kQ>
__global__ void __launch_bounds__(kThreads)
    fd_finish(Difference d, int64_t blocks, double* __restrict__ squares,
              double* __restrict__ products) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       b < blocks; b += stride) {
    double square = 0.0, product = 0.0;
    for_lane(b, d.n, [&](int64_t i) {
      const float v = (d.plus[i] - d.minus[i]) * d.scale;
      d.plus[i] = v;
      square = __dadd_rn(square, exact_product(v, v));
      if (kQ) product = __dadd_rn(product, exact_product(v, d.q[i]));
    });
    square = warp_fold(square);
    product = warp_fold(product);
    if ((threadIdx.x & 31) == 0) squares[b] = square, products[b] = product;
  }
}

__device__ __forceinline__ void load_any4(const void* x, Dtype dtype, int64_t i, int live,
                                          float v[4]) {
  if (dtype == Dtype::f32)
    load4(static_cast<const float*>(x) + i, live, aligned(x, 16), v);
  else
    load4(static_cast<const uint16_t*>(x) + i, live, aligned(x, 8), v);
}

__global__ void __launch_bounds__(kThreads)
    axpby(const __grid_constant__ TensorBatch<AxpbyPair> batch, float a, float b) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for_warp_blocks(batch, [&](const AxpbyPair& t, int64_t block) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t i = block * kListBlock + 128 * h + 4 * lane;
      const int live = live4(i, t.n);
      float x[4], y[4];
      load_any4(t.x, t.x_dtype, i, live, x);
      load_any4(t.y, t.y_dtype, i, live, y);
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] = axpby_at(a, y[j], b, x[j]);
      if (t.y_dtype == Dtype::f32) {
        store4(static_cast<float*>(t.y) + i, live, aligned(t.y, 16), y);
      } else {
        const uint16_t r[4] = {float_to_bf16(y[0]), float_to_bf16(y[1]), float_to_bf16(y[2]),
                               float_to_bf16(y[3])};
        store4(static_cast<uint16_t*>(t.y) + i, live, aligned(t.y, 8), r);
      }
    }
  });
}

}  // namespace kernels

int64_t dot_scratch(const std::vector<DotPair>& pairs) { return parts_of(pairs); }
int64_t fd_finish_scratch(int64_t n) { return 2 * sum_blocks(n); }

int dot(double* out, const std::vector<DotPair>& pairs, double* scratch, void* cuda_stream) {
  if (bad_sizes(pairs)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  return sum_list(out, pairs, scratch, stream,
                  [&](const TensorBatch<Summed<DotPair>>& batch, unsigned grid) {
                    kernels::dot<<<grid, kThreads, 0, stream>>>(batch);
                  });
}

int axpby(const std::vector<AxpbyPair>& pairs, float a, float b, void* cuda_stream) {
  if (bad_sizes(pairs)) return static_cast<int>(cudaErrorInvalidValue);
  return for_batches(pairs, [&](const TensorBatch<AxpbyPair>& batch, unsigned grid) {
    kernels::axpby<<<grid, kThreads, 0, as_stream(cuda_stream)>>>(batch, a, b);
  });
}

int fd_finish(double* out, const Difference& d, double* scratch, void* cuda_stream) {
  if (d.n < 0) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  const int64_t blocks = sum_blocks(d.n);
  double* products = scratch + blocks;
  if (blocks > 0) {
    const unsigned grid = blocks_for(blocks, kThreads / 32);
    if (d.q != nullptr)
      kernels::fd_finish<true><<<grid, kThreads, 0, stream>>>(d, blocks, scratch, products);
    else
      kernels::fd_finish<false><<<grid, kThreads, 0, stream>>>(d, blocks, scratch, products);
    if (const int e = launched()) return e;
  }
  return tree_sums_device({{out, scratch, blocks}, {out + 1, products, blocks}}, stream);
}

}  // namespace lowtide::curvature::cuda
