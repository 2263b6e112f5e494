// SPDX-License-Identifier: Apache-2.0
#include "quant/group_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "packed.h"
#include "quant/group_codec_scalar.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::Packed;
using ::lowtide::testing::quantized;
using ::lowtide::testing::same_everywhere;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<uint16_t> to_bf16(const std::vector<float>& x) {
  std::vector<uint16_t> h(x.size());
  for (size_t i = 0; i < x.size(); ++i) h[i] = float_to_bf16(x[i]);
  return h;
}

const std::vector<int64_t> kCols = {0,  1,  3,   15,  16,  17,  31,  32,  33,  47,  63,
                                    64, 65, 127, 129, 255, 256, 257, 320, 576, 1000};

using Param = std::tuple<int, Scheme, Rounding>;
class GroupCodec : public ::testing::TestWithParam<Param> {
 protected:
  int bits() const { return std::get<0>(GetParam()); }
  Scheme scheme() const { return std::get<1>(GetParam()); }
  QuantizeOptions options(int64_t offset = 0) const {
    return {.rounding = std::get<2>(GetParam()),
            .stream = {.seed = 9, .step = 2, .param = 4, .role = random::kRoleQuantSr},
            .offset = offset};
  }
};

TEST_P(GroupCodec, SameBitsForEveryShapeIsaAndThreadCount) {
  for (int64_t cols : kCols)
    for (int64_t group : {int64_t{32}, int64_t{64}, int64_t{256}})
      for (int64_t offset : {int64_t{0}, int64_t{1}, (int64_t{1} << 40) + 112}) {
        const GroupShape s{.rows = 3, .cols = cols, .group = group, .bits = bits()};
        const auto x = noise(s.rows * s.cols, 11);
        const auto h = to_bf16(x);
        same_everywhere([&] {
          Packed p = quantized(x, s, scheme(), options(offset));
          Packed b(s, scheme());
          quantize_groups(h.data(), FloatType::bf16, b.out(), options(offset));
          std::vector<uint16_t> y(h.size());
          dequantize_groups(b.in(), y.data(), FloatType::bf16);
          return p.hash() ^ digest(p.decoded()) ^ b.hash() ^ digest(y);
        });
      }
}

// Whole tiles of 128 elements have code of their own: their words, also where the block number gets
// a high word and for a role of ten rounds; a group to be cleaned between them; every range.
TEST_P(GroupCodec, SameBitsInWholeTiles) {
  for (int64_t cols : {128, 256, 640})
    for (int64_t group : {128, 256, 512})
      for (int64_t offset : {int64_t{0}, int64_t{64}, (int64_t{1} << 35) - 256}) {
        const GroupShape s{.rows = 3, .cols = cols, .group = group, .bits = bits()};
        auto x = noise(s.rows * s.cols, 13);
        for (int64_t i = 0; i < cols; ++i) x[2 * cols + i] = -std::abs(x[2 * cols + i]);
        const auto h = to_bf16(x);
        for (auto [role, range] : {std::pair(random::kRoleQuantSr, Range::tight),
                                   std::pair(random::kRoleZ, Range::headroom),
                                   std::pair(random::kRoleQuantSr, Range::compat)}) {
          if (range == Range::compat && scheme() == Scheme::symmetric) continue;
          QuantizeOptions o = options(offset);
          o.stream.role = role, o.range = range;
          auto y = x;
          y[cols + 5] = kInf, y[3 * cols - 1] = std::nanf("");
          same_everywhere([&] {
            Packed b(s, scheme());
            quantize_groups(h.data(), FloatType::bf16, b.out(), o);
            Packed bad(s, scheme());
            EXPECT_EQ(quantize_groups(y.data(), FloatType::f32, bad.out(), o), 2);
            return quantized(x, s, scheme(), o).hash() ^ b.hash() ^ bad.hash();
          });
        }
      }
}

