// SPDX-License-Identifier: Apache-2.0
#include "curvature/elements.h"
#include "curvature/probe_table.h"
#include "curvature/sums.h"
#include "random/distributions.h"

namespace lowtide::curvature {
namespace {

float signed_by(float x, int64_t i, random::Key key, uint32_t param) {
  const auto e = static_cast<uint64_t>(i);
  return with_sign(x, random::stream_word(e / 32, key, param, random::kRoleZ),
                   static_cast<int>(e % 32));
}

double dot_ref(const SignedInput& t, random::Key key, int64_t begin, int64_t end) {
  double sums[kSums] = {};
  for (int64_t i = begin; i < end; ++i)
    sums[i % kSums] += static_cast<double>(signed_by(element(t.x, t.dtype, i), i, key, t.param));
  return fold_sums(sums);
}

void axpy_ref(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    put_element(t.x, t.dtype, i, element(t.x, t.dtype, i) + signed_by(scale, i, key, t.param));
}

void fill_ref(const SignedTarget& t, float scale, random::Key key, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    put_element(t.x, t.dtype, i, signed_by(scale, i, key, t.param));
}

void fma_ref(const SignedPair& t, const Join& join, random::Key key, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float x = element(t.x, t.x_dtype, i);
    t.acc[i] = joined(t.acc[i], join.squared ? x * x : signed_by(x, i, key, t.param), join);
  }
}

}  // namespace

const ProbeTable probe_scalar = {dot_ref, axpy_ref, fill_ref, fma_ref};

}  // namespace lowtide::curvature
