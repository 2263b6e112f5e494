// SPDX-License-Identifier: Apache-2.0
// What each ISA implements of low-rank directions. Internal to csrc/spsa.
#pragma once
#include "base/isa.h"
#include "spsa/low_rank.h"

namespace lowtide::spsa {

// Factors of directions 0 .. : u [rows, rank] and vt [rank, cols] of each, one after the other.
struct LowRankFactors {
  const float* u;
  const float* vt;
};

LT_HD float low_rank_z(const float* u, const float* vt, int64_t rank, int64_t cols, float norm) {
  float z = 0.0f;
  for (int64_t k = 0; k < rank; ++k) z = fma_rn(u[k], vt[k * cols], z);
  return z * norm;
}

struct LowRankPerturb {
  LowRankMatrix m;
  void* out;
  const void* w;
  FloatType out_type, w_type;
  float scale, norm;
  LowRankFactors f;
};

struct LowRankReplay {
  LowRankMatrix m;
  void* w;
  FloatType type;
  float scale, norm;
  LowRankFactors f;
  const Step* steps;  // directions counted from that of f's first
  int64_t count;
  const Direction* directions;
};

struct LowRankTable {
  // Rows [begin, end).
  void (*perturb)(const LowRankPerturb& job, int64_t begin, int64_t end);
  void (*replay)(const LowRankReplay& job, int64_t begin, int64_t end);
};

LT_DECLARE_TABLES(LowRankTable, low_rank);

}  // namespace lowtide::spsa
