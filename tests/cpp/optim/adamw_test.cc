// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "optim/weights.h"
#include "quant/dynamic_map.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

constexpr uint64_t kSeed = 77, kStep = 5;

AdamRule rule(double decay_before = 0.999, double decay_after = 1.0, double eps = 1e-8) {
  return make_adam_rule(1e-3 / (1 - 0.9), 1 / std::sqrt(1 - 0.999), eps, 0.9, 0.999, decay_before,
                        decay_after);
}

// One parameter with everything that its step needs.
struct Case {
  int64_t n;
  bool low_bit, direction;
  Weights p;
  Dtype g_dtype;
  std::vector<float> g, m, v, m_absmax, v_absmax;
  std::vector<uint16_t> g16;
  std::vector<uint8_t> m_codes, v_codes;

  Case(int64_t n_, WeightStore store, Dtype g_type, bool low, bool dir = false, uint64_t seed = 1)
      : n(n_), low_bit(low), direction(dir), p(store, noise(n_, seed)), g_dtype(g_type) {
    m = noise(n, seed + 1);
    v = noise(n, seed + 2);
    for (auto& x : m) x *= 1e-3f;
    for (auto& x : v) x = x * x * 1e-6f;
    set_gradient(noise(n, seed + 3));
    if (low_bit) {
      const auto blocks = static_cast<size_t>(quant::dynamic_blocks(n));
      m_codes.resize(m.size()), v_codes.resize(m.size());
      m_absmax.resize(blocks), v_absmax.resize(blocks);
      quant::quantize_dynamic(m_codes.data(), m_absmax.data(), m.data(), n, true);
      quant::quantize_dynamic(v_codes.data(), v_absmax.data(), v.data(), n, false);
    }
  }
  void set_gradient(const std::vector<float>& x) {
    g = x;
    g16 = to_bf16(x);
  }
  void zero_states() {
    std::fill(m.begin(), m.end(), 0.0f), std::fill(v.begin(), v.end(), 0.0f);
    std::fill(m_codes.begin(), m_codes.end(), 127), std::fill(v_codes.begin(), v_codes.end(), 0);
    std::fill(m_absmax.begin(), m_absmax.end(), 0.0f);
    std::fill(v_absmax.begin(), v_absmax.end(), 0.0f);
  }
  // Elements [begin, end); begin on a block boundary.
  AdamTensor shard(int64_t begin, int64_t end) {
    AdamTensor t;
    t.n = end - begin;
    t.param = 9;
    t.offset = begin;
    t.target = direction ? AdamTarget::direction : AdamTarget::weight;
    t.weight_store = p.store;
    t.p = direction ? nullptr : p.at(begin);
    t.g_dtype = g_dtype;
    t.g = g_dtype == Dtype::f32 ? static_cast<void*>(g.data() + begin)
                                : static_cast<void*>(g16.data() + begin);
    if (low_bit) {
      t.m_codes = m_codes.data() + begin, t.v_codes = v_codes.data() + begin;
      t.m_absmax = m_absmax.data() + begin / kAdamBlock;
      t.v_absmax = v_absmax.data() + begin / kAdamBlock;
    } else {
      t.m = m.data() + begin, t.v = v.data() + begin;
    }
    return t;
  }
  AdamTensor whole() { return shard(0, n); }
  uint64_t bits() const {
    uint64_t h = p.bits() ^ digest(g);
    if (low_bit)
      for (uint64_t d : {digest(m_codes), digest(v_codes), digest(m_absmax), digest(v_absmax)})
        h = h * 31 + d;
    else
      h = (h * 31 + digest(m)) * 31 + digest(v);
    return h;
  }
};

// Every combination of stores, gradient types and states.
std::vector<Case> all_cases(int64_t n) {
  std::vector<Case> cases;
  for (bool low_bit : {false, true}) {
    for (WeightStore store : kStores)
      for (Dtype g : {Dtype::f32, Dtype::bf16}) cases.emplace_back(n, store, g, low_bit);
    cases.emplace_back(n, WeightStore::f32, Dtype::f32, low_bit, true);
  }
  return cases;
}

TEST(AdamW, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t n : kAwkward)
    for (const Case& start : all_cases(n))
      same_everywhere([&] {
        Case c = start;
        for (uint64_t step = 0; step < 2; ++step)
          EXPECT_EQ(adamw({c.whole()}, rule(), kSeed, step), 0);
        return c.bits();
      });
}

