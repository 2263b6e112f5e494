// SPDX-License-Identifier: Apache-2.0
#include "quant/group_map.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "packed.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::Packed;
using ::lowtide::testing::same_everywhere;

constexpr LevelTables kTables = make_level_tables();
constexpr LevelMap kTabled[] = {LevelMap::nf4, LevelMap::dynamic, LevelMap::dynamic_unsigned,
                                LevelMap::linear_nozero};
constexpr LevelMap kMaps[] = {
    LevelMap::nf4,           LevelMap::dynamic,  LevelMap::dynamic_unsigned,
    LevelMap::linear_nozero, LevelMap::dynamic8, LevelMap::dynamic8_unsigned};
const LevelTable& levels_of(LevelMap map) { return kTables.of[static_cast<int>(map)]; }
// Ascending, one a code.
std::vector<float> levels(LevelMap map) {
  std::vector<float> out;
  for (int c = 0; c < 1 << map_bits(map); ++c)
    out.push_back(map_bits(map) == 4 ? levels_of(map).level[c]
                                     : dynamic_decode(kDynamic, c, map_is_signed(map), 1.0f));
  return out;
}

std::vector<uint16_t> to_16(const std::vector<float>& x, FloatType type) {
  std::vector<uint16_t> h;
  for (float v : x) h.push_back(type == FloatType::bf16 ? float_to_bf16(v) : float_to_half(v));
  return h;
}

Packed packed(const std::vector<float>& x, const GroupShape& s, LevelMap map,
              const MapOptions& o = {}) {
  Packed p(s, Scheme::symmetric);
  quantize_map(x.data(), FloatType::f32, map, p.out(), o);
  return p;
}
std::vector<float> decoded(const Packed& p, LevelMap map) {
  std::vector<float> y(static_cast<size_t>(p.shape.rows * p.shape.cols));
  dequantize_map(p.in(), map, y.data(), FloatType::f32);
  return y;
}

using Param = std::tuple<LevelMap, Rounding, bool>;
class GroupMap : public ::testing::TestWithParam<Param> {
 protected:
  LevelMap map() const { return std::get<0>(GetParam()); }
  int bits() const { return map_bits(map()); }
  bool stochastic() const { return std::get<1>(GetParam()) == Rounding::stochastic; }
  MapOptions options(int64_t offset = 0) const {
    return {.rounding = std::get<1>(GetParam()),
            .stream = {.seed = 9, .step = 2, .param = 4, .role = random::kRoleQuantSr},
            .offset = offset,
            .bf16_scale = std::get<2>(GetParam())};
  }
};

TEST_P(GroupMap, SameBitsForEveryShapeTypeIsaAndThreadCount) {
  for (int64_t cols : {0, 1, 3, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 129, 257, 576, 1000})
    for (int64_t group : {int64_t{32}, int64_t{96}, int64_t{1024}})
      for (int64_t offset : {int64_t{0}, (int64_t{1} << 40) + 113}) {
        const GroupShape s{.rows = 3, .cols = cols, .group = group, .bits = bits()};
        const auto x = noise(s.rows * s.cols, 11);
        same_everywhere([&] {
          const Packed p = packed(x, s, map(), options(offset));
          uint64_t h = p.hash() ^ digest(decoded(p, map()));
          for (FloatType type : {FloatType::bf16, FloatType::f16}) {
            const auto half = to_16(x, type);
            Packed q(s, Scheme::symmetric);
            quantize_map(half.data(), type, map(), q.out(), options(offset));
            std::vector<uint16_t> y(half.size());
            dequantize_map(q.in(), map(), y.data(), type);
            h = h * 3 ^ q.hash() ^ digest(y);
          }
          return h;
        });
      }
}

TEST_P(GroupMap, ManyGrainsLongGroupsAndRowShards) {
  for (int64_t group : {96, 4096}) {
    const GroupShape s{.rows = 12, .cols = 5000, .group = group, .bits = bits()};
    const auto x = noise(s.rows * s.cols, 5);
    same_everywhere([&] { return packed(x, s, map(), options(3)).hash(); });
    const Packed whole = packed(x, s, map(), options(3));
    const GroupShape one{.rows = 1, .cols = s.cols, .group = group, .bits = bits()};
    const std::vector<float> part(x.begin() + 7 * s.cols, x.begin() + 8 * s.cols);
    const Packed p = packed(part, one, map(), options(3 + 7 * s.cols));
    EXPECT_EQ(0, std::memcmp(p.codes.data(), whole.codes.data() + 7 * row_bytes(s), row_bytes(s)));
  }
}

