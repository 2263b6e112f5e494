// SPDX-License-Identifier: Apache-2.0
#include "lowrank/fwht.h"

#include <bit>
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

const std::vector<int64_t> kLengths = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31, 32,
                                       33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 256, 500};

struct Case {
  int64_t rows, cols;
  Lines lines;
  int64_t n() const { return lines == Lines::rows ? cols : rows; }
  int64_t count_lines() const { return lines == Lines::rows ? rows : cols; }
  size_t at(int64_t line, int64_t c) const {
    return static_cast<size_t>(lines == Lines::rows ? line * cols + c : c * cols + line);
  }
  DctMatrix of(const std::vector<float>& x) const {
    return {x.data(), FloatType::f32, rows, cols, lines};
  }
};

std::vector<Case> cases(int64_t n, int64_t lines) {
  return {{lines, n, Lines::rows}, {n, lines, Lines::columns}};
}

std::vector<float> signs_for(int64_t n) {
  std::vector<float> s = noise(fwht_spans(n) * n, 9);
  for (float& v : s) v = v < 0 ? -1.0f : 1.0f;
  return s;
}

std::vector<float> all(const Case& c, const std::vector<float>& x, const float* signs) {
  std::vector<float> s(x.size());
  fwht_forward(s.data(), c.of(x), signs, nullptr, c.n());
  return s;
}

std::vector<float> back(const Case& c, const std::vector<float>& s, const float* signs) {
  std::vector<float> x(s.size());
  fwht_inverse(x.data(), c.rows, c.cols, c.lines, s.data(), signs, nullptr, c.n());
  return x;
}

uint64_t more(const std::vector<float>& v, uint64_t h) {
  return digest(v.data(), v.size() * sizeof(float), h);
}

// The definition in double, from the entries of H.
std::vector<double> exact(std::vector<double> x, const std::vector<float>& signs) {
  const auto n = static_cast<int64_t>(x.size());
  const auto h = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n)));
  for (int s = 0; s < fwht_spans(n); ++s) {
    const int64_t start = s == 0 ? 0 : n - h;
    for (int64_t c = 0; c < n; ++c)
      x[static_cast<size_t>(c)] *= signs[static_cast<size_t>(s * n + c)];
    std::vector<double> y = x;
    for (int64_t i = 0; i < h; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < h; ++j)
        sum += x[static_cast<size_t>(start + j)] *
               (std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? 1 : -1);
      y[static_cast<size_t>(start + i)] = sum / std::sqrt(static_cast<double>(h));
    }
    x = y;
  }
  return x;
}

TEST(Fwht, EveryLengthFollowsTheDefinition) {
  for (int64_t n : kLengths)
    for (const Case& c : cases(n, 3)) {
      const auto x = noise(3 * n, 1), signs = signs_for(n);
      const auto s = all(c, x, signs.data());
      for (int64_t l = 0; l < 3; ++l) {
        std::vector<double> line;
        double norm = 0;
        for (int64_t i = 0; i < n; ++i) {
          line.push_back(x[c.at(l, i)]);
          norm += line.back() * line.back();
        }
        const auto want = exact(line, signs);
        // Half a unit for each stage and product, of two spans.
        const double limit = 0x1p-24 * 2 * (2 + std::log2(static_cast<double>(n)) / 2);
        for (int64_t k = 0; k < n; ++k)
          EXPECT_NEAR(s[c.at(l, k)], want[static_cast<size_t>(k)], limit * std::sqrt(norm))
              << n << " line " << l << " coefficient " << k;
      }
    }
}

TEST(Fwht, TheInverseGivesTheLinesBack) {
  for (int64_t n : kLengths)
    for (const Case& c : cases(n, 5)) {
      const auto x = noise(5 * n, 2), signs = signs_for(n);
      const auto y = back(c, all(c, x, signs.data()), signs.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 0x1p-19) << n;
    }
}

// Without signs a power of two is its own inverse; at h = 4^k its factors are exact, so that
// integers come back bit for bit.
TEST(Fwht, IsAnInvolution) {
  for (int64_t n : {1, 4, 16, 64, 256})
    for (const Case& c : cases(n, 17)) {
      std::vector<float> x = noise(17 * n, 3);
      for (float& v : x) v = std::round(v * 100);
      EXPECT_EQ(all(c, all(c, x, nullptr), nullptr), x) << n;
      EXPECT_EQ(back(c, all(c, x, nullptr), nullptr), x) << n;
    }
}

