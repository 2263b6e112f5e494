// SPDX-License-Identifier: Apache-2.0
// The 8-bit dynamic maps: their numerics, and the codec that shares them (quant/group_map.h) where
// it differs from that of 16 levels.
#include "quant/group_map.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::kAwkward;
using ::lowtide::testing::same_everywhere;

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

LevelMap map_of(bool is_signed) {
  return is_signed ? LevelMap::dynamic8 : LevelMap::dynamic8_unsigned;
}

// As bitsandbytes has it: one row in blocks of 256.
Encoded encode(const std::vector<float>& x, bool is_signed, int64_t* nonfinite = nullptr,
               const MapOptions& options = {}) {
  const GroupShape row{.rows = 1, .cols = static_cast<int64_t>(x.size()), .group = kDynamicBlock};
  Encoded e{std::vector<uint8_t>(x.size()),
            std::vector<float>(static_cast<size_t>(groups_per_row(row)))};
  const int64_t bad = quantize_map(x.data(), FloatType::f32, map_of(is_signed),
                                   {e.codes.data(), e.absmax.data(), nullptr, row}, options);
  if (nonfinite != nullptr) *nonfinite = bad;
  return e;
}

std::vector<float> decode(const Encoded& e, bool is_signed) {
  const GroupShape row{
      .rows = 1, .cols = static_cast<int64_t>(e.codes.size()), .group = kDynamicBlock};
  std::vector<float> x(e.codes.size());
  dequantize_map({e.codes.data(), e.absmax.data(), nullptr, row}, map_of(is_signed), x.data(),
                 FloatType::f32);
  return x;
}

// noise() spread over the nine decades that the map covers and a few beyond.
std::vector<float> wide_noise(int64_t n, uint64_t seed) {
  auto x = ::lowtide::testing::noise(n, seed);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] *= static_cast<float>(std::pow(10.0, -static_cast<int>(i % 11)));
  return x;
}

// Each block starts with 1, so that codes stand for the values themselves.
std::vector<float> with_unit_blocks(const std::vector<float>& values) {
  std::vector<float> x;
  for (float v : values) {
    if (x.size() % kDynamicBlock == 0) x.push_back(1.0f);
    x.push_back(v);
  }
  return x;
}

class DynamicMap : public ::testing::TestWithParam<bool> {};

TEST_P(DynamicMap, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t n : kAwkward) {
    const auto x = wide_noise(n, 3);
    same_everywhere([&] {
      const Encoded e = encode(x, GetParam());
      return digest(decode(e, GetParam())) ^ digest(e.codes) ^ digest(e.absmax);
    });
  }
}

// The vector code estimates the region from the exponent: every boundary, every power of two and
// their neighbours must come out as in the scalar definition.
TEST_P(DynamicMap, SameBitsAroundEveryBoundary) {
  std::vector<float> points = {0.0f, -0.0f};
  auto add = [&](float v) {
    for (int ulp = -3; ulp <= 3; ++ulp) {
      const float w = bits_float(float_bits(v) + static_cast<uint32_t>(ulp));
      if (w <= 1.0f) points.push_back(w), points.push_back(-w);
    }
  };
  for (int r = 0; r < 8; ++r) add(kDynamic.boundary[GetParam()][r]);
  for (int e = -126; e <= 0; ++e) add(std::ldexp(1.0f, e)), add(std::ldexp(1.3f, e - 1));
  for (int c = 0; c < 256; ++c) add(std::abs(dynamic_decode(kDynamic, c, GetParam(), 1.0f)));
  const auto x = with_unit_blocks(points);
  same_everywhere([&] { return digest(encode(x, GetParam()).codes); });
}

TEST_P(DynamicMap, EveryCodeSurvivesARoundTrip) {
  std::vector<float> values;
  for (int c = 0; c < 256; ++c) values.push_back(dynamic_decode(kDynamic, c, GetParam(), 1.0f));
  EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
  const auto x = with_unit_blocks(values);
  const Encoded e = encode(x, GetParam());
  for (size_t i = 0, c = 0; i < x.size(); ++i) EXPECT_EQ(e.codes[i], i % kDynamicBlock ? c++ : 255);
  EXPECT_EQ(digest(decode(e, GetParam())), digest(x));
}

