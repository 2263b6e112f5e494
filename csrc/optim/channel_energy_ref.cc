// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy_order.h"
#include "optim/channel_energy_table.h"

namespace lowtide::optim {
namespace {

double square_at(const EnergyMatrix& m, int64_t row, int64_t col) {
  const int64_t i = row * m.cols + col;
  return square_d(m.dtype == Dtype::f32 ? static_cast<const float*>(m.x)[i]
                                        : bf16_to_float(static_cast<const uint16_t*>(m.x)[i]));
}

void rows_ref(double* energy, const EnergyMatrix& m, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double lanes[kEnergyLanes] = {};
    for (int64_t j = 0; j < m.cols; ++j) lanes[j % kEnergyLanes] += square_at(m, i, j);
    energy[i] = fold_lanes(lanes);
  }
}

void columns_ref(double* sums, const EnergyMatrix& m, int64_t begin, int64_t end, int64_t first,
                 int64_t last) {
  for (int64_t j = first; j < last; ++j) {
    sums[j] = 0;
    for (int64_t i = begin; i < end; ++i) sums[j] += square_at(m, i, j);
  }
}

}  // namespace

const EnergyTable channel_energy_scalar = {rows_ref, columns_ref};

}  // namespace lowtide::optim
