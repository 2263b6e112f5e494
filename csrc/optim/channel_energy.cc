// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "optim/channel_energy_order.h"
#include "optim/channel_energy_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(EnergyTable, channel_energy);
constexpr int64_t kGrain = int64_t{1} << 17;  // elements that pay for waking a thread
constexpr int64_t kStripe = 512;              // columns: their sums stay in L1

int64_t grain_of(int64_t elements) { return 1 + kGrain / (elements + 1); }

}  // namespace

void channel_energy(double* energy, const EnergyMatrix& m, Channels channels) {
  require(m.rows >= 0 && m.cols >= 0, "channel_energy: the matrix has a negative size");
  const auto& table = kTables.get();
  if (channels == Channels::rows) {
    parallel_for(m.rows, grain_of(m.cols),
                 [&](int64_t begin, int64_t end) { table.rows(energy, m, begin, end); });
    return;
  }
  const int64_t runs = energy_runs(m.rows), stripes = (m.cols + kStripe - 1) / kStripe;
  if (runs == 0) std::fill(energy, energy + m.cols, 0.0);
  if (runs == 0 || stripes == 0) return;
  // Of runs 1 and up; the first goes to `energy`.
  std::vector<double> part(static_cast<size_t>((runs - 1) * m.cols));
  const int64_t work = std::min(m.rows, kEnergyRun) * std::min(m.cols, kStripe);
  parallel_for(runs * stripes, grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t run = piece / stripes, first = piece % stripes * kStripe;
      double* sums = run == 0 ? energy : part.data() + (run - 1) * m.cols;
      table.columns(sums, m, run * kEnergyRun, std::min(m.rows, (run + 1) * kEnergyRun), first,
                    std::min(m.cols, first + kStripe));
    }
  });
  for (int64_t run = 1; run < runs; ++run)
    for (int64_t j = 0; j < m.cols; ++j)
      energy[j] += part[static_cast<size_t>((run - 1) * m.cols + j)];
}

double ordered_sum(const double* x, int64_t n) {
  PinnedFpEnv pin;
  double lanes[kEnergyLanes] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j % kEnergyLanes] += x[j];
  return fold_lanes(lanes);
}

}  // namespace lowtide::optim
