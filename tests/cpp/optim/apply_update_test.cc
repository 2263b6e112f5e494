// SPDX-License-Identifier: Apache-2.0
#include "optim/apply_update.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "optim/weights.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

UpdateTensor shard(Weights& p, const std::vector<float>& u, int64_t begin, int64_t end) {
  UpdateTensor t;
  t.n = end - begin;
  t.param = 4;
  t.offset = begin;
  t.weight_store = p.store;
  t.p = p.at(begin);
  t.u = u.data() + begin;
  return t;
}

UpdateTensor whole(Weights& p, const std::vector<float>& u) {
  return shard(p, u, 0, static_cast<int64_t>(u.size()));
}

class ApplyUpdate : public ::testing::TestWithParam<WeightStore> {};

TEST_P(ApplyUpdate, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t n : kAwkward) {
    const auto u = noise(n, 2);
    same_everywhere([&] {
      Weights p(GetParam(), noise(n, 1));
      apply_update({whole(p, u)}, make_update_rule(-1e-3, 0.99, 0.999), 3, 4);
      return p.bits();
    });
  }
}

TEST_P(ApplyUpdate, ShardsAtBlockBoundariesEqualTheWhole) {
  const int64_t n = 90 * kUpdateBlock + 33;
  const auto u = noise(n, 2);
  Weights a(GetParam(), noise(n, 1)), b = a;
  const auto rule = make_update_rule(-1e-3, 0.99, 1.0);
  apply_update({whole(a, u)}, rule, 3, 4);
  apply_update({shard(b, u, 7 * kUpdateBlock, n), shard(b, u, 0, 7 * kUpdateBlock)}, rule, 3, 4);
  EXPECT_EQ(a.bits(), b.bits());
}

TEST_P(ApplyUpdate, ZeroUpdateWithoutDecayKeepsEveryBit) {
  auto x = noise(1000, 1);
  x[0] = -0.0f, x[1] = 0x1p-149f;
  Weights p(GetParam(), x);
  const uint64_t before = p.bits();
  for (uint64_t step = 0; step < 20; ++step)
    apply_update({whole(p, std::vector<float>(1000, -0.0f))}, make_update_rule(1, 1, 1), 3, step);
  EXPECT_EQ(p.bits(), before);
}

INSTANTIATE_TEST_SUITE_P(Store, ApplyUpdate, ::testing::ValuesIn(kStores), [](const auto& info) {
  return info.param == WeightStore::f32            ? "f32"
         : info.param == WeightStore::bf16_nearest ? "bf16_nearest"
                                                   : "bf16_stochastic";
});

TEST(ApplyUpdateRule, MultipliesThenAdds) {
  Weights p(WeightStore::f32, noise(300, 1));
  const auto old = p.f32, u = noise(300, 2);
  apply_update({whole(p, u)}, make_update_rule(0.3, 0.9, 0.8), 0, 0);
  for (size_t i = 0; i < u.size(); ++i) EXPECT_EQ(p.f32[i], (old[i] * 0.9f + 0.3f * u[i]) * 0.8f);
}

// Updates far below half a bfloat16 step: rounding to nearest stalls, stochastic rounding moves by
// the right amount on average. Bernoulli with variance f (1 - f) an element; 5 sigma, fixed seed.
TEST(ApplyUpdateRule, StochasticRoundingIsUnbiased) {
  const int64_t n = 1 << 16;
  const double ulp = 0x1p-7;  // of bfloat16 in [1, 2)
  for (double f : {0.05, 0.31, 0.5, 0.97}) {
    const std::vector<float> u(static_cast<size_t>(n), static_cast<float>(f * ulp));
    Weights p(WeightStore::bf16_stochastic, std::vector<float>(static_cast<size_t>(n), 1.0f));
    apply_update({whole(p, u)}, make_update_rule(1, 1, 1), 11, 0);
    double sum = 0;
    for (uint16_t h : p.bf16) sum += (bf16_to_float(h) - 1.0) / ulp;
    EXPECT_LT(std::abs(sum - f * n) / std::sqrt(n * f * (1 - f)), 5) << f;
  }
}

TEST(ApplyUpdateRule, StepsAndParametersDrawDifferentBits) {
  const std::vector<float> u(512, 0x1p-8f);
  auto run = [&](uint64_t seed, uint64_t step, uint32_t param) {
    Weights p(WeightStore::bf16_stochastic, std::vector<float>(512, 1.0f));
    UpdateTensor t = whole(p, u);
    t.param = param;
    apply_update({t}, make_update_rule(1, 1, 1), seed, step);
    return p.bits();
  };
  const uint64_t base = run(1, 1, 1);
  EXPECT_EQ(base, run(1, 1, 1));
  EXPECT_NE(base, run(2, 1, 1));
  EXPECT_NE(base, run(1, 2, 1));
  EXPECT_NE(base, run(1, 1, 2));
}

TEST(ApplyUpdateRule, ImpossibleScalarsAreRefused) {
  EXPECT_THROW(make_update_rule(NAN, 1, 1), Error);
  EXPECT_THROW(make_update_rule(1, 1e39, 1), Error);
  Weights p(WeightStore::f32, noise(512, 1));
  const auto u = noise(512, 2);
  UpdateTensor t = whole(p, u);
  t.offset = 1;
  EXPECT_THROW(apply_update({t}, make_update_rule(1, 1, 1), 0, 0), Error);
}

}  // namespace
}  // namespace lowtide::optim