TEST_P(GroupCodec, HalfPrecisionInAndOut) {
  for (int64_t cols : {1, 17, 33, 65, 300}) {
    const GroupShape s{.rows = 3, .cols = cols, .group = 64, .bits = bits()};
    auto x = noise(s.rows * s.cols, 12);
    x[0] = 65504.0f;  // decodes to a little more, which must not become infinite
    std::vector<uint16_t> h(x.size());
    for (size_t i = 0; i < x.size(); ++i) h[i] = float_to_half(x[i]), x[i] = half_to_float(h[i]);
    for (bool bf16_scale : {false, true})
      same_everywhere([&] {
        QuantizeOptions o = options();
        o.bf16_scale = bf16_scale, o.range = Range::headroom;
        Packed p(s, scheme());
        quantize_groups(h.data(), FloatType::f16, p.out(), o);
        EXPECT_EQ(p.hash(), quantized(x, s, scheme(), o).hash());
        std::vector<uint16_t> y(h.size());
        dequantize_groups(p.in(), y.data(), FloatType::f16);
        const auto z = p.decoded();
        for (size_t i = 0; i < y.size(); ++i) {
          EXPECT_TRUE(is_finite(half_to_float(y[i])));
          EXPECT_EQ(y[i], float_to_half(std::clamp(z[i], -65504.0f, 65504.0f)));
        }
        return digest(y);
      });
  }
}

// Scales that bfloat16 holds; codes within one rounding of x under the *stored* scale, ends
// included.
TEST_P(GroupCodec, RoundedScalesLeaveNoGainError) {
  const GroupShape s{.rows = 4, .cols = 300, .group = 64, .bits = bits()};
  const auto x = noise(s.rows * s.cols, 3);
  QuantizeOptions o = options();
  o.bf16_scale = true;
  for (Range range : {Range::tight, Range::headroom}) {
    o.range = range;
    const Packed p = quantized(x, s, scheme(), o);
    for (float v : p.scale) EXPECT_EQ(v, bf16_to_float(float_to_bf16(v)));
    const double limit = o.rounding == Rounding::stochastic ? 1.0 : 0.5;
    const auto y = p.decoded();
    for (int64_t i = 0; i < s.rows * s.cols; ++i) {
      const int64_t g = i / s.cols * groups_per_row(s) + i % s.cols / s.group;
      EXPECT_LE(std::abs(x[i] - y[i]), (limit + 1e-5 * 255) * p.scale[g]) << i;
    }
    same_everywhere([&] { return quantized(x, s, scheme(), o).hash(); });
  }
}

// 40 rows of 1000 columns are several grains of work, and a group of 2048 several spans of noise.
TEST_P(GroupCodec, ManyGrainsAndLongGroups) {
  for (int64_t group : {96, 256, 2048}) {
    const GroupShape s{.rows = 40, .cols = 5000, .group = group, .bits = bits()};
    const auto x = noise(s.rows * s.cols, 5);
    same_everywhere([&] { return quantized(x, s, scheme(), options(3)).hash(); });
  }
}

TEST_P(GroupCodec, AnyRowShardEqualsTheWhole) {
  const GroupShape s{.rows = 6, .cols = 333, .group = 64, .bits = bits()};
  const auto x = noise(s.rows * s.cols, 7);
  const Packed whole = quantized(x, s, scheme(), options(1000));
  for (int64_t row = 0; row < s.rows; ++row) {
    const GroupShape one{.rows = 1, .cols = s.cols, .group = s.group, .bits = s.bits};
    const std::vector<float> part(x.begin() + row * s.cols, x.begin() + (row + 1) * s.cols);
    const Packed p = quantized(part, one, scheme(), options(1000 + row * s.cols));
    EXPECT_EQ(0,
              std::memcmp(p.codes.data(), whole.codes.data() + row * row_bytes(s), row_bytes(s)));
  }
}

