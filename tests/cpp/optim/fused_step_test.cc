// SPDX-License-Identifier: Apache-2.0
#include "optim/fused_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "optim/weights.h"
#include "quant/group_map.h"
#include "quant/map4_scalar.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using namespace ::lowtide::testing;

constexpr uint64_t kSeed = 77, kStep = 5;
constexpr RuleKind kRules[] = {RuleKind::adam, RuleKind::adabelief, RuleKind::lion,
                               RuleKind::sgd,  RuleKind::sign,      RuleKind::diffgrad};
constexpr StateKind kStates[] = {StateKind::f32, StateKind::dynamic8, StateKind::dynamic4};

StepRule rule(RuleKind kind = RuleKind::adam, double before = 0.999, double after = 1.0,
              double eps = 1e-8) {
  const double s = 1 / std::sqrt(1 - 0.999);
  switch (kind) {
    case RuleKind::adam:
      return make_adam_rule(1e-2, s, eps, 0.9, 0.999, before, after);
    case RuleKind::adabelief:
      return make_adabelief_rule(1e-2, s, eps * 1e-8, 0.9, 0.999, before, after);
    case RuleKind::lion:
      return make_lion_rule(1e-2, 0.9, 0.99, before, after);
    case RuleKind::sign:
      return make_sign_rule(1e-2, before, after);
    case RuleKind::diffgrad:
      return make_diffgrad_rule(1e-2, s, eps, 0.9, 0.999, before, after);
    case RuleKind::sgd:
      break;
  }
  return make_sgd_rule(1e-2, 0.9, 0.75, true, before, after);
}

// One parameter with everything that its step needs.
struct Case {
  int64_t n;
  RuleKind kind;
  StateKind states;
  bool direction;
  Weights p;
  Dtype g_dtype;
  std::vector<float> g, m, v, w, m_absmax, v_absmax, w_absmax;
  std::vector<uint16_t> g16;
  std::vector<uint8_t> m_codes, v_codes, w_codes;

