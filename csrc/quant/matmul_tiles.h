// SPDX-License-Identifier: Apache-2.0
// Columns of stored rows, kLanes rows at a time: 16-byte pieces of rows are transposed in
// registers. Register q holds pieces of rows q, 4 + q, 8 + q, ... in its 128-bit lanes, so that
// interleaving never crosses a lane: half the shuffles of a general transpose for floats, a sixth
// for bytes. For *_simd.cc files only.
#pragma once
#include "base/simd.h"

namespace lowtide::quant {
namespace {

typedef uint8_t vbytes __attribute__((vector_size(4 * LT_LANES)));
typedef uint16_t vwords __attribute__((vector_size(4 * LT_LANES)));
typedef uint64_t vlongs __attribute__((vector_size(4 * LT_LANES)));

// q[s][i]: bytes [16 s, 16 s + 16) at p + i stride, p + (4 + i) stride, ... (stride in bytes). Row
// by row: rows a page apart fall on one cache set, and a line must be used up before it is evicted.
template <int kSets>
LT_SIMD void load_pieces(const char* p, int64_t stride, vbytes q[kSets][4]) {
#if defined(__AVX512F__)
#define LT_PIECE(lane) _mm_loadu_si128((const __m128i*)(p + (4 * lane + i) * stride + 16 * s))
#define LT_INSERT(lane)                                                 \
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)                   \
      _Pragma("GCC unroll 4") for (int s = 0; s < kSets; ++s) q[s][i] = \
          (vbytes)_mm512_inserti32x4((__m512i)q[s][i], LT_PIECE(lane), lane)
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)
      _Pragma("GCC unroll 4") for (int s = 0; s < kSets; ++s) q[s][i] =
          (vbytes)_mm512_castsi128_si512(LT_PIECE(0));
  LT_INSERT(1);
  LT_INSERT(2);
  LT_INSERT(3);
#undef LT_INSERT
#undef LT_PIECE
#elif defined(__AVX2__)
  for (int i = 0; i < 4; ++i)
    for (int s = 0; s < kSets; ++s) {
      const char* at = p + i * stride + 16 * s;
      q[s][i] = (vbytes)_mm256_inserti128_si256(
          _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)at)),
          _mm_loadu_si128((const __m128i*)(at + 4 * stride)), 1);
    }
#else
  for (int i = 0; i < 4; ++i)
    for (int s = 0; s < kSets; ++s) __builtin_memcpy(&q[s][i], p + i * stride + 16 * s, 16);
#endif
}

// The low (kHigh: high) halves of each 128-bit lane of a and b, element by element in turn.
template <bool kHigh, class V>
LT_SIMD V interleave(V a, V b) {
#if defined(__AVX512F__)  // gcc 12 takes the shuffles of 64 bytes apart
  const __m512i x = (__m512i)a, y = (__m512i)b;
  switch (sizeof(a[0])) {
    case 1:
      return (V)(kHigh ? _mm512_unpackhi_epi8(x, y) : _mm512_unpacklo_epi8(x, y));
    case 2:
      return (V)(kHigh ? _mm512_unpackhi_epi16(x, y) : _mm512_unpacklo_epi16(x, y));
    case 4:
      return (V)(kHigh ? _mm512_unpackhi_epi32(x, y) : _mm512_unpacklo_epi32(x, y));
    default:
      return (V)(kHigh ? _mm512_unpackhi_epi64(x, y) : _mm512_unpacklo_epi64(x, y));
  }
#else
  constexpr int kCount = static_cast<int>(sizeof(V) / sizeof(a[0]));
  constexpr int kPer = 16 / static_cast<int>(sizeof(a[0]));
  V mask;
  for (int i = 0; i < kCount / 2; ++i) {
    const int from = i / (kPer / 2) * kPer + (kHigh ? kPer / 2 : 0) + i % (kPer / 2);
    mask[2 * i] = static_cast<unsigned char>(from);
    mask[2 * i + 1] = static_cast<unsigned char>(kCount + from);
  }
  return __builtin_shuffle(a, b, mask);
#endif
}

// v[c] = float c of row i in lane i.
LT_SIMD void columns_of_floats(const vbytes pieces[4], vf32 v[4]) {
  vu32 q[4];
  for (int i = 0; i < 4; ++i) q[i] = (vu32)pieces[i];
  const vlongs lo01 = (vlongs)interleave<false>(q[0], q[1]);
  const vlongs hi01 = (vlongs)interleave<true>(q[0], q[1]);
  const vlongs lo23 = (vlongs)interleave<false>(q[2], q[3]);
  const vlongs hi23 = (vlongs)interleave<true>(q[2], q[3]);
  v[0] = (vf32)interleave<false>(lo01, lo23);
  v[1] = (vf32)interleave<true>(lo01, lo23);
  v[2] = (vf32)interleave<false>(hi01, hi23);
  v[3] = (vf32)interleave<true>(hi01, hi23);
}

// out[c kLanes + i] = byte c of row i.
LT_SIMD void columns_of_bytes(const vbytes q[4], uint8_t* out) {
  const vwords lo01 = (vwords)interleave<false>(q[0], q[1]);
  const vwords hi01 = (vwords)interleave<true>(q[0], q[1]);
  const vwords lo23 = (vwords)interleave<false>(q[2], q[3]);
  const vwords hi23 = (vwords)interleave<true>(q[2], q[3]);
  const vu32 four[4] = {(vu32)interleave<false>(lo01, lo23), (vu32)interleave<true>(lo01, lo23),
                        (vu32)interleave<false>(hi01, hi23), (vu32)interleave<true>(hi01, hi23)};
  // Lane L holds rows 4 L .. 4 L + 3 of four columns: bring the lanes of a column together.
  vu32 order;
  for (int i = 0; i < kLanes; ++i)
    order[i] = static_cast<uint32_t>(i % (kLanes / 4) * 4 + i / (kLanes / 4));
  for (int s = 0; s < 4; ++s) {
    const vu32 columns = __builtin_shuffle(four[s], order);
    __builtin_memcpy(out + s * 4 * kLanes, &columns, sizeof columns);
  }
}

}  // namespace
}  // namespace lowtide::quant
