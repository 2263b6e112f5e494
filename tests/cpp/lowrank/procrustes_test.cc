// SPDX-License-Identifier: Apache-2.0
#include "lowrank/procrustes.h"

#include <cmath>
#include <vector>

#include "lowrank/orthonormal.h"
#include "quant/matmul.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;

Floats filled(int64_t n, uint64_t seed) {
  const auto x = noise(n, seed);
  return Floats(x.begin(), x.end());
}

Floats basis(int64_t r, int64_t d, uint64_t seed) {
  Floats y = filled(r * d, seed);
  orthonormalize(y, r, d);
  return y;
}

// a b (or a b'), in double.
std::vector<double> product(const Floats& a, const Floats& b, int64_t m, int64_t k, int64_t n,
                            bool transposed) {
  std::vector<double> c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t q = 0; q < k; ++q)
        c[static_cast<size_t>(i * n + j)] +=
            static_cast<double>(a[static_cast<size_t>(i * k + q)]) *
            b[static_cast<size_t>(transposed ? j * k + q : q * n + j)];
  return c;
}

double off_orthonormal(const Floats& y, int64_t r, int64_t d) {
  const auto g = product(y, y, r, d, r, true);
  double most = 0;
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < r; ++j)
      most = std::max(most, std::fabs(g[static_cast<size_t>(i * r + j)] - (i == j ? 1 : 0)));
  return most;
}

TEST(Procrustes, PolishFinishesNearlyOrthonormalRows) {
  for (auto [r, d] : {std::pair<int64_t, int64_t>{1, 1}, {1, 700}, {9, 33}, {40, 1100}}) {
    Floats y = basis(r, d, 3);
    const auto z = noise(r * d, 4);
    for (size_t i = 0; i < y.size(); ++i) y[i] += 5e-5f / std::sqrt(static_cast<float>(d)) * z[i];
    ASSERT_TRUE(polish(y, r, d));
    EXPECT_LT(off_orthonormal(y, r, d), 1e-6) << r << "x" << d;
  }
  Floats far = filled(9 * 33, 3);
  const Floats before = far;
  EXPECT_FALSE(polish(far, 9, 33));
  EXPECT_EQ(far, before);
}

// w = u diag(s) v: its polar factor is u v.
TEST(Procrustes, PolarFactorKeepsTheSingularVectors) {
  const int64_t r = 24;
  const Floats u = basis(r, r, 1), v = basis(r, r, 2);
  for (double least : {1.0, 0.3, 1e-2, 1e-3, 30.0}) {
    Floats scaled = v, w(v.size());
    for (int64_t i = 0; i < r; ++i) {
      const double t = static_cast<double>(i) / static_cast<double>(r - 1);
      for (int64_t j = 0; j < r; ++j)
        scaled[static_cast<size_t>(i * r + j)] *= static_cast<float>(std::pow(least, t));
    }
    quant::matmul(w.data(), quant::dense(u.data(), r, r), false, quant::dense(scaled.data(), r, r),
                  false);
    ASSERT_TRUE(polar(w, r)) << least;
    const auto want = product(u, v, r, r, r, false);
    // Rounding of w, 1e-7, turns directions by 1e-7 / least.
    for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(w[i], want[i], 1e-6 + 1e-7 / least) << least;
  }
}

TEST(Procrustes, APolarFactorThatDoesNotExistIsRefused) {
  Floats zero(6 * 6, 0.0f);
  EXPECT_FALSE(polar(zero, 6));
  Floats singular(4 * 4, 0.0f);
  singular[0] = singular[5] = 1;
  EXPECT_FALSE(polar(singular, 4));
}

// No orthonormal basis of the same subspace lies closer: prev q' is symmetric and positive.
TEST(Procrustes, AlignedRowsAreTheClosest) {
  const int64_t r = 7, d = 50;
  const Floats prev = basis(r, d, 5);
  for (float mix : {0.0f, 0.1f, 1.0f, 10.0f}) {
    Floats y = prev;
    const auto z = noise(r * d, 6);
    for (size_t i = 0; i < y.size(); ++i) y[i] += mix * 0.14f * z[i];
    const Floats before = y;
    align(y, r, d, prev.data());
    EXPECT_LT(off_orthonormal(y, r, d), 1e-6);
    const auto w = product(prev, y, r, d, r, true);
    for (int64_t i = 0; i < r; ++i) {
      EXPECT_GT(w[static_cast<size_t>(i * r + i)], 0);
      for (int64_t j = 0; j < i; ++j)
        EXPECT_NEAR(w[static_cast<size_t>(i * r + j)], w[static_cast<size_t>(j * r + i)], 1e-5);
    }
    // The same subspace: rows of `before` lie in it.
    const auto inside = product(before, y, r, d, r, true);
    for (int64_t i = 0; i < r; ++i) {
      double all = 0, held = 0;
      for (int64_t k = 0; k < d; ++k)
        all += static_cast<double>(before[static_cast<size_t>(i * d + k)]) *
               before[static_cast<size_t>(i * d + k)];
      for (int64_t j = 0; j < r; ++j)
        held += inside[static_cast<size_t>(i * r + j)] * inside[static_cast<size_t>(i * r + j)];
      EXPECT_NEAR(held / all, 1, 1e-5);
    }
  }
  // Already there: stays.
  Floats y = prev;
  align(y, r, d, prev.data());
  for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], prev[i], 1e-6);
}

TEST(Procrustes, OrthogonalSubspacesStayApart) {
  Floats y(2 * 6, 0.0f), prev(2 * 6, 0.0f);
  y[0] = 2, y[7] = 3, prev[2] = 1, prev[9] = 1;
  align(y, 2, 6, prev.data());
  EXPECT_LT(off_orthonormal(y, 2, 6), 1e-6);
  EXPECT_NEAR(y[0], 1, 1e-6);
  EXPECT_NEAR(y[7], 1, 1e-6);
}

TEST(Procrustes, OneDigestEverywhere) {
  const Floats prev = basis(20, 600, 5), start = basis(20, 600, 6);
  same_everywhere([&] {
    Floats y = start;
    align(y, 20, 600, prev.data());
    return digest(y);
  });
}

}  // namespace
}  // namespace lowtide::lowrank
