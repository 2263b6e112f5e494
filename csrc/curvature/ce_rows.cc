// SPDX-License-Identifier: Apache-2.0
#include "curvature/ce_rows.h"

#include "base/error.h"
#include "base/parallel.h"
#include "curvature/ce_rows_table.h"

namespace lowtide::curvature {
namespace {

constexpr auto kTables = LT_TABLES(CeTable, ce_rows);
constexpr int64_t kGrain = int64_t{1} << 14;  // elements that pay for waking a thread

using Work = void (*)(float*, const CeRows&, int64_t, int64_t);

void run(Work CeTable::*work, float* y, const CeRows& a) {
  require(a.rows >= 0 && a.cols >= 0, "ce_rows: the matrix has a negative size");
  const Work f = kTables.get().*work;
  parallel_for(a.rows, 1 + kGrain / (a.cols + 1),
               [&](int64_t begin, int64_t end) { f(y, a, begin, end); });
}

}  // namespace

void ce_product(float* y, const CeRows& a) { run(&CeTable::product, y, a); }
void ce_cumulant(float* y, const CeRows& a) { run(&CeTable::cumulant, y, a); }
void ce_diagonal(float* y, const CeRows& a) { run(&CeTable::diagonal, y, a); }
void ce_weighted(float* y, const CeRows& a) { run(&CeTable::weighted, y, a); }
void ce_trace(float* y, const CeRows& a) { run(&CeTable::trace, y, a); }

}  // namespace lowtide::curvature
