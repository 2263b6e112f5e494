// SPDX-License-Identifier: Apache-2.0
// The order-free digest on CUDA: 16 bytes a thread and access, one integer atomic a warp.
#include "base/launch.cuh"
#include "spsa/digest_cuda.h"

namespace lowtide::spsa::cuda {
namespace kernels {

template <int kWidth>
__device__ __forceinline__ uint64_t word_sum(uint32_t word, uint64_t index) {
  uint64_t sum = 0;
#pragma unroll
  for (int k = 0; k < 4 / kWidth; ++k)
    sum += digest_term(
        kWidth == 4 ? word : word >> (8 * kWidth * k) & ((1u << (8 * kWidth % 32)) - 1u),
        index + static_cast<uint64_t>(k));
  return sum;
}

// head: elements before the first 16-byte boundary; they and the tail are taken one by one.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    digest_sum(const uint8_t* __restrict__ w, int64_t n, int64_t head, uint64_t first,
               unsigned long long* out) {
  constexpr int kEach = 16 / kWidth;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t vectors = (n - head) / kEach;
  uint64_t sum = 0;
  for (int64_t v = t; v < vectors; v += stride) {
    const int64_t i = head + v * kEach;
    const uint4 x = *reinterpret_cast<const uint4*>(w + i * kWidth);
    const uint64_t at = first + static_cast<uint64_t>(i);
    sum += word_sum<kWidth>(x.x, at) + word_sum<kWidth>(x.y, at + kEach / 4) +
           word_sum<kWidth>(x.z, at + kEach / 2) + word_sum<kWidth>(x.w, at + 3 * (kEach / 4));
  }
  const int64_t tail = head + vectors * kEach;
  for (int64_t s = t; s < head + (n - tail); s += stride) {
    const int64_t i = s < head ? s : tail + (s - head);
    uint64_t bits = 0;
#pragma unroll
    for (int b = 0; b < kWidth; ++b) bits |= static_cast<uint64_t>(w[i * kWidth + b]) << (8 * b);
    sum += digest_term(bits, first + static_cast<uint64_t>(i));
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (threadIdx.x % 32 == 0 && sum != 0) atomicAdd(out, static_cast<unsigned long long>(sum));
}

template <int kWidth>
int launch(uint64_t* out, const void* w, int64_t n, uint64_t first, cudaStream_t stream) {
  const auto address = reinterpret_cast<uint64_t>(w);
  const auto before = static_cast<int64_t>((16 - address % 16) % 16 / kWidth);
  const int64_t head = before < n ? before : n;
  digest_sum<kWidth><<<blocks_for(n, 16 * kThreads), kThreads, 0, stream>>>(
      static_cast<const uint8_t*>(w), n, head, first, reinterpret_cast<unsigned long long*>(out));
  return launched();
}

}  // namespace kernels

int digest(uint64_t* out, const void* w, int width, int64_t n, int64_t offset, void* cuda_stream) {
  if (n < 0 || offset < 0 || (width != 1 && width != 2 && width != 4))
    return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(out, 0, sizeof *out, stream))
    return static_cast<int>(e);
  if (n == 0) return 0;
  const auto first = static_cast<uint64_t>(offset);
  return width == 4   ? kernels::launch<4>(out, w, n, first, stream)
         : width == 2 ? kernels::launch<2>(out, w, n, first, stream)
                      : kernels::launch<1>(out, w, n, first, stream);
}

}  // namespace lowtide::spsa::cuda
