// SPDX-License-Identifier: Apache-2.0
// The same bits as gemv_ref.cc. Compiled once per ISA with LT_ISA naming the table.
//
// A few rows at a time share the loads of x and hide the latency of their chains. Limits (AVX-512):
// INT8 takes three operations for 16 weights (shuffle below an exponent, subtract, multiply-add),
// INT4 and NF4 six for 32 (a permute decodes a nibble without masking it): 1.5 cycles for 16 on two
// ports, that is 0.03 ns a weight, about what caches deliver and less than memory takes for INT8.
// From the caches they come within a tenth of it, so what a group and a prefetch cost counts: a
// zero point picks the table of its group with one load, each cache line of the rows to come is
// asked for once, and pointers run on from group to group.
#include "base/lookup_simd.h"
#include "quant/gemv_scalar.h"
#include "quant/group_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

constexpr int kParts = kGemvLanes / kLanes;  // vectors that hold the lanes of a row
#if defined(__AVX512F__)
constexpr int kRows = 4;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kRows = 2;
#else
constexpr int kRows = 1;
#endif

#if defined(__AVX512F__)
// What codes 0 to 15 stand for, code - zero, lies from [255 - zero] on.
struct Steps {
  float at[255 + 16];
};
constexpr Steps make_steps() {
  Steps s{};
  for (int i = 0; i < 255 + 16; ++i) s.at[i] = static_cast<float>(i - 255);
  return s;
}
alignas(64) constexpr Steps kSteps = make_steps();

// The floats 2^23 + byte of 16 bytes: one shuffle puts them below an exponent.
constexpr int32_t kTwo23 = 0x4b000000;
LT_SIMD vi32 two23_plus(const uint8_t* p) {
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
  return (vi32)_mm512_mask_shuffle_epi8((__m512i)splat_i(kTwo23), 0x1111111111111111u, bytes,
                                        (__m512i)as_i(iota()));
}
#endif

// Decodes a block of 32 codes of one group.
template <int kBits, Coding kCoding>
struct Values {
#if defined(__AVX512F__)
  vf32 table;  // of a nibble
  vf32 zero;   // 2^23 + zero
  inline __attribute__((always_inline)) Values(int z, const float* levels) {
    if constexpr (kBits == 8)
      zero = (vf32)splat_i(kTwo23 + z);
    else
      table = load<vf32>(kCoding == Coding::nf4 ? levels : kSteps.at + 255 - z);
  }
  inline __attribute__((always_inline)) void block(const uint8_t* p, vf32 w[kVecs]) const {
    if constexpr (kBits == 8) {
      w[0] = (vf32)two23_plus(p) - zero;
      w[1] = (vf32)two23_plus(p + kLanes) - zero;
    } else {  // a permute looks at the low four bits only
      const vi32 both = load_bytes(p);
      w[0] = (vf32)_mm512_permutexvar_ps((__m512i)both, (__m512)table);
      w[1] = (vf32)_mm512_permutexvar_ps((__m512i)(both >> 4), (__m512)table);
    }
  }
#else
  vi32 zero;
  Lookup16 levels;
  inline __attribute__((always_inline)) Values(int z, const float* t)
      : zero(splat_i(z)), levels(t) {}
  inline __attribute__((always_inline)) void block(const uint8_t* p, vf32 w[kVecs]) const {
    vi32 q[kVecs];
    load_codes<kBits>(p, q);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      if constexpr (kCoding == Coding::nf4)
        w[v] = levels.at(q[v]);
      else
        w[v] = to_float(q[v] - zero);
    }
  }
#endif
};

