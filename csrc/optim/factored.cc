// SPDX-License-Identifier: Apache-2.0
#include "optim/factored.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/fpenv.h"
#include "base/parallel.h"
#include "optim/factored_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(FactoredTable, factored);
constexpr double kMost = std::numeric_limits<float>::max();
constexpr double kTiny = std::numeric_limits<float>::min();

// Rows that one thread takes: about 64 k elements, but not so few that sums by column, one set a
// chunk, outweigh the matrix.
struct Chunks {
  int64_t rows, each, count;
  explicit Chunks(int64_t all, int64_t cols)
      : rows(all),
        each(std::clamp<int64_t>(65536 / std::max<int64_t>(cols, 1), 16, 4096)),
        count((all + each - 1) / each) {}
  template <class F>
  void run(const F& f) const {
    parallel_for(count, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t c = lo; c < hi; ++c) f(c, c * each, std::min(rows, (c + 1) * each));
    });
  }
};

void check(const RowMatrix& x) {
  require(x.rows >= 0 && x.cols >= 0, "optim: rows and cols must be >= 0");
}

bool is_rate(double beta) { return beta >= 0 && beta <= 1; }
bool is_size(double x) { return std::isfinite(x) && x >= 0; }

float inverse_root(double x) {
  return static_cast<float>(std::min(1.0 / std::sqrt(std::max(x, 1.0 / (kMost * kMost))), kMost));
}

// beta2 old + (1 - beta2) (sum / count + eps) for each; false if one is not finite.
bool averages(std::vector<float>& out, const float* old, const std::vector<double>& sums,
              int64_t count, double beta2, double eps) {
  bool ok = true;
  for (size_t i = 0; i < out.size(); ++i) {
    const double square = sums[i] / static_cast<double>(count) + eps;
    out[i] = static_cast<float>(beta2 * static_cast<double>(old[i]) + (1.0 - beta2) * square);
    ok = ok && out[i] >= 0.0f && std::isfinite(out[i]);
  }
  return ok;
}

void row_and_column_squares(std::vector<double>& row, std::vector<double>& col, const RowMatrix& g,
                            bool columns) {
  const auto& table = kTables.get();
  const Chunks chunks(g.rows, g.cols);
  const size_t cols = static_cast<size_t>(g.cols);
  row.resize(static_cast<size_t>(g.rows));
  std::vector<double> part(columns ? static_cast<size_t>(chunks.count) * cols : 0);
  chunks.run([&](int64_t c, int64_t begin, int64_t end) {
    table.squares(row.data(), columns ? part.data() + static_cast<size_t>(c) * cols : nullptr, g,
                  begin, end);
  });
  if (!columns) return;
  col.assign(cols, 0.0);
  parallel_for((g.cols + 1023) / 1024, 1, [&](int64_t lo, int64_t hi) {
    const size_t first = static_cast<size_t>(lo) * 1024;
    const size_t last = std::min(cols, static_cast<size_t>(hi) * 1024);
    for (int64_t c = 0; c < chunks.count; ++c)
      for (size_t k = first; k < last; ++k) col[k] += part[static_cast<size_t>(c) * cols + k];
  });
}

}  // namespace