  Case(int64_t n_, RuleKind rule_kind, StateKind state_kind, WeightStore store = WeightStore::f32,
       Dtype g_type = Dtype::f32, bool dir = false)
      : n(n_),
        kind(rule_kind),
        states(state_kind),
        direction(dir),
        p(store, noise(n_, 1)),
        g_dtype(g_type) {
    set_gradient(noise(n, 4));
    m = noise(n, 2);
    v = noise(n, 3);
    w = noise(n, 5);
    for (auto& x : m) x *= 1e-3f;
    for (auto& x : v) x = x * x * 1e-6f;
    if (states == StateKind::f32) return;
    m_codes.resize(static_cast<size_t>(bytes(n))), v_codes = w_codes = m_codes;
    m_absmax.resize(static_cast<size_t>(parts(n))), v_absmax = w_absmax = m_absmax;
    if (states == StateKind::dynamic8) {
      const quant::GroupShape row{.rows = 1, .cols = n, .group = quant::kDynamicBlock, .bits = 8};
      quant::quantize_map(m.data(), quant::FloatType::f32, quant::LevelMap::dynamic8,
                          {m_codes.data(), m_absmax.data(), nullptr, row}, {});
      quant::quantize_map(v.data(), quant::FloatType::f32, quant::LevelMap::dynamic8_unsigned,
                          {v_codes.data(), v_absmax.data(), nullptr, row}, {});
      quant::quantize_map(w.data(), quant::FloatType::f32, quant::LevelMap::dynamic8,
                          {w_codes.data(), w_absmax.data(), nullptr, row}, {});
    } else {
      for (size_t i = 0; i < m_codes.size(); ++i)
        m_codes[i] = static_cast<uint8_t>(i * 37 + 11), v_codes[i] = static_cast<uint8_t>(i * 101);
      for (size_t i = 0; i < w_codes.size(); ++i) w_codes[i] = static_cast<uint8_t>(i * 59 + 3);
      for (size_t i = 0; i < m_absmax.size(); ++i)
        m_absmax[i] = 1e-3f / static_cast<float>(i + 1), v_absmax[i] = i % 5 == 4 ? 0.0f : 1e-6f;
      for (size_t i = 0; i < w_absmax.size(); ++i) w_absmax[i] = i % 5 == 3 ? 0.0f : 0.9f;
    }
    m.clear(), v.clear(), w.clear();
  }
  int64_t bytes(int64_t count) const {
    return states == StateKind::dynamic4 ? quant::int4_bytes(count) : count;
  }
  int64_t parts(int64_t count) const {
    return (count + state_block(states) - 1) / state_block(states);
  }
  bool first_moment() const { return moment_count(kind) > 0; }
  bool second() const { return has_second_moment(kind); }
  bool third() const { return moment_count(kind) > 2; }
  void set_gradient(const std::vector<float>& x) {
    g = x;
    g16 = to_bf16(x);
  }
  void zero_states() {
    std::fill(m.begin(), m.end(), 0.0f), std::fill(v.begin(), v.end(), 0.0f);
    std::fill(m_codes.begin(), m_codes.end(), states == StateKind::dynamic4 ? 0x77 : 127);
    std::fill(v_codes.begin(), v_codes.end(), 0);
    std::fill(w.begin(), w.end(), 0.0f), std::fill(w_absmax.begin(), w_absmax.end(), 0.0f);
    std::fill(w_codes.begin(), w_codes.end(), states == StateKind::dynamic4 ? 0x77 : 127);
    std::fill(m_absmax.begin(), m_absmax.end(), 0.0f);
    std::fill(v_absmax.begin(), v_absmax.end(), 0.0f);
  }
  // Elements [begin, end); begin on a block boundary.
  StepTensor shard(int64_t begin, int64_t end) {
    StepTensor t;
    t.n = end - begin;
    t.param = 9;
    t.offset = begin;
    t.target = direction ? StepTarget::direction : StepTarget::weight;
    t.weight_store = p.store;
    t.p = direction ? nullptr : p.at(begin);
    t.g_dtype = g_dtype;
    t.g = g_dtype == Dtype::f32 ? static_cast<void*>(g.data() + begin)
                                : static_cast<void*>(g16.data() + begin);
    t.states = states;
    if (states == StateKind::f32) {
      t.m = first_moment() ? m.data() + begin : nullptr;
      t.v = second() ? v.data() + begin : nullptr, t.w = third() ? w.data() + begin : nullptr;
    } else {
      if (first_moment())
        t.m_codes = m_codes.data() + bytes(begin), t.m_absmax = m_absmax.data() + parts(begin);
      if (third())
        t.w_codes = w_codes.data() + bytes(begin), t.w_absmax = w_absmax.data() + parts(begin);
      if (second())
        t.v_codes = v_codes.data() + bytes(begin), t.v_absmax = v_absmax.data() + parts(begin);
    }
    return t;
  }
  StepTensor whole() { return shard(0, n); }
  int64_t step(const StepRule& r, uint64_t seed = kSeed, uint64_t at = kStep) {
    return fused_step({whole()}, r, seed, at);
  }
  // The moments as the next step will read them.
  std::vector<float> first() const { return decoded(m, m_codes, m_absmax, true); }
  std::vector<float> second_moment() const { return decoded(v, v_codes, v_absmax, false); }
  std::vector<float> third_moment() const { return decoded(w, w_codes, w_absmax, true); }
  std::vector<float> decoded(const std::vector<float>& plain, const std::vector<uint8_t>& codes,
                             const std::vector<float>& absmax, bool is_signed) const {
    if (states == StateKind::f32) return plain;
    std::vector<float> x;
    for (int64_t i = 0; i < n; ++i) {
      const float scale = absmax[static_cast<size_t>(i / state_block(states))];
      x.push_back(states == StateKind::dynamic8
                      ? quant::dynamic_decode(quant::kDynamic, codes[static_cast<size_t>(i)],
                                              is_signed, scale)
                      : quant::map4_decode(quant::get_code(codes.data(), i, 4), is_signed, scale));
    }
    return x;
  }
  uint64_t bits() const {
    uint64_t h = p.bits() ^ digest(g);
    for (uint64_t d : {digest(m), digest(v), digest(w), digest(m_codes), digest(v_codes),
                       digest(w_codes), digest(m_absmax), digest(v_absmax), digest(w_absmax)})
      h = h * 31 + d;
    return h;
  }
};

// Every combination of rules, stores, gradient types and states.
std::vector<Case> all_cases(int64_t n) {
  std::vector<Case> cases;
  for (RuleKind kind : kRules)
    for (StateKind states : kStates) {
      for (WeightStore store : kStores)
        for (Dtype g : {Dtype::f32, Dtype::bf16}) cases.emplace_back(n, kind, states, store, g);
      cases.emplace_back(n, kind, states, WeightStore::f32, Dtype::f32, true);
    }
  return cases;
}

TEST(FusedStep, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t n : kAwkward)
    for (const Case& start : all_cases(n)) {
      SCOPED_TRACE(::testing::Message() << "n " << n << " rule " << static_cast<int>(start.kind)
                                        << " states " << static_cast<int>(start.states));
      same_everywhere([&] {
        Case c = start;
        for (uint64_t step = 0; step < 2; ++step) EXPECT_EQ(c.step(rule(c.kind), kSeed, step), 0);
        return c.bits();
      });
    }
}

