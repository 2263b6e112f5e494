// SPDX-License-Identifier: Apache-2.0
// The same bits as gemv_ref.cc. Compiled once per ISA with LT_ISA naming the table.
//
// A few rows at a time share the loads of x and hide the latency of their chains. Limits (AVX-512):
// INT8 takes four operations for 16 weights (widen, subtract, convert, multiply-add), INT4 and NF4
// six for 32 (a permute decodes a nibble without masking it): 2 and 1.5 cycles for 16 on two ports,
// that is 0.04 and 0.03 ns a weight, about what caches deliver and less than memory takes for INT8.
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

// Decodes a block of 32 codes of one group.
template <int kBits, Coding kCoding>
struct Values {
#if defined(__AVX512F__)
  vf32 table;  // of a nibble
  vi32 zero;
  inline __attribute__((always_inline)) Values(int z, const float* levels) : zero(splat_i(z)) {
    if constexpr (kCoding == Coding::nf4)
      table = load<vf32>(levels);
    else
      table = to_float(as_i(iota()) - zero);
  }
  inline __attribute__((always_inline)) void block(const uint8_t* p, vf32 w[kVecs]) const {
    if constexpr (kBits == 8) {
      w[0] = to_float(load_bytes(p) - zero);
      w[1] = to_float(load_bytes(p + kLanes) - zero);
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

template <int kBits, Coding kCoding, int R>
LT_SIMD void some_rows(const GemvJob& job, int64_t row) {
  const GroupShape& s = job.w.shape;
  const int64_t per_row = groups_per_row(s), stride = row_bytes(s);
  const uint8_t* codes = job.w.codes + row * stride;
  const int64_t whole = s.cols / kBlock * kBlock;
  vf32 total[R][kParts] = {};
  for (int64_t g = 0, col = 0; col < s.cols; ++g, col += s.group) {
    const int64_t end = col + s.group < whole ? col + s.group : whole;
    vf32 lane[R][kParts] = {};
    vf32 w[kVecs];
    auto add = [&](int r, const float* x) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        lane[r][v % kParts] = fma_rn(load<vf32>(x + v * kLanes), w[v], lane[r][v % kParts]);
    };
    auto values = [&](int r) __attribute__((always_inline)) {
      const int64_t at = (row + r) * per_row + g;
      return Values<kBits, kCoding>(job.w.zero != nullptr ? job.w.zero[at] : symmetric_zero(kBits),
                                    job.levels);
    };
    if constexpr (R == 4) {
      const auto v0 = values(0), v1 = values(1), v2 = values(2), v3 = values(3);
      for (int64_t k = col; k < end; k += kBlock) {
        const uint8_t* p = codes + k * kBits / 8;
        prefetch(p, 4 * stride), prefetch(p, 5 * stride);
        v0.block(p, w), add(0, job.x + k);
        v1.block(p + stride, w), add(1, job.x + k);
        prefetch(p, 6 * stride), prefetch(p, 7 * stride);
        v2.block(p + 2 * stride, w), add(2, job.x + k);
        v3.block(p + 3 * stride, w), add(3, job.x + k);
      }
    } else if constexpr (R == 2) {
      const auto v0 = values(0), v1 = values(1);
      for (int64_t k = col; k < end; k += kBlock) {
        const uint8_t* p = codes + k * kBits / 8;
        prefetch(p, 2 * stride), prefetch(p, 3 * stride);
        v0.block(p, w), add(0, job.x + k);
        v1.block(p + stride, w), add(1, job.x + k);
      }
    } else {
      const auto v0 = values(0);
      for (int64_t k = col; k < end; k += kBlock)
        v0.block(codes + k * kBits / 8, w), add(0, job.x + k);
    }
    if (col + s.group > whole && s.cols > whole) {  // the last columns
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        uint8_t bytes[kBlock] = {};
        __builtin_memcpy(bytes, codes + r * stride + whole * kBits / 8,
                         static_cast<size_t>(block_bytes<kBits>(s.cols - whole)));
        values(r).block(bytes, w);
        add(r, job.x + whole);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kParts; ++v)
        total[r][v] = fma_rn(splat(job.w.scale[(row + r) * per_row + g]), lane[r][v], total[r][v]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    float t[kGemvLanes];
    for (int v = 0; v < kParts; ++v) store(t + v * kLanes, total[r][v]);
    job.y[row + r] = lane_tree(t);
  }
}

template <int kBits, Coding kCoding>
void rows_simd(const GemvJob& job, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) some_rows<kBits, kCoding, kRows>(job, row);
  for (; row < end; ++row) some_rows<kBits, kCoding, 1>(job, row);
}

void rows_any(const GemvJob& job, int64_t begin, int64_t end) {
  if (job.coding == Coding::nf4)
    rows_simd<4, Coding::nf4>(job, begin, end);
  else if (job.w.shape.bits == 4)
    rows_simd<4, Coding::integer>(job, begin, end);
  else
    rows_simd<8, Coding::integer>(job, begin, end);
}

}  // namespace

extern const GemvTable LT_CAT(gemv_, LT_ISA);
const GemvTable LT_CAT(gemv_, LT_ISA) = {rows_any};

}  // namespace lowtide::quant