TEST_P(GroupCodec, ErrorIsAtMostOneRounding) {
  const GroupShape s{.rows = 4, .cols = 300, .group = 128, .bits = bits()};
  const auto x = noise(s.rows * s.cols, 3);
  const Packed p = quantized(x, s, scheme(), options());
  const auto y = p.decoded();
  // Nearest: half a step; stochastic: a step. Asymmetric ends lose up to half a step more to the
  // rounded zero point. 1e-5: rounding of x * inv and of the decoded product.
  const bool sr = std::get<2>(GetParam()) == Rounding::stochastic;
  const double limit = sr ? 1.0 : 0.5;
  for (int64_t i = 0; i < s.rows * s.cols; ++i) {
    const int64_t g = i / s.cols * groups_per_row(s) + i % s.cols / s.group;
    EXPECT_LE(std::abs(x[i] - y[i]), (limit + 1e-5 * 255) * p.scale[g]) << i;
  }
}

TEST_P(GroupCodec, ZeroIsExactAndTinyGroupsBecomeZero) {
  const GroupShape s{.rows = 3, .cols = 64, .group = 64, .bits = bits()};
  std::vector<float> x(s.rows * s.cols, 0.0f);
  for (int i = 0; i < 64; ++i) x[64 + i] = 1e-40f * static_cast<float>(i - 30);  // denormal
  for (int i = 0; i < 64; i += 2) x[128 + i] = 0.3f - 0.01f * static_cast<float>(i);
  const auto y = quantized(x, s, scheme(), options()).decoded();
  for (int i = 0; i < 128; ++i) EXPECT_EQ(y[i], 0.0f);
  for (int i = 1; i < 64; i += 2) EXPECT_EQ(y[128 + i], 0.0f);
}

TEST_P(GroupCodec, NonFiniteElementsNeverReachTheScale) {
  const GroupShape s{.rows = 2, .cols = 100, .group = 32, .bits = bits()};
  auto x = noise(s.rows * s.cols, 2);
  x[5] = kInf, x[40] = -kInf, x[41] = std::nanf(""), x[99] = std::nanf(""), x[100] = kInf;
  auto clean = x;
  for (auto& v : clean)
    if (!std::isfinite(v)) v = 0;
  same_everywhere([&] {
    Packed p(s, scheme());
    EXPECT_EQ(quantize_groups(x.data(), FloatType::f32, p.out(), options()), 5);
    EXPECT_EQ(p.hash(), quantized(clean, s, scheme(), options()).hash());
    return p.hash();
  });
}

TEST_P(GroupCodec, TheLargestFloatsDoNotOverflow) {
  const float top = std::numeric_limits<float>::max();
  const GroupShape s{.rows = 1, .cols = 32, .group = 32, .bits = bits()};
  std::vector<float> x(32, 0.0f);
  x[0] = top, x[1] = -top, x[2] = top / 3;
  const Packed p = quantized(x, s, scheme(), options());
  EXPECT_TRUE(std::isfinite(p.scale[0]));
  const auto y = p.decoded();
  for (int i = 0; i < 3; ++i) {  // saturates at 7/8 of the largest float
    EXPECT_TRUE(std::isfinite(y[i]));
    EXPECT_NEAR(y[i] / top, std::clamp(x[i] / top, -0.875f, 0.875f), 1.01 * p.scale[0] / top);
  }
  same_everywhere([&] { return quantized(x, s, scheme(), options()).hash(); });
}

INSTANTIATE_TEST_SUITE_P(
    All, GroupCodec,
    ::testing::Combine(::testing::Values(8, 4),
                       ::testing::Values(Scheme::symmetric, Scheme::asymmetric),
                       ::testing::Values(Rounding::nearest, Rounding::stochastic)),
    [](const auto& info) {
      return std::string("int") + std::to_string(std::get<0>(info.param)) +
             (std::get<1>(info.param) == Scheme::symmetric ? "_sym" : "_asym") +
             (std::get<2>(info.param) == Rounding::nearest ? "_nearest" : "_stochastic");
    });