TEST(FusedStep, ShardsAtBlockBoundariesAndListsEqualTheWhole) {
  for (const Case& start : all_cases(70 * kStepBlock + 123)) {
    Case whole = start, parts = start;
    whole.step(rule(whole.kind));
    std::vector<StepTensor> list;
    for (int64_t at = 0, len = kStepBlock; at < parts.n; at += len, len *= 3)
      list.push_back(parts.shard(at, std::min(at + len, parts.n)));
    std::reverse(list.begin(), list.end());
    fused_step(list, rule(parts.kind), kSeed, kStep);
    EXPECT_EQ(whole.bits(), parts.bits());
  }
}

// One step in double precision, from the same moments, for each rule and store.
TEST(FusedStep, FollowsTheFormula) {
  const double a = 0.01, s = 31.6, eps = 1e-8, b1 = 0.9, b2 = 0.99, before = 0.99, after = 0.98;
  const double weight = 0.75;
  for (RuleKind kind : kRules)
    for (bool nesterov : {false, true})
      for (StateKind states : kStates) {
        const StepRule r =
            kind == RuleKind::adam        ? make_adam_rule(a, s, eps, b1, b2, before, after)
            : kind == RuleKind::adabelief ? make_adabelief_rule(a, s, eps, b1, b2, before, after)
            : kind == RuleKind::lion      ? make_lion_rule(a, b1, b2, before, after)
            : kind == RuleKind::sign      ? make_sign_rule(a, before, after)
            : kind == RuleKind::diffgrad  ? make_diffgrad_rule(a, s, eps, b1, b2, before, after)
                                          : make_sgd_rule(a, b1, weight, nesterov, before, after);
        Case c(1000, kind, states);
        const Case old = c;
        const auto old_m = old.first(), old_v = old.second_moment(), old_w = old.third_moment();
        c.step(r);
        for (size_t i = 0; i < 1000; ++i) {
          const double g = old.g[i], m0 = old_m[i], v0 = c.second() ? old_v[i] : 0.0;
          double m = b1 * m0 + (1 - b1) * g, v = v0, d = 0, slack = 0;
          if (kind == RuleKind::sign) {
            m = m0;
            d = g > 0 ? a : g < 0 ? -a : 0;
          } else if (kind == RuleKind::lion) {
            d = m > 0 ? a : m < 0 ? -a : 0;
            m = b2 * m0 + (1 - b2) * g;
          } else if (kind == RuleKind::sgd) {
            m = b1 * m0 + weight * g;
            d = a * (nesterov ? g + b1 * m : m);
          } else {
            const bool belief = kind == RuleKind::adabelief;
            const double x = belief ? g - m : g;
            v = b2 * v0 + (1 - b2) * x * x + (belief ? eps : 0.0);
            d = a * m / (std::sqrt(v) * s + eps);
            if (c.third()) d /= 1 + std::exp(-std::abs(old_w[i] - g));
            slack = 1e-9 / (std::sqrt(v) * s + eps);
          }
          // A handful of roundings of 2^-24 each, of numbers no larger than these.
          EXPECT_NEAR(c.p.f32[i], (old.p.f32[i] * before - d) * after,
                      4e-7 * (std::abs(old.p.f32[i]) + std::abs(d)) + slack);
          if (states != StateKind::f32) continue;
          EXPECT_NEAR(c.m[i], m, 4e-7 * (std::abs(m0) + std::abs(g)));
          if (c.second()) {
            EXPECT_NEAR(c.v[i], v, 8e-7 * v + 4e-8 * std::abs(m0 * g));
          }
          EXPECT_EQ(c.w[i], c.third() ? c.g[i] : old.w[i]);
        }
      }
}

TEST(FusedStep, LowBitWeightsMoveByTheUnroundedMoments) {
  for (RuleKind kind : kRules)
    for (StateKind states : {StateKind::dynamic8, StateKind::dynamic4}) {
      Case c(1000, kind, states), d(1000, kind, StateKind::f32);
      d.m = c.first(), d.v = c.second_moment(), d.w = c.third_moment();
      c.step(rule(kind));
      d.step(rule(kind));
      EXPECT_EQ(c.p.bits(), d.p.bits());
      // What was stored is the nearest code of what the float32 states hold.
      const auto m = c.first(), v = c.second_moment(), w = c.third_moment();
      for (size_t i = 0; i < 1000; ++i) {
        const auto part = i / static_cast<size_t>(state_block(states));
        const double step = states == StateKind::dynamic8 ? 0.0071 : 0.1126;
        EXPECT_NEAR(m[i], d.m[i], step * c.m_absmax[part]);
        EXPECT_NEAR(w[i], d.w[i], step * c.w_absmax[part]);
        if (c.second()) {
          EXPECT_NEAR(v[i], d.v[i],
                      (states == StateKind::dynamic8 ? 0.0036 : 0.0626) * c.v_absmax[part]);
          EXPECT_TRUE(v[i] > 0 || d.v[i] <= 0);
        }
      }
    }
}

