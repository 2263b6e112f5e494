// SPDX-License-Identifier: Apache-2.0
// Perturbed weights on CUDA. z comes in registers from the generators of random/distributions.cuh;
// memory carries w once and each output once, in vectors of four neighbours where the generator
// holds four (Rademacher, lut8), else in full 64-byte rows of half a warp.
#include "base/vector4.cuh"
#include "quant/warp_group.cuh"
#include "random/distributions.cuh"
#include "spsa/perturb_cuda.h"
#include "spsa/perturb_scalar.h"

namespace lowtide::spsa::cuda {
namespace kernels {

struct Perturb {
  static constexpr int kBlocks = 4;
  void *plus, *minus;
  const void* w;
  FloatType out_type, w_type;
  float scale, threshold;

  __device__ __forceinline__ float moved(float x, float by, float z) const {
    return beyond(x, threshold) ? x : perturbed(x, by, z);
  }
  __device__ __forceinline__ void operator()(int64_t i, float z) const {
    const float x = element_at(w, w_type, i);
    put_element(plus, out_type, i, moved(x, scale, z));
    if (minus != nullptr) put_element(minus, out_type, i, moved(x, -scale, z));
  }
  __device__ __forceinline__ void store_four(void* out, int64_t i, const float x[4], float by,
                                             float4 z) const {
    const float v[4] = {moved(x[0], by, z.x), moved(x[1], by, z.y), moved(x[2], by, z.z),
                        moved(x[3], by, z.w)};
    if (out_type == FloatType::f32) {
      store4(static_cast<float*>(out) + i, 4, true, v);
      return;
    }
    uint16_t h[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      h[j] = out_type == FloatType::bf16 ? float_to_bf16(v[j]) : float_to_half(v[j]);
    store4(static_cast<uint16_t*>(out) + i, 4, true, h);
  }
  __device__ __forceinline__ void four(int64_t i, float4 z) const {
    float x[4];
    quant::load_any4(w, w_type, i, 4, x);
    store_four(plus, i, x, scale, z);
    if (minus != nullptr) store_four(minus, i, x, -scale, z);
  }
};

}  // namespace kernels

int perturb(const std::vector<Perturbation>& tensors, uint64_t seed, uint64_t step, uint32_t slot,
            random::Dist dist, void* cuda_stream) {
  using random::cuda::starts_vector;
  for (const auto& t : tensors)
    if (t.n < 0 || t.offset < 0 || !(t.threshold >= 0))
      return static_cast<int>(cudaErrorInvalidValue);
  for (const auto& t : tensors) {
    const kernels::Perturb put{t.out, t.minus, t.w, t.out_type, t.w_type, t.scale, t.threshold};
    const int64_t out = bytes_of(t.out_type);
    const bool aligned = starts_vector(t.w, bytes_of(t.w_type), t.offset) &&
                         starts_vector(t.out, out, t.offset) &&
                         (t.minus == nullptr || starts_vector(t.minus, out, t.offset));
    const random::Stream stream{seed, step, slot, t.param, random::kRoleZ};
    if (const int e =
            random::cuda::put_stream(put, t.n, t.offset, stream, dist, aligned, cuda_stream))
      return e;
  }
  return 0;
}

}  // namespace lowtide::spsa::cuda
