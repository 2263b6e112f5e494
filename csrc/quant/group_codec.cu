// SPDX-License-Identifier: Apache-2.0
// Group codec on CUDA. A warp takes a group in windows of 256 columns: extremes, then codes; a
// group of one window (the usual case) is read once. 4 + bits/8 bytes an element move either way
// (fp32).
#include "base/launch.cuh"
#include "quant/group_codec_cuda.h"
#include "quant/group_codec_scalar.h"
#include "quant/warp_group.cuh"
#include "random/warp_noise.cuh"

namespace lowtide::quant::cuda {
namespace kernels {

struct Job {
  const void* x;
  FloatType type;
  GroupMatrix out;
  Scheme scheme;
  bool stochastic;
  Range range;
  uint64_t offset;
  random::NoiseSource noise;
  int64_t groups;
  bool bf16_scale;
};

// Three blocks an SM: left alone, ptxas squeezes it into 64 registers and spills.
__global__ void __launch_bounds__(kThreads, 3)
    quantize_groups(const Job job, unsigned long long* nonfinite) {
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  uint32_t* const mine = words[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int bits = job.out.shape.bits;
  unsigned bad = 0;
  for (int64_t g = first_group(); g < job.groups; g += group_stride()) {
    const WarpGroup w(job.out.codes, job.out.shape, g);
    float v[2][4];
    auto load = [&](int64_t window) {  // non-finite elements count as 0
      unsigned found = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = window + 128 * h + 4 * lane;
        load_any4(job.x, job.type, w.first + i, live4(i, w.n), v[h]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (!is_finite(v[h][j])) v[h][j] = 0.0f, ++found;
      }
      return found;
    };
    float mn = bits_float(0x7f800000u), mx = -mn;
    for (int64_t window = 0; window < w.n; window += kWindow) {
      bad += load(window);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (window + 128 * h + 4 * lane + j < w.n)
            mn = fminf(mn, v[h][j]), mx = fmaxf(mx, v[h][j]);
    }
    const GroupParams p =
        group_params(warp_min(mn), warp_max(mx), bits, job.scheme, job.range, job.bf16_scale);
    if (lane == 0) {
      job.out.scale[g] = p.scale;
      if (job.out.zero != nullptr) job.out.zero[g] = static_cast<uint8_t>(p.zero);
    }
    for (int64_t window = 0; window < w.n; window += kWindow) {
      if (w.n > kWindow) load(window);
      const uint64_t e0 = job.offset + static_cast<uint64_t>(w.first + window);
      if (job.stochastic) {
        const int here = static_cast<int>(w.n - window < kWindow ? w.n - window : kWindow);
        random::warp_noise(mine, e0, here, job.noise, lane);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = window + 128 * h + 4 * lane;
        const int live = live4(i, w.n);
        uint32_t r16[4] = {}, word = 0;
        if (job.stochastic) random::noise4(mine, e0, 128 * h + 4 * lane, live, r16);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float steps = steps_of(v[h][j], p, job.range == Range::compat);
          const int q = job.stochastic ? round_stochastic(steps, r16[j]) : round_nearest(steps);
          const int code = clamp_i(q + p.zero, min_code(job.scheme), max_code(bits));
          if (j < live) word |= static_cast<uint32_t>(code) << (8 * j);
        }
        store_codes4(w, i, word);
      }
    }
  }
  bad = __reduce_add_sync(0xffffffffu, bad);
  if (lane == 0 && bad != 0) atomicAdd(nonfinite, static_cast<unsigned long long>(bad));
}

__global__ void __launch_bounds__(kThreads)
    dequantize_groups(const ConstGroupMatrix in, void* out, FloatType type, int64_t groups) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int64_t g = first_group(); g < groups; g += group_stride()) {
    const WarpGroup w(const_cast<uint8_t*>(in.codes), in.shape, g);
    const float scale = in.scale[g];
    const int zero = in.zero != nullptr ? in.zero[g] : symmetric_zero(in.shape.bits);
    for (int64_t i = 4 * lane; i < w.n; i += 128) {
      const int live = live4(i, w.n);
      const uint32_t word = load_codes4(w, i);
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v[j] = decode(static_cast<int>(word >> (8 * j) & 255u), zero, scale);
      store_any4(out, type, w.first + i, live, v);
    }
  }
}

