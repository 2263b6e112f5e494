// SPDX-License-Identifier: Apache-2.0
#include "quant/requant.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "packed.h"
#include "quant/requant_scalar.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::digest;
using ::lowtide::testing::noise;
using ::lowtide::testing::Packed;
using ::lowtide::testing::quantized;
using ::lowtide::testing::same_everywhere;

RequantOptions at_step(uint64_t step, double alpha = 1, double decay = 1, int64_t offset = 0) {
  return {.alpha = alpha,
          .decay = decay,
          .stream = {.seed = 7, .step = step, .param = 2, .role = random::kRoleWeightSr},
          .offset = offset};
}

using Param = std::tuple<int, Scheme>;
class Requant : public ::testing::TestWithParam<Param> {
 protected:
  int bits() const { return std::get<0>(GetParam()); }
  Scheme scheme() const { return std::get<1>(GetParam()); }
  GroupShape shape(int64_t rows, int64_t cols, int64_t group) const {
    return {.rows = rows, .cols = cols, .group = group, .bits = bits()};
  }
};

TEST_P(Requant, SameBitsForEveryShapeIsaAndThreadCount) {
  for (int64_t cols : {0, 1, 15, 16, 17, 31, 32, 33, 63, 65, 255, 257, 576, 1000})
    for (int64_t group : {32, 256, 1024})
      for (int64_t offset : {int64_t{0}, int64_t{5}, (int64_t{1} << 40) + 64}) {
        const GroupShape s = shape(3, cols, group);
        const Packed before = quantized(noise(3 * cols, 1), s, scheme());
        const auto delta = noise(3 * cols, 2);
        for (float alpha : {0.001f, 0.5f}) {  // old scales stay; new scales
          same_everywhere([&] {
            Packed w = before;
            EXPECT_EQ(requant_add_sr(w.out(), delta.data(), at_step(1, alpha, 0.999, offset)), 0);
            return w.hash();
          });
        }
      }
}

// Whole tiles of 128 elements are stepped in one pass while their scale stays: scales that stay and
// that do not, in groups of one tile to more than fit, and groups to be left alone.
TEST_P(Requant, SameBitsInWholeTiles) {
  for (auto [cols, group] : {std::pair(128, 128), std::pair(640, 256), std::pair(2304, 2048)})
    for (int64_t offset : {int64_t{0}, int64_t{32}, (int64_t{1} << 35) - 256}) {
      const GroupShape s = shape(3, cols, group);
      const Packed before = quantized(noise(3 * cols, 1), s, scheme(), {.range = Range::headroom});
      for (auto [alpha, decay] : {std::pair(0.001, 0.999), std::pair(0.001, 1.0),
                                  std::pair(0.5, 0.999), std::pair(0.5, 1.0), std::pair(0.1, 0.0)})
        for (bool finite : {true, false}) {
          auto delta = noise(3 * cols, 2);
          if (!finite) delta[7] = std::nanf(""), delta[3 * cols - 1] = -INFINITY;
          same_everywhere([&] {
            Packed w = before;
            for (uint64_t step : {1, 2})
              EXPECT_EQ(requant_add_sr(w.out(), delta.data(), at_step(step, alpha, decay, offset)),
                        finite ? 0 : 2);
            return w.hash();
          });
        }
    }
}

TEST_P(Requant, ManyGrains) {
  const GroupShape s = shape(40, 5000, 256);
  const Packed before = quantized(noise(s.rows * s.cols, 1), s, scheme());
  const auto delta = noise(s.rows * s.cols, 2);
  same_everywhere([&] {
    Packed w = before;
    for (uint64_t t = 0; t < 3; ++t)
      requant_add_sr(w.out(), delta.data(), at_step(t, 0.01, 0.9999));
    return w.hash();
  });
}

