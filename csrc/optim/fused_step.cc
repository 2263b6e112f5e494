// SPDX-License-Identifier: Apache-2.0
#include "optim/fused_step.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/list_blocks.h"
#include "optim/fused_step_table.h"

namespace lowtide::optim {
namespace {

constexpr auto kTables = LT_TABLES(StepTable, fused_step);

float checked(double x, bool ok, const char* message) {
  require(std::isfinite(x) && std::isfinite(static_cast<float>(x)) && ok, message);
  return static_cast<float>(x);
}

bool is_rate(double beta) { return beta >= 0 && beta <= 1; }

StepRule base_rule(RuleKind kind, double a, double beta1, double beta2, double decay_before,
                   double decay_after) {
  StepRule r{};
  r.kind = kind;
  r.a = checked(a, a >= 0, "optim: a (the step size) must be a finite float32 number >= 0");
  r.beta1 = checked(beta1, is_rate(beta1), "optim: beta1 must be in [0, 1]");
  r.beta2 = checked(beta2, is_rate(beta2), "optim: beta2 must be in [0, 1]");
  r.weight1 = static_cast<float>(1.0 - beta1);
  r.weight2 = static_cast<float>(1.0 - beta2);
  r.decay_before = checked(decay_before, true, "optim: decay_before must be a finite factor");
  r.decay_after = checked(decay_after, true, "optim: decay_after must be a finite factor");
  return r;
}

StepRule two_moment_rule(RuleKind kind, double a, double s, double eps, double beta1, double beta2,
                         double decay_before, double decay_after) {
  StepRule r = base_rule(kind, a, beta1, beta2, decay_before, decay_after);
  checked(s, s >= 0, "optim: s (1 / sqrt(bias correction 2)) must be finite and >= 0");
  checked(eps, eps >= 0, "optim: eps must be finite and >= 0");
  // With eps 0 an element that never saw a gradient would be 0 / 0.
  constexpr double kLeast = std::numeric_limits<float>::min();
  constexpr double kMost = std::numeric_limits<float>::max();
  r.v_eps = static_cast<float>(std::max(eps, kLeast));
  // Step size 0: a denominator of infinity, every direction 0.
  r.s = r.a > 0 ? static_cast<float>(std::min(s / a, kMost)) : 0.0f;
  r.eps = r.a > 0 ? static_cast<float>(std::clamp(std::max(eps, kLeast) / a, kLeast, kMost))
                  : std::numeric_limits<float>::infinity();
  return r;
}

void check(const StepTensor& t, const StepRule& rule) {
  require(t.n >= 0, "optim: the number of elements must be >= 0");
  require(t.offset >= 0 && t.offset % kStepBlock == 0,
          "optim: offset must be a multiple of 256, so that shards hold whole blocks");
  require(t.target == StepTarget::weight || t.g_dtype == Dtype::f32,
          "optim: a direction is written over a float32 gradient only");
  if (t.n == 0) return;
  const bool plain = t.states == StateKind::f32;
  const int moments = moment_count(rule.kind);
  auto held = [plain](const float* all, const uint8_t* codes, const float* absmax) {
    return plain ? all != nullptr : codes != nullptr && absmax != nullptr;
  };
  require(moments < 1 || held(t.m, t.m_codes, t.m_absmax), "optim: the first moment is missing");
  require(moments < 2 || held(t.v, t.v_codes, t.v_absmax), "optim: the second moment is missing");
  require(moments < 3 || held(t.w, t.w_codes, t.w_absmax), "optim: the third moment is missing");
}

}  // namespace

StepRule make_adam_rule(double a, double s, double eps, double beta1, double beta2,
                        double decay_before, double decay_after) {
  return two_moment_rule(RuleKind::adam, a, s, eps, beta1, beta2, decay_before, decay_after);
}

StepRule make_adabelief_rule(double a, double s, double eps, double beta1, double beta2,
                             double decay_before, double decay_after) {
  return two_moment_rule(RuleKind::adabelief, a, s, eps, beta1, beta2, decay_before, decay_after);
}

StepRule make_lion_rule(double a, double beta1, double beta2, double decay_before,
                        double decay_after) {
  return base_rule(RuleKind::lion, a, beta1, beta2, decay_before, decay_after);
}

StepRule make_sgd_rule(double a, double momentum, double weight, bool nesterov, double decay_before,
                       double decay_after) {
  StepRule r = base_rule(RuleKind::sgd, a, momentum, 0.0, decay_before, decay_after);
  r.weight1 = checked(weight, is_rate(weight), "optim: weight must be in [0, 1]");
  r.along_m = nesterov ? r.beta1 : 1.0f;
  r.along_g = nesterov ? 1.0f : 0.0f;
  return r;
}

StepRule make_sign_rule(double a, double decay_before, double decay_after) {
  return base_rule(RuleKind::sign, a, 0.0, 0.0, decay_before, decay_after);
}

StepRule make_diffgrad_rule(double a, double s, double eps, double beta1, double beta2,
                            double decay_before, double decay_after) {
  return two_moment_rule(RuleKind::diffgrad, a, s, eps, beta1, beta2, decay_before, decay_after);
}

StepRule make_rule(int64_t kind, const std::vector<double>& x) {
  constexpr size_t kScalars[kRuleKinds] = {7, 7, 5, 6, 3, 7};
  require(kind >= 0 && kind < kRuleKinds, "optim: rule must be a number from 0 to 5");
  require(x.size() == kScalars[kind], "optim: scalars has the wrong length for this rule");
  switch (static_cast<RuleKind>(kind)) {
    case RuleKind::adam:
      return make_adam_rule(x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
    case RuleKind::adabelief:
      return make_adabelief_rule(x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
    case RuleKind::lion:
      return make_lion_rule(x[0], x[1], x[2], x[3], x[4]);
    case RuleKind::sign:
      return make_sign_rule(x[0], x[1], x[2]);
    case RuleKind::diffgrad:
      return make_diffgrad_rule(x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
    case RuleKind::sgd:
      break;
  }
  return make_sgd_rule(x[0], x[1], x[2], x[3] != 0.0, x[4], x[5]);
}

int64_t fused_step(const std::vector<StepTensor>& tensors, const StepRule& rule, uint64_t seed,
                   uint64_t step) {
  std::vector<int64_t> blocks;
  blocks.reserve(tensors.size());
  for (const auto& t : tensors) {
    check(t, rule);
    blocks.push_back((t.n + kStepBlock - 1) / kStepBlock);
  }
  const auto& table = kTables.get();
  const random::Key key = random::derive_key(seed, step, 0);
  std::atomic<int64_t> skipped{0};
  for_list_blocks(blocks, [&](size_t i, int64_t begin, int64_t end) {
    const int64_t bad = table.blocks(tensors[i], begin, end, rule, key);
    if (bad != 0) skipped.fetch_add(bad, std::memory_order_relaxed);
  });
  return skipped.load();
}

}  // namespace lowtide::optim