TEST_P(DynamicMap, CodesAreTheNearestOnes) {
  std::vector<double> values;
  for (int c = 0; c < 256; ++c) values.push_back(dynamic_decode(kDynamic, c, GetParam(), 1.0f));
  std::vector<float> points = ::lowtide::testing::noise(20000, 4);
  for (int i = 0; i < 20000; ++i)
    points.push_back(static_cast<float>(std::pow(10.0, -8.0 * i / 20000)) * (i % 2 ? 1 : -1));
  const auto x = with_unit_blocks(points);
  const Encoded e = encode(x, GetParam());
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = GetParam() ? x[i] : std::max(x[i], 0.0f);
    const auto at = std::lower_bound(values.begin(), values.end(), v);
    const double high = at == values.end() ? values.back() : *at;
    const double low = at == values.begin() ? high : *std::prev(at);
    const double best = std::min(std::abs(high - v), std::abs(v - low));
    // In gaps: three roundings of a * scale + shift, which is below 256 where floats are 1.5e-5
    // apart, and values[] themselves are two roundings from the exact centers.
    EXPECT_LE(std::abs(values[e.codes[i]] - v), best + 1e-4 * (high - low)) << x[i];
  }
}

TEST_P(DynamicMap, BlocksAreIndependent) {
  const int64_t n = 5 * kDynamicBlock + 100, cut = 2 * kDynamicBlock;
  const auto x = wide_noise(n, 8);
  const Encoded whole = encode(x, GetParam());
  const Encoded head = encode({x.begin(), x.begin() + cut}, GetParam());
  const Encoded tail = encode({x.begin() + cut, x.end()}, GetParam());
  EXPECT_TRUE(std::equal(head.codes.begin(), head.codes.end(), whole.codes.begin()));
  EXPECT_TRUE(std::equal(tail.codes.begin(), tail.codes.end(), whole.codes.begin() + cut));
  EXPECT_TRUE(std::equal(tail.absmax.begin(), tail.absmax.end(), whole.absmax.begin() + 2));
}

TEST_P(DynamicMap, ZeroIsExactAndDenormalBlocksAreZero) {
  for (float fill : {0.0f, 0x1p-127f, -0x1p-149f}) {
    const Encoded e = encode(std::vector<float>(300, fill), GetParam());
    for (auto c : e.codes) EXPECT_EQ(c, GetParam() ? 127 : 0);
    for (float a : e.absmax) EXPECT_EQ(float_bits(a), 0u);
  }
  std::vector<float> x(256, 0.0f);
  x[17] = 3e-5f;
  for (float v : decode(encode(x, GetParam()), GetParam())) EXPECT_TRUE(v == 0.0f || v == 3e-5f);
}

TEST_P(DynamicMap, ExtremeMagnitudesStayFinite) {
  const float big = std::numeric_limits<float>::max();
  for (float scale : {big, 0x1p127f, 0x1p-126f, 1e-30f}) {
    std::vector<float> x = {scale, scale * 0.5f, -scale * 0.25f, 0.0f};
    const auto y = decode(encode(x, GetParam()), GetParam());
    EXPECT_EQ(y[0], scale);
    EXPECT_NEAR(y[1] / scale, 0.5, 0.01);
    EXPECT_NEAR(y[2] / scale, GetParam() ? -0.25 : 0.0, 0.01);
    EXPECT_EQ(y[3], 0.0f);
  }
}

TEST_P(DynamicMap, NonFiniteElementsAreCountedAndCodedAsZero) {
  auto x = wide_noise(1000, 5);
  const Encoded clean = encode(x, GetParam());
  for (size_t i : {3, 500, 501, 999}) x[i] = 0.0f;
  const Encoded want = encode(x, GetParam());
  x[3] = NAN, x[500] = INFINITY, x[501] = -INFINITY, x[999] = -NAN;
  same_everywhere([&] {
    int64_t bad = 0;
    const Encoded got = encode(x, GetParam(), &bad);
    EXPECT_EQ(bad, 4);
    EXPECT_EQ(digest(got.codes), digest(want.codes));
    return digest(got.absmax);
  });
  EXPECT_NE(digest(clean.codes), digest(want.codes));
}

// Values of bitsandbytes 0.50.2, create_dynamic_map(signed, 7, 8).
TEST(DynamicMapValues, AreThoseOfBitsandbytes) {
  struct Case {
    bool is_signed;
    int code;
    double want;
  };
  const Case cases[] = {{true, 0, -0.992968738079071},
                        {true, 64, -0.09859374910593033},
                        {true, 126, -5.500000384017767e-07},
                        {true, 127, 0.0},
                        {true, 128, 5.500000384017767e-07},
                        {true, 129, 3.250000190746505e-06},
                        {true, 130, 7.749999895168003e-06},
                        {true, 254, 0.992968738079071},
                        {true, 255, 1.0},
                        {false, 0, 0.0},
                        {false, 1, 3.2500003044333425e-07},
                        {false, 2, 7.749999895168003e-07},
                        {false, 254, 0.9964843988418579},
                        {false, 255, 1.0}};
  for (const auto& c : cases) {
    EXPECT_NEAR(dynamic_decode(kDynamic, c.code, c.is_signed, 1.0f), c.want,
                1.5e-7 * std::abs(c.want))
        << c.code;
  }
}

