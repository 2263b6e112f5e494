// SPDX-License-Identifier: Apache-2.0
#include "lowrank/fwht.h"

#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "lowrank/floats.h"
#include "lowrank/fwht_table.h"

namespace lowtide::lowrank {
namespace {

constexpr auto kTables = LT_TABLES(FwhtTable, fwht);

void check_length(int64_t n) {
  require(n >= 1 && n <= kFwhtMost, "fwht: lines must have 1 to 1048576 values");
}

// Runs `kernel(job, begin, end, work)` over the blocks of lines.
template <class Kernel>
void transform(float* out, const DctMatrix& x, const float* signs, const int32_t* index,
               int64_t count, const Kernel& kernel) {
  require(x.rows >= 0 && x.cols >= 0, "fwht: sizes must be >= 0");
  require(x.type == quant::FloatType::f32 || x.type == quant::FloatType::bf16,
          "fwht: x must be float32 or bfloat16");
  const int64_t n = fwht_length(x);
  check_length(n);
  require(count >= 0 && (index != nullptr ? count <= n : count == n),
          "fwht: count must be the number of coefficients");
  for (int64_t j = 0; index != nullptr && j < count; ++j)
    require(index[j] >= (j == 0 ? 0 : index[j - 1] + 1) && index[j] < n,
            "fwht: index must ascend within [0, n)");
  const FwhtPlan plan = fwht_plan(n);
  Floats factors(static_cast<size_t>(plan.spans * n));
  make_fwht_factors(factors.data(), n, signs);
  const FwhtJob job = {plan, factors.data(), x, index, count, out};
  const int64_t blocks = (fwht_lines(x) + kFwhtLanes - 1) / kFwhtLanes;
  const int64_t grain = 1 + (int64_t{1} << 17) / (n * kFwhtLanes);
  parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
    constexpr uintptr_t kLine = 64;
    Floats room(static_cast<size_t>(fwht_work(job)) + kLine / sizeof(float));
    const auto at = reinterpret_cast<uintptr_t>(room.data());
    kernel(job, begin, end, reinterpret_cast<float*>((at + kLine - 1) / kLine * kLine));
  });
}

}  // namespace

int fwht_spans(int64_t n) {
  check_length(n);
  return fwht_plan(n).spans;
}

void make_fwht_factors(float* factors, int64_t n, const float* signs) {
  check_length(n);
  const FwhtPlan p = fwht_plan(n);
  const auto inside = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.h)));
  for (int s = 0; s < p.spans; ++s)
    for (int64_t c = 0; c < n; ++c) {
      const float sign = signs != nullptr ? signs[s * n + c] : 1.0f;
      require(sign == 1.0f || sign == -1.0f, "fwht: signs must be +1 or -1");
      const int64_t at = c - fwht_start(p, s);
      factors[s * n + c] = at >= 0 && at < p.h ? sign * inside : sign;
    }
}

void fwht_forward(float* out, const DctMatrix& x, const float* signs, const int32_t* index,
                  int64_t count) {
  transform(out, x, signs, index, count, kTables.get().forward);
}

void fwht_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                  const float* signs, const int32_t* index, int64_t count) {
  const DctMatrix x = {low, quant::FloatType::f32, rows, cols, lines};
  transform(out, x, signs, index, count, kTables.get().inverse);
}

}  // namespace lowtide::lowrank