TEST_P(Requant, ZeroDeltaChangesNoBit) {
  const GroupShape s = shape(5, 700, 128);
  // Also groups that use a small part of their codes, which a change would give a new scale.
  Packed w = quantized(noise(s.rows * s.cols, 1), s, scheme());
  for (size_t i = 0; i < 128; ++i)
    w.codes[i] = static_cast<uint8_t>(bits() == 8 ? 128 + i % 3 : 0x87);
  const uint64_t before = w.hash();
  const std::vector<float> zero(static_cast<size_t>(s.rows * s.cols), 0.0f);
  for (uint64_t t = 0; t < 50; ++t) EXPECT_EQ(requant_add_sr(w.out(), zero.data(), at_step(t)), 0);
  EXPECT_EQ(w.hash(), before);
  const auto delta = noise(s.rows * s.cols, 3);
  requant_add_sr(w.out(), delta.data(), at_step(1, 0.0));
  EXPECT_EQ(w.hash(), before);
}

// The peers' defect: one element moves, the other 255 drift by 1.5 steps rms in 1000 steps.
TEST_P(Requant, UntouchedWeightsDoNotDrift) {
  const GroupShape s = shape(1, 256, 256);
  Packed w = quantized(noise(256, 1), s, scheme());
  const auto before = w.decoded();
  std::vector<float> delta(256, 0.0f);
  int moving = 0;  // not at an end of the range
  while (before[moving] == 0 || std::abs(before[moving]) > 0.5f) ++moving;
  int rescaled = 0;
  for (uint64_t t = 0; t < 1000; ++t) {
    const float scale = w.scale[0];
    delta[moving] = 1e-4f * before[moving] * (t % 2 ? 1.0f : -0.9f);
    requant_add_sr(w.out(), delta.data(), at_step(t));
    rescaled += w.scale[0] != scale;
  }
  EXPECT_EQ(rescaled, 0);
  const auto after = w.decoded();
  for (int i = 0; i < 256; ++i) {
    if (i == moving) continue;
    EXPECT_EQ(after[i], before[i]) << i;
  }
}

// A growing element forces new scales; the headroom makes them rare, so the drift stays small.
TEST_P(Requant, NewScalesAreRare) {
  const GroupShape s = shape(1, 256, 256);
  const auto x = noise(256, 1);
  std::vector<float> delta(256, 0.0f);
  const auto top = std::max_element(x.begin(), x.end()) - x.begin();
  delta[top] = 1e-3f;
  constexpr int kStreams = 64;
  int rescaled = 0;
  for (uint32_t param = 0; param < kStreams; ++param) {
    Packed w = quantized(x, s, scheme());
    for (uint64_t t = 0; t < 1000; ++t) {
      const float scale = w.scale[0];
      RequantOptions o = at_step(t);
      o.stream.param = param;
      requant_add_sr(w.out(), delta.data(), o);
      rescaled += w.scale[0] != scale;
    }
    // Its 1000 small moves are a random walk of variance 1000 * 1e-3 * scale.
    EXPECT_NEAR(w.decoded()[top], x[top] + 1.0f, 5 * std::sqrt(w.scale[0])) << param;
  }
  // From at most 1 to 2 in factors of at least 1 + 1/16 less a step: ln 2 / ln 1.05 = 14. In 4 bits
  // the headroom is less than a step, and the walk takes some scales twice: 13 on average, standard
  // deviation 5 in one stream and 0.6 in the mean.
  EXPECT_GT(rescaled, 0);
  EXPECT_LE(rescaled, 16 * kStreams);
}

