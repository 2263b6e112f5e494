// SPDX-License-Identifier: Apache-2.0
// The same bits as probe_ref.cc. Compiled once per ISA with LT_ISA naming the table.
//
// A tile of 64 random words is 2048 signs, 1/32 of a word an element: Philox costs a tenth of a
// cycle an element and memory decides. A word is the signs of 32 neighbours, which go to the 32
// sums in order: no product passes through a buffer. With AVX-512 a sign costs one masked
// exclusive or.
#include "curvature/probe_table.h"
#include "curvature/rows_simd.h"
#include "random/philox_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::curvature {
namespace {

constexpr int64_t kTile = 32 * random::kTileWords;
static_assert(kReduceBlock % kTile == 0 && kSums == 32);

// kLanes neighbours under bits [bit, bit + kLanes) of a word.
LT_SIMD vf32 with_signs(vf32 x, uint32_t word, int bit) {
#if defined(__AVX512F__)
  const auto negative = static_cast<__mmask16>(word >> bit);
  const __m512i u = (__m512i)x;
  return (vf32)_mm512_mask_xor_epi32(u, negative, u, (__m512i)splat_u(0x80000000u));
#elif defined(__AVX2__) || defined(__aarch64__)
  return as_f(as_u(x) ^
              ((splat_u(word) << (31u - (iota() + static_cast<uint32_t>(bit)))) & 0x80000000u));
#else  // SSE2 has no shift by lane
  const vu32 mine = splat_u(1u) << (iota() + static_cast<uint32_t>(bit));
  const vu32 negative = (vu32)((splat_u(word) & mine) == mine);
  return as_f(as_u(x) ^ (negative & 0x80000000u));
#endif
}

// whole(i, word) for 32 elements from i on, part(i, word, n) for the n < 32 last ones.
template <class Whole, class Part>
LT_SIMD void for_words(int64_t begin, int64_t end, random::Key key, uint32_t param,
                       const Whole& whole, const Part& part) {
  const random::KeySchedule keys(key);
  for (int64_t i = begin; i < end; i += kTile) {
    uint32_t word[random::kTileWords];
    random::tile_words(static_cast<uint64_t>(i / kTile), keys, param, random::kRoleZ, word);
    const int64_t here = end - i < kTile ? end - i : kTile;
    for (int64_t w = 0; w < here / 32; ++w) whole(i + 32 * w, word[w]);
    if (here % 32 != 0) part(i + here / 32 * 32, word[here / 32], here % 32);
  }
}

template <class T>
LT_SIMD void sum_32(Sums& sums, const T* x, uint32_t word) {
#pragma GCC unroll 8
  for (int b = 0; b < 32; b += kLanes) sums.add(b, with_signs(load_row(x + b), word, b));
}

template <class T>
double dot_of(const SignedInput& t, random::Key key, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(t.x);
  Sums sums;
  for_words(
      begin, end, key, t.param,
      [&](int64_t i, uint32_t word) {
        prefetch_32(x + i);
        sum_32(sums, x + i, word);
      },
      [&](int64_t i, uint32_t word, int64_t n) {
        T last[32];
        copy_in(last, x + i, n);
        sum_32(sums, last, word);
      });
  return sums.fold();
}

template <bool kAdd, class T>
LT_SIMD void move_32(T* x, float scale, uint32_t word) {
#pragma GCC unroll 8
  for (int b = 0; b < 32; b += kLanes) {
    const vf32 step = with_signs(splat(scale), word, b);
    store_row(x + b, kAdd ? load_row(x + b) + step : step);
  }
}

template <bool kAdd, class T>
void move_of(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end) {
  T* x = static_cast<T*>(t.x);
  for_words(
      begin, end, key, t.param,
      [&](int64_t i, uint32_t word) { move_32<kAdd>(x + i, scale, word); },
      [&](int64_t i, uint32_t word, int64_t n) {
        T last[32];
        copy_in(last, x + i, n);
        move_32<kAdd>(last, scale, word);
        copy_out(x + i, last, n);
      });
}

template <bool kKeep, bool kSquared, class T>
LT_SIMD void join_32(float* acc, const T* x, const Join& join, uint32_t word) {
#pragma GCC unroll 8
  for (int b = 0; b < 32; b += kLanes) {
    const vf32 v = load_row(x + b);
    const vf32 add = join.b * (kSquared ? v * v : with_signs(v, word, b));
    store(acc + b, kKeep ? join.a * load<vf32>(acc + b) + add : add);
  }
}

template <bool kKeep, bool kSquared, class T>
void fma_of(const SignedPair& t, const Join& join, random::Key key, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(t.x);
  const auto whole = [&](int64_t i, uint32_t word) {
    join_32<kKeep, kSquared>(t.acc + i, x + i, join, word);
  };
  const auto part = [&](int64_t i, uint32_t word, int64_t n) {
    float acc[32];
    T last[32];
    copy_in(acc, t.acc + i, n);
    copy_in(last, x + i, n);
    join_32<kKeep, kSquared>(acc, last, join, word);
    copy_out(t.acc + i, acc, n);
  };
  if constexpr (kSquared) {  // no sign survives
    int64_t i = begin;
    for (; i + 32 <= end; i += 32) whole(i, 0);
    if (i < end) part(i, 0, end - i);
  } else {
    for_words(begin, end, key, t.param, whole, part);
  }
}

double dot_simd(const SignedInput& t, random::Key key, int64_t begin, int64_t end) {
  return t.dtype == Dtype::f32 ? dot_of<float>(t, key, begin, end)
                               : dot_of<uint16_t>(t, key, begin, end);
}

void axpy_simd(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end) {
  if (t.dtype == Dtype::f32) return move_of<true, float>(t, scale, key, begin, end);
  move_of<true, uint16_t>(t, scale, key, begin, end);
}

void fill_simd(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end) {
  if (t.dtype == Dtype::f32) return move_of<false, float>(t, scale, key, begin, end);
  move_of<false, uint16_t>(t, scale, key, begin, end);
}

template <class T>
LT_SIMD void fma_any(const SignedPair& t, const Join& join, random::Key key, int64_t begin,
                     int64_t end) {
  const bool keep = join.a != 0.0f;
  if (join.squared) {
    if (keep) return fma_of<true, true, T>(t, join, key, begin, end);
    return fma_of<false, true, T>(t, join, key, begin, end);
  }
  if (keep) return fma_of<true, false, T>(t, join, key, begin, end);
  fma_of<false, false, T>(t, join, key, begin, end);
}

void fma_simd(const SignedPair& t, const Join& join, random::Key key, int64_t begin, int64_t end) {
  if (t.x_dtype == Dtype::f32) return fma_any<float>(t, join, key, begin, end);
  fma_any<uint16_t>(t, join, key, begin, end);
}

}  // namespace

extern const ProbeTable LT_CAT(probe_, LT_ISA);
const ProbeTable LT_CAT(probe_, LT_ISA) = {dot_simd, axpy_simd, fill_simd, fma_simd};

}  // namespace lowtide::curvature
