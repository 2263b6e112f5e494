// SPDX-License-Identifier: Apache-2.0
// Bytes a parameter: 12 for float32 weights and gradients, 6 for bfloat16 ones (stochastic
// rounding), and for each moment 8 (float32), 2.03 (8-bit) or 1.06 (4-bit). The limit is axpy's,
// which reads and writes in the ratio 2:1 as these kernels nearly do. Outputs are verified.
#include "optim/fused_step.h"

#include "quant/group_format.h"
#include "roofline.h"

namespace lowtide {
namespace {

using namespace optim;

struct Problem {
  RuleKind kind;
  StateKind states;
  bool bf16;
  std::vector<float> p, g, m, v, w, m_absmax, v_absmax, w_absmax;
  std::vector<uint16_t> p16, g16;
  std::vector<uint8_t> m_codes, v_codes, w_codes;

  Problem(RuleKind rule, StateKind store, bool half, int64_t n)
      : kind(rule), states(store), bf16(half) {
    const auto size = static_cast<size_t>(n);
    p.resize(bf16 ? 0 : size, 0.5f);
    g.resize(bf16 ? 0 : size);
    p16.resize(bf16 ? size : 0, 0x3f00);
    g16.resize(bf16 ? size : 0);
    uint32_t s = 1;
    for (size_t i = 0; i < size; ++i) {
      s = s * 1664525u + 1013904223u;
      const float x = static_cast<float>(static_cast<int32_t>(s)) * 0x1p-31f;
      if (bf16)
        g16[i] = float_to_bf16(x);
      else
        g[i] = x;
    }
    if (states == StateKind::f32) {
      m.resize(size), v.resize(size), w.resize(size);
      return;
    }
    const bool four = states == StateKind::dynamic4;
    const auto bytes = static_cast<size_t>(four ? quant::int4_bytes(n) : n);
    const auto blocks = static_cast<size_t>((n + state_block(states) - 1) / state_block(states));
    m_codes.resize(bytes, four ? 0x77 : 127), v_codes.resize(bytes);
    w_codes = m_codes;
    m_absmax.resize(blocks), v_absmax.resize(blocks), w_absmax.resize(blocks);
  }

  StepRule rule() const {
    switch (kind) {
      case RuleKind::adam:
        return make_adam_rule(1e-3, 31.6, 1e-8, 0.9, 0.999, 0.9999, 1.0);
      case RuleKind::adabelief:
        return make_adabelief_rule(1e-3, 31.6, 1e-16, 0.9, 0.999, 0.9999, 1.0);
      case RuleKind::lion:
        return make_lion_rule(1e-4, 0.9, 0.99, 0.9999, 1.0);
      case RuleKind::sign:
        return make_sign_rule(1e-4, 0.9999, 1.0);
      case RuleKind::diffgrad:
        return make_diffgrad_rule(1e-3, 31.6, 1e-8, 0.9, 0.999, 0.9999, 1.0);
      case RuleKind::sgd:
        break;
    }
    return make_sgd_rule(1e-3, 0.9, 1.0, false, 0.9999, 1.0);
  }

  int64_t step(uint64_t t) {
    StepTensor a;
    a.n = static_cast<int64_t>(bf16 ? p16.size() : p.size());
    a.weight_store = bf16 ? WeightStore::bf16_stochastic : WeightStore::f32;
    a.p = bf16 ? static_cast<void*>(p16.data()) : p.data();
    a.g_dtype = bf16 ? Dtype::bf16 : Dtype::f32;
    a.g = bf16 ? static_cast<void*>(g16.data()) : g.data();
    a.states = states;
    a.m = m.data(), a.v = v.data(), a.m_codes = m_codes.data(), a.v_codes = v_codes.data();
    a.m_absmax = m_absmax.data(), a.v_absmax = v_absmax.data();
    a.w = w.data(), a.w_codes = w_codes.data(), a.w_absmax = w_absmax.data();
    return fused_step({a}, rule(), 1, t);
  }

  double bytes() const {
    const double moment = states == StateKind::f32        ? 8
                          : states == StateKind::dynamic8 ? 2 + 8.0 / 256
                                                          : 1 + 8.0 / 128;
    return (bf16 ? 6 : 12) + moment * moment_count(kind);
  }

  bool starts_like(const Problem& o, size_t n) const {
    auto same = [n](const auto& x, const auto& y) {
      const size_t count = std::min({n, x.size(), y.size()});
      return std::memcmp(x.data(), y.data(), count * sizeof x[0]) == 0;
    };
    return same(p, o.p) && same(p16, o.p16) && same(m, o.m) && same(v, o.v) &&
           same(m_codes, o.m_codes) && same(v_codes, o.v_codes) && same(w, o.w) &&
           same(w_codes, o.w_codes);
  }
};

template <RuleKind kind, StateKind states, bool bf16>
void fused(benchmark::State& state) {
  const int64_t n = state.range(0);
  Problem problem(kind, states, bf16, n);
  uint64_t t = 0;
  for (auto _ : state) {
    problem.step(t++);
    benchmark::ClobberMemory();
  }
  const int64_t few = std::min<int64_t>(n, 2560);
  Problem got(kind, states, bf16, few), want(kind, states, bf16, few);
  for (uint64_t i = 0; i < 3; ++i) got.step(i);
  const Isa isa = active_isa();
  set_isa(Isa::scalar);
  for (uint64_t i = 0; i < 3; ++i) want.step(i);
  set_isa(isa);
  if (!got.starts_like(want, static_cast<size_t>(few))) state.SkipWithError("wrong bits");
  const double bytes = problem.bytes() * static_cast<double>(n);
  // The same footprint in memory or cache as the kernel's.
  bench::report(state, bytes, bench::axpy_bytes_per_second(static_cast<int64_t>(bytes / 12)), n);
}

const int kRegistered = [] {
  constexpr auto adam = RuleKind::adam, belief = RuleKind::adabelief;
  constexpr auto lion = RuleKind::lion, sgd = RuleKind::sgd;
  constexpr auto sign = RuleKind::sign, diffgrad = RuleKind::diffgrad;
  constexpr auto f32 = StateKind::f32, eight = StateKind::dynamic8, four = StateKind::dynamic4;
  const std::vector<int64_t> sizes = {1 << 14, 1 << 20, 1 << 25};
  bench::register_per_isa("adamw_f32", fused<adam, f32, false>, sizes);
  bench::register_per_isa("adamw_8bit", fused<adam, eight, false>, sizes);
  bench::register_per_isa("adamw_4bit", fused<adam, four, false>, sizes);
  bench::register_per_isa("adamw_8bit_bf16_sr", fused<adam, eight, true>, sizes);
  bench::register_per_isa("adamw_4bit_bf16_sr", fused<adam, four, true>, sizes);
  bench::register_per_isa("adabelief_8bit", fused<belief, eight, false>, sizes);
  bench::register_per_isa("lion_8bit", fused<lion, eight, false>, sizes);
  bench::register_per_isa("sgd_8bit", fused<sgd, eight, false>, sizes);
  bench::register_per_isa("sign", fused<sign, f32, false>, sizes);
  bench::register_per_isa("diffgrad_f32", fused<diffgrad, f32, false>, sizes);
  bench::register_per_isa("diffgrad_8bit", fused<diffgrad, eight, false>, sizes);
  return 0;
}();

}  // namespace
}  // namespace lowtide