TEST(AdamW, ShardsAtBlockBoundariesAndListsEqualTheWhole) {
  for (const Case& start : all_cases(70 * kAdamBlock + 123)) {
    Case whole = start, parts = start;
    adamw({whole.whole()}, rule(), kSeed, kStep);
    std::vector<AdamTensor> list;
    for (int64_t at = 0, len = kAdamBlock; at < parts.n; at += len, len *= 3)
      list.push_back(parts.shard(at, std::min(at + len, parts.n)));
    std::reverse(list.begin(), list.end());
    adamw(list, rule(), kSeed, kStep);
    EXPECT_EQ(whole.bits(), parts.bits());
  }
}

TEST(AdamW, FollowsTheFormula) {
  const double b1 = 0.9, b2 = 0.999, a = 0.01, s = 31.6, eps = 1e-8, before = 0.99, after = 0.98;
  Case c(1000, WeightStore::f32, Dtype::f32, false);
  const Case old = c;
  adamw({c.whole()}, make_adam_rule(a, s, eps, b1, b2, before, after), 0, 0);
  for (size_t i = 0; i < 1000; ++i) {
    const double m = b1 * old.m[i] + (1 - b1) * old.g[i];
    const double v = b2 * old.v[i] + (1 - b2) * old.g[i] * old.g[i];
    const double d = a * m / (std::sqrt(v) * s + eps);
    // A handful of roundings of 2^-24 each, of numbers no larger than these.
    EXPECT_NEAR(c.m[i], m, 4e-7 * (std::abs(old.m[i]) + std::abs(old.g[i])));
    EXPECT_NEAR(c.v[i], v, 4e-7 * v);
    EXPECT_NEAR(c.p.f32[i], (old.p.f32[i] * before - d) * after,
                4e-7 * (std::abs(old.p.f32[i]) + std::abs(d)) + 1e-9 / (std::sqrt(v) * s));
  }
}

TEST(AdamW, LowBitWeightsMoveByTheUnroundedMoments) {
  Case c(1000, WeightStore::f32, Dtype::f32, true), d = c;
  quant::dequantize_dynamic(d.m.data(), c.m_codes.data(), c.m_absmax.data(), c.n, true);
  quant::dequantize_dynamic(d.v.data(), c.v_codes.data(), c.v_absmax.data(), c.n, false);
  d.low_bit = false;
  adamw({c.whole()}, rule(), 0, 0);
  adamw({d.whole()}, rule(), 0, 0);
  EXPECT_EQ(c.p.bits(), d.p.bits());
  std::vector<uint8_t> codes(c.m_codes.size());
  std::vector<float> absmax(c.m_absmax.size());
  quant::quantize_dynamic(codes.data(), absmax.data(), d.m.data(), c.n, true);
  EXPECT_EQ(digest(codes), digest(c.m_codes));
  EXPECT_EQ(digest(absmax), digest(c.m_absmax));
  quant::quantize_dynamic(codes.data(), absmax.data(), d.v.data(), c.n, false);
  for (size_t i = 0; i < codes.size(); ++i)
    EXPECT_EQ(c.v_codes[i], codes[i] == 0 && d.v[i] > 0 ? 1 : codes[i]);
}

TEST(AdamW, ZeroGradientWithZeroStateMovesNothing) {
  for (double eps : {1e-8, 0.0})
    for (Case& c : all_cases(1000)) {
      auto g = noise(c.n, 50);
      for (int64_t i = 0; i < c.n; i += 3) g[i] = i % 2 ? 0.0f : -0.0f;
      c.zero_states();
      std::vector<float> p = noise(c.n, 60);
      p[0] = -0.0f, p[3] = 0x1p-149f, p[6] = -0.0f;
      c.p = Weights(c.p.store, p);
      const Case old = c;
      for (uint64_t step = 0; step < 50; ++step) {
        c.set_gradient(g);
        EXPECT_EQ(adamw({c.whole()}, rule(1.0, 1.0, eps), kSeed, step), 0);
      }
      for (size_t i = 0; i < static_cast<size_t>(c.n); ++i) {
        if (c.direction) {
          EXPECT_EQ(c.g[i] == 0.0f, i % 3 == 0);
        } else if (c.p.store == WeightStore::f32) {
          EXPECT_EQ(float_bits(c.p.f32[i]) == float_bits(old.p.f32[i]), i % 3 == 0) << i;
        } else if (i % 3 == 0) {
          EXPECT_EQ(c.p.bf16[i], old.p.bf16[i]) << i;
        }
      }
    }
}

