// SPDX-License-Identifier: Apache-2.0
// Instructions of optimizer steps: 2^16 weights.
#include "counted.h"
#include "optim/apply_update.h"
#include "optim/combine.h"
#include "optim/fused_step.h"
#include "quant/group_format.h"

namespace lowtide::counted {
namespace {

using namespace optim;

constexpr int64_t kN = 1 << 16;

std::function<void()> fused(const StepRule& rule, StateKind states, bool bf16) {
  const bool four = states == StateKind::dynamic4, plain = states == StateKind::f32;
  const auto p = values(kN, 0.5f), g = values(kN);
  const auto p16 = buffer<uint16_t>(kN, 0x3f00), g16 = buffer<uint16_t>(kN, 0x3e12);
  const auto m = buffer<float>(plain ? kN : 0), v = buffer<float>(plain ? kN : 0);
  const int64_t bytes = four ? quant::int4_bytes(kN) : kN, blocks = kN / state_block(states);
  const auto mc = buffer<uint8_t>(plain ? 0 : bytes, four ? 0x77 : 127);
  const auto vc = buffer<uint8_t>(plain ? 0 : bytes);
  const auto ma = buffer<float>(blocks), va = buffer<float>(blocks);
  return [=] {
    StepTensor a;
    a.n = kN;
    a.weight_store = bf16 ? WeightStore::bf16_stochastic : WeightStore::f32;
    a.p = bf16 ? static_cast<void*>(p16->data()) : p->data();
    a.g_dtype = bf16 ? Dtype::bf16 : Dtype::f32;
    a.g = bf16 ? static_cast<void*>(g16->data()) : g->data();
    a.states = states;
    a.m = m->data(), a.v = v->data(), a.m_codes = mc->data(), a.v_codes = vc->data();
    a.m_absmax = ma->data(), a.v_absmax = va->data();
    fused_step({a}, rule, 1, 2);
  };
}

StepRule adam() { return make_adam_rule(1e-3, 31.6, 1e-8, 0.9, 0.999, 0.9999, 1.0); }

const Registered kF32("step.adamw_f32", [] { return fused(adam(), StateKind::f32, false); });
const Registered k8("step.adamw_8bit", [] { return fused(adam(), StateKind::dynamic8, false); });
const Registered k4("step.adamw_4bit", [] { return fused(adam(), StateKind::dynamic4, false); });
const Registered k16("step.adamw_8bit_bf16_sr",
                     [] { return fused(adam(), StateKind::dynamic8, true); });
const Registered kLion("step.lion_8bit", [] {
  return fused(make_lion_rule(1e-4, 0.9, 0.99, 0.9999, 1.0), StateKind::dynamic8, false);
});
const Registered kSgd("step.sgd_8bit", [] {
  return fused(make_sgd_rule(1e-3, 0.9, 1.0, false, 0.9999, 1.0), StateKind::dynamic8, false);
});

const Registered kApply("step.apply_update_bf16_sr", [] {
  const auto p = buffer<uint16_t>(kN, 0x3f00);
  const auto u = values(kN);
  return [=] {
    UpdateTensor t;
    t.n = kN, t.weight_store = WeightStore::bf16_stochastic, t.p = p->data(), t.u = u->data();
    apply_update({t}, make_update_rule(-1e-3, 0.9999, 1.0), 1, 2);
  };
});

const Registered kCombine("step.combine_scaled_and_update", [] {
  const auto p = buffer<float>(kN, 0.25f);
  const auto g = values(kN), k = values(256), u = values(kN, 0.5f);
  return [=] {
    CombineMatrix m;
    m.rows = kN / 256, m.cols = 256, m.along = Along::columns;
    m.p = p->data(), m.g = g->data(), m.k = k->data(), m.u = u->data();
    combine(m, make_update_rule(-1e-3, 0.9999, 1.0), 1, 2);
  };
});

}  // namespace
}  // namespace lowtide::counted