// Mean over independent steps of the same update, in steps of the scale: z-scores per element and
// their chi-square, fixed seeds. Both branches: old scale kept, and new scale.
TEST_P(Requant, UpdatesAreUnbiased) {
  for (double alpha : {0.003, 1.0}) {
    const GroupShape s = shape(1, 128, 128);
    auto x = noise(128, 1);
    const Packed start = quantized(x, s, scheme());
    const auto w0 = start.decoded();
    auto delta = noise(128, 2);
    for (int i = 0; i < 128; ++i)
      if (std::abs(w0[i]) > 0.9f) delta[i] = 0;  // a small alpha keeps the range
    const double decay = 0.9999;
    const int draws = 4096;
    std::vector<double> sum(128);
    double scale = 0;
    for (int t = 0; t < draws; ++t) {
      Packed w = start;
      requant_add_sr(w.out(), delta.data(), at_step(static_cast<uint64_t>(t), alpha, decay));
      const auto y = w.decoded();
      scale = w.scale[0];
      EXPECT_EQ(w.scale[0] == start.scale[0], alpha < 0.01);
      for (int i = 0; i < 128; ++i) sum[i] += (y[i] - (w0[i] * decay + alpha * delta[i])) / scale;
    }
    double chi = 0;
    int counted = 0;
    for (int i = 0; i < 128; ++i) {
      const double f = std::abs(std::fmod((w0[i] * decay + alpha * delta[i]) / scale, 1.0));
      const double sigma = std::sqrt(f * (1 - f) / draws);
      // 1e-4: the 2^-16 grid and fp32 rounding of values up to 255 steps
      EXPECT_LE(std::abs(sum[i] / draws), 4.5 * sigma + 1e-4) << i;
      if (sigma > 2e-3) chi += std::pow(sum[i] / draws / sigma, 2), ++counted;
    }
    ASSERT_GT(counted, 20);
    EXPECT_NEAR(chi / counted, 1.0, 5 * std::sqrt(2.0 / counted));
  }
}

// Updates far below one step get through on average: the variance of T of them is about T |d| s.
TEST_P(Requant, SmallUpdatesAccumulate) {
  const GroupShape s = shape(64, 256, 256);
  std::vector<float> x(64 * 256, 0.0f);
  for (int r = 0; r < 64; ++r) x[256 * r] = 1.0f, x[256 * r + 1] = -1.0f;
  Packed w = quantized(x, s, scheme());
  const double step = w.scale[0];
  std::vector<float> delta(x.size(), static_cast<float>(0.003 * step));
  for (int r = 0; r < 64; ++r) delta[256 * r] = delta[256 * r + 1] = 0;
  for (uint64_t t = 0; t < 200; ++t) requant_add_sr(w.out(), delta.data(), at_step(t));
  const auto y = w.decoded();
  double mean = 0;
  for (int r = 0; r < 64; ++r)
    for (int i = 2; i < 256; ++i) mean += y[256 * r + i] / step / (64 * 254);
  EXPECT_NEAR(mean, 0.6, 5 * std::sqrt(0.6 / (64 * 254)));
}

TEST_P(Requant, GroupsWithNonFiniteValuesAreLeftAlone) {
  const GroupShape s = shape(2, 192, 64);
  const Packed before = quantized(noise(384, 1), s, scheme());
  auto delta = noise(384, 2);
  delta[5] = std::numeric_limits<float>::infinity();
  delta[383] = std::nanf("");
  delta[200] = std::numeric_limits<float>::max();  // finite, but alpha * delta is not
  same_everywhere([&] {
    Packed w = before;
    EXPECT_EQ(requant_add_sr(w.out(), delta.data(), at_step(3, 10.0)), 3);
    for (size_t g : {0, 3, 5}) EXPECT_EQ(w.scale[g], before.scale[g]);
    EXPECT_NE(w.scale[1], before.scale[1]);
    const auto y = w.decoded(), x = before.decoded();
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(y[i], x[i]);
      EXPECT_EQ(y[320 + i], x[320 + i]);
    }
    return w.hash();
  });
}

