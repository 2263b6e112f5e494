// SPDX-License-Identifier: Apache-2.0
// Fused optimizer steps over a list of tensors on CUDA. A warp takes a block of 256 elements from
// decoding to storing: its largest magnitudes and the check for non-finite moments are one warp's
// business, so nothing passes through memory but what must (fused_step.h). One kernel a state
// store, and another for rules with three moments, which need more registers; the rule is a uniform
// branch.
#include "base/list_launch.cuh"
#include "optim/fused_step_cuda.h"
#include "optim/states.cuh"
#include "optim/weight_store.cuh"

namespace lowtide::optim::cuda {
namespace kernels {

static_assert(kStepBlock == kListBlock && kStepBlock == quant::kDynamicBlock);

__device__ __forceinline__ void load_gradient(const StepTensor& t, int64_t at, int live,
                                              float g[4]) {
  if (t.g_dtype == Dtype::f32)
    load4(static_cast<const float*>(t.g) + at, live, aligned(t.g, 16), g);
  else
    load4(static_cast<const uint16_t*>(t.g) + at, live, aligned(t.g, 8), g);
}

// One block by one warp; false when it was skipped.
template <class States, bool third>
__device__ __forceinline__ bool step_block(const StepTensor& t, int64_t block, const StepRule& rule,
                                           random::Key key, const States& states, uint32_t* words,
                                           int lane) {
  const int64_t at = block * kStepBlock;
  const Lane l = {lane, static_cast<int>(t.n - at < kStepBlock ? t.n - at : kStepBlock)};
  const bool to_gradient = t.target == StepTarget::direction;
  const int moments = third ? 3 : moment_count(rule.kind) > 1 ? 2 : moment_count(rule.kind);
  float m[2][4] = {}, v[2][4] = {}, w[2][4] = {}, d[2][4];
  states.load(t, block, l, moments, m, v, w);
  bool all_sound = true;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float g[4];
    load_gradient(t, at + l.at(h), l.live(h), g);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      d[h][j] = advance(rule, g[j], &m[h][j], &v[h][j], &w[h][j]);
      if (j < l.live(h)) all_sound = all_sound && sound(rule, m[h][j], v[h][j], d[h][j]);
    }
  }
  if (!__all_sync(0xffffffffu, all_sound)) {
    const float zeros[4] = {};
    if (to_gradient)
      for (int h = 0; h < 2; ++h)
        store4(static_cast<float*>(t.g) + at + l.at(h), l.live(h), aligned(t.g, 16), zeros);
    return false;
  }
  states.store(t, block, l, moments, m, v, w);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 4; ++j) d[h][j] = direction(rule, m[h][j], d[h][j]);
  if (to_gradient) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      store4(static_cast<float*>(t.g) + at + l.at(h), l.live(h), aligned(t.g, 16), d[h]);
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
    for (int j = 0; j < 4; ++j) p[j] = moved_weight(rule, p[j], d[h][j]);
    if (stochastic) random::noise4(words, e0, l.at(h), l.live(h), r16);
    store_weight4(t.p, t.weight_store, at + l.at(h), l.live(h), p_vectors, p, r16);
  }
  return true;
}

// Three blocks an SM: left alone, ptxas aims at more and spills.
template <class States, bool third>
__global__ void __launch_bounds__(kThreads, 3)
    fused_step(const __grid_constant__ TensorBatch<StepTensor> batch, StepRule rule,
               random::Key key, unsigned long long* skipped) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  __shared__ typename States::Shared shared;
  States::prepare(&shared);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  unsigned long long bad = 0;
  for_warp_blocks(batch, [&](const StepTensor& t, int64_t block) {
    bad += step_block<States, third>(t, block, rule, key, States(&shared), words[threadIdx.x / 32],
                                     lane)
               ? 0
               : 1;
  });
  if (lane == 0 && bad != 0) atomicAdd(skipped, bad);
}

}  // namespace kernels

namespace {

bool valid(const StepTensor& t) {
  return t.n >= 0 && t.offset >= 0 && t.offset % kStepBlock == 0 &&
         (t.target == StepTarget::weight || t.g_dtype == Dtype::f32);
}

template <class States>
int launch(const std::vector<StepTensor>& tensors, StateKind kind, const StepRule& rule,
           random::Key key, unsigned long long* skipped, cudaStream_t stream) {
  std::vector<StepTensor> chosen;
  for (const StepTensor& t : tensors)
    if (t.states == kind) chosen.push_back(t);
  return for_batches(chosen, [&](const TensorBatch<StepTensor>& batch, unsigned grid) {
    if (moment_count(rule.kind) > 2)
      kernels::fused_step<States, true><<<grid, kThreads, 0, stream>>>(batch, rule, key, skipped);
    else
      kernels::fused_step<States, false><<<grid, kThreads, 0, stream>>>(batch, rule, key, skipped);
  });
}

}  // namespace

int fused_step(const std::vector<StepTensor>& tensors, const StepRule& rule, uint64_t seed,
               uint64_t step, int64_t* skipped, void* cuda_stream) {
  for (const StepTensor& t : tensors)
    if (!valid(t)) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(skipped, 0, sizeof *skipped, stream))
    return static_cast<int>(e);
  const random::Key key = random::derive_key(seed, step, 0);
  auto* count = reinterpret_cast<unsigned long long*>(skipped);
  if (const int e = launch<FloatStates>(tensors, StateKind::f32, rule, key, count, stream))
    return e;
  if (const int e = launch<Dynamic8States>(tensors, StateKind::dynamic8, rule, key, count, stream))
    return e;
  return launch<Dynamic4States>(tensors, StateKind::dynamic4, rule, key, count, stream);
}

}  // namespace lowtide::optim::cuda
