// SPDX-License-Identifier: Apache-2.0
#include "quant/gemv.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "packed.h"
#include "quant/group_map.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::Packed;
using ::lowtide::testing::quantized;
using ::lowtide::testing::same_everywhere;

struct Kind {
  int bits;
  Scheme scheme;
  Coding coding;
};
constexpr Kind kKinds[] = {{8, Scheme::symmetric, Coding::integer},
                           {8, Scheme::asymmetric, Coding::integer},
                           {4, Scheme::symmetric, Coding::integer},
                           {4, Scheme::asymmetric, Coding::integer},
                           {4, Scheme::symmetric, Coding::nf4}};

Packed weights(const Kind& k, int64_t rows, int64_t cols, int64_t group) {
  const GroupShape s{.rows = rows, .cols = cols, .group = group, .bits = k.bits};
  const auto w = noise(rows * cols, 3);
  if (k.coding == Coding::integer) return quantized(w, s, k.scheme);
  Packed p(s, Scheme::symmetric);
  quantize_map(w.data(), FloatType::f32, LevelMap::nf4, p.out(), {});
  return p;
}
std::vector<float> decoded(const Kind& k, const Packed& p) {
  if (k.coding == Coding::integer) return p.decoded();
  std::vector<float> w(static_cast<size_t>(p.shape.rows * p.shape.cols));
  dequantize_map(p.in(), LevelMap::nf4, w.data(), FloatType::f32);
  return w;
}
std::vector<float> product(const Kind& k, const Packed& p, const std::vector<float>& x) {
  std::vector<float> y(static_cast<size_t>(p.shape.rows), -1.0f);
  gemv(y.data(), p.in(), k.coding, x.data());
  return y;
}

TEST(Gemv, SameBitsForEveryShapeIsaAndThreadCount) {
  for (const Kind& k : kKinds)
    for (int64_t rows : {0, 1, 2, 3, 4, 5, 9, 17})
      for (int64_t cols : {0, 1, 15, 16, 17, 31, 32, 33, 63, 65, 127, 257, 1000})
        for (int64_t group : {32, 64, 256}) {
          const Packed p = weights(k, rows, cols, group);
          const auto x = noise(cols, 7);
          same_everywhere([&] { return digest(product(k, p, x)); });
        }
}

TEST(Gemv, ManyRangesOfRows) {
  for (const Kind& k : kKinds) {
    const Packed p = weights(k, 2051, 1100, 256);
    const auto x = noise(1100, 7);
    same_everywhere([&] { return digest(product(k, p, x)); });
  }
}

// Against the exact product of the decoded weights. Sixteen chains of a 16th of the columns, a
// total over groups and four additions: (cols / 16 + groups + 5) roundings of partial sums, each at
// most sum |x w|; decoded weights are rounded once themselves.
TEST(Gemv, IsTheProductWithTheDecodedWeights) {
  for (const Kind& k : kKinds)
    for (int64_t cols : {1, 33, 300, 2000}) {
      const Packed p = weights(k, 37, cols, 64);
      const auto x = noise(cols, 5), w = decoded(k, p), y = product(k, p, x);
      const double roundings =
          static_cast<double>(cols) / 16 + static_cast<double>(groups_per_row(p.shape)) + 6;
      for (int64_t r = 0; r < 37; ++r) {
        double exact = 0, size = 0;
        for (int64_t c = 0; c < cols; ++c) {
          const double t = double{x[c]} * w[r * cols + c];
          exact += t, size += std::abs(t);
        }
        EXPECT_LE(std::abs(y[r] - exact), roundings * 0x1p-24 * size) << r;
      }
    }
}

// Zero points are bytes that may come from a file: vectors must not read beyond a table for them.
TEST(Gemv, AnyByteIsAZeroPoint) {
  for (int bits : {4, 8}) {
    Packed p = weights({bits, Scheme::asymmetric, Coding::integer}, 9, 300, 64);
    for (size_t i = 0; i < p.zero.size(); ++i) p.zero[i] = static_cast<uint8_t>(255 - 6 * i);
    const auto x = noise(300, 7);
    same_everywhere([&] { return digest(product({bits, {}, Coding::integer}, p, x)); });
  }
}

TEST(Gemv, NonFiniteInputsShowInEveryRow) {
  for (const Kind& k : kKinds) {
    const Packed p = weights(k, 6, 100, 32);
    auto x = noise(100, 5);
    x[99] = std::numeric_limits<float>::quiet_NaN();
    for (float v : product(k, p, x)) EXPECT_TRUE(std::isnan(v));
  }
}

TEST(Gemv, ImpossibleArgumentsAreRefused) {
  uint8_t codes[64] = {}, zero[4] = {};
  float scale[4] = {}, x[64] = {}, y[4];
  auto call = [&](GroupShape s, const uint8_t* z, Coding coding) {
    gemv(y, {codes, scale, z, s}, coding, x);
  };
  EXPECT_NO_THROW(call({2, 32, 32, 4}, zero, Coding::integer));
  EXPECT_NO_THROW(call({2, 32, 32, 4}, nullptr, Coding::nf4));
  EXPECT_THROW(call({2, 32, 32, 4}, zero, Coding::nf4), Error);
  EXPECT_THROW(call({2, 32, 32, 8}, nullptr, Coding::nf4), Error);
  EXPECT_THROW(call({2, 32, 32, 8}, nullptr, static_cast<Coding>(2)), Error);
  EXPECT_THROW(call({2, 32, 33, 8}, nullptr, Coding::integer), Error);
}

}  // namespace
}  // namespace lowtide::quant