// The bytes are a file format: what is written today must decode in every later version.
TEST(GroupFormat, Digests) {
  const GroupShape s8{.rows = 7, .cols = 613, .group = 256, .bits = 8};
  const GroupShape s4{.rows = 7, .cols = 613, .group = 64, .bits = 4};
  const auto x = noise(7 * 613, 21);
  const QuantizeOptions sr{.rounding = Rounding::stochastic,
                           .stream = {.seed = 1, .step = 2, .slot = 3, .param = 4, .role = 5}};
  EXPECT_EQ(quantized(x, s8, Scheme::symmetric).hash(), 0x23f48f4a374a219cull);
  EXPECT_EQ(quantized(x, s8, Scheme::asymmetric, sr).hash(), 0xa2421cd2a3b9999bull);
  EXPECT_EQ(quantized(x, s4, Scheme::symmetric, sr).hash(), 0x5b6cd04f3d7da9bbull);
  EXPECT_EQ(quantized(x, s4, Scheme::asymmetric).hash(), 0x61a8272f9549defeull);
}

TEST(GroupCodecNumerics, GroupsOfOneSignKeepTheirResolution) {
  const GroupShape s{.rows = 1, .cols = 256, .group = 256, .bits = 8};
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i) x[i] = 0.5f + 0.5f * static_cast<float>(i) / 255;
  const auto y = quantized(x, s, Scheme::asymmetric).decoded();
  double worst = 0;
  for (int i = 0; i < 256; ++i) worst = std::max(worst, std::abs(double{x[i]} - y[i]));
  EXPECT_LE(worst, 0.5 / 255 + 1e-6);  // Q-GaLore's zero clamp: 0.5
  const auto q = quantized(x, s, Scheme::asymmetric, {.range = Range::compat}).decoded();
  EXPECT_NEAR(q[0], q[255], 1e-6);  // and compat reproduces it
}

// z-score of the mean over many steps, per element: with 4096 draws the grid of 2^-16 steps hides
// nothing above 4 sigma = 0.03 steps.
TEST(GroupCodecNumerics, StochasticRoundingIsUnbiased) {
  for (int bits : {8, 4})
    for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric}) {
      const GroupShape s{.rows = 1, .cols = 96, .group = 96, .bits = bits};
      auto x = noise(96, 8);
      x[0] = 1.0f, x[1] = -1.0f;  // fixes the scale; both ends are codes
      const int draws = 4096;
      std::vector<double> sum(96);
      float scale = 0;
      for (int t = 0; t < draws; ++t) {
        const Packed p = quantized(
            x, s, scheme,
            {.rounding = Rounding::stochastic,
             .stream = {
                 .seed = 5, .step = static_cast<uint64_t>(t), .role = random::kRoleQuantSr}});
        const auto y = p.decoded();
        scale = p.scale[0];
        for (int i = 0; i < 96; ++i) sum[i] += (double{y[i]} - x[i]) / p.scale[0];
      }
      double chi = 0;
      int counted = 0;
      for (int i = 2; i < 96; ++i) {
        const double f = std::abs(std::fmod(double{x[i]} / scale, 1.0));
        const double sigma = std::sqrt(f * (1 - f) / draws);
        // Ends within half a step of the asymmetric range may be clamped.
        if (std::abs(x[i]) > 0.95f) continue;
        EXPECT_LE(std::abs(sum[i] / draws), 4.5 * sigma + 1.0 / 65536) << bits << " " << i;
        if (sigma > 1e-3) chi += std::pow(sum[i] / draws / sigma, 2), ++counted;
      }
      EXPECT_NEAR(chi / counted, 1.0, 5 * std::sqrt(2.0 / counted));
    }
}

TEST(GroupCodecNumerics, FixedPointRoundingIsExactOnItsGrid) {
  // Over all 2^16 noise values the number of round-ups is the fraction itself.
  for (float steps : {0.25f, -0.25f, 3.5f, -126.99f, 0.0f, 1.0f, -7.0f, 0x1p-16f}) {
    int64_t sum = 0;
    for (uint32_t r = 0; r < 65536; ++r) sum += round_stochastic(steps, r);
    EXPECT_EQ(sum, to_int_rne(steps * 65536.0f)) << steps;
  }
}