template <FloatType kType>
__device__ __forceinline__ unsigned nonfinite_of(const void* x, int64_t n) {
  unsigned bad = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < n;
       i += stride) {
    float v[4];
    load_any4(x, kType, i, live4(i, n), v);
#pragma unroll
    for (int j = 0; j < 4; ++j) bad += is_finite(v[j]) ? 0u : 1u;
  }
  return bad;
}

__global__ void __launch_bounds__(kThreads)
    count_nonfinite(const void* x, FloatType type, int64_t n, unsigned long long* nonfinite) {
  unsigned bad = type == FloatType::f32    ? nonfinite_of<FloatType::f32>(x, n)
                 : type == FloatType::bf16 ? nonfinite_of<FloatType::bf16>(x, n)
                                           : nonfinite_of<FloatType::f16>(x, n);
  bad = __reduce_add_sync(0xffffffffu, bad);
  if (threadIdx.x % 32 == 0 && bad != 0) atomicAdd(nonfinite, static_cast<unsigned long long>(bad));
}

}  // namespace kernels

namespace {

bool valid(const GroupShape& s) {
  return s.rows >= 0 && s.cols >= 0 && (s.bits == 8 || s.bits == 4) && s.group >= 32 &&
         s.group % 32 == 0 && s.group <= (int64_t{1} << 30);
}

int clear(int64_t* counter, cudaStream_t stream) {
  return static_cast<int>(cudaMemsetAsync(counter, 0, sizeof *counter, stream));
}
unsigned long long* as_counter(int64_t* p) { return reinterpret_cast<unsigned long long*>(p); }

}  // namespace

int quantize_groups(const void* x, FloatType type, const GroupMatrix& out,
                    const QuantizeOptions& options, int64_t* nonfinite, void* cuda_stream) {
  const int64_t groups = valid(out.shape) ? out.shape.rows * groups_per_row(out.shape) : -1;
  if (groups < 0 || options.offset < 0 || options.range < Range::tight ||
      options.range > Range::compat ||
      (options.range == Range::compat && out.zero == nullptr && groups != 0))
    return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const int e = clear(nonfinite, stream)) return e;
  if (groups == 0) return 0;
  const random::Stream& s = options.stream;
  const kernels::Job job = {x,
                            type,
                            out,
                            out.zero == nullptr ? Scheme::symmetric : Scheme::asymmetric,
                            options.rounding == Rounding::stochastic,
                            options.range,
                            static_cast<uint64_t>(options.offset),
                            {random::derive_key(s.seed, s.step, s.slot), s.param, s.role},
                            groups,
                            options.bf16_scale};
  kernels::quantize_groups<<<blocks_for(groups, kThreads / 32), kThreads, 0, stream>>>(
      job, as_counter(nonfinite));
  return launched();
}

int count_nonfinite(const void* x, FloatType type, int64_t n, int64_t* nonfinite,
                    void* cuda_stream) {
  if (n < 0) return static_cast<int>(cudaErrorInvalidValue);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const int e = clear(nonfinite, stream)) return e;
  if (n == 0) return 0;
  kernels::count_nonfinite<<<blocks_for(n, 4 * kThreads), kThreads, 0, stream>>>(
      x, type, n, as_counter(nonfinite));
  return launched();
}

int dequantize_groups(const ConstGroupMatrix& in, void* out, FloatType type, void* cuda_stream) {
  if (!valid(in.shape)) return static_cast<int>(cudaErrorInvalidValue);
  const int64_t groups = in.shape.rows * groups_per_row(in.shape);
  if (groups == 0) return 0;
  kernels::
      dequantize_groups<<<blocks_for(groups, kThreads / 32), kThreads, 0, as_stream(cuda_stream)>>>(
          in, out, type, groups);
  return launched();
}

}  // namespace lowtide::quant::cuda