// What a magnitude rounds to is one of its neighbours, with the right mean over all 2^16 noise
// values: in the middle of every gap, beside both of its ends, and on every level.
TEST_P(DynamicMap, StochasticRoundingIsExactInEveryGap) {
  std::vector<float> value;
  for (int c = 0; c < 256; ++c) value.push_back(dynamic_decode(kDynamic, c, GetParam(), 1.0f));
  for (int c = 0; c < 255; ++c) {
    const double gap = double{value[c + 1]} - value[c];
    for (double f : {0.0, 0.003, 0.37, 0.5, 0.99}) {
      const auto y = static_cast<float>(value[c] + f * gap);
      // More noise moves a code one way only: how much of it leaves the first one is found by
      // halves.
      const auto code = [&](uint32_t r) {
        return int{dynamic_stochastic(kDynamicLines, y, GetParam(), r)};
      };
      const int first = code(0), second = code(65535);
      uint32_t from = 0, to = 65536;
      while (from < to) {
        const uint32_t middle = (from + to) / 2;
        code(middle) == first ? from = middle + 1 : to = middle;
      }
      const double sum = double{value[first]} * from + double{value[second]} * (65536 - from);
      const int low = std::min(first, second), high = std::max(first, second);
      // three roundings of numbers below 2^24, in steps of 2^-16 of a gap, and the grid itself
      EXPECT_NEAR(sum / 65536, y, gap * 0x1p-15) << c << " " << f;
      if (f == 0.0) {
        EXPECT_GE(low, c - 1);
        EXPECT_LE(high, c + 1);
        for (uint32_t r : {4u, 32768u, 65531u})
          EXPECT_EQ(dynamic_stochastic(kDynamicLines, y, GetParam(), r), c);
      } else {
        EXPECT_EQ(low, c);
        EXPECT_EQ(high, c + 1);
      }
    }
  }
}

TEST_P(DynamicMap, StochasticRoundingKeepsZeroAndOneAndSaturates) {
  for (uint32_t r = 0; r < 65536; ++r) {
    const auto code = [&](float y) { return dynamic_stochastic(kDynamicLines, y, GetParam(), r); };
    const int zero = GetParam() ? kDynamicZeroSigned : 0;
    ASSERT_EQ(code(0.0f), zero);
    ASSERT_EQ(code(-0.0f), zero);
    ASSERT_EQ(code(1e-12f), zero);  // 2^-19 of the first gap
    ASSERT_EQ(code(1.0f), 255);
    ASSERT_EQ(code(1.0000005f), 255);
    ASSERT_EQ(code(-1.0f), 0);
    ASSERT_EQ(code(-0.999f), 0);
  }
}

// Vectors find segments from exponents: every end of one, every level and their neighbours must
// come out as in the scalar definition, whatever the noise.
TEST_P(DynamicMap, StochasticCodesAreTheSameAroundEveryLevel) {
  std::vector<float> points = {0.0f, -0.0f};
  auto add = [&](float v) {
    for (int ulp = -3; ulp <= 3; ++ulp) {
      const float w = bits_float(float_bits(v) + static_cast<uint32_t>(ulp));
      if (w <= 1.0f) points.push_back(w), points.push_back(-w);
    }
  };
  for (int j = 0; j < 7; ++j) add(kDynamicLines.end[GetParam()][j]);
  for (int e = -126; e <= 0; ++e) add(std::ldexp(1.0f, e)), add(std::ldexp(1.3f, e - 1));
  for (int c = 0; c < 256; ++c) add(std::abs(dynamic_decode(kDynamic, c, GetParam(), 1.0f)));
  const auto more = wide_noise(20000, 6);
  points.insert(points.end(), more.begin(), more.end());
  const auto x = with_unit_blocks(points);
  for (uint64_t seed : {1, 2})
    same_everywhere([&] {
      return digest(encode(x, GetParam(), nullptr,
                           {.rounding = Rounding::stochastic, .stream = {.seed = seed}})
                        .codes);
    });
}

// The states' own path of encoding and the codec's agree, code for code.
TEST_P(DynamicMap, NearestCodesAreThoseOfTheDefinition) {
  const auto x = with_unit_blocks(wide_noise(20000, 9));
  const Encoded e = encode(x, GetParam());
  for (size_t i = 0; i < x.size(); ++i)
    ASSERT_EQ(e.codes[i], dynamic_encode(kDynamic, x[i], GetParam(), 1.0f)) << x[i];
}

INSTANTIATE_TEST_SUITE_P(Map, DynamicMap, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "signed" : "unsigned"; });

}  // namespace
}  // namespace lowtide::quant