// Each value of the 4-bit maps is kept, and each magnitude goes to the nearest value.
TEST(FusedStep, FourBitCodesAreTheNearest) {
  Case c(128, RuleKind::adam, StateKind::dynamic4);
  for (int round = 0; round < 400; ++round) {
    c.zero_states();
    auto g = noise(128, static_cast<uint64_t>(round) + 9);
    g[5] = 1.0f;  // absmax of m
    for (int code = 0; code < 16; ++code)
      g[static_cast<size_t>(code + 20)] = quant::map4_value(code, true);
    c.set_gradient(g);
    // beta 0: m = g, v = g^2.
    ASSERT_EQ(c.step(make_adam_rule(1e-3, 1, 1e-8, 0.0, 0.0, 1, 1)), 0);
    EXPECT_EQ(c.m_absmax[0], 1.0f);
    for (int i = 0; i < 128; ++i) {
      const auto at = static_cast<size_t>(i);
      const int m = quant::get_code(c.m_codes.data(), i, 4);
      const int v = quant::get_code(c.v_codes.data(), i, 4);
      if (i >= 20 && i < 36) {
        EXPECT_EQ(m, i - 20);
      }
      double best_m = 2, best_v = 2;
      for (int code = 0; code < 16; ++code) {
        best_m = std::min<double>(best_m, std::abs(quant::map4_value(code, true) - double{g[at]}));
        best_v = std::min<double>(
            best_v, std::abs(quant::map4_value(code, false) - double{g[at]} * double{g[at]}));
      }
      EXPECT_LE(std::abs(quant::map4_value(m, true) - double{g[at]}), best_m + 6.2e-5);
      EXPECT_LE(std::abs(quant::map4_value(v, false) - double{g[at]} * double{g[at]}),
                best_v + 1e-6);
    }
  }
}

TEST(FusedStep, ZeroGradientWithZeroStateMovesNothing) {
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
        EXPECT_EQ(c.step(rule(c.kind, 1.0, 1.0, eps), kSeed, step), 0);
      }
      for (size_t i = 0; i < static_cast<size_t>(c.n); ++i) {
        if (c.direction) {
          if (i % 3 == 0) {
            EXPECT_EQ(c.g[i], 0.0f);
          }
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
TEST(FusedStep, SmallSecondMomentsAreNeverStoredAsZero) {
  for (StateKind states : {StateKind::dynamic8, StateKind::dynamic4}) {
    Case c(256, RuleKind::adam, states);
    c.zero_states();
    std::vector<float> g(256, 1e-2f);
    g[0] = g[128] = 1.0f;
    c.set_gradient(g);
    c.step(rule(RuleKind::adam, 1.0));
    const auto v = c.second_moment();
    for (size_t i = 1; i < 256; ++i) EXPECT_GT(v[i], 0.0f);
    const Case before = c;
    c.set_gradient(std::vector<float>(256, 0.0f));
    c.step(rule(RuleKind::adam, 1.0));
    for (size_t i = 1; i < 256; ++i)  // no step longer than a few learning rates (1e-2 / 0.1 here)
      EXPECT_LT(std::abs(c.p.f32[i] - before.p.f32[i]), 0.2f);
  }
}

TEST(FusedStep, ABlockThatWouldNotStayFiniteIsSkippedWholeAndCounted) {
  const float inf = std::numeric_limits<float>::infinity();
  for (float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 3e38f})
    for (const Case& start : all_cases(5 * kStepBlock + 40)) {
      if (bad == 3e38f && !start.second()) continue;  // no square that could overflow
      Case clean = start, c = start;
      const StepRule r = rule(start.kind);
      clean.step(r);
      auto g = start.g;
      g[kStepBlock + 7] = bad, g[5 * kStepBlock + 39] = bad;
      c.set_gradient(g);
      const Case old = c;
      same_everywhere([&] {
        c = old;
        EXPECT_EQ(c.step(r), 2);
        return c.bits();
      });
      const auto m = c.first(), clean_m = clean.first(), old_m = old.first();
      const auto v = c.second_moment(), clean_v = clean.second_moment();
      const auto old_v = old.second_moment();
      for (size_t i = 0; i < static_cast<size_t>(c.n); ++i) {
        const bool skipped = i / kStepBlock == 1 || i / kStepBlock == 5;
        const Case& want = skipped ? old : clean;
        if (c.direction)
          EXPECT_EQ(c.g[i], skipped ? 0.0f : clean.g[i]);
        else if (c.p.store == WeightStore::f32)
          EXPECT_EQ(c.p.f32[i], want.p.f32[i]);
        else
          EXPECT_EQ(c.p.bf16[i], want.p.bf16[i]);
        EXPECT_EQ(m[i], skipped ? old_m[i] : clean_m[i]);
        EXPECT_EQ(v[i], skipped ? old_v[i] : clean_v[i]);
      }
    }
}

TEST(FusedStep, ADamagedStateIsSkipped) {
  const float inf = std::numeric_limits<float>::infinity();
  for (float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()})
    for (RuleKind kind : kRules)
      for (StateKind states : kStates)
        for (bool first : {true, false}) {
          Case start(700, kind, states);
          if (!first && !start.second()) continue;
          if (!start.first_moment()) continue;
          auto& damaged = states == StateKind::f32 ? (first ? start.m : start.v)
                                                   : (first ? start.m_absmax : start.v_absmax);
          damaged[1] = bad;
          same_everywhere([&] {
            Case c = start;
            EXPECT_EQ(c.step(rule(kind)), 1);
            return c.bits();
          });
        }
}

