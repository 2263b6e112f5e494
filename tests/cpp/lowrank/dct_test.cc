// SPDX-License-Identifier: Apache-2.0
#include "lowrank/dct.h"

#include <cmath>
#include <limits>
#include <vector>

#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;
using quant::FloatType;

// Even, odd, powers, multiples of 3 and 5, primes, squares of primes.
const std::vector<int64_t> kLengths = {1,  2,  3,  4,  5,  6,  7,  8,   9,   10,  11,  12,  14,
                                       15, 16, 17, 18, 20, 22, 25, 30,  32,  33,  47,  48,  49,
                                       60, 63, 64, 65, 98, 96, 97, 100, 121, 127, 192, 240, 576};

std::vector<float> table_of(int64_t n) {
  std::vector<float> t(static_cast<size_t>(dct_table_size(n)));
  make_dct_table(t.data(), n);
  return t;
}

double exact(const std::vector<float>& x, int64_t at, int64_t step, int64_t n, int64_t k) {
  const long double pi = std::acos(-1.0L);
  long double sum = 0;
  for (int64_t c = 0; c < n; ++c)
    sum += x[static_cast<size_t>(at + c * step)] *
           std::cos(pi * static_cast<long double>((2 * c + 1) * k % (4 * n)) /
                    static_cast<long double>(2 * n));
  return static_cast<double>(sum * std::sqrt((k == 0 ? 1.0L : 2.0L) / static_cast<long double>(n)));
}

struct Case {
  int64_t rows, cols;
  Lines lines;
  int64_t n() const { return lines == Lines::rows ? cols : rows; }
  int64_t count_lines() const { return lines == Lines::rows ? rows : cols; }
  int64_t at(int64_t line) const { return lines == Lines::rows ? line * cols : line; }
  int64_t step() const { return lines == Lines::rows ? 1 : cols; }
  DctMatrix of(const std::vector<float>& x) const {
    return {x.data(), FloatType::f32, rows, cols, lines};
  }
};

std::vector<Case> cases(int64_t n, int64_t lines) {
  return {{lines, n, Lines::rows}, {n, lines, Lines::columns}};
}

std::vector<float> forward(const Case& c, const std::vector<float>& x,
                           const std::vector<int32_t>& index) {
  std::vector<float> low(static_cast<size_t>(c.count_lines()) * index.size());
  dct_forward(low.data(), c.of(x), index.data(), static_cast<int64_t>(index.size()));
  return low;
}

std::vector<float> all(const Case& c, const std::vector<float>& x) {
  std::vector<float> s(x.size());
  dct_forward(s.data(), c.of(x), nullptr, c.n());
  return s;
}

uint64_t more(const std::vector<float>& v, uint64_t h) {
  return digest(v.data(), v.size() * sizeof(float), h);
}

int64_t largest_prime(int64_t n) {
  int64_t most = 1;
  for (int64_t f = 2; n > 1; ++f)
    while (n % f == 0) most = f, n /= f;
  return most;
}

TEST(Dct, EveryLengthFollowsTheDefinition) {
  for (int64_t n : kLengths)
    for (const Case& c : cases(n, 3)) {
      const auto x = noise(3 * n, 1);
      const auto s = all(c, x);
      const double limit = 0x1p-24 * (6 + static_cast<double>(largest_prime(n)) / 2);
      for (int64_t l = 0; l < 3; ++l) {
        double norm = 0;
        for (int64_t i = 0; i < n; ++i)
          norm += std::pow(x[static_cast<size_t>(c.at(l) + i * c.step())], 2);
        for (int64_t k = 0; k < n; ++k)
          EXPECT_NEAR(s[static_cast<size_t>(c.at(l) + k * c.step())],
                      exact(x, c.at(l), c.step(), n, k), limit * std::sqrt(norm))
              << n << " line " << l << " coefficient " << k;
      }
    }
}

TEST(Dct, TheInverseGivesTheLinesBack) {
  for (int64_t n : kLengths)
    for (const Case& c : cases(n, 5)) {
      const auto x = noise(5 * n, 2);
      const auto s = all(c, x);
      std::vector<float> y(x.size());
      dct_inverse(y.data(), c.rows, c.cols, c.lines, s.data(), nullptr, n);
      const double limit = 0x1p-22 * (4 + std::sqrt(static_cast<double>(largest_prime(n))));
      for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], limit) << n;
    }
}

