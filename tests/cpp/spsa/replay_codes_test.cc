// SPDX-License-Identifier: Apache-2.0
#include "spsa/replay_codes.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "random/stream.h"
#include "spsa/schedules.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using namespace ::lowtide::testing;
using quant::GroupShape;
using random::Dist;

// A quantized matrix with every kind of group: dead ones (scale 0), tiny and ordinary scales.
struct Matrix {
  GroupShape shape;
  std::vector<uint8_t> codes, zero;
  std::vector<float> scale;

  Matrix(const GroupShape& s, bool asymmetric) : shape(s) {
    const int64_t groups = s.rows * quant::groups_per_row(s);
    const int lo = asymmetric ? 0 : 1, hi = quant::max_code(s.bits);
    codes.resize(static_cast<size_t>(s.rows * quant::row_bytes(s)));
    const auto x = noise(s.rows * s.cols, 8);
    for (int64_t i = 0; i < s.rows * s.cols; ++i)
      quant::put_code(codes.data() + i / s.cols * quant::row_bytes(s), i % s.cols, s.bits,
                      lo + static_cast<int>((x[static_cast<size_t>(i)] + 1.0f) * 0.499f *
                                            static_cast<float>(hi - lo + 1)));
    for (int64_t g = 0; g < groups; ++g) {
      scale.push_back(g % 7 == 3 ? 0.0f : 0.01f * static_cast<float>(g % 5 + 1));
      if (asymmetric) zero.push_back(static_cast<uint8_t>(g % hi));
    }
  }
  CodesTensor rows(int64_t begin, int64_t end, int64_t offset = 0) {
    const int64_t groups = quant::groups_per_row(shape);
    CodesTensor t;
    t.w.codes = codes.data() + begin * quant::row_bytes(shape);
    t.w.scale = scale.data() + begin * groups;
    t.w.zero = zero.empty() ? nullptr : zero.data() + begin * groups;
    t.w.shape = shape;
    t.w.shape.rows = end - begin;
    t.param = 4, t.offset = offset + begin * shape.cols;
    return t;
  }
  CodesTensor all(int64_t offset = 0) { return rows(0, shape.rows, offset); }
};

Plan strong_run() {
  Plan run = mixed_run();  // coefficients of the order of the scales
  for (float& c : run.coeffs) c *= 10.0f;
  return run;
}

class ReplayCodes : public ::testing::TestWithParam<std::tuple<int, bool, Dist>> {
 protected:
  int bits() const { return std::get<0>(GetParam()); }
  bool asymmetric() const { return std::get<1>(GetParam()); }
  Dist dist() const { return std::get<2>(GetParam()); }
};

TEST_P(ReplayCodes, SameBitsForEveryShapeIsaAndThreadCount) {
  const Plan run = strong_run();
  for (const auto& [rows, cols, group] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{0, 5, 32},
                                                          {3, 0, 32},
                                                          {5, 1, 32},
                                                          {4, 17, 32},
                                                          {3, 64, 64},
                                                          {2, 100, 32},
                                                          {2, 2085, 256},
                                                          {1, 5000, 4096},
                                                          {37, 96, 32}}) {
    for (int64_t offset : {int64_t{0}, (int64_t{1} << 38) + 77}) {
      if (offset != 0 && rows * cols > 3000) continue;
      same_everywhere([&] {
        Matrix m({rows, cols, group, bits()}, asymmetric());
        CodesTensor t = m.all(offset);
        t.scale = 0.37f;
        replay_codes({t}, run.schedule(), dist());
        return digest(m.codes);
      });
    }
  }
}

TEST_P(ReplayCodes, EqualsStepByStepAndRowsEqualTheWhole) {
  const Plan run = strong_run();
  Matrix whole({7, 300, 64, bits()}, asymmetric()), stepwise = whole, cut = whole;
  const auto before = whole.codes;
  replay_codes({whole.all(5)}, run.schedule(), dist());
  EXPECT_NE(whole.codes, before);
  for (size_t k = 0; k < run.decays.size(); ++k)
    replay_codes({stepwise.all(5)}, run.step(k).schedule(), dist());
  EXPECT_EQ(whole.codes, stepwise.codes);
  replay_codes({cut.rows(4, 7, 5), cut.rows(0, 1, 5), cut.rows(1, 4, 5)}, run.schedule(), dist());
  EXPECT_EQ(whole.codes, cut.codes);
}

