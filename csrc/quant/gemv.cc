// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, x padded, rows cut by constants, the active ISA's table called.
#include "quant/gemv.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/gemv_scalar.h"

namespace lowtide::quant {
namespace {

constexpr auto kTables = LT_TABLES(GemvTable, gemv);
constexpr LevelTable kNf4 = make_level_table(LevelMap::nf4);
constexpr int64_t kUnitRows = 8;
constexpr int64_t kGrainElements = int64_t{1} << 18;  // enough to pay for waking a thread

}  // namespace

void gemv(float* y, const ConstGroupMatrix& w, Coding coding, const float* x) {
  const GroupShape& s = w.shape;
  check_shape(s);
  require(coding == Coding::integer || coding == Coding::nf4, "gemv: unknown coding");
  require(coding == Coding::integer || (s.bits == 4 && w.zero == nullptr),
          "gemv: NF4 has 4 bits and no zero points");
  if (s.rows == 0) return;
  std::vector<float> padded_x(static_cast<size_t>(padded(s.cols)));
  std::copy(x, x + s.cols, padded_x.begin());
  const GemvJob job = {y, w, coding, kNf4.level, padded_x.data()};
  const auto& table = kTables.get();
  const int64_t units = (s.rows + kUnitRows - 1) / kUnitRows;
  const int64_t unit_work = kUnitRows * std::max<int64_t>(1, s.cols);
  parallel_for(units, std::max<int64_t>(1, kGrainElements / unit_work),
               [&](int64_t begin, int64_t end) {
                 table.rows(job, begin * kUnitRows, std::min(s.rows, end * kUnitRows));
               });
}

}  // namespace lowtide::quant
