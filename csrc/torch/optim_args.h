// SPDX-License-Identifier: Apache-2.0
// Lists of weights, gradients and moments as the optimizer ops take them. Everything is checked
// before anything is changed.
#pragma once
#include <algorithm>
#include <vector>

#include "optim/apply_update.h"
#include "optim/fused_step.h"
#include "quant/group_format.h"
#include "torch/float_type.h"

namespace lowtide::torch_ops {

using optim::StateKind;
using optim::StepTarget;
using optim::StepTensor;
using optim::WeightStore;
using List = std::vector<Tensor>;

inline void same_length(const List& a, const List& b, const char* name) {
  STD_TORCH_CHECK(a.size() == b.size(), "lowtide: ", name, " must list ", a.size(),
                  " tensors, got ", b.size());
}

inline void same_numel(const Tensor& t, int64_t n, const char* name) {
  STD_TORCH_CHECK(t.numel() == n, "lowtide: ", name, " must have ", n, " elements, got ",
                  t.numel());
}

inline WeightStore weight_store(const Tensor& p, bool stochastic) {
  if (f32_or_bf16(p, "ps") == Dtype::f32) return WeightStore::f32;
  return stochastic ? WeightStore::bf16_stochastic : WeightStore::bf16_nearest;
}

// Where each tensor begins in the whole one that it is a shard of; an empty list means 0.
inline int64_t offset_of(const std::vector<int64_t>& offsets, size_t i) {
  return offsets.empty() ? 0 : offsets[i];
}

inline void check_addresses(size_t count, const std::vector<int64_t>& params,
                            const std::vector<int64_t>& offsets) {
  STD_TORCH_CHECK(params.size() == count, "lowtide: params must list ", count, " ids, got ",
                  params.size());
  STD_TORCH_CHECK(offsets.empty() || offsets.size() == count, "lowtide: offsets must list ", count,
                  " elements, got ", offsets.size());
}

// Two blocks of one tensor may run at the same time: the same storage twice would race.
inline void no_repeats(const List& tensors, const char* name) {
  std::vector<const void*> at;
  at.reserve(tensors.size());
  for (const auto& t : tensors)
    if (t.numel() > 0) at.push_back(t.const_data_ptr());
  std::sort(at.begin(), at.end());
  STD_TORCH_CHECK(std::adjacent_find(at.begin(), at.end()) == at.end(), "lowtide: ", name,
                  " lists the same tensor twice");
}

inline void set_weights(std::vector<StepTensor>& list, const List& ps, const List& gs,
                        bool stochastic, const std::vector<int64_t>& params,
                        const std::vector<int64_t>& offsets) {
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
    t.p = data(ps[i]);
    t.g_dtype = f32_or_bf16(gs[i], "gs");
    t.g = const_cast<void*>(const_data(gs[i]));
  }
}

inline void set_directions(std::vector<StepTensor>& list, const List& rs) {
  no_repeats(rs, "rs");
  list.resize(rs.size());
  for (size_t i = 0; i < rs.size(); ++i) {
    list[i].n = rs[i].numel();
    list[i].target = StepTarget::direction;
    list[i].g = f32(rs[i], "rs");
  }
}

inline StateKind state_kind(int64_t bits) {
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

inline std::vector<StepTensor> weights_and_states(const List& ps, const List& gs,
                                                  const States& states, const optim::StepRule& rule,
                                                  bool stochastic,
                                                  const std::vector<int64_t>& params,
                                                  const std::vector<int64_t>& offsets) {
  std::vector<StepTensor> list;
  set_weights(list, ps, gs, stochastic, params, offsets);
  states.set(list, rule);
  return list;
}

inline std::vector<StepTensor> directions_and_states(const List& rs, const States& states,
                                                     const optim::StepRule& rule) {
  std::vector<StepTensor> list;
  set_directions(list, rs);
  states.set(list, rule);
  return list;
}

inline std::vector<optim::UpdateTensor> updates(const List& ps, const List& us, bool stochastic,
                                                const std::vector<int64_t>& params,
                                                const std::vector<int64_t>& offsets) {
  same_length(ps, us, "us");
  check_addresses(ps.size(), params, offsets);
  no_repeats(ps, "ps");
  std::vector<optim::UpdateTensor> list(ps.size());
  for (size_t i = 0; i < ps.size(); ++i) {
    same_numel(us[i], ps[i].numel(), "us");
    list[i].n = ps[i].numel();
    list[i].param = u32(params[i]);
    list[i].offset = offset_of(offsets, i);
    list[i].weight_store = weight_store(ps[i], stochastic);
    list[i].p = data(ps[i]);
    list[i].u = const_f32(us[i], "us");
  }
  return list;
}

}  // namespace lowtide::torch_ops
