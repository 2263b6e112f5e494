// SPDX-License-Identifier: Apache-2.0
// Hessian of cross entropy in the logits. 12 bytes an element are moved at least by the product
// (z and u read, y written), 8 by the diagonal, 4 by the trace. `roofline`: bytes a second against
// axpy over as much memory. Outputs are verified after timing. Rows of C classes; the smallest size
// fits into the second cache level.
#include "curvature/ce_rows.h"

#include <cmath>

#include "roofline.h"

namespace lowtide {
namespace {

using curvature::CeRows;

enum class Kind { product, diagonal, trace };

template <Kind kind, int64_t cols>
void rows(benchmark::State& state) {
  const int64_t n = state.range(0) / cols * cols, count = n / cols;
  const auto z = bench::scattered(n, 4.0f), u = bench::scattered(n);
  bench::Aligned<float> r(static_cast<size_t>(count), 1.0f), y(static_cast<size_t>(n));
  const CeRows a = {z.data(), r.data(), u.data(), nullptr, count, cols};
  for (auto _ : state) {
    if (kind == Kind::product) curvature::ce_product(y.data(), a);
    if (kind == Kind::diagonal) curvature::ce_diagonal(y.data(), a);
    if (kind == Kind::trace) curvature::ce_trace(y.data(), a);
    benchmark::ClobberMemory();
  }
  // The last row, in double.
  const float* last = z.data() + n - cols;
  double sum = 0, mean = 0, squares = 0;
  for (int64_t j = 0; j < cols; ++j) {
    const double e = std::exp(static_cast<double>(last[j]));
    sum += e, mean += e * u[static_cast<size_t>(n - cols + j)], squares += e * e;
  }
  const double p = std::exp(static_cast<double>(last[0])) / sum;
  const auto at = static_cast<size_t>(n - cols);
  const double want = kind == Kind::product    ? p * (u[at] - mean / sum)
                      : kind == Kind::diagonal ? p * (1 - p)
                                               : 1 - squares / (sum * sum);
  const double got = kind == Kind::trace ? y[static_cast<size_t>(count - 1)] : y[at];
  if (!(std::fabs(got - want) < 1e-5 * (kind == Kind::trace ? 1.0 : p)))
    state.SkipWithError("wrong result");
  const double bytes = kind == Kind::product ? 12 : kind == Kind::diagonal ? 8 : 4;
  bench::report(state, bytes * static_cast<double>(n), bench::axpy_bytes_per_second(n), n);
}

const int kRegistered = [] {
  const std::vector<int64_t> sizes = {1 << 16, 1 << 20, 1 << 24};
  bench::register_per_isa("ce_product_10", rows<Kind::product, 10>, sizes);
  bench::register_per_isa("ce_product_1000", rows<Kind::product, 1000>, sizes);
  bench::register_per_isa("ce_product_49152", rows<Kind::product, 49152>, sizes);
  bench::register_per_isa("ce_diagonal_1000", rows<Kind::diagonal, 1000>, sizes);
  bench::register_per_isa("ce_trace_1000", rows<Kind::trace, 1000>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
