// SPDX-License-Identifier: Apache-2.0
#include "spsa/replay.h"

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
using random::Dist;

// Masters of one type, their bits as bytes.
struct Masters {
  FloatType dtype;
  std::vector<uint8_t> bytes;

  Masters(FloatType type, const std::vector<float>& x) : dtype(type) {
    bytes.resize(x.size() * width());
    for (size_t i = 0; i < x.size(); ++i)
      store_master(bytes.data(), dtype, static_cast<int64_t>(i), x[i]);
  }
  size_t width() const { return dtype == FloatType::f32 ? 4 : 2; }
  float at(size_t i) const { return load_master(bytes.data(), dtype, static_cast<int64_t>(i)); }
  ReplayTensor shard(int64_t begin, int64_t end, int64_t offset = 0) {
    ReplayTensor t;
    t.n = end - begin, t.param = 4, t.offset = offset + begin, t.type = dtype;
    t.threshold = INFINITY, t.floor = -INFINITY;
    t.w = bytes.data() + static_cast<size_t>(begin) * width();
    return t;
  }
};

constexpr FloatType kDtypes[] = {FloatType::f32, FloatType::bf16, FloatType::f16};
constexpr Dist kAll[] = {Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8};

class Replay : public ::testing::TestWithParam<std::tuple<FloatType, Dist>> {
 protected:
  FloatType dtype() const { return std::get<0>(GetParam()); }
  Dist dist() const { return std::get<1>(GetParam()); }
};

TEST_P(Replay, SameBitsForEverySizeIsaAndThreadCount) {
  const Plan run = mixed_run();
  for (int64_t n : kAwkward) {
    if (n > 2100 && dtype() != FloatType::f32) continue;
    for (int64_t offset : {int64_t{0}, (int64_t{1} << 38) + 77}) {
      if (n > 300 && offset != 0) continue;
      const auto x = noise(n, 1);
      same_everywhere([&] {
        Masters w(dtype(), x);
        ReplayTensor plain = w.shard(0, n, offset);
        plain.scale = 0.37f;
        replay({plain}, run.schedule(), dist());
        Masters v(dtype(), x);
        ReplayTensor masked = v.shard(0, n, offset);
        masked.threshold = 0.25f, masked.floor = -0.5f;
        replay({masked}, run.schedule(), dist());
        return digest(w.bytes) ^ (digest(v.bytes) << 1);
      });
    }
  }
}

TEST_P(Replay, EqualsStepByStepAndShardsEqualTheWhole) {
  const Plan run = mixed_run();
  const int64_t n = 7000;
  Masters whole(dtype(), noise(n, 1)), stepwise = whole, cut = whole;
  replay({whole.shard(0, n, 5)}, run.schedule(), dist());
  for (size_t k = 0; k < run.decays.size(); ++k)
    replay({stepwise.shard(0, n, 5)}, run.step(k).schedule(), dist());
  EXPECT_EQ(whole.bytes, stepwise.bytes);
  replay({cut.shard(4100, n, 5), cut.shard(0, 1, 5), cut.shard(1, 777, 5), cut.shard(777, 4100, 5)},
         run.schedule(), dist());
  EXPECT_EQ(whole.bytes, cut.bytes);
}

// The definition in terms of sampled arrays, apart from the element-wise code above.
TEST_P(Replay, IsWhatTheSampledDirectionsGive) {
  const int64_t n = 3000;
  const Plan run = mixed_run();
  const auto z_of = [&](int64_t step, int64_t slot) {
    std::vector<float> z(static_cast<size_t>(n));
    random::sample(z.data(), n, 9,
                   {.seed = 77,
                    .step = static_cast<uint64_t>(step),
                    .slot = static_cast<uint32_t>(slot),
                    .param = 4},
                   dist());
    return z;
  };
  Masters w(dtype(), noise(n, 1));
  auto want = w;
  ReplayTensor t = w.shard(0, n, 9);
  t.scale = 1.5f, t.threshold = 0.6f;
  replay({t}, run.schedule(), dist());
  for (size_t k = 0; k < run.decays.size(); ++k) {
    std::vector<float> acc(static_cast<size_t>(n), 0.0f);
    for (auto j = static_cast<size_t>(run.first[k]); j < static_cast<size_t>(run.first[k + 1]);
         ++j) {
      const auto z = z_of(run.dir_steps[j], run.dir_slots[j]);
      for (size_t i = 0; i < acc.size(); ++i) acc[i] = fma_rn(run.coeffs[j] * 1.5f, z[i], acc[i]);
    }
    std::vector<uint32_t> words(static_cast<size_t>((n + 9) / 128 * 64 + 128));
    random::words(words.data(), static_cast<int64_t>(words.size()), 0,
                  {.seed = 77,
                   .step = static_cast<uint64_t>(run.round_steps[k]),
                   .param = 4,
                   .role = random::kRoleWeightSr});
    if (run.decays[k] == 1.0f && run.first[k] == run.first[k + 1]) continue;
    for (size_t i = 0; i < acc.size(); ++i) {
      const float old = want.at(i);
      const float x = old * run.decays[k] + (std::abs(old) <= 0.6f ? acc[i] : 0.0f);
      const size_t e = i + 9;
      const uint32_t r16 = words[e / 128 * 64 + e % 64] >> (e % 128 < 64 ? 0 : 16) & 0xffffu;
      store_master(want.bytes.data(), dtype(), static_cast<int64_t>(i),
                   rounded_master(x, dtype(), r16));
    }
  }
  EXPECT_EQ(w.bytes, want.bytes);
}

