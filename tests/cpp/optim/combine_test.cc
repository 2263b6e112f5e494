// SPDX-License-Identifier: Apache-2.0
#include "optim/combine.h"

#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "optim/weights.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

// Everything that one combine reads; `fill` points the matrix at it.
struct Inputs {
  int64_t rows, cols;
  std::vector<float> g, k, u, low;
  std::vector<uint16_t> g16;
  std::vector<int32_t> index;

  Inputs(int64_t m, int64_t n) : rows(m), cols(n) {
    g = noise(m * n, 1), k = noise(std::max(m, n) + 1, 2), u = noise(m * n, 3);
    if (!g.empty()) g[0] = 0.0f;
    low = noise(m * n, 4);
    g16 = to_bf16(g);
  }
  // `kind` walks through every combination of the switches.
  CombineMatrix matrix(int kind, Weights& p) {
    CombineMatrix c;
    c.rows = rows, c.cols = cols, c.param = 7, c.offset = 512;
    c.weight_store = p.store, c.p = p.at(0);
    c.g_dtype = kind % 2 == 0 ? Dtype::f32 : Dtype::bf16;
    c.g = kind % 2 == 0 ? static_cast<const void*>(g.data()) : g16.data();
    c.k = k.data();
    c.along = static_cast<Along>(kind / 2 % 3);
    c.sign = kind / 6 % 2 == 1;
    const int use = kind / 12 % 5;  // nothing, whole, chosen rows, chosen columns, chosen alone
    if (use == 1) c.u = u.data();
    if (use < 2) return c;
    c.chosen = use == 2 ? Along::rows : Along::columns;
    index.clear();
    for (int64_t i = 1; i < (use == 2 ? rows : cols); i += 1 + i % 3)
      index.push_back(static_cast<int32_t>(i));
    c.u = low.data(), c.index = index.data(), c.count = static_cast<int64_t>(index.size());
    if (use == 4) c.g = nullptr, c.k = nullptr;
    return c;
  }
};
constexpr int kKinds = 60;

class Combine : public ::testing::TestWithParam<WeightStore> {};

TEST_P(Combine, SameBitsForEveryShapeIsaAndThreadCount) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {0, 5}, {5, 0}, {1, 1}, {300, 1}, {1, 300}, {3, 17}, {40, 33}, {9, 256}, {70, 576}};
  for (auto [rows, cols] : shapes)
    for (int kind = 0; kind < kKinds; ++kind) {
      Inputs in(rows, cols);
      SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(cols) + " kind " +
                   std::to_string(kind));
      same_everywhere([&] {
        Weights p(GetParam(), noise(rows * cols, 9));
        combine(in.matrix(kind, p), make_update_rule(-1e-3, 0.99, 0.999), 3, 4);
        return p.bits();
      });
    }
}

INSTANTIATE_TEST_SUITE_P(Store, Combine, ::testing::ValuesIn(kStores), [](const auto& info) {
  return info.param == WeightStore::f32            ? "f32"
         : info.param == WeightStore::bf16_nearest ? "bf16_nearest"
                                                   : "bf16_stochastic";
});

TEST(CombineRule, MultipliesThenAdds) {
  Inputs in(7, 90);
  Weights p(WeightStore::f32, noise(630, 9));
  const auto old = p.f32;
  CombineMatrix c = in.matrix(12 + 4, p);  // float32, by column, whole u
  combine(c, make_update_rule(0.3, 0.9, 0.8), 0, 0);
  for (size_t i = 0; i < old.size(); ++i) {
    const float scaled = in.k[i % 90] * in.g[i];
    const float d = scaled + in.u[i];
    EXPECT_EQ(p.f32[i], (old[i] * 0.9f + 0.3f * d) * 0.8f) << i;
  }
}

TEST(CombineRule, ChosenColumnsTakeTheirUpdateAloneAndOthersTheSign) {
  Inputs in(5, 40);
  Weights p(WeightStore::f32, std::vector<float>(200, 0.0f));
  CombineMatrix c = in.matrix(36 + 6, p);  // float32, one factor, sign, chosen columns
  combine(c, make_update_rule(1, 1, 1), 0, 0);
  for (int64_t i = 0; i < 5; ++i)
    for (int64_t j = 0, at = 0; j < 40; ++j) {
      const bool chosen = at < c.count && in.index[static_cast<size_t>(at)] == j;
      const float g = in.g[static_cast<size_t>(i * 40 + j)];
      const float want = chosen ? in.low[static_cast<size_t>(i * c.count + at)]
                                : in.k[0] * static_cast<float>((g > 0) - (g < 0));
      EXPECT_EQ(p.f32[static_cast<size_t>(i * 40 + j)], want) << i << ", " << j;
      at += chosen;
    }
}

TEST(CombineRule, TheGradientMayBeOverwritten) {
  Inputs in(33, 47);
  Weights p(WeightStore::f32, std::vector<float>(in.g.size(), 0.0f));
  CombineMatrix c = in.matrix(12 + 4, p);
  combine(c, make_update_rule(1, 0, 1), 0, 0);
  c.p = in.g.data();
  combine(c, make_update_rule(1, 0, 1), 0, 0);
  EXPECT_EQ(in.g, p.f32);
}

TEST(CombineRule, EqualsApplyUpdateWhereNothingIsCombined) {
  Inputs in(30, 70);
  Weights a(WeightStore::bf16_stochastic, noise(2100, 9)), b = a;
  CombineMatrix c = in.matrix(0, a);
  const float one = 1.0f;
  c.k = &one;
  const auto rule = make_update_rule(-0.1, 0.9, 1);
  combine(c, rule, 3, 4);
  UpdateTensor t;
  t.n = 2100, t.param = 7, t.offset = 512;
  t.weight_store = b.store, t.p = b.at(0), t.u = in.g.data();
  apply_update({t}, rule, 3, 4);
  EXPECT_EQ(a.bits(), b.bits());
}

TEST(CombineRule, ImpossibleArgumentsAreRefused) {
  Inputs in(6, 8);
  Weights p(WeightStore::f32, noise(48, 9));
  const uint64_t before = p.bits();
  const auto rule = make_update_rule(1, 1, 1);
  CombineMatrix good = in.matrix(36, p), c = good;
  c.offset = 5;
  EXPECT_THROW(combine(c, rule, 0, 0), Error);
  c = good, c.k = nullptr;
  EXPECT_THROW(combine(c, rule, 0, 0), Error);
  for (const std::vector<int32_t>& bad : {std::vector<int32_t>{-1, 2}, {3, 3}, {1, 8}}) {
    c = good, c.index = bad.data(), c.count = 2;
    EXPECT_THROW(combine(c, rule, 0, 0), Error);
  }
  EXPECT_EQ(p.bits(), before);
}

}  // namespace
}  // namespace lowtide::optim
