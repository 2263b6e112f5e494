// SPDX-License-Identifier: Apache-2.0
// Fused AdamW over a list of tensors on CUDA. A warp takes a block of 256 elements from decoding to
// storing: its two largest magnitudes and the check for non-finite moments are one warp's business,
// so nothing passes through memory but what must (28 bytes an element in float32, 16.06 with 8-bit
// states). A lane holds two times four neighbours.
#include "optim/adamw_cuda.h"
#include "optim/list_launch.cuh"
#include "optim/weight_store.cuh"
#include "quant/dynamic_map.cuh"

namespace lowtide::optim::cuda {
namespace kernels {

using namespace quant;

static_assert(kAdamBlock == kListBlock && kAdamBlock == kDynamicBlock);

struct Lane {  // which elements a lane holds of a block of n
  int lane, n;
  __device__ __forceinline__ int at(int half) const { return 128 * half + 4 * lane; }
  __device__ __forceinline__ int live(int half) const { return live4(at(half), n); }
};

// States in float32.
struct FloatStates {
  __device__ __forceinline__ void load(const AdamTensor& t, int64_t block, const Lane& l,
                                       float m[2][4], float v[2][4]) const {
    const bool m_vectors = aligned(t.m, 16), v_vectors = aligned(t.v, 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      load4(t.m + block * kAdamBlock + l.at(h), l.live(h), m_vectors, m[h]);
      load4(t.v + block * kAdamBlock + l.at(h), l.live(h), v_vectors, v[h]);
    }
  }
  __device__ __forceinline__ void store(const AdamTensor& t, int64_t block, const Lane& l,
                                        const float m[2][4], const float v[2][4]) const {
    const bool m_vectors = aligned(t.m, 16), v_vectors = aligned(t.v, 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store4(t.m + block * kAdamBlock + l.at(h), l.live(h), m_vectors, m[h]);
      store4(t.v + block * kAdamBlock + l.at(h), l.live(h), v_vectors, v[h]);
    }
  }
};

// States in the 8-bit dynamic map.
struct CodedStates {
  const DynamicTable* table;

  __device__ __forceinline__ void load(const AdamTensor& t, int64_t block, const Lane& l,
                                       float m[2][4], float v[2][4]) const {
    const float m_absmax = t.m_absmax[block], v_absmax = t.v_absmax[block];
    const bool m_vectors = aligned(t.m_codes, 4), v_vectors = aligned(t.v_codes, 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t mc = load4(t.m_codes + block * kAdamBlock + l.at(h), l.live(h), m_vectors);
      const uint32_t vc = load4(t.v_codes + block * kAdamBlock + l.at(h), l.live(h), v_vectors);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        m[h][j] = dynamic_decode(*table, static_cast<int>(mc >> (8 * j) & 255u), true, m_absmax);
        v[h][j] = dynamic_decode(*table, static_cast<int>(vc >> (8 * j) & 255u), false, v_absmax);
      }
    }
  }
  __device__ __forceinline__ void store(const AdamTensor& t, int64_t block, const Lane& l,
                                        const float m[2][4], const float v[2][4]) const {
    float m_largest = 0.0f, v_largest = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j >= l.live(h)) continue;
        m_largest = abs_f(m[h][j]) > m_largest ? abs_f(m[h][j]) : m_largest;
        v_largest = abs_f(v[h][j]) > v_largest ? abs_f(v[h][j]) : v_largest;
      }
    const float m_absmax = dynamic_absmax(warp_max_magnitude(m_largest));
    const float v_absmax = dynamic_absmax(warp_max_magnitude(v_largest));
    const float m_inverse = dynamic_inverse(m_absmax), v_inverse = dynamic_inverse(v_absmax);
    __syncwarp();  // every lane has read the old ones
    if (l.lane == 0) t.m_absmax[block] = m_absmax, t.v_absmax[block] = v_absmax;
    const bool m_vectors = aligned(t.m_codes, 4), v_vectors = aligned(t.v_codes, 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t mc = 0, vc = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mc |= static_cast<uint32_t>(dynamic_encode(*table, m[h][j], true, m_inverse)) << (8 * j);
        vc |= static_cast<uint32_t>(dynamic_encode_positive(*table, v[h][j], v_inverse)) << (8 * j);
      }
      store4(t.m_codes + block * kAdamBlock + l.at(h), l.live(h), m_vectors, mc);
      store4(t.v_codes + block * kAdamBlock + l.at(h), l.live(h), v_vectors, vc);
    }
  }
};

