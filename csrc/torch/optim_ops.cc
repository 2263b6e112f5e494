// SPDX-License-Identifier: Apache-2.0
// List forms only: a step over a model is one call. Everything is checked before anything is
// changed.
#include <algorithm>

#include "optim/adamw.h"
#include "optim/apply_update.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

using optim::AdamTarget;
using optim::AdamTensor;
using optim::WeightStore;
using List = std::vector<Tensor>;

void same_length(const List& a, const List& b, const char* name) {
  STD_TORCH_CHECK(a.size() == b.size(), "lowtide: ", name, " must list ", a.size(),
                  " tensors, got ", b.size());
}

void same_numel(const Tensor& t, int64_t n, const char* name) {
  STD_TORCH_CHECK(t.numel() == n, "lowtide: ", name, " must have ", n, " elements, got ",
                  t.numel());
}

Dtype f32_or_bf16(const Tensor& t, const char* name) {
  const bool ok = t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(ok && t.is_cpu() && t.is_contiguous(), "lowtide: ", name,
                  " must be a contiguous float32 or bfloat16 CPU tensor");
  return t.scalar_type() == ScalarType::Float ? Dtype::f32 : Dtype::bf16;
}

WeightStore weight_store(const Tensor& p, bool stochastic) {
  if (f32_or_bf16(p, "ps") == Dtype::f32) return WeightStore::f32;
  return stochastic ? WeightStore::bf16_stochastic : WeightStore::bf16_nearest;
}

// Two blocks of one tensor may run at the same time: the same storage twice would race.
void no_repeats(const List& tensors, const char* name) {
  std::vector<const void*> at;
  at.reserve(tensors.size());
  for (const auto& t : tensors)
    if (t.numel() > 0) at.push_back(t.const_data_ptr());
  std::sort(at.begin(), at.end());
  STD_TORCH_CHECK(std::adjacent_find(at.begin(), at.end()) == at.end(), "lowtide: ", name,
                  " lists the same tensor twice");
}

void set_weights(std::vector<AdamTensor>& list, const List& ps, const List& gs, bool stochastic,
                 const std::vector<int64_t>& params) {
  same_length(ps, gs, "gs");
  STD_TORCH_CHECK(ps.size() == params.size(), "lowtide: params must list ", ps.size(), " ids, got ",
                  params.size());
  no_repeats(ps, "ps");
  list.resize(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    AdamTensor& t = list[i];
    t.n = ps[i].numel();
    same_numel(gs[i], t.n, "gs");
    t.param = static_cast<uint32_t>(params[i]);
    t.weight_store = weight_store(ps[i], stochastic);
    t.p = ps[i].mutable_data_ptr();
    t.g_dtype = f32_or_bf16(gs[i], "gs");
    t.g = const_cast<void*>(gs[i].const_data_ptr());
  }
}

void set_directions(std::vector<AdamTensor>& list, const List& rs) {
  no_repeats(rs, "rs");
  list.resize(rs.size());
  for (size_t i = 0; i < rs.size(); ++i) {
    list[i].n = rs[i].numel();
    list[i].target = AdamTarget::direction;
    list[i].g = f32(rs[i], "rs");
  }
}

void set_f32_states(std::vector<AdamTensor>& list, const List& ms, const List& vs) {
  STD_TORCH_CHECK(ms.size() == list.size() && vs.size() == list.size(),
                  "lowtide: ms and vs must list ", list.size(), " tensors each");
  no_repeats(ms, "ms");
  no_repeats(vs, "vs");
  for (size_t i = 0; i < list.size(); ++i) {
    same_numel(ms[i], list[i].n, "ms");
    same_numel(vs[i], list[i].n, "vs");
    list[i].m = f32(ms[i], "ms");
    list[i].v = f32(vs[i], "vs");
  }
}

void set_dynamic_states(std::vector<AdamTensor>& list, const List& m_codes, const List& m_absmax,
                        const List& v_codes, const List& v_absmax) {
  for (const List* l : {&m_codes, &m_absmax, &v_codes, &v_absmax})
    STD_TORCH_CHECK(l->size() == list.size(),
                    "lowtide: m_codes, m_absmax, v_codes and v_absmax must list ", list.size(),
                    " tensors each");
  no_repeats(m_codes, "m_codes");
  no_repeats(v_codes, "v_codes");
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t n = list[i].n, blocks = (n + optim::kAdamBlock - 1) / optim::kAdamBlock;
    same_numel(m_codes[i], n, "m_codes");
    same_numel(v_codes[i], n, "v_codes");
    same_numel(m_absmax[i], blocks, "m_absmax");
    same_numel(v_absmax[i], blocks, "v_absmax");
    list[i].m_codes = u8(m_codes[i], "m_codes");
    list[i].v_codes = u8(v_codes[i], "v_codes");
    list[i].m_absmax = f32(m_absmax[i], "m_absmax");
    list[i].v_absmax = f32(v_absmax[i], "v_absmax");
  }
}

