// SPDX-License-Identifier: Apache-2.0
// List forms only: a step over a model is one call. Everything is checked before anything is
// changed.
#include <algorithm>

#include "optim/apply_update.h"
#include "optim/fused_step.h"
#include "quant/group_format.h"
#include "torch/common.h"

namespace lowtide::torch_ops {
namespace {

using optim::StateKind;
using optim::StepTarget;
using optim::StepTensor;
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

// Where each tensor begins in the whole one that it is a shard of; an empty list means 0.
int64_t offset_of(const std::vector<int64_t>& offsets, size_t i) {
  return offsets.empty() ? 0 : offsets[i];
}

void check_addresses(size_t count, const std::vector<int64_t>& params,
                     const std::vector<int64_t>& offsets) {
  STD_TORCH_CHECK(params.size() == count, "lowtide: params must list ", count, " ids, got ",
                  params.size());
  STD_TORCH_CHECK(offsets.empty() || offsets.size() == count, "lowtide: offsets must list ", count,
                  " elements, got ", offsets.size());
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

void set_weights(std::vector<StepTensor>& list, const List& ps, const List& gs, bool stochastic,
                 const std::vector<int64_t>& params, const std::vector<int64_t>& offsets) {
  same_length(ps, gs, "gs");
  check_addresses(ps.size(), params, offsets);
  no_repeats(ps, "ps");
  list.resize(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    StepTensor& t = list[i];
    t.n = ps[i].numel();
    same_numel(gs[i], t.n, "gs");
    t.param = static_cast<uint32_t>(params[i]);
    t.offset = offset_of(offsets, i);
    t.weight_store = weight_store(ps[i], stochastic);
    t.p = ps[i].mutable_data_ptr();
    t.g_dtype = f32_or_bf16(gs[i], "gs");
    t.g = const_cast<void*>(gs[i].const_data_ptr());
  }
}

void set_directions(std::vector<StepTensor>& list, const List& rs) {
  no_repeats(rs, "rs");
  list.resize(rs.size());
  for (size_t i = 0; i < rs.size(); ++i) {
    list[i].n = rs[i].numel();
    list[i].target = StepTarget::direction;
    list[i].g = f32(rs[i], "rs");
  }
}

StateKind state_kind(int64_t bits) {
  STD_TORCH_CHECK(bits == 32 || bits == 8 || bits == 4, "lowtide: bits must be 32, 8 or 4, got ",
                  bits);
  return bits == 32 ? StateKind::f32 : bits == 8 ? StateKind::dynamic8 : StateKind::dynamic4;
}

// The moments of a whole list: float32 tensors, or codes and absmax; lists of moments that the rule
// does not have are empty.
struct States {
  const List &ms, &vs, &ws, &m_absmax, &v_absmax, &w_absmax;
  int64_t bits;

  void set(std::vector<StepTensor>& list, const optim::StepRule& rule) const {
    const StateKind kind = state_kind(bits);
    const size_t n = list.size();
    const int moments = optim::moment_count(rule.kind);
    const size_t first = moments > 0 ? n : 0, second = moments > 1 ? n : 0;
    const size_t third = moments > 2 ? n : 0, coded = kind != StateKind::f32;
    length(ms, first, "ms"), length(vs, second, "vs"), length(ws, third, "ws");
    length(m_absmax, coded * first, "m_absmax"), length(v_absmax, coded * second, "v_absmax");
    length(w_absmax, coded * third, "w_absmax");
    no_repeats(ms, "ms"), no_repeats(vs, "vs"), no_repeats(ws, "ws");
    no_repeats(m_absmax, "m_absmax"), no_repeats(v_absmax, "v_absmax");
    no_repeats(w_absmax, "w_absmax");
    for (size_t i = 0; i < n; ++i) {
      StepTensor& t = list[i];
      t.states = kind;
      if (first != 0) one(ms, m_absmax, i, t.n, t.m, t.m_codes, t.m_absmax, "ms", "m_absmax");
      if (second != 0) one(vs, v_absmax, i, t.n, t.v, t.v_codes, t.v_absmax, "vs", "v_absmax");
      if (third != 0) one(ws, w_absmax, i, t.n, t.w, t.w_codes, t.w_absmax, "ws", "w_absmax");
    }
  }

 private:
  static void length(const List& l, size_t n, const char* name) {
    STD_TORCH_CHECK(l.size() == n, "lowtide: ", name, " must list ", n, " tensors, got ", l.size());
  }
  void one(const List& moments, const List& absmax, size_t i, int64_t n, float*& plain,
           uint8_t*& codes, float*& scale, const char* name, const char* scale_name) const {
    if (bits == 32) {
      same_numel(moments[i], n, name);
      plain = f32(moments[i], name);
      return;
    }
    const int64_t block = optim::state_block(state_kind(bits));
    same_numel(moments[i], bits == 8 ? n : quant::int4_bytes(n), name);
    same_numel(absmax[i], (n + block - 1) / block, scale_name);
    codes = u8(moments[i], name);
    scale = f32(absmax[i], scale_name);
  }
};

Tensor run(const List& like, const std::vector<StepTensor>& list, const optim::StepRule& rule,
           int64_t seed, int64_t step) {
  STD_TORCH_CHECK(!like.empty(), "lowtide: the list of tensors is empty");
  Tensor skipped = torch::stable::new_empty(like[0], {}, ScalarType::Long);
  *static_cast<int64_t*>(skipped.mutable_data_ptr()) =
      optim::fused_step(list, rule, static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
  return skipped;
}

Tensor fused_step(const List& ps, const List& gs, const List& ms, const List& vs, const List& ws,
                  const List& m_absmax, const List& v_absmax, const List& w_absmax, int64_t rule,
                  int64_t bits, const std::vector<double>& scalars, bool stochastic, int64_t seed,
                  int64_t step, const std::vector<int64_t>& params,
                  const std::vector<int64_t>& offsets) {
  const auto made = optim::make_rule(rule, scalars);
  std::vector<StepTensor> list;
  set_weights(list, ps, gs, stochastic, params, offsets);
  States{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits}.set(list, made);
  return run(ps, list, made, seed, step);
}

Tensor fused_direction(const List& rs, const List& ms, const List& vs, const List& ws,
                       const List& m_absmax, const List& v_absmax, const List& w_absmax,
                       int64_t rule, int64_t bits, const std::vector<double>& scalars) {
  const auto made = optim::make_rule(rule, scalars);
  std::vector<StepTensor> list;
  set_directions(list, rs);
  States{ms, vs, ws, m_absmax, v_absmax, w_absmax, bits}.set(list, made);
  return run(rs, list, made, 0, 0);
}

void apply_update(const List& ps, const List& us, double alpha, double decay_before,
                  double decay_after, bool stochastic, int64_t seed, int64_t step,
                  const std::vector<int64_t>& params, const std::vector<int64_t>& offsets) {
  const auto rule = optim::make_update_rule(alpha, decay_before, decay_after);
  same_length(ps, us, "us");
  check_addresses(ps.size(), params, offsets);
  no_repeats(ps, "ps");
  std::vector<optim::UpdateTensor> list(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    same_numel(us[i], ps[i].numel(), "us");
    list[i].n = ps[i].numel();
    list[i].param = static_cast<uint32_t>(params[i]);
    list[i].offset = offset_of(offsets, i);
    list[i].weight_store = weight_store(ps[i], stochastic);
    list[i].p = ps[i].mutable_data_ptr();
    list[i].u = const_f32(us[i], "us");
  }
  optim::apply_update(list, rule, static_cast<uint64_t>(seed), static_cast<uint64_t>(step));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lowtide, m) {
  // rule: optim::RuleKind; scalars: the arguments of its make_*_rule; bits of a moment: 32, 8 or 4.
  m.def(
      "fused_step_(Tensor(a!)[] ps, Tensor[] gs, Tensor(b!)[] ms, Tensor(c!)[] vs, Tensor(f!)[] "
      "ws, Tensor(d!)[] "
      "m_absmax, Tensor(e!)[] v_absmax, Tensor(g!)[] w_absmax, int rule, int bits, float[] "
      "scalars, bool stochastic, int "
      "seed, int step, int[] params, int[] offsets=[]) -> Tensor");
  m.def(
      "fused_direction_(Tensor(a!)[] rs, Tensor(b!)[] ms, Tensor(c!)[] vs, Tensor(f!)[] ws, "
      "Tensor(d!)[] m_absmax, "
      "Tensor(e!)[] v_absmax, Tensor(g!)[] w_absmax, int rule, int bits, float[] scalars) -> "
      "Tensor");
  m.def(
      "apply_update_(Tensor(a!)[] ps, Tensor[] us, float alpha, float decay_before, float "
      "decay_after, bool stochastic, int seed, int step, int[] params, int[] offsets=[]) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lowtide, CPU, m) {
  m.impl("fused_step_", LT_BOX(&fused_step));
  m.impl("fused_direction_", LT_BOX(&fused_direction));
  m.impl("apply_update_", LT_BOX(&apply_update));
}

}  // namespace lowtide::torch_ops