// The reference for nearest rounding: all distances in double. At a midpoint of y the lower of 16
// levels wins; of 256 either, within 1e-4 of their distance.
TEST_P(GroupMap, CodesAreTheNearestLevelsOrTheirNeighbours) {
  const GroupShape s{.rows = 4, .cols = 3000, .group = 256, .bits = bits()};
  const auto x = noise(s.rows * s.cols, 3);
  const std::vector<float> level = levels(map());
  const int top = static_cast<int>(level.size()) - 1;
  const Packed p = packed(x, s, map(), options());
  for (int64_t i = 0; i < s.rows * s.cols; ++i) {
    const int64_t row = i / s.cols, col = i % s.cols;
    const float scale = p.scale[row * groups_per_row(s) + col / s.group];
    const double y = x[i] * (1.0f / scale);
    const int code = get_code(p.codes.data() + row * row_bytes(s), col, s.bits);
    int best = 0;
    for (int k = 1; k <= top; ++k)
      if (std::abs(level[k] - y) < std::abs(level[best] - y)) best = k;
    const double around = level[std::min(top, code + 1)] - level[std::max(0, code - 1)];
    if (!stochastic()) {
      if (s.bits == 4) {
        ASSERT_EQ(code, best) << y;
      }
      ASSERT_LE(std::abs(level[code] - y), std::abs(level[best] - y) + 1e-4 * around) << y;
    } else if (y > level[0] && y < level[top]) {
      ASSERT_LT(std::abs(level[code] - y), around) << y;
    }
  }
}

TEST_P(GroupMap, NonFiniteElementsNeverReachTheScale) {
  const GroupShape s{.rows = 2, .cols = 100, .group = 32, .bits = bits()};
  auto x = noise(s.rows * s.cols, 2);
  const float inf = std::numeric_limits<float>::infinity();
  x[5] = inf, x[40] = -inf, x[41] = std::nanf(""), x[99] = std::nanf(""), x[100] = inf;
  auto clean = x;
  for (auto& v : clean)
    if (!std::isfinite(v)) v = 0;
  same_everywhere([&] {
    Packed p(s, Scheme::symmetric);
    EXPECT_EQ(quantize_map(x.data(), FloatType::f32, map(), p.out(), options()), 5);
    EXPECT_EQ(p.hash(), packed(clean, s, map(), options()).hash());
    return p.hash();
  });
}

TEST_P(GroupMap, ZerosTinyHugeAndNegativeGroups) {
  const GroupShape s{.rows = 1, .cols = 160, .group = 32, .bits = bits()};
  auto x = noise(160, 4);
  for (int i = 0; i < 32; ++i) x[i] = 0.0f;
  for (int i = 32; i < 64; ++i) x[i] *= 0x1p-130f;
  for (int i = 64; i < 96; ++i) x[i] *= std::numeric_limits<float>::max();
  for (int i = 96; i < 128; ++i) x[i] = -std::abs(x[i]);
  x[128] = 0.0f;
  same_everywhere([&] { return packed(x, s, map(), options()).hash(); });
  const Packed p = packed(x, s, map(), options());
  const auto y = decoded(p, map());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y[i], 0.0f);
  for (int i = 64; i < 160; ++i) EXPECT_TRUE(std::isfinite(y[i]));
  for (int i = 96; i < 128 && !map_is_signed(map()); ++i)
    EXPECT_EQ(y[i], 0.0f);  // values below 0 count as 0
  EXPECT_TRUE(y[128] == 0.0f || map() == LevelMap::linear_nozero);
}