TEST(Dct, SameBitsForEveryShapeIsaAndThreadCount) {
  for (int64_t n : {1, 2, 7, 15, 16, 17, 48, 63, 65, 100, 98})
    for (int64_t lines : {0, 1, 3, 15, 16, 17, 33, 130, 300})
      for (const Case& c : cases(n, lines)) {
        const auto x = noise(n * lines, 3);
        std::vector<uint16_t> half(x.size());
        for (size_t i = 0; i < x.size(); ++i) half[i] = float_to_bf16(x[i]);
        std::vector<int32_t> index;
        index.reserve(1);  // null would mean all
        for (int64_t k = n % 3; k < n; k += 3) index.push_back(static_cast<int32_t>(k));
        const auto count = static_cast<int64_t>(index.size());
        SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.cols);
        same_everywhere([&] {
          auto low = forward(c, x, index);
          uint64_t h = more(all(c, x), digest(low));
          std::vector<float> y(x.size()), sums(static_cast<size_t>(n));
          dct_inverse(y.data(), c.rows, c.cols, c.lines, low.data(), index.data(), count);
          h = more(y, h);
          DctMatrix m = c.of(x);
          for (Power power : {Power::magnitude, Power::square}) {
            dct_power(sums.data(), m, power);
            h = more(sums, h);
          }
          m.x = half.data(), m.type = FloatType::bf16;
          dct_forward(low.data(), m, index.data(), count);
          dct_power(sums.data(), m, Power::square);
          return more(sums, more(low, h));
        });
      }
}

TEST(Dct, PowersAreTheSumsOverTheLines) {
  for (const Case& c : cases(60, 300)) {
    const auto x = noise(60 * 300, 4);
    const auto s = all(c, x);
    for (Power power : {Power::magnitude, Power::square}) {
      std::vector<float> sums(60);
      dct_power(sums.data(), c.of(x), power);
      for (int64_t k = 0; k < 60; ++k) {
        double want = 0;
        for (int64_t l = 0; l < 300; ++l) {
          const double v = s[static_cast<size_t>(c.at(l) + k * c.step())];
          want += power == Power::square ? v * v : std::abs(v);
        }
        EXPECT_NEAR(sums[static_cast<size_t>(k)], want, 1e-5 * want);
      }
    }
  }
}

TEST(Dct, LinesDoNotMix) {
  for (int64_t n : {14, 48, 63})
    for (const Case& c : cases(n, 20)) {
      auto x = noise(20 * n, 5);
      const auto clean = all(c, x);
      for (int64_t i = 0; i < n; ++i) {
        x[static_cast<size_t>(c.at(3) + i * c.step())] = 0.0f;
        x[static_cast<size_t>(c.at(4) + i * c.step())] = std::numeric_limits<float>::quiet_NaN();
      }
      const auto s = all(c, x);
      for (int64_t l = 0; l < 20; ++l)
        for (int64_t k = 0; k < n; ++k) {
          const auto i = static_cast<size_t>(c.at(l) + k * c.step());
          if (l == 3)
            EXPECT_EQ(s[i], 0.0f);
          else if (l == 4)
            EXPECT_TRUE(std::isnan(s[i]));
          else
            EXPECT_EQ(s[i], clean[i]);
        }
    }
}

// The table is an argument that callers keep: its bits belong to the format.
TEST(Dct, TableDigests) {
  EXPECT_EQ(digest(table_of(768)), 10431053727334561117u);
  EXPECT_EQ(digest(table_of(77)), 14251388210923175431u);
}

TEST(Dct, ImpossibleArgumentsAreRefused) {
  const std::vector<float> x(12);
  std::vector<float> out(12);
  const DctMatrix m = {x.data(), FloatType::f32, 3, 4, Lines::rows};
  const auto refused = [&](const std::vector<int32_t>& index) {
    EXPECT_THROW(dct_forward(out.data(), m, index.data(), static_cast<int64_t>(index.size())),
                 std::exception);
  };
  refused({4});
  refused({-1});
  refused({1, 1});
  refused({2, 1});
  EXPECT_THROW(dct_forward(out.data(), m, nullptr, 3), std::exception);
  EXPECT_THROW(dct_table_size(0), std::exception);
  EXPECT_THROW(dct_table_size(kDctMost + 1), std::exception);
  DctMatrix bad = m;
  bad.type = FloatType::f16;
  EXPECT_THROW(dct_power(out.data(), bad, Power::square), std::exception);
  bad = m, bad.rows = -1;
  EXPECT_THROW(dct_forward(out.data(), bad, nullptr, 4), std::exception);
}

}  // namespace
}  // namespace lowtide::lowrank