__device__ __forceinline__ void load_gradient(const AdamTensor& t, int64_t at, int live,
                                              float g[4]) {
  if (t.g_dtype == Dtype::f32)
    load4(static_cast<const float*>(t.g) + at, live, aligned(t.g, 16), g);
  else
    load4(static_cast<const uint16_t*>(t.g) + at, live, aligned(t.g, 8), g);
}

// One block by one warp; false when it was skipped.
template <class States>
__device__ __forceinline__ bool adam_block(const AdamTensor& t, int64_t block, const AdamRule& rule,
                                           random::Key key, const States& states, uint32_t* words,
                                           int lane) {
  const int64_t at = block * kAdamBlock;
  const Lane l = {lane, static_cast<int>(t.n - at < kAdamBlock ? t.n - at : kAdamBlock)};
  const bool to_gradient = t.target == AdamTarget::direction;
  float m[2][4], v[2][4];
  states.load(t, block, l, m, v);
  bool sound = true;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float g[4];
    load_gradient(t, at + l.at(h), l.live(h), g);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      adam_moments(rule, g[j], &m[h][j], &v[h][j]);
      if (j < l.live(h)) sound = sound && adam_sound(m[h][j], v[h][j]);
    }
  }
  if (!__all_sync(0xffffffffu, sound)) {
    const float zeros[4] = {};
    if (to_gradient)
      for (int h = 0; h < 2; ++h)
        store4(static_cast<float*>(t.g) + at + l.at(h), l.live(h), aligned(t.g, 16), zeros);
    return false;
  }
  states.store(t, block, l, m, v);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      m[h][j] = adam_direction(rule, m[h][j], v[h][j]);  // from here on, directions
  if (to_gradient) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      store4(static_cast<float*>(t.g) + at + l.at(h), l.live(h), aligned(t.g, 16), m[h]);
    return true;
  }
  const uint64_t e0 = static_cast<uint64_t>(t.offset + at);
  const bool stochastic = t.weight_store == WeightStore::bf16_stochastic;
  if (stochastic) random::warp_noise(words, e0, l.n, {key, t.param, random::kRoleWeightSr}, lane);
  const bool p_vectors = weight_vectors(t.p, t.weight_store);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float p[4];
    uint32_t r16[4] = {};
    load_weight4(t.p, t.weight_store, at + l.at(h), l.live(h), p_vectors, p);
#pragma unroll
    for (int j = 0; j < 4; ++j) p[j] = adam_weight(rule, p[j], m[h][j]);
    if (stochastic) random::noise4(words, e0, l.at(h), l.live(h), r16);
    store_weight4(t.p, t.weight_store, at + l.at(h), l.live(h), p_vectors, p, r16);
  }
  return true;
}

// Three blocks an SM: left alone, ptxas aims at more and spills.
__global__ void __launch_bounds__(kThreads, 3)
    adamw_blocks(const __grid_constant__ TensorBatch<AdamTensor> batch, AdamRule rule,
                 random::Key key, unsigned long long* skipped) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  __shared__ DynamicTable table;
  copy_dynamic_table(&table);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  unsigned long long bad = 0;
  for_warp_blocks(batch, [&](const AdamTensor& t, int64_t block) {
    const bool done =
        t.m_codes != nullptr
            ? adam_block(t, block, rule, key, CodedStates{&table}, words[threadIdx.x / 32], lane)
            : adam_block(t, block, rule, key, FloatStates{}, words[threadIdx.x / 32], lane);
    bad += done ? 0 : 1;
  });
  if (lane == 0 && bad != 0) atomicAdd(skipped, bad);
}

}  // namespace kernels

namespace {

bool valid(const AdamTensor& t) {
  return t.n >= 0 && t.offset >= 0 && t.offset % kAdamBlock == 0 &&
         (t.m_codes != nullptr) == (t.v_codes != nullptr) &&
         (t.target == AdamTarget::weight || t.g_dtype == Dtype::f32);
}

}  // namespace

int adamw(const std::vector<AdamTensor>& tensors, const AdamRule& rule, uint64_t seed,
          uint64_t step, int64_t* skipped, void* cuda_stream) {
  for (const AdamTensor& t : tensors)
    if (!valid(t)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(skipped, 0, sizeof *skipped, stream))
    return static_cast<int>(e);
  const random::Key key = random::derive_key(seed, step, 0);
  return for_batches(tensors, [&](const TensorBatch<AdamTensor>& batch, unsigned grid) {
    kernels::adamw_blocks<<<grid, kThreads, 0, stream>>>(
        batch, rule, key, reinterpret_cast<unsigned long long*>(skipped));
  });
}

}  // namespace lowtide::optim::cuda
