// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "random/stream.h"

#include <algorithm>

#include "base/error.h"
#include "base/parallel.h"
#include "base/reduce.h"
#include "random/stream_table.h"

namespace lowtide::random {
namespace {

constexpr auto kTables = LT_TABLES(StreamTable, stream);
constexpr int64_t kGrain = 16384;  // a multiple of every distribution's tile

void check(int64_t n, int64_t offset, Dist dist = Dist::rademacher) {
  require(n >= 0, "random: the number of elements must be >= 0");
  require(offset >= 0, "random: offset must be >= 0 (the global index of the first element)");
  require(is_dist(dist), "random: dist must be 0 (rademacher), 1 (gaussian), 2 (ih4) or 3 (lut8)");
}

Key key_of(const Stream& s) { return derive_key(s.seed, s.step, s.slot); }

// Cuts at multiples of kGrain of the *global* index, so that tiles stay whole.
template <class F>
void for_grains(int64_t n, int64_t offset, const F& f) {
  const int64_t first = offset / kGrain;
  const int64_t grains = (offset + n + kGrain - 1) / kGrain - first;
  parallel_for(n > 0 ? grains : 0, 1, [&](int64_t begin, int64_t end) {
    const int64_t lo = std::max(offset, (first + begin) * kGrain) - offset;
    const int64_t hi = std::min(offset + n, (first + end) * kGrain) - offset;
    f(lo, hi);
  });
}

}  // namespace

void words(uint32_t* out, int64_t n, int64_t offset, const Stream& s) {
  check(n, offset);
  const auto& table = kTables.get();
  for_grains(n, offset, [&, key = key_of(s)](int64_t lo, int64_t hi) {
    table.words(out + lo, hi - lo, offset + lo, key, s.param, s.role);
  });
}

void sample(float* out, int64_t n, int64_t offset, const Stream& s, Dist dist) {
  check(n, offset, dist);
  const auto& table = kTables.get();
  for_grains(n, offset, [&, key = key_of(s)](int64_t lo, int64_t hi) {
    table.sample(out + lo, hi - lo, offset + lo, key, s.param, s.role, dist);
  });
}

void add_scaled(float* x, float scale, int64_t n, int64_t offset, const Stream& s, Dist dist) {
  check(n, offset, dist);
  const auto& table = kTables.get();
  for_grains(n, offset, [&, key = key_of(s)](int64_t lo, int64_t hi) {
    table.add_scaled(x + lo, scale, hi - lo, offset + lo, key, s.param, s.role, dist);
  });
}

double dot(const float* x, int64_t n, int64_t offset, const Stream& s, Dist dist) {
  check(n, offset, dist);
  const auto& table = kTables.get();
  return reduce_blocks((n + kReduceBlock - 1) / kReduceBlock, [&, key = key_of(s)](int64_t b) {
    const int64_t at = b * kReduceBlock;
    return static_cast<double>(table.dot_block(x + at, std::min(kReduceBlock, n - at), offset + at,
                                               key, s.param, s.role, dist));
  });
}

}  // namespace lowtide::random
