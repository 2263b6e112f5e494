// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, factors generated, work cut by constants.
#include "spsa/low_rank.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "random/stream.h"
#include "spsa/low_rank_table.h"

namespace lowtide::spsa {
namespace {

constexpr auto kTables = LT_TABLES(LowRankTable, low_rank);
constexpr int64_t kGrain = 16384;                    // elements that pay for waking a thread
constexpr int64_t kFactorFloats = int64_t{1} << 21;  // of the directions that go through at once

void check(const LowRankMatrix& m, float scale) {
  require(m.rows >= 0 && m.cols >= 0, "low_rank: rows and cols must be >= 0");
  require(m.first_row >= 0, "low_rank: first_row must be >= 0");
  require(m.rank >= 1 && m.rank <= kMostRank, "low_rank: rank must be in 1 .. 8");
  require(std::isfinite(scale), "low_rank: scale must be finite");
}

int64_t grain_of(const LowRankMatrix& m) { return 1 + kGrain / (m.cols + 1); }

// U and V of a direction, V transposed: its columns are read as vectors.
void draw_factors(const LowRankMatrix& m, const LowRankPoint& at, float* u, float* vt,
                  std::vector<float>& v) {
  random::Stream s{at.seed, at.step, at.slot, m.param, random::kRoleU};
  random::sample(u, m.rows * m.rank, m.first_row * m.rank, s, random::Dist::gaussian);
  s.step = at.v_step, s.role = random::kRoleV;
  v.resize(static_cast<size_t>(m.cols * m.rank));
  random::sample(v.data(), m.cols * m.rank, 0, s, random::Dist::gaussian);
  for (int64_t j = 0; j < m.cols; ++j)
    for (int64_t k = 0; k < m.rank; ++k)
      vt[k * m.cols + j] = v[static_cast<size_t>(j * m.rank + k)];
}

}  // namespace

float low_rank_norm(int64_t rank) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(rank)));
}

void low_rank_perturb(void* out, FloatType out_type, const void* w, FloatType w_type, float scale,
                      const LowRankMatrix& m, const LowRankPoint& at) {
  check(m, scale);
  if (m.rows == 0 || m.cols == 0) return;
  std::vector<float> u(static_cast<size_t>(m.rows * m.rank)), v;
  std::vector<float> vt(static_cast<size_t>(m.cols * m.rank));
  draw_factors(m, at, u.data(), vt.data(), v);
  const LowRankPerturb job = {
      m, out, w, out_type, w_type, scale, low_rank_norm(m.rank), {u.data(), vt.data()}};
  const auto& table = kTables.get();
  parallel_for(m.rows, grain_of(m),
               [&](int64_t begin, int64_t end) { table.perturb(job, begin, end); });
}

void low_rank_replay(void* w, FloatType type, float scale, const LowRankMatrix& m,
                     const Schedule& schedule, const int64_t* v_steps) {
  check(m, scale);
  Steps all = resolve(schedule);
  for (int64_t j = 0; j < schedule.directions; ++j)
    require(v_steps[j] >= 0, "schedule: v_steps must be >= 0");
  if (m.rows == 0 || m.cols == 0) return;
  const auto& table = kTables.get();
  const int64_t each = (m.rows + m.cols) * m.rank,
                most = std::max<int64_t>(1, kFactorFloats / each);
  std::vector<float> u, vt, v;
  // Steps go through in batches whose factors fit a cache: it makes no difference to the result.
  for (size_t k = 0; k < all.steps.size();) {
    const int64_t first = all.steps[k].begin;
    size_t stop = k + 1;
    while (stop < all.steps.size() && all.steps[stop].end - first <= most) ++stop;
    const int64_t count = all.steps[stop - 1].end - first;
    u.resize(static_cast<size_t>(count * m.rows * m.rank));
    vt.resize(static_cast<size_t>(count * m.cols * m.rank));
    for (int64_t d = 0; d < count; ++d) {
      const int64_t j = first + d;
      draw_factors(
          m,
          {schedule.seed, static_cast<uint64_t>(schedule.dir_steps[j]),
           static_cast<uint64_t>(v_steps[j]), static_cast<uint32_t>(schedule.dir_slots[j])},
          u.data() + d * m.rows * m.rank, vt.data() + d * m.cols * m.rank, v);
    }
    for (size_t i = k; i < stop; ++i) all.steps[i].begin -= first, all.steps[i].end -= first;
    const LowRankReplay job = {m,
                               w,
                               type,
                               scale,
                               low_rank_norm(m.rank),
                               {u.data(), vt.data()},
                               all.steps.data() + k,
                               static_cast<int64_t>(stop - k),
                               all.directions.data() + first};
    parallel_for(m.rows, grain_of(m),
                 [&](int64_t begin, int64_t end) { table.replay(job, begin, end); });
    k = stop;
  }
}

}  // namespace lowtide::spsa