// Also where a weight or a step is so small that its reciprocal overflows.
TEST(FusedStep, StepSizeZeroMovesNothing) {
  for (double a : {0.0, 1e-44, 1e-38})
    for (StateKind states : kStates) {
      Case c(700, RuleKind::adam, states);
      const auto p = c.p.f32;
      EXPECT_EQ(c.step(make_adam_rule(a, 31.6, 1e-8, 0.9, 0.999, 1, 1)), 0);
      for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(c.p.f32[i], p[i], a == 0 ? 0.0 : 1e-30);
    }
}

// A Nesterov direction may overflow beside a finite moment.
TEST(FusedStep, ADirectionThatOverflowsIsSkipped) {
  Case c(256, RuleKind::sgd, StateKind::f32);
  c.zero_states();
  c.set_gradient(std::vector<float>(256, 3e38f));
  const Case old = c;
  EXPECT_EQ(c.step(make_sgd_rule(1.0, 0.9, 1.0, true, 1, 1)), 1);
  EXPECT_EQ(c.p.bits(), old.p.bits());
  EXPECT_EQ(c.step(make_sgd_rule(1.0, 0.9, 1.0, false, 1, 1)), 0);
}

TEST(FusedStep, DirectionIsWhatTheWeightMovesBy) {
  for (RuleKind kind : kRules)
    for (StateKind states : kStates) {
      Case w(777, kind, states), d(777, kind, states, WeightStore::f32, Dtype::f32, true);
      const auto p = w.p.f32;
      w.step(rule(kind, 1.0));
      d.step(rule(kind, 1.0));
      for (size_t i = 0; i < p.size(); ++i) EXPECT_EQ(w.p.f32[i], p[i] - d.g[i]);
    }
}

TEST(FusedStep, ImpossibleScalarsAreRefused) {
  EXPECT_THROW(make_adam_rule(NAN, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(-1, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1e39, 1, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, INFINITY, 1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, -1e-8, 0.9, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 1.1, 0.999, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 0.9, -0.1, 1, 1), Error);
  EXPECT_THROW(make_adam_rule(1, 1, 1e-8, 0.9, 0.999, NAN, 1), Error);
  EXPECT_THROW(make_lion_rule(1, 2, 0.9, 1, 1), Error);
  EXPECT_THROW(make_sgd_rule(1, 0.9, -1, false, 1, 1), Error);
  EXPECT_THROW(make_rule(4, {1, 1, 1, 1, 1}), Error);
  EXPECT_THROW(make_rule(-1, {1, 1, 1, 1, 1}), Error);
  EXPECT_THROW(make_rule(2, {1, 1, 1, 1}), Error);
  Case c(512, RuleKind::adam, StateKind::f32);
  StepTensor t = c.whole();
  t.offset = 100;
  EXPECT_THROW(fused_step({t}, rule(), 0, 0), Error);
  t = c.whole();
  t.v = nullptr;
  EXPECT_THROW(fused_step({t}, rule(), 0, 0), Error);
}

}  // namespace
}  // namespace lowtide::optim
