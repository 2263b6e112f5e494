// SPDX-License-Identifier: Apache-2.0
#include "lowrank/small_dense.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "lowrank/floats.h"
#include "lowrank/small_dense_table.h"

namespace lowtide::lowrank {
namespace {

constexpr auto kTables = LT_TABLES(SmallDenseTable, small_dense);

}  // namespace

const RowOps& row_ops() { return kTables.get().rows; }

double reflector(double* x, int64_t m, double* norm, const RowOps& ops) {
  const double alpha = x[0], tail = ops.dot(x + 1, x + 1, m - 1);
  x[0] = 1.0;
  if (tail == 0.0) {
    *norm = alpha;
    return 0.0;
  }
  const double mu = std::sqrt(alpha * alpha + tail);
  const double v0 = alpha <= 0.0 ? alpha - mu : -tail / (alpha + mu);
  for (int64_t i = 1; i < m; ++i) x[i] = x[i] / v0;
  *norm = mu;
  return 2.0 * v0 * v0 / (tail + v0 * v0);
}

void gram(double* g, const float* y, int64_t rows, int64_t depth) {
  if (rows == 0 || depth == 0) {
    std::fill(g, g + rows * rows, 0.0);
    return;
  }
  const GramPlan plan = gram_plan(rows, depth);
  const int64_t padded = plan.padded, chunks = plan.chunks, step = plan.step;
  const auto& table = kTables.get();
  Doubles part(static_cast<size_t>(chunks * padded * padded));
  Doubles work(static_cast<size_t>(chunks * padded * kGramDepth));
  const int64_t chunk_work = padded * padded * step / 2;
  parallel_for(chunks, 1 + (int64_t{1} << 19) / chunk_work, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      std::fill_n(part.data() + c * padded * padded, padded * padded, 0.0);
      for (int64_t k = c * step; k < std::min(depth, (c + 1) * step); k += kGramDepth)
        table.gram_block(part.data() + c * padded * padded, y + k, depth, rows,
                         std::min(kGramDepth, std::min(depth, (c + 1) * step) - k), padded,
                         work.data() + c * padded * kGramDepth);
    }
  });
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = part[static_cast<size_t>(i * padded + j)];
      for (int64_t c = 1; c < chunks; ++c)
        sum += part[static_cast<size_t>((c * padded + i) * padded + j)];
      g[i * rows + j] = sum;
      g[j * rows + i] = sum;
    }
}

}  // namespace lowtide::lowrank
