// SPDX-License-Identifier: Apache-2.0
// Counter-based random arrays: the teaching kernel. Read it beside stream_ref.cc (what),
// stream_simd.cc (how), stream.cc (dispatch and threads), stream.cu, then
// tests/cpp/random/stream_test.cc and bench/cpp/stream_bench.cc: every kernel of the library has
// these files under one stem.
//
// Element `offset + i` of the stream lands in position i, so any shard of a tensor generates its
// own slice. Nothing depends on how the call is cut.
#pragma once
#include <cstdint>

#include "random/distributions.h"
#include "random/philox.h"

namespace lowtide::random {

// The raw word stream, for tests and for consumers that define their own distribution.
void words(uint32_t* out, int64_t n, int64_t offset, const Stream& stream);
// out[i] = z[offset + i].
void sample(float* out, int64_t n, int64_t offset, const Stream& stream, Dist dist);
// x[i] += scale * z[offset + i]; product and sum are each rounded (no fma).
void add_scaled(float* x, float scale, int64_t n, int64_t offset, const Stream& stream, Dist dist);
// sum_i x[i] z[offset + i]: blocks of 4096 elements from x[0], fixed tree (base/reduce.h).
double dot(const float* x, int64_t n, int64_t offset, const Stream& stream, Dist dist);

}  // namespace lowtide::random
