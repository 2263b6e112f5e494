// SPDX-License-Identifier: Apache-2.0
// Kernels with one seeded bug each, and two correct ones: the net must catch the first and stay
// silent on the others.
#include "seeded/bugs.h"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

}  // namespace

namespace seeded {

__global__ void missing_sync(const float* x, float* y) {
  __shared__ float s[kThreads];
  s[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  y[blockIdx.x * kThreads + threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
// Right by luck when threads run in ascending order.
__global__ void missing_sync_one_order(const float* x, float* y) {
  __shared__ float s[kThreads];
  s[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  y[blockIdx.x * kThreads + threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0.f;
}
// The second value overwrites the first before everybody has read it.
__global__ void missing_second_sync(const float* x, float* y) {
  __shared__ float s[kThreads];
  float sum = 0;
  for (int k = 0; k < 2; ++k) {
    s[threadIdx.x] = x[threadIdx.x] + static_cast<float>(k);
    __syncthreads();
    sum += s[kThreads - 1 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
__global__ void out_of_bounds(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= n) y[i] = x[i];
}
__global__ void vector_past_the_end(const float* x, float* y, int n) {
  const int i = static_cast<int>(threadIdx.x) * 4;
  if (i < n)
    reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}
__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 100) __syncthreads();
  y[threadIdx.x] = 1.f;
  if (threadIdx.x < 50) __syncthreads();
}
__global__ void barrier_after_exit(float* y) {
  if (threadIdx.x >= 200) return;
  y[threadIdx.x] = 1.f;
  __syncthreads();
  y[threadIdx.x] += y[(threadIdx.x + 1) % 200];
}
__global__ void bad_mask(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}
__global__ void caller_not_in_mask(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.f, 1);
}
__global__ void shuffle_from_outside_the_mask(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.f, 20);
}
__global__ void early_return_before_ballot(const float* x, float* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  y[i] = static_cast<float>(__popc(__ballot_sync(0xffffffffu, x[i] > 0)));
}
__global__ void misaligned(const float* x, float* y) {
  reinterpret_cast<float4*>(y)[threadIdx.x] =
      *reinterpret_cast<const float4*>(x + 1 + 4 * threadIdx.x);
}
__global__ void uninitialised_shared(float* y) {
  __shared__ float s[32];
  if (threadIdx.x & 1) s[threadIdx.x] = 1.f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void shared_overrun(float* y) {
  __shared__ float s[32];
  s[threadIdx.x + 1] = 1.f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
// Into a neighbouring variable of the same block's shared memory.
__global__ void shared_overrun_into_neighbour(float* y) {
  __shared__ float s[32];
  __shared__ float t[32];
  s[threadIdx.x] = 1.f;
  t[threadIdx.x] = 2.f;
  __syncthreads();
  s[threadIdx.x + (threadIdx.x == 31)] = 3.f;
  t[(threadIdx.x + 32 - 1) % 32] += 1.f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x] + t[threadIdx.x];
}
__global__ void warp_exchange_without_sync(float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}
// The same inside a warp, between its second store and the first read.
__global__ void warp_exchange_without_second_sync(float* y) {
  __shared__ float s[32];
  float sum = 0;
  for (int k = 0; k < 2; ++k) {
    s[threadIdx.x] = static_cast<float>(threadIdx.x) + static_cast<float>(k);
    __syncwarp();
    sum += s[31 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
// All lanes store one value: harmless in every order of this machine, still a race.
__global__ void lane_guard_dropped(const float* x, float* y) {
  __shared__ float s[8];
  s[threadIdx.x / 32] = x[threadIdx.x / 32];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x / 32];
}
__global__ void blocks_exchange(float* y) {
  if (threadIdx.x == 0) y[blockIdx.x] = 1.f;
  __syncthreads();
  if (threadIdx.x == 0) y[512 + blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x];
}
__global__ void not_atomic(unsigned* count) { *count = *count + 1u; }
__global__ void stale_pointer(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void trap_reached(float* y) {
  y[threadIdx.x] = 1.f;
  if (threadIdx.x == 3) asm volatile("trap;");
}

__global__ void correct_warp_exchange(float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void __launch_bounds__(kThreads) correct_reduction(const float* x, float* y) {
  __shared__ float s[kThreads / 32];
  float v = x[blockIdx.x * kThreads + threadIdx.x];
  for (int w = 16; w >= 1; w /= 2) v = v + __shfl_xor_sync(0xffffffffu, v, w);
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / 32; ++i) v = v + s[i];
    y[blockIdx.x] = v;
  }
}
__global__ void needs_dynamic_shared(float* y, int n) {
  extern __shared__ float d[];
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 32) d[i] = static_cast<float>(i);
  __syncthreads();
  y[threadIdx.x] = d[n - 1 - threadIdx.x];
}

void Launch(Bug bug, const float* x, float* y, int n) {
  unsigned* count = reinterpret_cast<unsigned*>(y);
  switch (bug) {
    case Bug::missing_sync:
      missing_sync<<<4, kThreads>>>(x, y);
      break;
    case Bug::missing_sync_one_order:
      missing_sync_one_order<<<4, kThreads>>>(x, y);
      break;
    case Bug::missing_second_sync:
      missing_second_sync<<<1, kThreads>>>(x, y);
      break;
    case Bug::out_of_bounds:
      out_of_bounds<<<5, kThreads>>>(x, y, n);
      break;
    case Bug::vector_past_the_end:
      vector_past_the_end<<<1, kThreads>>>(x, y, n);
      break;
    case Bug::divergent_barrier:
      divergent_barrier<<<1, kThreads>>>(y);
      break;
    case Bug::barrier_after_exit:
      barrier_after_exit<<<1, kThreads>>>(y);
      break;
    case Bug::bad_mask:
      bad_mask<<<1, 32>>>(y);
      break;
    case Bug::caller_not_in_mask:
      caller_not_in_mask<<<1, 32>>>(y);
      break;
    case Bug::shuffle_from_outside_the_mask:
      shuffle_from_outside_the_mask<<<1, 32>>>(y);
      break;
    case Bug::early_return_before_ballot:
      early_return_before_ballot<<<1, 32>>>(x, y, 20);
      break;
    case Bug::misaligned:
      misaligned<<<1, 32>>>(x, y);
      break;
    case Bug::uninitialised_shared:
      uninitialised_shared<<<1, 32>>>(y);
      break;
    case Bug::shared_overrun:
      shared_overrun<<<1, 32>>>(y);
      break;
    case Bug::shared_overrun_into_neighbour:
      shared_overrun_into_neighbour<<<1, 32>>>(y);
      break;
    case Bug::warp_exchange_without_sync:
      warp_exchange_without_sync<<<1, 32>>>(y);
      break;
    case Bug::warp_exchange_without_second_sync:
      warp_exchange_without_second_sync<<<1, 32>>>(y);
      break;
    case Bug::lane_guard_dropped:
      lane_guard_dropped<<<1, kThreads>>>(x, y);
      break;
    case Bug::blocks_exchange:
      blocks_exchange<<<4, 32>>>(y);
      break;
    case Bug::not_atomic:
      not_atomic<<<2, 32>>>(count);
      break;
    case Bug::stale_pointer:
      stale_pointer<<<1, 32>>>(x, y);
      break;
    case Bug::trap_reached:
      trap_reached<<<1, 32>>>(y);
      break;
    case Bug::correct_warp_exchange:
      correct_warp_exchange<<<1, 32>>>(y);
      break;
    case Bug::correct_reduction:
      correct_reduction<<<4, kThreads>>>(x, y);
      break;
  }
}

int LaunchTooManyThreads(const float* x, float* y) {
  correct_reduction<<<4, 2 * kThreads>>>(x, y);
  return static_cast<int>(cudaGetLastError());
}
int LaunchWithDynamicShared(float* y, int n, size_t bytes, bool opt_in) {
  if (opt_in) {
    cudaFuncSetAttribute(needs_dynamic_shared, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
  }
  needs_dynamic_shared<<<1, 32, bytes>>>(y, n);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace seeded
