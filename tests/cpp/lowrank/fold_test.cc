// SPDX-License-Identifier: Apache-2.0
#include "lowrank/fold.h"

#include <array>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "quant/matmul.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::same_everywhere;
using quant::Operand;
using quant::Store;
using random::Stream;

const Stream kStream{.seed = 1, .step = 2, .param = 3};

// e x buckets, transposed so that row k says where row k of X goes.
std::vector<float> places(int64_t e, int64_t buckets, const Stream& stream = kStream) {
  std::vector<float> identity(static_cast<size_t>(e * e), 0.0f);
  for (int64_t k = 0; k < e; ++k) identity[static_cast<size_t>(k * e + k)] = 1;
  const auto s = fold(quant::dense(identity.data(), e, e), true, buckets, 1.0f, stream);
  return {s.begin(), s.end()};
}

TEST(Fold, EveryRowGoesToTwoPlacesWithSigns) {
  const int64_t e = 100, m = 24;
  const auto s = places(e, m);
  int negative = 0;
  for (int64_t k = 0; k < e; ++k) {
    int used = 0;
    for (int64_t i = 0; i < m; ++i) {
      const float v = s[static_cast<size_t>(k * m + i)];
      if (v == 0) continue;
      EXPECT_EQ(std::fabs(v), 1);
      ++used;
      negative += v < 0;
    }
    EXPECT_EQ(used, 2) << k;
    EXPECT_NE(s[static_cast<size_t>(k * m + k % m)], 0);
    // No other row shares both places: equal rows cannot cancel.
    for (int64_t j = 0; j < k; ++j) {
      int shared = 0;
      for (int64_t i = 0; i < m; ++i)
        shared += s[static_cast<size_t>(k * m + i)] != 0 && s[static_cast<size_t>(j * m + i)] != 0;
      EXPECT_LT(shared, 2) << j << " " << k;
    }
  }
  EXPECT_NEAR(negative, 100, 4 * std::sqrt(200 * 0.25));
  EXPECT_NE(places(e, m), places(e, m, Stream{.seed = 2, .step = 2, .param = 3}));
}

// Small integers: all sums are exact.
TEST(Fold, IsTheProductWithThePlacesOnEitherSideAndInAnyStorage) {
  for (auto [rows, cols, slack] :
       {std::array<int64_t, 3>{37, 50, 0}, {50, 37, 3}, {5, 24, 0}, {24, 5, 1}, {1, 7, 0}})
    for (Store store : {Store::f32, Store::bf16, Store::int8})
      for (bool left : {false, true}) {
        const int64_t stride = store == Store::int8 ? cols : cols + slack, m = 7;
        const auto x = noise(rows * stride, 3);
        std::vector<float> f32;
        std::vector<uint16_t> bf16;
        std::vector<uint8_t> codes;
        for (float v : x) {
          f32.push_back(std::nearbyint(10 * v));
          bf16.push_back(float_to_bf16(f32.back()));
          codes.push_back(static_cast<uint8_t>(f32.back() + 128));
        }
        const std::vector<float> scale(static_cast<size_t>(rows * ((cols + 31) / 32)), 0.5f);
        const void* data = store == Store::f32    ? static_cast<const void*>(f32.data())
                           : store == Store::bf16 ? static_cast<const void*>(bf16.data())
                                                  : codes.data();
        const Operand g{store, data, rows, cols, stride, scale.data(), nullptr, 32};
        const int64_t e = left ? cols : rows, d = left ? rows : cols;
        const auto s = places(e, m);
        const auto got = fold(g, left, m, 0.25f, kStream);
        ASSERT_EQ(got.size(), static_cast<size_t>(d * m));
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < d; ++j) {
            float want = 0;
            for (int64_t k = 0; k < e; ++k)
              want += s[static_cast<size_t>(k * m + i)] *
                      (left ? quant::operand_at(g, j, k) : quant::operand_at(g, k, j));
            ASSERT_EQ(got[static_cast<size_t>(left ? j * m + i : i * d + j)], 0.25f * want)
                << rows << "x" << cols << " store " << static_cast<int>(store) << " left " << left
                << " at " << i << ", " << j;
          }
      }
}

TEST(Fold, OneDigestEverywhere) {
  const auto x = noise(301 * 203, 5);
  for (bool left : {false, true})
    same_everywhere(
        [&] { return digest(fold(quant::dense(x.data(), 301, 203), left, 40, 1.0f, kStream)); });
}

// E[(S X)' S X] = 2 X' X.
TEST(Fold, KeepsEnergyOnAverage) {
  const auto x = noise(200 * 30, 5);
  double whole = 0, folded = 0;
  for (float v : x) whole += static_cast<double>(v) * v;
  for (uint64_t seed = 0; seed < 40; ++seed)
    for (float v : fold(quant::dense(x.data(), 200, 30), false, 20, 1.0f, Stream{.seed = seed}))
      folded += static_cast<double>(v) * v / 40;
  // One fold: the squares of 20 x 30 sums of 20 terms, relative deviation sqrt(2 / 600).
  EXPECT_NEAR(folded / whole, 2, 2 * 4 * std::sqrt(2.0 / 600 / 40));
}

TEST(Fold, FewBucketsAreRefused) {
  const float x[4] = {};
  EXPECT_THROW(fold(quant::dense(x, 2, 2), false, 2, 1.0f, kStream), Error);
}

}  // namespace
}  // namespace lowtide::lowrank
