// SPDX-License-Identifier: Apache-2.0
#include "optim/factored.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/fpenv.h"
#include "base/parallel.h"
#include "optim/factored_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(FactoredTable, factored);

struct Chunks {
  int64_t rows, each, count;
  explicit Chunks(int64_t all, int64_t cols)
      : rows(all), each(chunk_rows(cols)), count(chunk_count(all, cols)) {}
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

// The second moments after this step; false if one is not finite.
bool averages(std::vector<float>& out, const float* old, const std::vector<double>& sums,
              int64_t count, double beta2, double eps) {
  bool ok = true;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = averaged(old[i], sums[i], count, beta2, eps);
    ok = ok && is_moment(out[i]);
  }
  return ok;
}

// Element i goes to lane i % 16.
template <class T>
double sum_of(const std::vector<T>& x) {
  double lane[kRowLanes] = {};
  for (size_t i = 0; i < x.size(); ++i) lane[i % kRowLanes] += static_cast<double>(x[i]);
  return fold_row(lane);
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
  double total = 0.0;
  if (ok) {
    const double mean = col == nullptr ? 1.0 : row_mean(sum_of(new_row), g.rows, rule.mean_least);
    std::vector<float> r(new_row.size()), c(new_col.size());
    for (size_t i = 0; i < r.size(); ++i)
      r[i] = inverse_root(static_cast<double>(new_row[i]) / mean);
    for (size_t k = 0; k < c.size(); ++k) c[k] = inverse_root(static_cast<double>(new_col[k]));
    const float cap = inverse_root(rule.least);
    std::vector<double> sums(r.size());
    Chunks(g.rows, g.cols).run([&](int64_t, int64_t begin, int64_t end) {
      table.scale(u, sums.data(), g, r.data(), col != nullptr ? c.data() : nullptr, cap, begin,
                  end);
    });
    total = sum_of(sums);
    ok = std::isfinite(total);
  }
  if (!ok) {
    std::fill(u, u + n, 0.0f);
    return false;
  }
  std::copy(new_row.begin(), new_row.end(), row);
  if (col != nullptr) std::copy(new_col.begin(), new_col.end(), col);
  const float shrink = shrinkage(total, static_cast<double>(n), rule.threshold);
  if (shrink != 1.0f) {
    const std::vector<float> all(new_row.size(), shrink);
    scale_rows(u, all.data(), g.rows, g.cols);
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
    factor[i] = ok ? block_factor(next[i], rule.a, rule.s, rule.eps) : 0.0f;
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
