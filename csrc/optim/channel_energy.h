// SPDX-License-Identifier: Apache-2.0
// Sums of squares of the rows or of the columns of a matrix, in double: what gradient-scaled
// methods (Fira, APOLLO) measure channels by. One pass that reads 4 bytes an element (2 of
// bfloat16).
//
// Squares of floats are exact in double, so an inf or a NaN is all that makes a sum not finite. The
// order of additions (channel_energy_order.h) depends on nothing but the sizes.
#pragma once
#include <cstdint>

#include "base/dtype.h"
#include "base/hd.h"

namespace lowtide::optim {

enum class Channels : int { rows = 0, columns = 1 };

struct EnergyMatrix {  // row-major, contiguous
  const void* x = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t rows = 0, cols = 0;
};

// energy: one double for each row or column. Throws lowtide::Error on negative sizes.
void channel_energy(double* energy, const EnergyMatrix& m, Channels channels);

// The sum of n doubles in the order of one row.
double ordered_sum(const double* x, int64_t n);

}  // namespace lowtide::optim
