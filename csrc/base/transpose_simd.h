// SPDX-License-Identifier: Apache-2.0
// A kLanes x kLanes tile of floats transposed in registers. For *_simd.cc files only.
#pragma once
#include "base/simd.h"

namespace lowtide {
namespace {

// log2(kLanes) rounds of interleaving the upper half of the rows with the lower half.
LT_SIMD void transpose(vf32 v[kLanes]) {
  vi32 lo, hi;
  for (int i = 0; i < kLanes / 2; ++i) {
    lo[2 * i] = i, lo[2 * i + 1] = kLanes + i;
    hi[2 * i] = kLanes / 2 + i, hi[2 * i + 1] = kLanes + kLanes / 2 + i;
  }
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    vf32 w[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      w[2 * i] = __builtin_shuffle(v[i], v[i + kLanes / 2], lo);
      w[2 * i + 1] = __builtin_shuffle(v[i], v[i + kLanes / 2], hi);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = w[i];
  }
}

}  // namespace
}  // namespace lowtide