// One group of R rows: `blocks` whole blocks from p and x on, which move behind them, then the
// codes of `rest` columns that a row ends with. Scales and zero points of rows lie `groups` apart.
template <int kBits, Coding kCoding, bool kZeros, int R>
LT_SIMD void add_group(const uint8_t*& p, uintptr_t& next, int64_t stride, const float*& x,
                       int64_t blocks, int64_t rest, const uint8_t* zero, const float* scale,
                       int64_t groups, const float* levels, vf32 total[R][kParts]) {
  constexpr int kBytes = kBlock * kBits / 8;
  constexpr int kLine = 64 / kBytes;  // blocks in a cache line
  auto values = [&](int r) __attribute__((always_inline)) {
    const int64_t at = r < R ? r * groups : 0;
    return Values<kBits, kCoding>(kZeros ? zero[at] : symmetric_zero(kBits), levels);
  };
  const auto v0 = values(0), v1 = values(1), v2 = values(2), v3 = values(3);
  vf32 lane[R][kParts] = {};
  auto add = [&](int r, const auto& v, const uint8_t* codes, const float* xs)
      __attribute__((always_inline)) {
    vf32 w[kVecs];
    v.block(codes, w);
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i)
      lane[r][i % kParts] = fma_rn(load<vf32>(xs + i * kLanes), w[i], lane[r][i % kParts]);
  };
  auto rows = [&](const uint8_t* codes, int64_t step, const float* xs)
      __attribute__((always_inline)) {
    add(0, v0, codes, xs);
    if constexpr (R > 1) add(1, v1, codes + step, xs);
    if constexpr (R > 2) add(2, v2, codes + 2 * step, xs);
    if constexpr (R > 3) add(3, v3, codes + 3 * step, xs);
  };
  // Lines of the next R rows are asked for while these are worked on, each once where it can be.
  auto ask = [&](int from, int to) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = from; r < to; ++r)
      __builtin_prefetch((const void*)(next + (uintptr_t)(r * stride)));
  };
  for (; blocks >= kLine; blocks -= kLine, p += 64, next += 64, x += kLine * kBlock) {
#pragma GCC unroll 4
    for (int i = 0; i < kLine; ++i) {
      if constexpr (R > 1) ask(i * R / kLine, (i + 1) * R / kLine);
      rows(p + i * kBytes, stride, x + i * kBlock);
    }
  }
  for (; blocks > 0; --blocks, p += kBytes, next += kBytes, x += kBlock) {
    if constexpr (R > 1) ask(0, R);
    rows(p, stride, x);
  }
  if (rest > 0) {
    uint8_t last[R][kBytes] = {};
    for (int r = 0; r < R; ++r)
      __builtin_memcpy(last[r], p + r * stride, static_cast<size_t>(block_bytes<kBits>(rest)));
    rows(last[0], kBytes, x);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i)
      total[r][i] = fma_rn(splat(scale[r * groups]), lane[r][i], total[r][i]);
}

template <int kBits, Coding kCoding, bool kZeros, int R>
LT_SIMD void some_rows(const GemvJob& job, int64_t row) {
  const GroupShape& s = job.w.shape;
  const int64_t groups = groups_per_row(s), stride = row_bytes(s);
  const int64_t blocks = s.group / kBlock, whole = s.cols / s.group;
  const uint8_t* p = job.w.codes + row * stride;
  const float* x = job.x;
  const float* scale = job.w.scale + row * groups;
  const uint8_t* zero = kZeros ? job.w.zero + row * groups : nullptr;
  const float* const levels = job.levels;
  vf32 total[R][kParts] = {};
  uintptr_t next = (uintptr_t)p + (uintptr_t)(R * stride);
  for (int64_t g = whole; g > 0; --g) {
    add_group<kBits, kCoding, kZeros, R>(p, next, stride, x, blocks, 0, zero, scale, groups, levels,
                                         total);
    ++scale;
    if constexpr (kZeros) ++zero;
  }
  if (const int64_t left = s.cols - whole * s.group; left > 0)
    add_group<kBits, kCoding, kZeros, R>(p, next, stride, x, left / kBlock, left % kBlock, zero,
                                         scale, groups, levels, total);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    float t[kGemvLanes];
    for (int v = 0; v < kParts; ++v) store(t + v * kLanes, total[r][v]);
    job.y[row + r] = lane_tree(t);
  }
}

template <int kBits, Coding kCoding, bool kZeros>
void rows_simd(const GemvJob& job, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) some_rows<kBits, kCoding, kZeros, kRows>(job, row);
  for (; row < end; ++row) some_rows<kBits, kCoding, kZeros, 1>(job, row);
}

void rows_any(const GemvJob& job, int64_t begin, int64_t end) {
  const bool zeros = job.w.zero != nullptr;
  if (job.coding == Coding::nf4)
    rows_simd<4, Coding::nf4, false>(job, begin, end);
  else if (job.w.shape.bits == 4)
    (zeros ? rows_simd<4, Coding::integer, true> : rows_simd<4, Coding::integer, false>)(job, begin,
                                                                                         end);
  else
    (zeros ? rows_simd<8, Coding::integer, true> : rows_simd<8, Coding::integer, false>)(job, begin,
                                                                                         end);
}

}  // namespace

extern const GemvTable LT_CAT(gemv_, LT_ISA);
const GemvTable LT_CAT(gemv_, LT_ISA) = {rows_any};

}  // namespace lowtide::quant