TEST_P(Requant, GroupsOfZerosStartAndCollapsedGroupsEnd) {
  const GroupShape s = shape(1, 64, 64);
  std::vector<float> x(64, 0.0f);
  Packed w = quantized(x, s, scheme());
  EXPECT_EQ(w.scale[0], 0.0f);
  const auto delta = noise(64, 2);
  requant_add_sr(w.out(), delta.data(), at_step(1));
  const auto y = w.decoded();
  for (int i = 0; i < 64; ++i) EXPECT_NEAR(y[i], delta[i], 1.001 * w.scale[0]);
  requant_add_sr(w.out(), x.data(), at_step(2, 1.0, 0.0));  // decay to nothing
  for (float v : w.decoded()) EXPECT_EQ(v, 0.0f);
  EXPECT_EQ(w.scale[0], 0.0f);
}

// Scales that no codec writes, as a damaged file might hold them: no garbage, the same bits
// everywhere.
TEST_P(Requant, ForeignScalesAreReplacedOrSkipped) {
  const float inf = std::numeric_limits<float>::infinity();
  for (float scale : {1e-40f, 1e-36f, -1.0f, inf, std::nanf(""), 3e38f, 1e-24f, 1e-25f}) {
    const GroupShape s = shape(1, 192, 128);  // a whole tile and less
    Packed start = quantized(noise(192, 1), s, scheme());
    start.scale[0] = start.scale[1] = scale;
    for (auto& z : start.zero) z = 200;
    const auto delta = noise(192, 2);
    same_everywhere([&] {
      Packed w = start;
      const int64_t skipped = requant_add_sr(w.out(), delta.data(), at_step(1));
      EXPECT_TRUE(skipped == 0 || skipped == 2) << scale;
      if (skipped == 0) {
        for (float v : w.decoded()) EXPECT_TRUE(std::isfinite(v)) << scale;
      }
      return w.hash();
    });
  }
}

TEST_P(Requant, ShrunkenGroupsGetAFinerScale) {
  const GroupShape s = shape(1, 64, 64);
  Packed w = quantized(noise(64, 1), s, scheme());
  const float before = w.scale[0];
  const std::vector<float> none(64, 0.0f);
  requant_add_sr(w.out(), none.data(), at_step(1, 1.0, 0.4));
  EXPECT_LT(w.scale[0], 0.6f * before);
}

TEST_P(Requant, AnyRowShardEqualsTheWhole) {
  const GroupShape s = shape(4, 333, 64);
  const auto x = noise(4 * 333, 1), delta = noise(4 * 333, 2);
  Packed whole = quantized(x, s, scheme());
  requant_add_sr(whole.out(), delta.data(), at_step(1, 0.1, 1, 50));
  for (int64_t r = 0; r < 4; ++r) {
    const std::vector<float> part(x.begin() + 333 * r, x.begin() + 333 * (r + 1));
    Packed w = quantized(part, shape(1, 333, 64), scheme());
    requant_add_sr(w.out(), delta.data() + 333 * r, at_step(1, 0.1, 1, 50 + 333 * r));
    EXPECT_EQ(0, std::memcmp(w.codes.data(), whole.codes.data() + r * row_bytes(s), row_bytes(s)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Requant,
                         ::testing::Combine(::testing::Values(8, 4),
                                            ::testing::Values(Scheme::symmetric,
                                                              Scheme::asymmetric)),
                         [](const auto& info) {
                           return std::string("int") + std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) == Scheme::symmetric ? "_sym" : "_asym");
                         });

TEST(RequantErrors, BadScalarsAreRefused) {
  Packed w =
      quantized(noise(64, 1), {.rows = 1, .cols = 64, .group = 64, .bits = 8}, Scheme::symmetric);
  const std::vector<float> delta(64);
  const double nan = std::nan("");
  EXPECT_THROW(requant_add_sr(w.out(), delta.data(), at_step(1, nan)), Error);
  EXPECT_THROW(requant_add_sr(w.out(), delta.data(), at_step(1, 1, 1.5)), Error);
  EXPECT_THROW(requant_add_sr(w.out(), delta.data(), at_step(1, 1, nan)), Error);
  EXPECT_THROW(requant_add_sr(w.out(), delta.data(), at_step(1, 1, 1, -1)), Error);
}

}  // namespace
}  // namespace lowtide::quant