bool adafactor(float* u, float* row, float* col, const RowMatrix& g, const FactoredRule& rule) {
  check(g);
  require(is_rate(rule.beta2), "adafactor: beta2 must be in [0, 1]");
  require(is_size(rule.eps) && is_size(rule.least) && is_size(rule.mean_least),
          "adafactor: eps must be finite and >= 0");
  require(rule.threshold > 0, "adafactor: threshold must be > 0");
  const int64_t n = g.rows * g.cols;
  if (n == 0) return true;
  PinnedFpEnv pin;
  const auto& table = kTables.get();
  std::vector<double> row_sums, col_sums;
  row_and_column_squares(row_sums, col_sums, g, col != nullptr);
  std::vector<float> new_row(row_sums.size()), new_col(col_sums.size());
  bool ok = averages(new_row, row, row_sums, g.cols, rule.beta2, rule.eps);
  ok = ok && averages(new_col, col, col_sums, g.rows, rule.beta2, rule.eps);
  const Chunks chunks(g.rows, g.cols);
  double total = 0.0;
  if (ok) {
    double mean = 1.0;
    if (col != nullptr) {
      mean = 0.0;
      for (float r : new_row) mean += static_cast<double>(r);
      mean = std::max({mean / static_cast<double>(g.rows), rule.mean_least, kTiny});
    }
    std::vector<float> r(new_row.size()), c(new_col.size());
    for (size_t i = 0; i < r.size(); ++i)
      r[i] = inverse_root(static_cast<double>(new_row[i]) / mean);
    for (size_t k = 0; k < c.size(); ++k) c[k] = inverse_root(static_cast<double>(new_col[k]));
    const float cap = inverse_root(rule.least);
    std::vector<double> sums(static_cast<size_t>(chunks.count));
    chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
      sums[static_cast<size_t>(chunk)] =
          table.scale(u, g, r.data(), col != nullptr ? c.data() : nullptr, cap, begin, end);
    });
    for (double s : sums) total += s;
    ok = std::isfinite(total);
  }
  if (!ok) {
    std::fill(u, u + n, 0.0f);
    return false;
  }
  std::copy(new_row.begin(), new_row.end(), row);
  if (col != nullptr) std::copy(new_col.begin(), new_col.end(), col);
  const double excess = std::sqrt(total / static_cast<double>(n)) / rule.threshold;
  if (excess > 1.0) {
    const std::vector<float> shrink(static_cast<size_t>(g.rows), static_cast<float>(1.0 / excess));
    scale_rows(u, shrink.data(), g.rows, g.cols);
  }
  return true;
}

bool block_adam(float* factor, float* v, const RowMatrix& g, const BlockRule& rule) {
  check(g);
  require(is_rate(rule.beta2), "block_adam: beta2 must be in [0, 1]");
  require(is_size(rule.a) && is_size(rule.s) && is_size(rule.eps),
          "block_adam: a, s and eps must be finite and >= 0");
  if (g.rows * g.cols == 0) return true;
  PinnedFpEnv pin;
  std::vector<double> sums, none;
  row_and_column_squares(sums, none, g, false);
  std::vector<float> next(sums.size());
  const bool ok = averages(next, v, sums, g.cols, rule.beta2, 0.0);
  for (size_t i = 0; i < next.size(); ++i) {
    const double root =
        std::sqrt(static_cast<double>(next[i])) * rule.s + std::max(rule.eps, kTiny);
    factor[i] = ok ? static_cast<float>(std::min(rule.a / root, kMost)) : 0.0f;
    if (ok) v[i] = next[i];
  }
  return ok;
}

void row_dots(double* out, const RowMatrix& x, const RowMatrix& y) {
  check(x);
  require(x.rows == y.rows && x.cols == y.cols, "row_dots: x and y must have the same shape");
  const auto& table = kTables.get();
  Chunks(x.rows, x.cols).run([&](int64_t, int64_t begin, int64_t end) {
    table.dots(out, x, y, begin, end);
  });
}

void shear_rows(float* u, const float* c, const RowMatrix& w) {
  check(w);
  const auto& table = kTables.get();
  Chunks(w.rows, w.cols).run([&](int64_t, int64_t begin, int64_t end) {
    table.shear(u, c, w, begin, end);
  });
}

void scale_rows(float* u, const float* c, int64_t rows, int64_t cols) {
  check({u, Dtype::f32, rows, cols});
  const auto& table = kTables.get();
  Chunks(rows, cols).run([&](int64_t, int64_t begin, int64_t end) {
    table.multiply(u, c, cols, begin, end);
  });
}

}  // namespace lowtide::optim
