// SPDX-License-Identifier: Apache-2.0
// Directions of low rank (LOZO, arXiv 2410.07698): z = U V^T / sqrt(r) of a matrix, U [rows, r] of
// role kRoleU drawn at one step, V [cols, r] of role kRoleV drawn at an older one that many steps
// share; both Gaussian, element (i, k) of U at i * r + k. Per element:
//   z = (fma chain over k of U[i, k] * V[j, k], from 0) * float32(1 / sqrt(r))
// Perturb and replay are otherwise those of spsa/perturb.h and spsa/replay.h, bit for bit step by
// step, and for any shard of whole rows.
//
// Moves what the dense forms move; U and V are generated once a call, (rows + cols) r numbers a
// direction, and no z is stored.
#pragma once
#include <cstdint>
#include <vector>

#include "spsa/replay.h"

namespace lowtide::spsa {

constexpr int64_t kMostRank = 8;

struct LowRankMatrix {
  int64_t rows = 0, cols = 0;
  int64_t first_row = 0;  // of the whole matrix, for shards
  int64_t rank = 1;
  uint32_t param = 0;
};

struct LowRankPoint {
  uint64_t seed = 0;
  uint64_t step = 0, v_step = 0;
  uint32_t slot = 0;
};

// out = w + scale z: product and sum rounded to float32, the result to the type of out, nearest
// even. out may be w if the types agree.
void low_rank_perturb(void* out, FloatType out_type, const void* w, FloatType w_type, float scale,
                      const LowRankMatrix& m, const LowRankPoint& at);

// v_steps[j] of direction j of the schedule; schedule.dir_steps are those of U.
void low_rank_replay(void* w, FloatType type, float scale, const LowRankMatrix& m,
                     const Schedule& schedule, const int64_t* v_steps);

// The factor of z: 1 / sqrt(rank), rounded from double.
float low_rank_norm(int64_t rank);

}  // namespace lowtide::spsa