TEST(Fwht, SameBitsForEveryShapeIsaAndThreadCount) {
  for (int64_t n : kLengths)
    for (int64_t lines : {0, 1, 15, 16, 17, 33, 130})
      for (const Case& c : cases(n, lines)) {
        const auto x = noise(n * lines, 3), signs = signs_for(n);
        std::vector<uint16_t> half(x.size());
        for (size_t i = 0; i < x.size(); ++i) half[i] = float_to_bf16(x[i]);
        std::vector<int32_t> index;
        index.reserve(1);  // null would mean all
        for (int64_t k = n % 3; k < n; k += 3) index.push_back(static_cast<int32_t>(k));
        const auto count = static_cast<int64_t>(index.size());
        SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.cols);
        same_everywhere([&] {
          uint64_t h = more(all(c, x, signs.data()), 0);
          h = more(all(c, x, nullptr), h);
          h = more(back(c, x, signs.data()), h);
          std::vector<float> low(static_cast<size_t>(lines * count)), y(x.size());
          fwht_forward(low.data(), c.of(x), signs.data(), index.data(), count);
          fwht_inverse(y.data(), c.rows, c.cols, c.lines, low.data(), signs.data(), index.data(),
                       count);
          h = more(y, more(low, h));
          DctMatrix m = c.of(x);
          m.x = half.data(), m.type = FloatType::bf16;
          fwht_forward(low.data(), m, signs.data(), index.data(), count);
          return more(low, h);
        });
      }
}

TEST(Fwht, ChosenCoefficientsAreThoseOfTheWhole) {
  const std::vector<int32_t> index = {0, 3, 17, 95};
  for (const Case& c : cases(96, 20)) {
    const auto x = noise(96 * 20, 5), signs = signs_for(96);
    const auto s = all(c, x, signs.data());
    std::vector<float> low(20 * 4);
    fwht_forward(low.data(), c.of(x), signs.data(), index.data(), 4);
    for (int64_t l = 0; l < 20; ++l)
      for (int64_t j = 0; j < 4; ++j)
        EXPECT_EQ(low[static_cast<size_t>(c.lines == Lines::rows ? l * 4 + j : j * 20 + l)],
                  s[c.at(l, index[static_cast<size_t>(j)])]);
  }
}

TEST(Fwht, NonFiniteValuesSpoilTheirOwnLine) {
  for (const Case& c : cases(96, 20)) {
    auto x = noise(96 * 20, 6);
    const auto clean = all(c, x, nullptr);
    x[c.at(7, 40)] = std::numeric_limits<float>::infinity();
    const auto s = all(c, x, nullptr);
    for (int64_t l = 0; l < 20; ++l)
      for (int64_t k = 0; k < 96; ++k)
        if (l != 7) {
          EXPECT_EQ(s[c.at(l, k)], clean[c.at(l, k)]);
        }
    EXPECT_FALSE(std::isfinite(s[c.at(7, 50)]));
  }
}

TEST(Fwht, BadArguments) {
  std::vector<float> x(8), out(8);
  const DctMatrix m = {x.data(), FloatType::f32, 2, 4, Lines::rows};
  const std::vector<int32_t> twice = {1, 1}, far = {4};
  const std::vector<float> signs = {1, -1, 0.5f, 1};
  EXPECT_ANY_THROW(fwht_forward(out.data(), m, nullptr, nullptr, 3));
  EXPECT_ANY_THROW(fwht_forward(out.data(), m, nullptr, twice.data(), 2));
  EXPECT_ANY_THROW(fwht_forward(out.data(), m, nullptr, far.data(), 1));
  EXPECT_ANY_THROW(fwht_forward(out.data(), m, signs.data(), nullptr, 4));
  EXPECT_ANY_THROW(fwht_inverse(out.data(), 2, 0, Lines::rows, x.data(), nullptr, nullptr, 0));
  EXPECT_ANY_THROW(fwht_spans(0));
  EXPECT_EQ(fwht_spans(1), 1);
  EXPECT_EQ(fwht_spans(1024), 1);
  EXPECT_EQ(fwht_spans(1025), 2);
}

}  // namespace
}  // namespace lowtide::lowrank
