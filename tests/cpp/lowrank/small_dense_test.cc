// SPDX-License-Identifier: Apache-2.0
#include "lowrank/small_dense.h"

#include <cmath>
#include <vector>

#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;

std::vector<double> doubles(int64_t n, uint64_t seed) {
  const auto x = noise(n, seed), y = noise(n, seed + 100);
  std::vector<double> d(static_cast<size_t>(n));
  for (size_t i = 0; i < d.size(); ++i) d[i] = x[i] + 0x1p-30 * y[i];
  return d;
}

TEST(SmallDense, GramOfEverySize) {
  for (int64_t rows : {1, 2, 15, 16, 17, 40})
    for (int64_t depth : {0, 1, 15, 17, 63, 65, 300, 1030}) {
      const auto y = noise(rows * depth, 1);
      std::vector<double> g(static_cast<size_t>(rows * rows));
      SCOPED_TRACE(::testing::Message() << rows << " x " << depth);
      same_everywhere([&] {
        gram(g.data(), y.data(), rows, depth);
        return digest(g);
      });
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < rows; ++j) {
          double want = 0;
          for (int64_t k = 0; k < depth; ++k)
            want += static_cast<double>(y[static_cast<size_t>(i * depth + k)]) *
                    y[static_cast<size_t>(j * depth + k)];
          // Order of a sum of `depth` doubles below 1.
          EXPECT_NEAR(g[static_cast<size_t>(i * rows + j)], want,
                      static_cast<double>(depth * depth) * 0x1p-53);
        }
    }
}

TEST(SmallDense, RowOperationsOfEveryLength) {
  for (int64_t n : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 70}) {
    const auto x = doubles(n, 1), z = doubles(n, 2);
    same_everywhere([&] {
      auto y = doubles(n, 3);
      const RowOps& ops = row_ops();
      ops.axpy(y.data(), 0.3, x.data(), n);
      ops.axpy2(y.data(), -0.7, x.data(), 1.1, z.data(), n);
      const double d = ops.dot(y.data(), z.data(), n);
      return digest(&d, sizeof d, digest(y));
    });
  }
}

TEST(SmallDense, RotationsRunFromTheLastRowUp) {
  for (int64_t n : {1, 5, 8, 33, 64, 70}) {
    const int64_t rows = 6;
    std::vector<double> c(rows), s(rows);
    for (int64_t i = 0; i < rows; ++i)
      c[static_cast<size_t>(i)] = std::cos(0.3 * static_cast<double>(i) + 0.1),
      s[static_cast<size_t>(i)] = std::sin(0.3 * static_cast<double>(i) + 0.1);
    same_everywhere([&] {
      auto z = doubles(rows * n, 4);
      row_ops().rotate(z.data(), n, n, c.data(), s.data(), 1, 4);
      row_ops().rotate(z.data(), n, n, c.data(), s.data(), 3, 2);  // none
      return digest(z);
    });
  }
}

TEST(SmallDense, ReflectorMapsToTheFirstAxis) {
  for (const std::vector<double>& x :
       {std::vector<double>{3, 4}, {-3, 4}, {0, 0, 5}, {2}, {-2, 0, 0}, {1e-3, 1, 2, 3}}) {
    auto v = x;
    double norm = 0;
    const auto m = static_cast<int64_t>(x.size());
    const double beta = reflector(v.data(), m, &norm, row_ops());
    double dot = 0;
    for (size_t i = 0; i < x.size(); ++i) dot += v[i] * x[i];
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(x[i] - beta * dot * v[i], i == 0 ? norm : 0, 1e-14);
  }
}

}  // namespace
}  // namespace lowtide::lowrank