INSTANTIATE_TEST_SUITE_P(All, Replay,
                         ::testing::Combine(::testing::ValuesIn(kDtypes),
                                            ::testing::ValuesIn(kAll)));

TEST(ReplayRule, NothingToDoChangesNothing) {
  Masters w(FloatType::f32, {-0.0f, bits_float(0x7fa00000u), 1.0f});  // a signalling NaN among them
  const auto before = w.bytes;
  Plan run;
  replay({w.shard(0, 3)}, run.schedule(), Dist::gaussian);
  run.add(3, 1.0f, {});
  replay({w.shard(0, 3)}, run.schedule(), Dist::gaussian);
  EXPECT_EQ(w.bytes, before);
}

TEST(ReplayRule, OnlySmallWeightsMoveUnderAMaskAndTheFloorHolds) {
  const auto x = noise(4096, 5);
  Masters w(FloatType::f32, x);
  ReplayTensor t = w.shard(0, 4096);
  t.threshold = 0.125f, t.floor = 0.0f;
  Plan run;
  run.add(0, 1.0f, {0.5f});
  replay({t}, run.schedule(), Dist::rademacher);
  int moved = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool small = std::abs(x[i]) <= 0.125f;
    moved += small;
    if (small)
      EXPECT_TRUE(w.at(i) == 0.0f || w.at(i) == x[i] + 0.5f);
    else
      EXPECT_EQ(w.at(i), std::max(x[i], 0.0f));
  }
  EXPECT_GT(moved, 100);
}

// Updates far below the spacing of the type: the mean moves by what was asked for. Bernoulli draws,
// 5 sigma, fixed seed.
TEST(ReplayRule, StochasticRoundingIsUnbiased) {
  constexpr int64_t kN = 1 << 16;
  for (FloatType dtype : {FloatType::bf16, FloatType::f16}) {
    const double ulp = dtype == FloatType::bf16 ? 0x1p-7 : 0x1p-10;
    Masters w(dtype, std::vector<float>(kN, 1.0f));
    std::vector<float> z(kN);
    random::sample(z.data(), kN, 0, {.seed = 77, .step = 3, .param = 4}, Dist::rademacher);
    Plan run;
    run.add(3, 1.0f, {static_cast<float>(0.25 * ulp)});
    replay({w.shard(0, kN)}, run.schedule(), Dist::rademacher);
    double up = 0, down = 0;
    for (size_t i = 0; i < z.size(); ++i) (z[i] > 0 ? up : down) += (w.at(i) - 1.0) / ulp;
    // Below 1 the spacing is half: steps of -0.5 half of the time.
    EXPECT_LT(std::abs(up - 0.25 * kN / 2), 5 * std::sqrt(kN / 2 * 0.25 * 0.75)) << up;
    EXPECT_LT(std::abs(down + 0.25 * kN / 2), 5 * std::sqrt(kN / 2 * 0.0625)) << down;
  }
}

TEST(ReplayRule, BadTensorsAreRefusedAndNothingIsChanged) {
  Masters w(FloatType::f32, noise(512, 1));
  const auto before = w.bytes;
  Plan run = mixed_run();
  const auto refused = [&](auto&& change) {
    ReplayTensor t = w.shard(0, 512), bad = t;
    change(bad);
    EXPECT_THROW(replay({t, bad}, run.schedule(), Dist::gaussian), Error);
    EXPECT_EQ(w.bytes, before);
  };
  refused([](ReplayTensor& t) { t.n = -1; });
  refused([](ReplayTensor& t) { t.offset = -1; });
  refused([](ReplayTensor& t) { t.scale = NAN; });
  refused([](ReplayTensor& t) { t.threshold = NAN; });
  refused([](ReplayTensor& t) { t.floor = INFINITY; });
  EXPECT_THROW(replay({w.shard(0, 512)}, run.schedule(), static_cast<Dist>(4)), Error);
}

}  // namespace
}  // namespace lowtide::spsa
