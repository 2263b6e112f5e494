// SPDX-License-Identifier: Apache-2.0
// Probes of +1 and -1 that are drawn again where they are needed and never stored: element i of
// tensor t is element i of the Rademacher stream (seed, step, slot, param t, role z) of
// random/stream.h, so a list of tensors and a single one meet the same signs.
//
// Every function takes a whole model in one parallel region. Tensors are contiguous, float32 or
// bfloat16, and none that is written shares memory with another; arithmetic is in float32, sums in
// double, in the order of sums.h: no bit depends on the instruction set, the threads or the rest of
// the list.
#pragma once
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "base/hd.h"

namespace lowtide::curvature {

struct Probe {
  uint64_t seed = 0, step = 0;
  uint32_t slot = 0;
};

struct SignedInput {
  const void* x = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t n = 0;
  uint32_t param = 0;
};

struct SignedTarget {
  void* x = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t n = 0;
  uint32_t param = 0;
};

// acc may be x itself (where x is float32) or lies apart from it.
struct SignedPair {
  float* acc = nullptr;
  const void* x = nullptr;
  Dtype x_dtype = Dtype::f32;
  int64_t n = 0;
  uint32_t param = 0;
};

// How a pair is joined: acc = a acc + b (z x), or with `squared` a acc + b (x x). Both products and
// the sum are rounded; z x is exact. With a = 0 the accumulator is not read.
struct Join {
  float a = 1, b = 1;
  bool squared = false;
};

LT_HD float with_sign(float x, uint32_t word, int bit) {
  return bits_float(float_bits(x) ^ ((word >> bit) << 31));
}

LT_HD float joined(float acc, float v, const Join& j) {
  const float add = j.b * v;
  return j.a == 0.0f ? add : j.a * acc + add;
}

// Throw lowtide::Error where memory that is written is shared; the functions on CPU tensors do so
// themselves.
void check_apart(const std::vector<SignedTarget>& xs);
void check_apart(const std::vector<SignedPair>& pairs);

// out[t] = <z, x> of each tensor.
void sign_dot(double* out, const std::vector<SignedInput>& xs, const Probe& probe);
// x += scale z: the sum is rounded, to bfloat16 by a second rounding, nearest even.
void sign_axpy(const std::vector<SignedTarget>& xs, float scale, const Probe& probe);
// x = scale z.
void sign_fill(const std::vector<SignedTarget>& xs, float scale, const Probe& probe);
void sign_fma(const std::vector<SignedPair>& pairs, const Join& join, const Probe& probe);

}  // namespace lowtide::curvature
