// SPDX-License-Identifier: Apache-2.0
#include "optim/factored.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/hd.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

struct Shape {
  int64_t rows, cols;
};
// Lanes minus and plus one, one row, one column, several chunks of rows and of columns.
const std::vector<Shape> kShapes = {{0, 0},    {0, 5},    {5, 0},  {1, 1},     {1, 15},
                                    {1, 4097}, {3, 16},   {7, 17}, {33, 31},   {1000, 1},
                                    {129, 65}, {5000, 3}, {9, 70}, {40, 4100}, {300, 257}};

struct Gradient {
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
  Shape shape;
  Gradient(Shape s, uint64_t seed) : f32(noise(s.rows * s.cols, seed)), shape(s) {
    for (float x : f32) bf16.push_back(float_to_bf16(x));
  }
  RowMatrix view(Dtype dtype) const {
    return {dtype == Dtype::f32 ? static_cast<const void*>(f32.data()) : bf16.data(), dtype,
            shape.rows, shape.cols};
  }
};

const FactoredRule kPaper = {0.8, 1e-30, 0.0, 0.0, 1.0};
const FactoredRule kTorch = {0.8, 0.0, 1.4e-14, 1.2e-7, 1.0};

struct Second {
  std::vector<float> row, col, u;
  explicit Second(Shape s)
      : row(static_cast<size_t>(s.rows), 1e-3f),
        col(static_cast<size_t>(s.cols), 2e-3f),
        u(static_cast<size_t>(s.rows * s.cols)) {}
  uint64_t bits() const { return digest(row) * 31 + digest(col) * 7 + digest(u); }
};

TEST(Factored, SameBitsEverywhere) {
  for (const Shape& s : kShapes)
    for (Dtype dtype : {Dtype::f32, Dtype::bf16})
      same_everywhere([&] {
        const Gradient g(s, 1), w(s, 2);
        Second factored(s), own(s), mini(s);
        EXPECT_TRUE(adafactor(factored.u.data(), factored.row.data(), factored.col.data(),
                              g.view(dtype), kPaper));
        EXPECT_TRUE(adafactor(factored.u.data(), factored.row.data(), factored.col.data(),
                              g.view(dtype), kTorch));
        EXPECT_TRUE(adafactor(own.u.data(), own.row.data(), nullptr, g.view(dtype), kPaper));
        std::vector<float> factor(static_cast<size_t>(s.rows));
        EXPECT_TRUE(
            block_adam(factor.data(), mini.row.data(), g.view(dtype), {0.99, 1e-2, 3.0, 1e-8}));
        std::vector<double> dots(static_cast<size_t>(s.rows));
        row_dots(dots.data(), g.view(dtype), w.view(Dtype::f32));
        uint64_t h = digest(dots);
        row_dots(dots.data(), w.view(Dtype::f32), g.view(dtype));
        EXPECT_EQ(digest(dots), h);
        shear_rows(own.u.data(), factor.data(), w.view(dtype));
        scale_rows(own.u.data(), factor.data(), s.rows, s.cols);
        return factored.bits() ^ own.bits() * 3 ^ mini.bits() * 5 ^ digest(factor) * 11 ^ h;
      });
}

TEST(Factored, FollowsTheFormulaInDouble) {
  const Shape s = {37, 53};
  const Gradient g(s, 5);
  for (const FactoredRule& rule : {kPaper, kTorch, FactoredRule{0.0, 1e-6, 0.0, 0.0, 1e30}}) {
    Second got(s);
    ASSERT_TRUE(adafactor(got.u.data(), got.row.data(), got.col.data(), g.view(Dtype::f32), rule));
    std::vector<double> row(37, rule.beta2 * 1e-3f), col(53, rule.beta2 * 2e-3f), u;
    auto at = [&](size_t i, size_t k) { return static_cast<double>(g.f32[i * 53 + k]); };
    for (size_t i = 0; i < 37; ++i)
      for (size_t k = 0; k < 53; ++k) {
        const double square = (1 - rule.beta2) * (at(i, k) * at(i, k) + rule.eps);
        row[i] += square / 53, col[k] += square / 37;
      }
    double mean = 0.0, total = 0.0;
    for (double r : row) mean += r / 37;
    for (size_t i = 0; i < 37; ++i)
      for (size_t k = 0; k < 53; ++k) {
        const double v = row[i] * col[k] / std::max(mean, rule.mean_least);
        u.push_back(at(i, k) / std::sqrt(std::max(v, rule.least)));
        total += u.back() * u.back();
      }
    const double clip = std::max(1.0, std::sqrt(total / (37 * 53)) / rule.threshold);
    // Second moments, their roots' reciprocals and the products are rounded to floats: 6 roundings.
    for (size_t i = 0; i < u.size(); ++i)
      EXPECT_NEAR(got.u[i], u[i] / clip, 6 * 6e-8 * std::abs(u[i] / clip));
    for (size_t i = 0; i < 37; ++i) EXPECT_NEAR(got.row[i], row[i], 6e-8 * row[i]);
    for (size_t k = 0; k < 53; ++k) EXPECT_NEAR(got.col[k], col[k], 6e-8 * col[k]);
  }
}

