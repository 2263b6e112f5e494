// SPDX-License-Identifier: Apache-2.0
// Zeroth-order updates of codes on CUDA. A thread takes a byte: a code of INT8, the two of INT4
// that lie 16 columns apart. Rows begin anywhere in the stream, so each element draws its words for
// itself: a Philox block where others use a quarter of one. Bound by that; memory is a byte.
#include <cmath>

#include "base/launch.cuh"
#include "quant/requant_scalar.h"
#include "spsa/replay_codes_cuda.h"
#include "spsa/word_block.cuh"

namespace lowtide::spsa::cuda {
namespace kernels {

struct Codes {
  CodesTensor t;
  const Step* steps;
  int64_t count;
  const Direction* directions;
};

// random::sample_at
template <random::Dist dist>
__device__ __forceinline__ float sample(uint64_t e, random::Key key, uint32_t param) {
  using random::Dist;
  constexpr int kShift = dist == Dist::rademacher ? 5 : dist == Dist::lut8 ? 2 : 0;
  const Block block(e >> kShift, key, param, random::kRoleZ);
  if constexpr (dist == Dist::gaussian) {  // its pair is in the same block
    float z0, z1;
    random::gaussian_pair(block.row < 2 ? block.x[0] : block.x[2],
                          block.row < 2 ? block.x[1] : block.x[3], &z0, &z1);
    return block.row % 2 == 0 ? z0 : z1;
  } else if constexpr (dist == Dist::ih4) {
    return random::ih4_value(block.word());
  } else if constexpr (dist == Dist::lut8) {
    const uint32_t b = block.word() >> (8 * (e & 3)) & 255u;
    return random::lut8_value(b, random::lut8_word(random::lut8_index(b) >> 2));
  } else {
    return block.word() >> (e & 31) & 1u ? -1.0f : 1.0f;
  }
}

template <random::Dist dist>
__device__ __forceinline__ int replay_code(int code, int64_t row, int64_t col, const Codes& c) {
  const CodesTensor& t = c.t;
  const quant::GroupShape& s = t.w.shape;
  const int64_t group = row * quant::groups_per_row(s) + col / s.group;
  const int zero = t.w.zero != nullptr ? t.w.zero[group] : quant::symmetric_zero(s.bits);
  const int lo = t.w.zero != nullptr ? 0 : 1, hi = quant::max_code(s.bits);
  const float inv = quant::inverse_scale(t.w.scale[group]);
  const auto e = static_cast<uint64_t>(t.offset + row * s.cols + col);
#pragma unroll 1
  for (int64_t k = 0; k < c.count; ++k) {
    const Step step = c.steps[k];
    float acc = 0.0f;
#pragma unroll 1
    for (int64_t j = step.begin; j < step.end; ++j) {
      const Direction d = c.directions[j];
      acc = fma_rn(d.coeff * t.scale, sample<dist>(e, d.key, t.param), acc);
    }
    const uint32_t word = Block(e, step.round, t.param, random::kRoleWeightSr).word();
    const float steps = code_steps(code - zero, step.decay - 1.0f, acc, inv);
    code = quant::clamp_i(code + round_code(steps, word), lo, hi);
  }
  return code;
}

template <random::Dist dist>
__global__ void __launch_bounds__(kThreads, 3) replay_codes(const Codes c) {
  const quant::GroupShape& s = c.t.w.shape;
  const int64_t bytes = quant::row_bytes(s), total = s.rows * bytes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total;
       i += stride) {
    const int64_t row = i / bytes, at = i - row * bytes;
    uint8_t* const byte = c.t.w.codes + i;
    const int old = *byte;
    if (s.bits == 8) {
      *byte = static_cast<uint8_t>(replay_code<dist>(old, row, at, c));
      continue;
    }
    const int64_t col = at / 16 * 32 + at % 16;
    int fresh = replay_code<dist>(old & 15, row, col, c);
    fresh |= col + 16 < s.cols ? replay_code<dist>(old >> 4, row, col + 16, c) << 4 : old & 0xf0;
    *byte = static_cast<uint8_t>(fresh);
  }
}

}  // namespace kernels

int replay_codes(const std::vector<CodesTensor>& tensors, const Step* steps, int64_t count,
                 const Direction* directions, random::Dist dist, void* cuda_stream) {
  const auto id = static_cast<int>(dist);
  bool valid = count >= 0 && id >= 0 && id < random::kDists;
  for (const CodesTensor& t : tensors) {
    const quant::GroupShape& s = t.w.shape;
    valid = valid && s.rows >= 0 && s.cols >= 0 && (s.bits == 8 || s.bits == 4) && s.group >= 32 &&
            s.group % 32 == 0 && t.offset >= 0 && std::isfinite(t.scale);
  }
  if (!valid) return static_cast<int>(cudaErrorInvalidValue);
  if (count == 0) return 0;
  using random::Dist;
  for (const CodesTensor& t : tensors) {
    const int64_t bytes = t.w.shape.rows * quant::row_bytes(t.w.shape);
    if (bytes == 0) continue;
    const kernels::Codes c = {t, steps, count, directions};
    const auto go = [&](auto kernel) {
      kernel<<<blocks_for(bytes, kThreads), kThreads, 0, as_stream(cuda_stream)>>>(c);
    };
    switch (dist) {
      case Dist::rademacher:
        go(kernels::replay_codes<Dist::rademacher>);
        break;
      case Dist::gaussian:
        go(kernels::replay_codes<Dist::gaussian>);
        break;
      case Dist::ih4:
        go(kernels::replay_codes<Dist::ih4>);
        break;
      case Dist::lut8:
        go(kernels::replay_codes<Dist::lut8>);
        break;
    }
    if (const int e = launched()) return e;
  }
  return 0;
}

}  // namespace lowtide::spsa::cuda