std::string name_of(const ::testing::TestParamInfo<Param>& info) {
  const char* names[] = {"nf4",           "dynamic",  "dynamic_unsigned",
                         "linear_nozero", "dynamic8", "dynamic8_unsigned"};
  return std::string(names[static_cast<int>(std::get<0>(info.param))]) +
         (std::get<1>(info.param) == Rounding::nearest ? "_nearest" : "_stochastic") +
         (std::get<2>(info.param) ? "_bf16_scale" : "");
}
INSTANTIATE_TEST_SUITE_P(All, GroupMap,
                         ::testing::Combine(::testing::ValuesIn(kMaps),
                                            ::testing::Values(Rounding::nearest,
                                                              Rounding::stochastic),
                                            ::testing::Bool()),
                         name_of);

TEST(GroupMapNumerics, EveryMidpointGoesDownAndItsSuccessorUp) {
  for (LevelMap map : kTabled) {
    const LevelTable& t = levels_of(map);
    for (int i = 0; i < 15; ++i) {
      const double exact = (double{t.level[i]} + double{t.level[i + 1]}) * 0.5;
      EXPECT_LT(t.level[i], t.level[i + 1]);
      EXPECT_LE(t.middle[i], exact);
      const float next = std::nextafter(t.middle[i], 2.0f);
      EXPECT_GT(next, exact) << i;
      EXPECT_EQ(map_nearest(t, t.middle[i]), i);
      EXPECT_EQ(map_nearest(t, next), i + 1);
    }
    for (int i = 0; i < 16; ++i) {  // levels are fixed points of both roundings
      EXPECT_EQ(map_nearest(t, t.level[i]), i);
      for (uint32_t r : {0u, 1u, 65535u}) EXPECT_EQ(map_stochastic(t, t.level[i], r), i);
    }
    EXPECT_EQ(map_nearest(t, -9.0f), 0);
    EXPECT_EQ(map_nearest(t, 9.0f), 15);
    EXPECT_EQ(map_stochastic(t, -9.0f, 65535), 0);
    EXPECT_EQ(map_stochastic(t, 9.0f, 0), 15);
  }
}

// Over all 2^16 noise values the mean is the value itself, to half a step of the grid of 2^-16.
TEST(GroupMapNumerics, StochasticRoundingIsExactOnItsGrid) {
  for (LevelMap map : kTabled) {
    const LevelTable& t = levels_of(map);
    for (float y : {-0.99f, -0.7f, -0.25f, -0.01f, 0.001f, 0.0626f, 0.3f, 0.51f, 0.97f}) {
      if (y < t.level[0]) continue;
      double sum = 0;
      int low = 15, high = 0;
      for (uint32_t r = 0; r < 65536; ++r) {
        const int code = map_stochastic(t, y, r);
        low = std::min(low, code), high = std::max(high, code);
        sum += t.level[code];
      }
      EXPECT_LE(high - low, 1);
      EXPECT_NEAR(sum / 65536, y, (t.level[high] - t.level[low]) * 0x1.2p-17) << y;
    }
  }
}

// z-scores per element and their sum of squares, 1.1 million draws a map.
TEST(GroupMapNumerics, StochasticRoundingIsUnbiased) {
  const int draws = 11000;
  for (LevelMap map : kMaps) {
    const GroupShape s{.rows = 1, .cols = 100, .group = 128, .bits = map_bits(map)};
    auto x = noise(100, 8);
    const std::vector<float> level = levels(map);
    const int top = static_cast<int>(level.size()) - 1;
    if (map_bits(map) == 8)  // across its seven decades
      for (size_t i = 0; i < x.size(); ++i)
        x[i] *= static_cast<float>(std::pow(10.0, -static_cast<int>(i % 8)));
    x[0] = 1.0f;                                  // the scale
    for (auto& v : x) v = std::max(v, level[0]);  // below the first level there is no bracket
    std::vector<double> sum(100);
    for (int k = 0; k < draws; ++k) {
      const auto y = decoded(packed(x, s, map,
                                    {.rounding = Rounding::stochastic,
                                     .stream = {.seed = 5,
                                                .step = static_cast<uint64_t>(k),
                                                .role = random::kRoleQuantSr}}),
                             map);
      for (int i = 0; i < 100; ++i) sum[i] += double{y[i]} - x[i];
    }
    // half a step of the grid; of 256 levels also their own roundings
    const double grid = map_bits(map) == 8 ? 0x1p-15 : 0x1p-17;
    double chi = 0, total = 0, variance = 0;
    int counted = 0;
    for (int i = 0; i < 100; ++i) {
      int c = 0;
      while (c < top - 1 && level[c + 1] <= x[i]) ++c;
      const double gap = double{level[c + 1]} - level[c];
      const double f = (x[i] - double{level[c]}) / gap;
      const double sigma = gap * std::sqrt(f * (1 - f) * draws);
      EXPECT_LE(std::abs(sum[i]), 4.5 * sigma + draws * gap * grid) << i << " " << x[i];
      // in units of its gap: gaps differ by decades
      total += sum[i] / gap, variance += sigma / gap * (sigma / gap);
      if (f > 1e-3 && f < 1 - 1e-3) chi += std::pow(sum[i] / sigma, 2), ++counted;
    }
    EXPECT_LT(std::abs(total) / std::sqrt(variance), 4.0);
    EXPECT_NEAR(chi / counted, 1.0, 5 * std::sqrt(2.0 / counted));
  }
}