TEST(Factored, ClipsTheRootMeanSquare) {
  const Shape s = {64, 64};
  const Gradient g(s, 6);
  Second small(s);
  for (auto& x : small.row) x = 1e-12f;
  for (auto& x : small.col) x = 1e-12f;
  ASSERT_TRUE(adafactor(small.u.data(), small.row.data(), small.col.data(), g.view(Dtype::f32),
                        {0.999, 1e-30, 0.0, 0.0, 0.5}));
  double total = 0.0;
  for (float x : small.u) total += static_cast<double>(x) * x;
  EXPECT_NEAR(std::sqrt(total / 4096), 0.5, 1e-6);
}

TEST(Factored, ZeroGradientsGiveZeros) {
  const Shape s = {20, 33};
  Gradient g(s, 1);
  std::fill(g.f32.begin(), g.f32.end(), 0.0f);
  for (const FactoredRule& rule : {kPaper, kTorch, FactoredRule{0.0, 0.0, 0.0, 0.0, 1.0}})
    for (bool columns : {true, false}) {
      Second got(s);
      ASSERT_TRUE(adafactor(got.u.data(), got.row.data(), columns ? got.col.data() : nullptr,
                            g.view(Dtype::f32), rule));
      for (float x : got.u) EXPECT_EQ(float_bits(x), 0u);
    }
}

TEST(Factored, WhatIsNotFiniteChangesNoState) {
  const Shape s = {20, 33};
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity(), 3e38f}) {
    Gradient g(s, 1);
    g.f32[100] = bad;
    Second got(s);
    const auto row = got.row, col = got.col;
    EXPECT_FALSE(
        adafactor(got.u.data(), got.row.data(), got.col.data(), g.view(Dtype::f32), kPaper));
    EXPECT_EQ(got.row, row);
    EXPECT_EQ(got.col, col);
    for (float x : got.u) EXPECT_EQ(x, 0.0f);
    std::vector<float> factor(20, 5.0f);
    EXPECT_FALSE(
        block_adam(factor.data(), got.row.data(), g.view(Dtype::f32), {0.99, 1e-2, 1.0, 1e-8}));
    EXPECT_EQ(got.row, row);
    for (float x : factor) EXPECT_EQ(x, 0.0f);
  }
}

TEST(Factored, BlockAdamFollowsItsFormula) {
  const Shape s = {12, 700};
  const Gradient g(s, 8);
  Second got(s);
  std::vector<float> factor(12);
  ASSERT_TRUE(
      block_adam(factor.data(), got.row.data(), g.view(Dtype::f32), {0.99, 1e-2, 3.0, 1e-8}));
  for (size_t i = 0; i < 12; ++i) {
    double v = 0.99 * 1e-3f;
    for (size_t k = 0; k < 700; ++k)
      v += 0.01 / 700 * static_cast<double>(g.f32[i * 700 + k]) * g.f32[i * 700 + k];
    EXPECT_NEAR(got.row[i], v, 6e-8 * v);
    const double want = 1e-2 / (std::sqrt(v) * 3.0 + 1e-8);
    EXPECT_NEAR(factor[i], want, 2 * 6e-8 * want);
  }
}

TEST(Factored, BadArgumentsAreRefused) {
  Second got({2, 2});
  const Gradient g({2, 2}, 1);
  const RowMatrix view = g.view(Dtype::f32);
  for (const FactoredRule& rule : {FactoredRule{1.5, 0, 0, 0, 1}, FactoredRule{0.9, -1, 0, 0, 1},
                                   FactoredRule{0.9, 0, 0, 0, 0}})
    EXPECT_THROW(adafactor(got.u.data(), got.row.data(), nullptr, view, rule), Error);
  EXPECT_THROW(block_adam(got.u.data(), got.row.data(), view, {0.9, -1, 1, 1}), Error);
  EXPECT_THROW(row_dots(nullptr, view, {nullptr, Dtype::f32, 3, 2}), Error);
}

}  // namespace
}  // namespace lowtide::optim