// The definition in terms of sampled arrays and words, apart from the element-wise code above.
TEST_P(ReplayCodes, IsWhatTheSampledDirectionsGive) {
  const GroupShape s{3, 70, 32, bits()};
  Matrix m(s, asymmetric()), want = m;
  const int64_t n = s.rows * s.cols;
  Plan run;
  run.add(6, 0.9f, {0.02f, -0.01f});
  replay_codes({m.all(9)}, run.schedule(), dist());
  std::vector<float> acc(static_cast<size_t>(n), 0.0f), z(acc.size());
  for (uint32_t j = 0; j < 2; ++j) {
    random::sample(z.data(), n, 9, {.seed = 77, .step = 6, .slot = 3 * j, .param = 4}, dist());
    for (size_t i = 0; i < acc.size(); ++i) acc[i] = fma_rn(run.coeffs[j], z[i], acc[i]);
  }
  std::vector<uint32_t> words(static_cast<size_t>(n));
  random::words(words.data(), n, 9,
                {.seed = 77, .step = 6, .param = 4, .role = random::kRoleWeightSr});
  for (int64_t i = 0; i < n; ++i) {
    uint8_t* row = want.codes.data() + i / s.cols * quant::row_bytes(s);
    const int64_t col = i % s.cols, group = i / s.cols * quant::groups_per_row(s) + col / s.group;
    const float scale = want.scale[static_cast<size_t>(group)];
    const int zero = asymmetric() ? want.zero[static_cast<size_t>(group)] : 1 << (bits() - 1);
    const int code = quant::get_code(row, col, bits());
    const float inv = scale > 0 ? 1.0f / scale : 0.0f;
    const float steps =
        static_cast<float>(code - zero) * (0.9f - 1.0f) + acc[static_cast<size_t>(i)] * inv;
    const double exact = std::abs(static_cast<double>(steps));
    const double draw = static_cast<double>(words[static_cast<size_t>(i)] >> 8) * 0x1p-24;
    const int size =
        static_cast<int>(std::floor(exact)) + (draw < exact - std::floor(exact) ? 1 : 0);
    const int moved = code + (steps < 0 ? -size : size);
    quant::replace_code(row, col, bits(),
                        std::min(std::max(moved, asymmetric() ? 0 : 1), quant::max_code(bits())));
  }
  EXPECT_EQ(m.codes, want.codes);
}

INSTANTIATE_TEST_SUITE_P(All, ReplayCodes,
                         ::testing::Combine(::testing::Values(8, 4), ::testing::Bool(),
                                            ::testing::Values(Dist::rademacher, Dist::gaussian,
                                                              Dist::lut8)));

// Updates of a small part of a step move the mean by what was asked for: 5 sigma, fixed seed.
TEST(ReplayCodesRule, RoundingIsUnbiasedFarBelowAStep) {
  constexpr int64_t kN = 1 << 20;
  for (float part : {3e-5f, 0.01f, 0.4f, 1.7f}) {
    Matrix m({kN / 1024, 1024, 256, 8}, false);
    std::fill(m.codes.begin(), m.codes.end(), uint8_t{128});
    std::fill(m.scale.begin(), m.scale.end(), 0.5f);
    Plan run;
    run.add(3, 1.0f, {part * 0.5f});
    replay_codes({m.all()}, run.schedule(), Dist::rademacher);
    std::vector<float> z(kN);
    random::sample(z.data(), kN, 0, {.seed = 77, .step = 3, .param = 4}, Dist::rademacher);
    double sum = 0;
    for (size_t i = 0; i < z.size(); ++i) sum += (m.codes[i] - 128) * static_cast<double>(z[i]);
    const double f = part - std::floor(part);
    EXPECT_LT(std::abs(sum - static_cast<double>(part) * kN), 5 * std::sqrt(kN * f * (1 - f)))
        << part;
  }
}

TEST(ReplayCodesRule, CodesSaturateAndDeadGroupsStay) {
  Matrix m({2, 64, 32, 4}, false);
  const auto before = m.codes;
  m.scale = {0.0f, 0.0f, 0.0f, 0.0f};
  Plan run;
  run.add(3, 1.0f, {1e30f});
  replay_codes({m.all()}, run.schedule(), Dist::gaussian);
  EXPECT_EQ(m.codes, before);
  m.scale = {0.1f, 0.1f, 0.1f, 0.1f};
  replay_codes({m.all()}, run.schedule(), Dist::rademacher);
  for (int64_t c = 0; c < 64; ++c) {
    const int code = quant::get_code(m.codes.data(), c, 4);
    EXPECT_TRUE(code == 1 || code == 15) << code;  // symmetric codes never mean -8
  }
}

TEST(ReplayCodesRule, RoundsAwayFromZeroByTheFraction) {
  EXPECT_EQ(round_code(0.0f, 0), 0);
  EXPECT_EQ(round_code(2.25f, 0x3fffffffu), 3);
  EXPECT_EQ(round_code(2.25f, 0x40000000u), 2);
  EXPECT_EQ(round_code(-2.25f, 0x3fffffffu), -3);
  EXPECT_EQ(round_code(-512.0f, 0), -512);
  EXPECT_EQ(code_steps(0, 0.0f, INFINITY, 0.0f), -512.0f);
}

TEST(ReplayCodesRule, BadTensorsAreRefusedAndNothingIsChanged) {
  Matrix m({2, 64, 32, 8}, false);
  const auto before = m.codes;
  const Plan run = strong_run();
  const auto refused = [&](auto&& change) {
    CodesTensor bad = m.all();
    change(bad);
    EXPECT_THROW(replay_codes({m.all(), bad}, run.schedule(), Dist::gaussian), Error);
    EXPECT_EQ(m.codes, before);
  };
  refused([](CodesTensor& t) { t.offset = -1; });
  refused([](CodesTensor& t) { t.scale = NAN; });
  refused([](CodesTensor& t) { t.w.shape.group = 48; });
  refused([](CodesTensor& t) { t.w.shape.bits = 2; });
}

}  // namespace
}  // namespace lowtide::spsa
