// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "base/reduce.h"
#include "random/stream_table.h"

namespace lowtide::random {
namespace {

void words_ref(uint32_t* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role) {
  for (int64_t i = 0; i < n; ++i) out[i] = stream_word(offset + i, key, param, role);
}

void sample_ref(float* out, int64_t n, int64_t offset, Key key, uint32_t param, uint32_t role,
                Dist dist) {
  for (int64_t i = 0; i < n; ++i) out[i] = sample_at(dist, offset + i, key, param, role);
}

void add_scaled_ref(float* x, float scale, int64_t n, int64_t offset, Key key, uint32_t param,
                    uint32_t role, Dist dist) {
  for (int64_t i = 0; i < n; ++i) {
    const float z = sample_at(dist, offset + i, key, param, role);
    x[i] = x[i] + scale * z;
  }
}

float dot_block_ref(const float* x, int64_t n, int64_t offset, Key key, uint32_t param,
                    uint32_t role, Dist dist) {
  float lanes[kReduceLanes] = {};
  for (int64_t i = 0; i < n; ++i)
    lanes[i % kReduceLanes] += x[i] * sample_at(dist, offset + i, key, param, role);
  return tree64(lanes);
}

}  // namespace

const StreamTable stream_scalar = {words_ref, sample_ref, add_scaled_ref, dot_block_ref};

}  // namespace lowtide::random