TEST(GroupCodecNumerics, HeadroomLeavesRoomAtBothEnds) {
  for (int bits : {8, 4})
    for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric}) {
      const GroupShape s{.rows = 1, .cols = 999, .group = 64, .bits = bits};
      const auto x = noise(999, 6);
      const QuantizeOptions o{.range = Range::headroom};
      const Packed p = quantized(x, s, scheme, o);
      const auto y = p.decoded();
      for (int g = 0; g < 16; ++g) {
        const int zero = scheme == Scheme::symmetric ? symmetric_zero(bits) : p.zero[g];
        for (int i = 64 * g; i < std::min(999, 64 * g + 64); ++i) {
          EXPECT_NEAR(x[i], y[i], 0.5001 * p.scale[g]);
          EXPECT_LE(1.06f * x[i], decode(max_code(bits), zero, p.scale[g]));
          EXPECT_GE(1.06f * x[i], decode(min_code(scheme), zero, p.scale[g]));
        }
      }
      same_everywhere([&] { return quantized(x, s, scheme, o).hash(); });
    }
}

TEST(GroupCodecNumerics, CompatHasTheSameBitsEverywhere) {
  auto x = noise(2 * 700, 6);
  for (int i = 0; i < 64; ++i) x[i] = 5.0f + x[i] * 1e-3f;
  for (int bits : {8, 4})
    for (Rounding rounding : {Rounding::nearest, Rounding::stochastic})
      same_everywhere([&] {
        const GroupShape s{.rows = 2, .cols = 700, .group = 64, .bits = bits};
        return quantized(x, s, Scheme::asymmetric, {.rounding = rounding, .range = Range::compat})
            .hash();
      });
}

TEST(GroupCodecNumerics, CountsNonFiniteElements) {
  auto x = noise(100003, 4);
  for (size_t i : {0, 17, 4095, 4096, 65536, 100002}) x[i] = i % 2 ? kInf : std::nanf("");
  const auto h = to_bf16(x);
  same_everywhere([&] {
    const int64_t n[2] = {count_nonfinite(x.data(), FloatType::f32, 100003),
                          count_nonfinite(h.data(), FloatType::bf16, 100003)};
    EXPECT_EQ(n[0], 6);
    EXPECT_EQ(n[1], 6);
    EXPECT_EQ(count_nonfinite(nullptr, FloatType::f32, 0), 0);
    return digest(n, sizeof n);
  });
}

TEST(GroupCodecErrors, ImpossibleShapesAreRefused) {
  float x[64] = {};
  uint8_t codes[64], zero[2];
  float scale[2];
  auto call = [&](GroupShape s, QuantizeOptions o = {}) {
    quantize_groups(x, FloatType::f32, {codes, scale, nullptr, s}, o);
  };
  EXPECT_THROW(call({.rows = -1, .cols = 4, .group = 32, .bits = 8}), Error);
  EXPECT_THROW(call({.rows = 1, .cols = 4, .group = 32, .bits = 5}), Error);
  EXPECT_THROW(call({.rows = 1, .cols = 4, .group = 48, .bits = 8}), Error);
  EXPECT_THROW(call({.rows = 1, .cols = 4, .group = 0, .bits = 8}), Error);
  EXPECT_THROW(call({.rows = 1, .cols = 4, .group = 32, .bits = 8}, {.range = Range::compat}),
               Error);
  EXPECT_THROW(call({.rows = 1, .cols = 4, .group = 32, .bits = 8}, {.offset = -1}), Error);
  EXPECT_THROW(
      call({.rows = 1, .cols = 4, .group = 32, .bits = 8}, {.range = static_cast<Range>(3)}),
      Error);
  EXPECT_NO_THROW(quantize_groups(x, FloatType::f32,
                                  {codes, scale, zero, {.rows = 2, .cols = 32, .group = 32}},
                                  {.range = Range::compat}));
}

}  // namespace
}  // namespace lowtide::quant