// A second moment that is small beside its block's largest must not be stored as zero while the
// first is not: the next step would be m / eps.
TEST(AdamW, SmallSecondMomentsAreNeverStoredAsZero) {
  Case c(256, WeightStore::f32, Dtype::f32, true);
  c.zero_states();
  std::vector<float> g(256, 1e-4f);
  g[0] = 1.0f;
  c.set_gradient(g);
  adamw({c.whole()}, rule(1.0), 0, 0);
  for (int i = 1; i < 256; ++i) {
    EXPECT_NE(c.m_codes[i], 127);
    EXPECT_EQ(c.v_codes[i], 1);
  }
  const Case before = c;
  c.set_gradient(std::vector<float>(256, 0.0f));
  adamw({c.whole()}, rule(1.0), 0, 1);
  for (int i = 1; i < 256; ++i)  // no step longer than a few learning rates (1e-3 / (1 - 0.9) here)
    EXPECT_LT(std::abs(c.p.f32[i] - before.p.f32[i]), 0.02f);
}

TEST(AdamW, ABlockThatWouldNotStayFiniteIsSkippedWholeAndCounted) {
  const float inf = std::numeric_limits<float>::infinity();
  for (float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 3e38f})
    for (const Case& start : all_cases(5 * kAdamBlock + 40)) {
      Case clean = start, c = start;
      adamw({clean.whole()}, rule(), kSeed, kStep);
      auto g = start.g;
      g[kAdamBlock + 7] = bad, g[5 * kAdamBlock + 39] = bad;
      c.set_gradient(g);
      const Case old = c;
      same_everywhere([&] {
        c = old;
        EXPECT_EQ(adamw({c.whole()}, rule(), kSeed, kStep), 2);
        return c.bits();
      });
      for (int64_t i = 0; i < c.n; ++i) {
        const bool skipped = i / kAdamBlock == 1 || i / kAdamBlock == 5;
        const Case& want = skipped ? old : clean;
        if (c.direction)
          EXPECT_EQ(c.g[i], skipped ? 0.0f : clean.g[i]);
        else if (c.p.store == WeightStore::f32)
          EXPECT_EQ(c.p.f32[i], want.p.f32[i]);
        else
          EXPECT_EQ(c.p.bf16[i], want.p.bf16[i]);
        if (c.low_bit) {
          EXPECT_EQ(c.m_codes[i], want.m_codes[i]);
          EXPECT_EQ(c.v_codes[i], want.v_codes[i]);
          EXPECT_EQ(c.m_absmax[i / kAdamBlock], want.m_absmax[i / kAdamBlock]);
          EXPECT_EQ(c.v_absmax[i / kAdamBlock], want.v_absmax[i / kAdamBlock]);
        } else {
          EXPECT_EQ(c.m[i], want.m[i]);
          EXPECT_EQ(c.v[i], want.v[i]);
        }
      }
    }
}

TEST(AdamW, DirectionIsWhatTheWeightMovesBy) {
  for (bool low_bit : {false, true}) {
    Case w(777, WeightStore::f32, Dtype::f32, low_bit);
    Case d(777, WeightStore::f32, Dtype::f32, low_bit, true);
    const auto p = w.p.f32;
    adamw({w.whole()}, rule(1.0), 0, 0);
    adamw({d.whole()}, rule(1.0), 0, 0);
    for (size_t i = 0; i < p.size(); ++i) EXPECT_EQ(w.p.f32[i], p[i] - d.g[i]);
  }
}

TEST(AdamW, ImpossibleScalarsAreRefused) {
  EXPECT_THROW(make_adam_rule(NAN, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(-1, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1e39, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, INFINITY, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, -1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 1.1, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 0.9, -0.1, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 0.9, 0.999, NAN, 1), Error);
  Case c(512, WeightStore::f32, Dtype::f32, false);
  AdamTensor t = c.whole();
  t.offset = 100;
  EXPECT_THROW(adamw({t}, rule(), 0, 0), Error);
}

}  // namespace
}  // namespace lowtide::optim
