// SPDX-License-Identifier: Apache-2.0
// The codec with fixed levels on CUDA. A warp takes a group in windows of 256 columns: the largest
// magnitude, then codes; a group of one window (the usual case) is read once. 4.5 bytes an element
// move either way (fp32), 5 with 8 bits. Tables lie in shared memory: lanes look at different
// entries.
#include "quant/dynamic_map.cuh"
#include "quant/group_map_cuda.h"
#include "quant/warp_group.cuh"
#include "random/warp_noise.cuh"

namespace lowtide::quant::cuda {
namespace kernels {

static __constant__ const LevelTables kLevelConstant = make_level_tables();

// The tables of a map of 16 levels, or of the 8-bit maps.
template <int bits>
struct MapTables {
  LevelTable levels;
  // All threads of a block, at its start.
  __device__ __forceinline__ void copy(LevelMap map) {
    constexpr int kWords = sizeof(LevelTable) / 4;
    const float* from = reinterpret_cast<const float*>(&kLevelConstant.of[static_cast<int>(map)]);
    if (threadIdx.x < kWords) reinterpret_cast<float*>(&levels)[threadIdx.x] = from[threadIdx.x];
    __syncthreads();
  }
  __device__ __forceinline__ int nearest(float y, bool) const { return map_nearest(levels, y); }
  __device__ __forceinline__ int stochastic(float y, bool, uint32_t r16) const {
    return map_stochastic(levels, y, r16);
  }
  __device__ __forceinline__ float value(int code, bool, float scale) const {
    return levels.level[code & 15] * scale;
  }
};

template <>
struct MapTables<8> {
  DynamicTable table;
  DynamicLines lines;
  __device__ __forceinline__ void copy(LevelMap) { copy_dynamic_tables(&table, &lines); }
  __device__ __forceinline__ int nearest(float y, bool is_signed) const {
    return dynamic_nearest(table, y, is_signed);
  }
  __device__ __forceinline__ int stochastic(float y, bool is_signed, uint32_t r16) const {
    return dynamic_stochastic(lines, y, is_signed, r16);
  }
  __device__ __forceinline__ float value(int code, bool is_signed, float scale) const {
    return dynamic_decode(table, code, is_signed, scale);
  }
};

struct MapJob {
  const void* x;
  FloatType type;
  LevelMap map;
  GroupMatrix out;
  bool stochastic;
  bool bf16_scale;
  uint64_t offset;
  random::NoiseSource noise;
  int64_t groups;
};

template <int bits>
__global__ void __launch_bounds__(kThreads, 3)
    quantize_map(const MapJob job, unsigned long long* nonfinite) {
  __shared__ MapTables<bits> tables;
  __shared__ __align__(16) uint32_t words[kThreads / 32][random::kNoiseWords];
  tables.copy(job.map);
  uint32_t* const mine = words[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const bool is_signed = map_is_signed(job.map);
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
    float largest = 0.0f;  // elements beyond the end are zeros
    for (int64_t window = 0; window < w.n; window += kWindow) {
      bad += load(window);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < 4; ++j) largest = fmaxf(largest, is_signed ? abs_f(v[h][j]) : v[h][j]);
    }
    const GroupParams p = map_params(warp_max(largest), job.bf16_scale);
    if (lane == 0) job.out.scale[g] = p.scale;
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
          const float y = v[h][j] * p.inv;
          const int code = job.stochastic ? tables.stochastic(y, is_signed, r16[j])
                                          : tables.nearest(y, is_signed);
          if (j < live) word |= static_cast<uint32_t>(code) << (8 * j);
        }
        store_codes4(w, i, word);
      }
    }
  }
  bad = __reduce_add_sync(0xffffffffu, bad);
  if (lane == 0 && bad != 0) atomicAdd(nonfinite, static_cast<unsigned long long>(bad));
}

template <int bits>
__global__ void __launch_bounds__(kThreads)
    dequantize_map(const ConstGroupMatrix in, LevelMap map, void* out, FloatType type,
                   int64_t groups) {
  __shared__ MapTables<bits> tables;
  tables.copy(map);
  const bool is_signed = map_is_signed(map);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int64_t g = first_group(); g < groups; g += group_stride()) {
    const WarpGroup w(const_cast<uint8_t*>(in.codes), in.shape, g);
    const float scale = in.scale[g];
    for (int64_t i = 4 * lane; i < w.n; i += 128) {
      const int live = live4(i, w.n);
      const uint32_t word = load_codes4(w, i);
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        v[j] = tables.value(static_cast<int>(word >> (8 * j) & 255u), is_signed, scale);
      store_any4(out, type, w.first + i, live, v);
    }
  }
}

}  // namespace kernels

namespace {

bool valid(const GroupShape& s, LevelMap map, const uint8_t* zero) {
  return s.rows >= 0 && s.cols >= 0 && is_level_map(map) && s.bits == map_bits(map) &&
         s.group >= 32 && s.group % 32 == 0 && s.group <= (int64_t{1} << 30) && zero == nullptr;
}

}  // namespace

int quantize_map(const void* x, FloatType type, LevelMap map, const GroupMatrix& out,
                 const MapOptions& options, int64_t* nonfinite, void* cuda_stream) {
  if (!valid(out.shape, map, out.zero) || options.offset < 0)
    return static_cast<int>(cudaErrorInvalidValue);
  const int64_t groups = out.shape.rows * groups_per_row(out.shape);
  const cudaStream_t stream = as_stream(cuda_stream);
  if (const cudaError_t e = cudaMemsetAsync(nonfinite, 0, sizeof *nonfinite, stream))
    return static_cast<int>(e);
  if (groups == 0) return 0;
  const random::Stream& s = options.stream;
  const kernels::MapJob job = {x,
                               type,
                               map,
                               out,
                               options.rounding == Rounding::stochastic,
                               options.bf16_scale,
                               static_cast<uint64_t>(options.offset),
                               {random::derive_key(s.seed, s.step, s.slot), s.param, s.role},
                               groups};
  const auto kernel = map_bits(map) == 4 ? kernels::quantize_map<4> : kernels::quantize_map<8>;
  kernel<<<blocks_for(groups, kThreads / 32), kThreads, 0, stream>>>(
      job, reinterpret_cast<unsigned long long*>(nonfinite));
  return launched();
}

int dequantize_map(const ConstGroupMatrix& in, LevelMap map, void* out, FloatType type,
                   void* cuda_stream) {
  if (!valid(in.shape, map, in.zero)) return static_cast<int>(cudaErrorInvalidValue);
  const int64_t groups = in.shape.rows * groups_per_row(in.shape);
  if (groups == 0) return 0;
  const auto kernel = map_bits(map) == 4 ? kernels::dequantize_map<4> : kernels::dequantize_map<8>;
  kernel<<<blocks_for(groups, kThreads / 32), kThreads, 0, as_stream(cuda_stream)>>>(in, map, out,
                                                                                     type, groups);
  return launched();
}

}  // namespace lowtide::quant::cuda
