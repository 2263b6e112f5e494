// SPDX-License-Identifier: Apache-2.0
#include "lowrank/eigen.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;
using Vec = std::vector<double>;

double at(const Vec& a, int64_t n, int64_t i, int64_t j) {
  return a[static_cast<size_t>(i * n + j)];
}

void expect_decomposed(const Vec& a, int64_t n) {
  Vec work = a, values(static_cast<size_t>(n)), v(a.size());
  symmetric_eigen(work.data(), n, values.data(), v.data());
  double size = 0;
  for (double x : a) size = std::max(size, std::fabs(x));
  // Backward stable: a modest multiple of n 2^-53 |a|, |a| <= n max|a|.
  const double close = 4 * static_cast<double>(n * n) * 0x1p-53;
  for (int64_t i = 0; i < n; ++i) {
    if (i > 0) {
      EXPECT_GE(values[static_cast<size_t>(i - 1)], values[static_cast<size_t>(i)]);
    }
    for (int64_t j = 0; j < n; ++j) {
      double dot = 0, product = 0;
      for (int64_t k = 0; k < n; ++k) {
        dot += at(v, n, i, k) * at(v, n, j, k);
        product += at(a, n, j, k) * at(v, n, i, k);
      }
      ASSERT_NEAR(dot, i == j ? 1 : 0, close);
      ASSERT_NEAR(product, values[static_cast<size_t>(i)] * at(v, n, i, j), close * size);
    }
  }
}

Vec random_symmetric(int64_t n, uint64_t seed) {
  const auto x = noise(n * n, seed);
  Vec a(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      a[static_cast<size_t>(i * n + j)] = static_cast<double>(x[static_cast<size_t>(i * n + j)]) +
                                          x[static_cast<size_t>(j * n + i)];
  return a;
}

TEST(Eigen, RandomMatricesOfEverySize) {
  for (int64_t n : {0, 1, 2, 3, 4, 7, 8, 16, 17, 33, 64, 100}) {
    SCOPED_TRACE(n);
    expect_decomposed(random_symmetric(n, 1), n);
  }
}

TEST(Eigen, DegenerateMatrices) {
  for (int64_t n : {2, 5, 20}) {
    const auto size = static_cast<size_t>(n * n);
    expect_decomposed(Vec(size, 0.0), n);
    expect_decomposed(Vec(size, 1.0), n);  // rank one
    Vec identity(size, 0.0), split(size, 0.0), graded(size, 0.0);
    for (int64_t i = 0; i < n; ++i) {
      identity[static_cast<size_t>(i * n + i)] = -2.0;
      graded[static_cast<size_t>(i * n + i)] = std::ldexp(1.0, static_cast<int>(-3 * i));
      split[static_cast<size_t>(i * n + i)] = static_cast<double>(i % 3);
      split[static_cast<size_t>(i * n + n - 1 - i)] = 1.0;
    }
    expect_decomposed(identity, n);
    expect_decomposed(graded, n);
    expect_decomposed(split, n);
  }
}

TEST(Eigen, ExtremeScales) {
  for (int power : {-900, -500, 500, 900}) {
    Vec a = random_symmetric(9, 2);
    for (double& x : a) x = std::ldexp(x, power);
    expect_decomposed(a, 9);
  }
}

TEST(Eigen, KnownEigenvalues) {
  // Second differences: 2 - 2 cos(k pi / (n + 1)).
  const int64_t n = 12;
  Vec a(static_cast<size_t>(n * n)), values(static_cast<size_t>(n)), v(a.size());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      a[static_cast<size_t>(i * n + j)] = i == j ? 2 : std::abs(i - j) == 1 ? -1 : 0;
  symmetric_eigen(a.data(), n, values.data(), v.data());
  for (int64_t k = 0; k < n; ++k)
    EXPECT_NEAR(values[static_cast<size_t>(k)],
                2 - 2 * std::cos(static_cast<double>(n - k) * std::acos(-1.0) / 13), 1e-14);
}

TEST(Eigen, OneDigest) {
  same_everywhere([&] {
    Vec a = random_symmetric(61, 3), values(61), v(a.size());
    symmetric_eigen(a.data(), 61, values.data(), v.data());
    return digest(values) ^ digest(v);
  });
}

TEST(Eigen, NonFiniteInputIsRefused) {
  Vec a = random_symmetric(5, 1), values(5), v(a.size());
  a[7] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(symmetric_eigen(a.data(), 5, values.data(), v.data()), Error);
}

}  // namespace
}  // namespace lowtide::lowrank
