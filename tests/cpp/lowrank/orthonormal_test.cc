// SPDX-License-Identifier: Apache-2.0
#include "lowrank/orthonormal.h"

#include <cmath>
#include <vector>

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

double dot(const Floats& a, int64_t i, const Floats& b, int64_t j, int64_t d) {
  double s = 0;
  for (int64_t k = 0; k < d; ++k)
    s += static_cast<double>(a[static_cast<size_t>(i * d + k)]) * b[static_cast<size_t>(j * d + k)];
  return s;
}

void expect_orthonormal(const Floats& q, int64_t r, int64_t d, double tolerance = 1e-6) {
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j <= i; ++j) ASSERT_NEAR(dot(q, i, q, j, d), i == j ? 1 : 0, tolerance);
}

// Row i lies in the span of rows 0 .. i of y and on the side of row i.
void expect_triangular(const Floats& q, const Floats& y, int64_t r, int64_t d, double tolerance) {
  for (int64_t i = 0; i < r; ++i) {
    const double norm = std::sqrt(dot(y, i, y, i, d));
    EXPECT_GT(dot(q, i, y, i, d), 0);
    for (int64_t j = i + 1; j < r; ++j) ASSERT_NEAR(dot(q, j, y, i, d) / norm, 0, tolerance);
  }
}

TEST(Orthonormal, RandomRowsOfEverySize) {
  for (auto [r, d] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {3, 3}, {16, 16}, {17, 40}, {30, 300}}) {
    SCOPED_TRACE(::testing::Message() << r << " x " << d);
    const Floats y = filled(r * d, 3);
    Floats q = y, h = y;
    orthonormalize(q, r, d);
    orthonormalize_householder(h.data(), r, d);
    expect_orthonormal(q, r, d);
    expect_orthonormal(h, r, d);
    expect_triangular(h, y, r, d, 1e-6);
    if (r < d) expect_triangular(q, y, r, d, 1e-5);
    same_everywhere([&] {
      Floats a = y, b = y;
      orthonormalize(a, r, d);
      orthonormalize_householder(b.data(), r, d);
      return digest(a) ^ digest(b);
    });
  }
}

TEST(Orthonormal, GradedAndNearlyDependentRows) {
  const int64_t r = 20, d = 90;
  Floats y = filled(r * d, 5);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t k = 0; k < d; ++k) {
      float& v = y[static_cast<size_t>(i * d + k)];
      v = std::ldexp(v, static_cast<int>(-6 * i));
      if (i % 2 == 1)  // at an angle of about 1e-4 to the row above
        v = y[static_cast<size_t>((i - 1) * d + k)] + 1e-4f * std::ldexp(v, 6);
    }
  Floats q = y;
  orthonormalize(q, r, d);
  expect_orthonormal(q, r, d);
}

TEST(Orthonormal, DependentRowsAreCompleted) {
  const int64_t r = 9, d = 30;
  for (int kind = 0; kind < 4; ++kind) {
    Floats y = filled(r * d, 7);
    for (int64_t i = 0; i < r; ++i)
      for (int64_t k = 0; k < d; ++k) {
        float& v = y[static_cast<size_t>(i * d + k)];
        if (kind == 0) v = 0;                                                  // nothing
        if (kind == 1) v = y[static_cast<size_t>(k)];                          // rank one
        if (kind == 2 && i >= 4) v = y[static_cast<size_t>((i - 4) * d + k)];  // repeats
        if (kind == 3) v = std::ldexp(v, -140);                                // denormals
      }
    Floats q = y;
    orthonormalize(q, r, d);
    SCOPED_TRACE(kind);
    expect_orthonormal(q, r, d);
    same_everywhere([&] {
      Floats a = y;
      orthonormalize(a, r, d);
      return digest(a);
    });
  }
}

TEST(Orthonormal, CholeskyInverse) {
  // L = [2 0; 1 3]
  std::vector<double> g = {4, 2, 2, 10}, inverse(4);
  ASSERT_TRUE(cholesky_inverse(g.data(), 2, inverse.data()));
  EXPECT_EQ(inverse, (std::vector<double>{0.5, 0, -1.0 / 6, 1.0 / 3}));
  std::vector<double> singular = {1, 1, 1, 1}, negative = {-1};
  EXPECT_FALSE(cholesky_inverse(singular.data(), 2, inverse.data()));
  EXPECT_FALSE(cholesky_inverse(negative.data(), 1, inverse.data()));
}

}  // namespace
}  // namespace lowtide::lowrank
