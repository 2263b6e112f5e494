// SPDX-License-Identifier: Apache-2.0
// Quantized weights stepped in place on CUDA. A warp takes a group in windows of 256 columns:
// extremes of the new values, then their codes; a group of one window (the usual case) is read
// once.
#include <cmath>

#include "base/launch.cuh"
#include "quant/requant_cuda.h"
#include "quant/requant_scalar.h"
#include "quant/warp_group.cuh"
#include "random/warp_noise.cuh"

namespace lowtide::quant::cuda {
namespace kernels {

struct RequantWork {
  GroupMatrix w;
  const float* delta;
  Scheme scheme;
  RequantScalars scalars;
  uint64_t offset;
  random::NoiseSource noise;
  int64_t groups;
};

// Two blocks an SM leave it the registers that it needs without spilling.
__global__ void __launch_bounds__(kThreads, 2)
    requant_add_sr(const RequantWork job, unsigned long long* skipped) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  uint32_t* const mine = words[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int bits = job.w.shape.bits, lo = min_code(job.scheme), hi = max_code(bits);
  unsigned long long bad = 0;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       g < job.groups; g += static_cast<int64_t>(gridDim.x) * (kThreads / 32)) {
    const WarpGroup w(job.w.codes, job.w.shape, g);
    const float scale = job.w.scale[g];
    const int zero = job.w.zero != nullptr ? job.w.zero[g] : symmetric_zero(bits);
    const bool vectors = aligned(job.delta + w.first, 16);
    uint32_t codes[2];
    float delta[2][4];
    auto load = [&](int64_t window) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = window + 128 * h + 4 * lane;
        codes[h] = load_codes4(w, i);
        load4(job.delta + w.first + i, live4(i, w.n), vectors, delta[h]);
      }
    };
    auto code_at = [&](int h, int j) { return static_cast<int>(codes[h] >> (8 * j) & 255u); };
    auto value = [&](int h, int j) {
      return requant_value(code_at(h, j) - zero, scale, delta[h][j], job.scalars);
    };

    float mn = 0, mx = 0;
    bool finite = true, moved = job.scalars.decay != 1.0f;
    for (int64_t window = 0; window < w.n; window += kWindow) {
      load(window);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (window + 128 * h + 4 * lane + j >= w.n) continue;
          const float x = value(h, j);
          finite = finite && is_finite(x);
          moved = moved || job.scalars.alpha * delta[h][j] != 0.0f;
          mn = x < mn ? x : mn;
          mx = mx < x ? x : mx;
        }
    }
    finite = __all_sync(0xffffffffu, finite);
    moved = __any_sync(0xffffffffu, moved);
    bad += finite ? 0 : 1;
    if (!finite || !moved) continue;
    mn = warp_min(mn), mx = warp_max(mx);

    const bool kept = fits_old_scale(mn, mx, scale, zero, bits, job.scheme);
    const GroupParams p = headroom_params(mn, mx, bits, job.scheme);
    const float inv = inverse_scale(scale);
    for (int64_t window = 0; window < w.n; window += kWindow) {
      if (w.n > kWindow) load(window);
      const uint64_t e0 = job.offset + static_cast<uint64_t>(w.first + window);
      const int here = static_cast<int>(w.n - window < kWindow ? w.n - window : kWindow);
      random::warp_noise(mine, e0, here, job.noise,
                         lane);  // also: all lanes have read the old codes and scale
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = window + 128 * h + 4 * lane;
        const int live = live4(i, w.n);
        uint32_t r16[4] = {}, word = 0;
        random::noise4(mine, e0, 128 * h + 4 * lane, live, r16);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          int code = code_at(h, j);
          if (j < live)
            code = kept ? requant_kept(code, zero, inv, delta[h][j], job.scalars, r16[j], lo, hi)
                        : clamp_i(round_stochastic(value(h, j) * p.inv, r16[j]) + p.zero, lo, hi);
          word |= static_cast<uint32_t>(code) << (8 * j);
        }
        store_codes4(w, i, word);
      }
    }
    if (!kept && lane == 0) {
      job.w.scale[g] = p.scale;
      if (job.w.zero != nullptr) job.w.zero[g] = static_cast<uint8_t>(p.zero);
    }
  }
  if (lane == 0 && bad != 0) atomicAdd(skipped, bad);
}

}  // namespace kernels

int requant_add_sr(const GroupMatrix& w, const float* delta, const RequantOptions& options,
                   int64_t* skipped, void* cuda_stream) {
  const GroupShape& shape = w.shape;
  const bool valid = shape.rows >= 0 && shape.cols >= 0 && (shape.bits == 8 || shape.bits == 4) &&
                     shape.group >= 32 && shape.group % 32 == 0 &&
                     shape.group <= (int64_t{1} << 30) && options.offset >= 0 &&
                     std::isfinite(options.alpha) && options.decay >= 0 && options.decay <= 1;
  if (!valid) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(skipped, 0, sizeof *skipped, stream))
    return static_cast<int>(e);
  const int64_t groups = shape.rows * groups_per_row(shape);
  if (groups == 0) return 0;
  const random::Stream& s = options.stream;
  const kernels::RequantWork job = {
      w,
      delta,
      w.zero == nullptr ? Scheme::symmetric : Scheme::asymmetric,
      {static_cast<float>(options.alpha), static_cast<float>(options.decay),
       static_cast<float>(options.decay - 1.0)},
      static_cast<uint64_t>(options.offset),
      {random::derive_key(s.seed, s.step, s.slot), s.param, s.role},
      groups};
  kernels::requant_add_sr<<<blocks_for(groups, kThreads / 32), kThreads, 0, stream>>>(
      job, reinterpret_cast<unsigned long long*>(skipped));
  return launched();
}

}  // namespace lowtide::quant::cuda
