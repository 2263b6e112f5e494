// SPDX-License-Identifier: Apache-2.0
// Zeroth-order updates on CUDA: eight weights a thread stay in registers through all steps, so
// memory carries them once each way. Bound by Philox but for few Rademacher directions.
#include <cmath>

#include "spsa/directions.cuh"
#include "spsa/replay_cuda.h"
#include "spsa/replay_table.h"

namespace lowtide::spsa::cuda {
namespace kernels {

static_assert(kChunkElements == kChunk);

// Two blocks an SM: with fewer registers, 64 or 80, ptxas spills in the Gaussian ones.
template <random::Dist dist, FloatType type>
__global__ void __launch_bounds__(kThreads, 2)
    replay_chunks(const ReplayTensor t, int64_t chunks, const Step* __restrict__ steps,
                  int64_t count, const Direction* __restrict__ directions) {
  __shared__ uint32_t words[SharedWords<dist>::kWords == 0 ? 1 : 4 * kThreads];
  const uint32_t levels =
      dist == random::Dist::lut8 ? random::lut8_word(static_cast<int>(threadIdx.x) % 32) : 0u;
  const int64_t end = steps[count - 1].end;
  for (int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const ChunkSpan span = chunk_span(t.n, t.offset, c);
    const auto chunk = static_cast<uint64_t>(span.start) / kChunk;
    const int64_t base = span.start - t.offset;
    float w[kOwn];
    uint32_t live = 0;  // a bit an element: eight predicates do not fit beside the others
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = own_position(i);
      live |= static_cast<uint32_t>(at >= span.lo && at < span.hi) << i;
      w[i] = live >> i & 1u ? load_master(t.w, type, base + at) : 0.0f;
    }
    int64_t held = -SharedWords<dist>::kBatch;
    for (int64_t k = 0; k < count; ++k) {
      const Step step = steps[k];
      float acc[kOwn] = {};
      for (int64_t j = step.begin; j < step.end; ++j) {
        float z[kOwn];
        own_direction<dist>(directions, j, end, chunk, t.param, words, held, levels, z);
        const float scaled = directions[j].coeff * t.scale;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) acc[i] = fma_rn(scaled, z[i], acc[i]);
      }
      uint32_t r16[kOwn] = {};
      if (type != FloatType::f32) own_noise(step.round, chunk, t.param, r16);
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        w[i] =
            rounded_master(stepped(w[i], acc[i], step.decay, t.threshold, t.floor), type, r16[i]);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (live >> i & 1u) store_master(t.w, type, base + own_position(i), w[i]);
    }
    if (SharedWords<dist>::kWords != 0) __syncthreads();  // before the next chunk's words
  }
}

template <random::Dist dist>
int launch(const ReplayTensor& t, const Step* steps, int64_t count, const Direction* directions,
           cudaStream_t stream) {
  const int64_t chunks = (t.offset + t.n - 1) / kChunk - t.offset / kChunk + 1;
  const unsigned grid = blocks_for(chunks, 1);
  switch (t.type) {
    case FloatType::f32:
      replay_chunks<dist, FloatType::f32>
          <<<grid, kThreads, 0, stream>>>(t, chunks, steps, count, directions);
      break;
    case FloatType::bf16:
      replay_chunks<dist, FloatType::bf16>
          <<<grid, kThreads, 0, stream>>>(t, chunks, steps, count, directions);
      break;
    case FloatType::f16:
      replay_chunks<dist, FloatType::f16>
          <<<grid, kThreads, 0, stream>>>(t, chunks, steps, count, directions);
      break;
  }
  return launched();
}

}  // namespace kernels

int replay(const std::vector<ReplayTensor>& tensors, const Step* steps, int64_t count,
           const Direction* directions, random::Dist dist, void* cuda_stream) {
  for (const ReplayTensor& t : tensors)
    if (t.n < 0 || t.offset < 0 || !std::isfinite(t.scale) || !(t.threshold >= 0) ||
        !(t.floor < HUGE_VALF))
      return static_cast<int>(cudaErrorInvalidValue);
  if (count < 0) return static_cast<int>(cudaErrorInvalidValue);
  if (count == 0) return 0;
  for (const ReplayTensor& t : tensors) {
    if (t.n == 0) continue;
    const cudaStream_t on = as_stream(cuda_stream);
    int e = static_cast<int>(cudaErrorInvalidValue);
    switch (dist) {
      case random::Dist::rademacher:
        e = kernels::launch<random::Dist::rademacher>(t, steps, count, directions, on);
        break;
      case random::Dist::gaussian:
        e = kernels::launch<random::Dist::gaussian>(t, steps, count, directions, on);
        break;
      case random::Dist::ih4:
        e = kernels::launch<random::Dist::ih4>(t, steps, count, directions, on);
        break;
      case random::Dist::lut8:
        e = kernels::launch<random::Dist::lut8>(t, steps, count, directions, on);
        break;
    }
    if (e != 0) return e;
  }
  return 0;
}

}  // namespace lowtide::spsa::cuda
