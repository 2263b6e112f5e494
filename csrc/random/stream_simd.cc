// SPDX-License-Identifier: Apache-2.0
// The same bits as stream_ref.cc, kLanes elements at a time. Compiled once per ISA with LT_ISA
// naming the table. Limits: words and Gaussians are bound by Philox (10 rounds of two 32x32
// multiplies, about half of the time) and the polynomials; Rademacher spends 1/32 of a word an
// element and runs at the speed of memory.
#include "base/reduce_lanes.h"
#include "random/distributions_simd.h"
#include "random/stream_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::random {
namespace {

void words_simd(uint32_t* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role) {
  const KeySchedule keys(key);
  int64_t i = 0;
  while (i < n) {
    const int64_t head = (offset + i) % kTileWords;
    const uint64_t tile = static_cast<uint64_t>(offset + i) / kTileWords;
    if (head == 0 && n - i >= kTileWords) {
      tile_words(tile, keys, param, role, out + i);
      i += kTileWords;
      continue;
    }
    uint32_t word[kTileWords];
    tile_words(tile, keys, param, role, word);
    for (int64_t j = head; j < kTileWords && i < n; ++j) out[i++] = word[j];
  }
}

template <class D>
void sample_simd(float* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role) {
  walk<D>(
      n, offset, key, param, role, [&](int64_t i, vf32 z) { store(out + i, z); },
      [&](int64_t i, float z) { out[i] = z; });
}

template <class D>
void add_scaled_simd(float* x, float scale, int64_t n, int64_t offset, Key key, uint32_t param,
                     uint32_t role) {
  walk<D>(
      n, offset, key, param, role,
      [&](int64_t i, vf32 z) { store(x + i, load<vf32>(x + i) + scale * z); },
      [&](int64_t i, float z) { x[i] = x[i] + scale * z; });
}

template <class D>
float dot_block_simd(const float* x, int64_t n, int64_t offset, Key key, uint32_t param,
                     uint32_t role) {
  // A lane belongs to a position in x, not in the stream, so products pass through a buffer.
  float z[kReduceBlock];
  sample_simd<D>(z, n, offset, key, param, role);
  LaneSums sums;
  int64_t i = 0;
  for (; i + kReduceLanes <= n; i += kReduceLanes)
    sums.add([&](int lane) { return load<vf32>(x + i + lane) * load<vf32>(z + i + lane); });
  return sums.finish(n - i, [&](int j) { return x[i + j] * z[i + j]; });
}

void sample_any(float* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role,
                Dist dist) {
  with_dist(dist, [&](auto d) { sample_simd<decltype(d)>(out, n, offset, key, param, role); });
}

void add_scaled_any(float* x, float scale, int64_t n, int64_t offset, Key key, uint32_t param,
                    uint32_t role, Dist dist) {
  with_dist(dist,
            [&](auto d) { add_scaled_simd<decltype(d)>(x, scale, n, offset, key, param, role); });
}

float dot_block_any(const float* x, int64_t n, int64_t offset, Key key, uint32_t param,
                    uint32_t role, Dist dist) {
  return with_dist(
      dist, [&](auto d) { return dot_block_simd<decltype(d)>(x, n, offset, key, param, role); });
}

}  // namespace

extern const StreamTable LT_CAT(stream_, LT_ISA);
const StreamTable LT_CAT(stream_, LT_ISA) = {words_simd, sample_any, add_scaled_any, dot_block_any};

}  // namespace lowtide::random