Tensor run(const List& like, const std::vector<AdamTensor>& list, const optim::AdamRule& rule,
           int64_t seed, int64_t step) {
  STD_TORCH_CHECK(!like.empty(), "lowtide: the list of tensors is empty");
  Tensor skipped = torch::stable::new_empty(like[0], {}, ScalarType::Long);
  *static_cast<int64_t*>(skipped.mutable_data_ptr()) =
      optim::adamw(list, rule, static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
  return skipped;
}

Tensor adamw(const List& ps, const List& gs, const List& ms, const List& vs, double a, double s,
             double eps, double beta1, double beta2, double decay_before, double decay_after,
             bool stochastic, int64_t seed, int64_t step, const std::vector<int64_t>& params) {
  const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, decay_before, decay_after);
  std::vector<AdamTensor> list;
  set_weights(list, ps, gs, stochastic, params);
  set_f32_states(list, ms, vs);
  return run(ps, list, rule, seed, step);
}

Tensor adamw8(const List& ps, const List& gs, const List& m_codes, const List& m_absmax,
              const List& v_codes, const List& v_absmax, double a, double s, double eps,
              double beta1, double beta2, double decay_before, double decay_after, bool stochastic,
              int64_t seed, int64_t step, const std::vector<int64_t>& params) {
  const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, decay_before, decay_after);
  std::vector<AdamTensor> list;
  set_weights(list, ps, gs, stochastic, params);
  set_dynamic_states(list, m_codes, m_absmax, v_codes, v_absmax);
  return run(ps, list, rule, seed, step);
}

Tensor adam_direction(const List& rs, const List& ms, const List& vs, double a, double s,
                      double eps, double beta1, double beta2) {
  const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, 1.0, 1.0);
  std::vector<AdamTensor> list;
  set_directions(list, rs);
  set_f32_states(list, ms, vs);
  return run(rs, list, rule, 0, 0);
}

Tensor adam8_direction(const List& rs, const List& m_codes, const List& m_absmax,
                       const List& v_codes, const List& v_absmax, double a, double s, double eps,
                       double beta1, double beta2) {
  const auto rule = optim::make_adam_rule(a, s, eps, beta1, beta2, 1.0, 1.0);
  std::vector<AdamTensor> list;
  set_directions(list, rs);
  set_dynamic_states(list, m_codes, m_absmax, v_codes, v_absmax);
  return run(rs, list, rule, 0, 0);
}

void apply_update(const List& ps, const List& us, double alpha, double decay_before,
                  double decay_after, bool stochastic, int64_t seed, int64_t step,
                  const std::vector<int64_t>& params) {
  const auto rule = optim::make_update_rule(alpha, decay_before, decay_after);
  same_length(ps, us, "us");
  STD_TORCH_CHECK(ps.size() == params.size(), "lowtide: params must list ", ps.size(), " ids, got ",
                  params.size());
  no_repeats(ps, "ps");
  std::vector<optim::UpdateTensor> list(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    same_numel(us[i], ps[i].numel(), "us");
    list[i].n = ps[i].numel();
    list[i].param = static_cast<uint32_t>(params[i]);
    list[i].weight_store = weight_store(ps[i], stochastic);
    list[i].p = ps[i].mutable_data_ptr();
    list[i].u = const_f32(us[i], "us");
  }
  optim::apply_update(list, rule, static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  m.def(
      "adamw_(Tensor(a!)[] ps, Tensor[] gs, Tensor(b!)[] ms, Tensor(c!)[] vs, float a, float s, "
      "float eps, float beta1, float beta2, float decay_before, float decay_after, bool "
      "stochastic, int seed, int step, int[] params) -> Tensor");
  m.def(
      "adamw8_(Tensor(a!)[] ps, Tensor[] gs, Tensor(b!)[] m_codes, Tensor(c!)[] m_absmax, "
      "Tensor(d!)[] v_codes, Tensor(e!)[] v_absmax, float a, float s, float eps, float beta1, "
      "float beta2, float decay_before, float decay_after, bool stochastic, int seed, int step, "
      "int[] params) -> Tensor");
  m.def(
      "adam_direction_(Tensor(a!)[] rs, Tensor(b!)[] ms, Tensor(c!)[] vs, float a, float s, float "
      "eps, float beta1, float beta2) -> Tensor");
  m.def(
      "adam8_direction_(Tensor(a!)[] rs, Tensor(b!)[] m_codes, Tensor(c!)[] m_absmax, Tensor(d!)[] "
      "v_codes, Tensor(e!)[] v_absmax, float a, float s, float eps, float beta1, float beta2) -> "
      "Tensor");
  m.def(
      "apply_update_(Tensor(a!)[] ps, Tensor[] us, float alpha, float decay_before, float "
      "decay_after, bool stochastic, int seed, int step, int[] params) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("adamw_", LT_BOX(&adamw));
  m.impl("adamw8_", LT_BOX(&adamw8));
  m.impl("adam_direction_", LT_BOX(&adam_direction));
  m.impl("adam8_direction_", LT_BOX(&adam8_direction));
  m.impl("apply_update_", LT_BOX(&apply_update));
}

}  // namespace lowtide::torch_ops