// The bytes are a file format: what is written today must decode in every later version.
TEST(GroupMapFormat, Digests) {
  const GroupShape s{.rows = 7, .cols = 613, .group = 64, .bits = 4};
  const auto x = noise(7 * 613, 21);
  const MapOptions sr{.rounding = Rounding::stochastic,
                      .stream = {.seed = 1, .step = 2, .slot = 3, .param = 4, .role = 5}};
  EXPECT_EQ(packed(x, s, LevelMap::nf4).hash(), 0x809bac952fc05e3full);
  EXPECT_EQ(packed(x, s, LevelMap::nf4, sr).hash(), 0x59eee1225b4169b8ull);
  EXPECT_EQ(packed(x, s, LevelMap::dynamic).hash(), 0xbf67fb3ba3983ecdull);
  EXPECT_EQ(packed(x, s, LevelMap::dynamic_unsigned, sr).hash(), 0x36af48a089e676caull);
  EXPECT_EQ(packed(x, s, LevelMap::linear_nozero, {.bf16_scale = true}).hash(),
            0x8e381e83d37a850bull);
  const GroupShape s8{.rows = 7, .cols = 613, .group = 64, .bits = 8};
  EXPECT_EQ(packed(x, s8, LevelMap::dynamic8).hash(), 0x9bcc889aac9751d0ull);
  EXPECT_EQ(packed(x, s8, LevelMap::dynamic8, sr).hash(), 0x73875bb973c2e005ull);
  EXPECT_EQ(packed(x, s8, LevelMap::dynamic8_unsigned, sr).hash(), 0xef4a2c0ab773a54cull);
}

TEST(GroupMapErrors, ImpossibleArgumentsAreRefused) {
  float x[64] = {};
  uint8_t codes[64], zero[2];
  float scale[2];
  auto call = [&](GroupShape s, LevelMap map, uint8_t* z, int64_t offset) {
    quantize_map(x, FloatType::f32, map, {codes, scale, z, s}, {.offset = offset});
  };
  const GroupShape good{.rows = 2, .cols = 32, .group = 32, .bits = 4};
  EXPECT_NO_THROW(call(good, LevelMap::nf4, nullptr, 0));
  EXPECT_THROW(call(good, LevelMap::nf4, zero, 0), Error);
  EXPECT_THROW(call(good, LevelMap::nf4, nullptr, -1), Error);
  EXPECT_THROW(call(good, LevelMap::dynamic8, nullptr, 0), Error);
  EXPECT_THROW(call(good, static_cast<LevelMap>(6), nullptr, 0), Error);
  EXPECT_THROW(call(good, static_cast<LevelMap>(-1), nullptr, 0), Error);
  EXPECT_THROW(call({2, 32, 32, 8}, LevelMap::nf4, nullptr, 0), Error);
  EXPECT_THROW(call({2, 32, 48, 4}, LevelMap::nf4, nullptr, 0), Error);
  EXPECT_THROW(dequantize_map({codes, scale, zero, good}, LevelMap::nf4, x, FloatType::f32), Error);
}

}  // namespace
}  // namespace lowtide::quant
