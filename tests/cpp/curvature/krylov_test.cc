// SPDX-License-Identifier: Apache-2.0
#include "curvature/krylov.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "curvature/krylov_bases.h"
#include "testing.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;

// Columns around lanes, groups, tiles and chunks.
const std::vector<int64_t> kColumns = {0,   1,   31,   32,   33,   255,   256,   257,
                                       300, 511, 1023, 1024, 1025, 16383, 16385, 40001};

double norm2(const std::vector<float>& x) {
  double s = 0;
  for (float v : x) s += static_cast<double>(v) * v;
  return s;
}

TEST(Krylov, SameBitsForEverySizeTypeIsaAndThreadCount) {
  for (BasisType type : kBasisTypes)
    for (int64_t rows : {0, 1, 2, 4, 5, 9, 19})
      for (int64_t n : kColumns) {
        if (rows > 9 && n > 2000) continue;
        const TestBasis q(type, rows, n, 3, 0.01f);
        const auto start = noise(n, 4);
        same_everywhere([&] {
          uint64_t h = 0;
          for (double again : {0.0, 1e30}) {
            auto w = start;
            std::vector<double> c(static_cast<size_t>(rows), -1.0);
            const Projection p = project(c.data(), q.view(), w.data(), again);
            const double numbers[] = {p.before, p.after, p.left, static_cast<double>(p.passes)};
            h = h * 3 + (digest(w) ^ 5 * digest(c) ^ 7 * digest(numbers, sizeof numbers));
            basis_dots(c.data(), q.view(), start.data());
            h = h * 3 + digest(c);
          }
          return h;
        });
      }
}

TEST(Krylov, LanczosStepHasTheSameBitsEverywhere) {
  for (int64_t n : kColumns) {
    const auto start = noise(n, 1), q = noise(n, 2), previous = noise(n, 3);
    for (bool first : {false, true})
      same_everywhere([&] {
        auto w = start;
        const LanczosStep s =
            lanczos_step(w.data(), q.data(), first ? nullptr : previous.data(), 0.3, n);
        const double numbers[] = {s.alpha, s.norm2};
        return digest(w) ^ 3 * digest(numbers, sizeof numbers);
      });
  }
}

// Each of the n products and additions of a lane rounds once: 32 lanes in groups of 8 additions.
TEST(Krylov, CoefficientsAreProductsWithTheRows) {
  for (BasisType type : kBasisTypes) {
    const TestBasis q(type, 7, 5000, 5);
    const auto w = noise(q.n, 6);
    std::vector<double> c(7);
    basis_dots(c.data(), q.view(), w.data());
    for (int64_t i = 0; i < q.rows; ++i) {
      double want = 0, size = 0;
      for (int64_t k = 0; k < q.n; ++k) {
        want += q.at(i, k) * w[static_cast<size_t>(k)];
        size += std::fabs(q.at(i, k) * w[static_cast<size_t>(k)]);
      }
      EXPECT_NEAR(c[static_cast<size_t>(i)], want, 20 * 6e-8 * size);
    }
  }
}

// Rows that are orthonormal but for rounding: orthogonal afterwards to the last bits of floats.
TEST(Krylov, WhatIsLeftIsOrthogonalToAnOrthonormalBasis) {
  const int64_t n = 6000, m = 12;
  TestBasis q(BasisType::f32, m, n, 7);
  for (int64_t i = 0; i < m; ++i) {  // Gram-Schmidt in double
    std::vector<double> row(static_cast<size_t>(n));
    for (int64_t k = 0; k < n; ++k) row[static_cast<size_t>(k)] = q.at(i, k);
    for (int twice = 0; twice < 2; ++twice)
      for (int64_t j = 0; j < i; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < n; ++k) dot += row[static_cast<size_t>(k)] * q.at(j, k);
        for (int64_t k = 0; k < n; ++k) row[static_cast<size_t>(k)] -= dot * q.at(j, k);
      }
    double size = 0;
    for (double v : row) size += v * v;
    for (int64_t k = 0; k < n; ++k)
      q.f32[static_cast<size_t>(i * n + k)] =
          static_cast<float>(row[static_cast<size_t>(k)] / std::sqrt(size));
  }
  const auto start = noise(n, 8);
  for (double along : {0.0, 1e4}) {  // next to nothing along the basis, or nearly everything
    auto w = start;
    for (int64_t k = 0; k < n; ++k)
      w[static_cast<size_t>(k)] += static_cast<float>(along * q.at(3, k));
    const double before = norm2(w);
    std::vector<double> c(static_cast<size_t>(m));
    const Projection p = project(c.data(), q.view(), w.data(), 1e-5);
    EXPECT_NEAR(p.before, before, 1e-5 * before);
    EXPECT_NEAR(p.after, norm2(w), 1e-5 * p.after);
    EXPECT_EQ(p.passes, along > 0 ? 2 : 1);
    EXPECT_NEAR(c[3], along, along > 0 ? 2.0 * std::sqrt(norm2(start) / n) * 3 : 3);
    std::vector<double> left(static_cast<size_t>(m));
    basis_dots(left.data(), q.view(), w.data());
    for (double l : left) EXPECT_LT(std::fabs(l), 1e-6 * std::sqrt(p.after));
  }
}

TEST(Krylov, LanczosStepIsItsDefinition) {
  const int64_t n = 5000;
  const auto start = noise(n, 1), q = noise(n, 2), previous = noise(n, 3);
  auto w = start;
  const LanczosStep s = lanczos_step(w.data(), q.data(), previous.data(), 0.5, n);
  double alpha = 0, size = 0;
  for (size_t k = 0; k < w.size(); ++k)
    alpha += (start[k] - 0.5 * previous[k]) * static_cast<double>(q[k]);
  EXPECT_NEAR(s.alpha, alpha, 1e-4);
  for (size_t k = 0; k < w.size(); ++k) {
    const double want = start[k] - 0.5 * previous[k] - s.alpha * static_cast<double>(q[k]);
    size += want * want;
    EXPECT_NEAR(w[k], want, 3e-7 * (1 + std::fabs(s.alpha)));
  }
  EXPECT_NEAR(s.norm2, size, 1e-5 * size);
}

TEST(Krylov, InfAndNanReachTheNorm) {
  const TestBasis q(BasisType::f32, 3, 2000, 9);
  for (float bad : {INFINITY, NAN}) {
    auto w = noise(2000, 10);
    w[1999] = bad;
    std::vector<double> c(3);
    EXPECT_FALSE(std::isfinite(project(c.data(), q.view(), w.data(), 1e-4).after));
  }
}

TEST(Krylov, ImpossibleArgumentsAreRefused) {
  double c = 0;
  float w = 0, scale = 1;
  EXPECT_THROW(project(&c, {&w, nullptr, BasisType::f32, -1, 1}, &w, 0), Error);
  EXPECT_THROW(project(&c, {&w, nullptr, BasisType::int8, 1, 1}, &w, 0), Error);
  EXPECT_THROW(project(&c, {&w, &scale, BasisType::f32, 1, 1}, &w, 0), Error);
  EXPECT_THROW(project(&c, {&w, nullptr, BasisType::f32, 1, 1}, &w, -1), Error);
  EXPECT_THROW(lanczos_step(&w, &w, nullptr, 0, -1), Error);
}

}  // namespace
}  // namespace lowtide::curvature
