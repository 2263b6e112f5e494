// SPDX-License-Identifier: Apache-2.0
// The 64 lane sums of base/reduce.h held in vectors. For *_simd.cc files only.
#pragma once
#include "base/reduce_order.h"
#include "base/simd.h"

namespace lowtide {
namespace {

struct LaneSums {
  static constexpr int kRows = kReduceLanes / kLanes;
  vf32 row[kRows] = {};

  // value(lane) gives lanes [lane, lane + kLanes) of one group of 64.
  template <class F>
  inline __attribute__((always_inline)) void add(const F& value) {
    for (int r = 0; r < kRows; ++r) row[r] += value(r * kLanes);
  }

  // Adds `tail` (< 64) last elements and folds by the fixed tree.
  template <class F>
  inline __attribute__((always_inline)) float finish(int64_t tail, const F& value) {
    float lanes[kReduceLanes];
    for (int r = 0; r < kRows; ++r) store(lanes + r * kLanes, row[r]);
    for (int j = 0; j < tail; ++j) lanes[j] += value(j);
    return tree64(lanes);
  }
};

}  // namespace
}  // namespace lowtide
