// SPDX-License-Identifier: Apache-2.0
// The same bits as adamw_ref.cc, kLanes elements at a time. Each block of 256 is read from memory
// once: the first pass leaves the new moments in 2 KiB of L1 and their largest bits in a register,
// the second rounds them into the states and moves the weight.
#include "optim/adamw_table.h"
#include "optim/weight_store_simd.h"
#include "quant/dynamic_map_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

using random::Key;

constexpr int kBlock = static_cast<int>(kAdamBlock);
static_assert(kBlock == quant::kDynamicBlock && kBlock == kWeightBlock);
constexpr int32_t kInfinity = 0x7f800000;

struct F32Gradient {
  typedef float Element;
  static inline __attribute__((always_inline)) vf32 load(const float* g, int i) {
    return lowtide::load<vf32>(g + i);
  }
};

struct Bf16Gradient {
  typedef uint16_t Element;
  static inline __attribute__((always_inline)) vf32 load(const uint16_t* g, int i) {
    return bf16_to_float(lowtide::load<vu16>(g + i));
  }
};

// The states of one block: pointers, how to read them and how to put them back.
struct F32States {
  typedef float Element;
  float *m, *v;

  static inline __attribute__((always_inline)) F32States at(const AdamTensor& t, int64_t block) {
    return {t.m + block * kBlock, t.v + block * kBlock};
  }
  inline __attribute__((always_inline)) void load(int i, vf32& new_m, vf32& new_v) const {
    new_m = lowtide::load<vf32>(m + i);
    new_v = lowtide::load<vf32>(v + i);
  }
  inline __attribute__((always_inline)) void begin_store(float, float) {}
  inline __attribute__((always_inline)) void store(int i, vf32 new_m, vf32 new_v) const {
    lowtide::store(m + i, new_m);
    lowtide::store(v + i, new_v);
  }
};

struct DynamicStates {
  typedef uint8_t Element;
  uint8_t *m, *v;
  float *m_absmax, *v_absmax;
  float m_inverse, v_inverse;

  static inline __attribute__((always_inline)) DynamicStates at(const AdamTensor& t,
                                                                int64_t block) {
    return {t.m_codes + block * kBlock,
            t.v_codes + block * kBlock,
            t.m_absmax + block,
            t.v_absmax + block,
            0.0f,
            0.0f};
  }
  inline __attribute__((always_inline)) void load(int i, vf32& new_m, vf32& new_v) const {
    new_m = quant::dynamic_decode_row<true>(m + i, *m_absmax);
    new_v = quant::dynamic_decode_row<false>(v + i, *v_absmax);
  }
  inline __attribute__((always_inline)) void begin_store(float largest_m, float largest_v) {
    *m_absmax = quant::dynamic_absmax(largest_m);
    *v_absmax = quant::dynamic_absmax(largest_v);
    m_inverse = quant::dynamic_inverse(*m_absmax);
    v_inverse = quant::dynamic_inverse(*v_absmax);
  }
  inline __attribute__((always_inline)) void store(int i, vf32 new_m, vf32 new_v) const {
    quant::dynamic_encode_row<true>(m + i, new_m, m_inverse);
    quant::dynamic_encode_positive_row(v + i, new_v, v_inverse);
  }
};

// The new moments of one block, and whether all are finite.
struct Moments {
  alignas(64) float m[kBlock], v[kBlock];
  float largest_m, largest_v;

  template <class Gradient, class States>
  inline __attribute__((always_inline)) bool compute(const typename Gradient::Element* g,
                                                     const States& states, const AdamRule& rule) {
    vi32 top_m = {}, top_v = {};
    for (int i = 0; i < kBlock; i += kLanes) {
      const vf32 grad = Gradient::load(g, i);
      vf32 new_m, new_v;
      states.load(i, new_m, new_v);
      new_m = rule.beta1 * new_m + rule.one_minus_beta1 * grad;
      new_v = rule.beta2 * new_v + rule.one_minus_beta2 * grad * grad;
      top_m = max_i(top_m, as_i(as_u(new_m) & 0x7fffffffu));
      top_v = max_i(top_v, as_i(as_u(new_v) & 0x7fffffffu));
      store(m + i, new_m);
      store(v + i, new_v);
    }
    if (any(max_i(top_m, top_v) >= kInfinity)) return false;
    largest_m = quant::largest_lane(top_m);
    largest_v = quant::largest_lane(top_v);
    return true;
  }
};

LT_SIMD vf32 direction(const AdamRule& rule, vf32 m, vf32 v) {
  const vf32 scale = sqrt_rn(v) * rule.s + rule.eps;
  return scale > 0.0f ? rule.a * m / scale : vf32{};
}

template <class Store, class Gradient, class States>
LT_SIMD bool weight_block(typename Store::Element* p, const typename Gradient::Element* g,
                          States states, const AdamRule& rule, const Store& target) {
  Moments mom;
  if (!mom.template compute<Gradient>(g, states, rule)) return false;
  states.begin_store(mom.largest_m, mom.largest_v);
  for (int i = 0; i < kBlock; i += kLanes) {
    const vf32 m = load<vf32>(mom.m + i), v = load<vf32>(mom.v + i);
    states.store(i, m, v);
    const vf32 weight = Store::load(p, i) * rule.decay_before - direction(rule, m, v);
    target.store(p, i, weight * rule.decay_after);
  }
  return true;
}

template <class States>
LT_SIMD bool direction_block(float* g, States states, const AdamRule& rule) {
  Moments mom;
  if (!mom.template compute<F32Gradient>(g, states, rule)) {
    for (int i = 0; i < kBlock; i += kLanes) store(g + i, vf32{});
    return false;
  }
  states.begin_store(mom.largest_m, mom.largest_v);
  for (int i = 0; i < kBlock; i += kLanes) {
    const vf32 m = load<vf32>(mom.m + i), v = load<vf32>(mom.v + i);
    states.store(i, m, v);
    store(g + i, direction(rule, m, v));
  }
  return true;
}

template <class T>
LT_SIMD void copy(T* to, const T* from, int64_t n) {
  __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
}

// A short last block runs in padded copies: padding has zero gradient and zero states.
struct F32Tail {
  float m[kBlock] = {}, v[kBlock] = {};
  F32States states;

  F32Tail(const F32States& s, int64_t n) : states{m, v} { copy(m, s.m, n), copy(v, s.v, n); }
  void finish(const F32States& s, int64_t n) const { copy(s.m, m, n), copy(s.v, v, n); }
};

struct DynamicTail {
  uint8_t m[kBlock], v[kBlock] = {};
  DynamicStates states;

  DynamicTail(const DynamicStates& s, int64_t n) : states(s) {
    for (int i = 0; i < kBlock; ++i) m[i] = quant::kDynamicZeroSigned;
    copy(m, s.m, n), copy(v, s.v, n);
    states.m = m, states.v = v;
  }
  void finish(const DynamicStates& s, int64_t n) const { copy(s.m, m, n), copy(s.v, v, n); }
};

template <class Store, class Gradient, class States, class Tail>
int64_t weights(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule, Key key) {
  auto* p = static_cast<typename Store::Element*>(t.p);
  const auto* g = static_cast<const typename Gradient::Element*>(t.g);
  int64_t skipped = 0;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * kBlock, n = t.n - at;
    const Store target(t.offset + at, key, t.param);
    const States states = States::at(t, b);
    if (n >= kBlock) {
      skipped += !weight_block<Store, Gradient>(p + at, g + at, states, rule, target);
    } else {
      typename Store::Element part_p[kBlock] = {};
      typename Gradient::Element part_g[kBlock] = {};
      copy(part_p, p + at, n), copy(part_g, g + at, n);
      const Tail tail(states, n);
      if (weight_block<Store, Gradient>(part_p, part_g, tail.states, rule, target)) {
        copy(p + at, part_p, n);
        tail.finish(states, n);
      } else {
        ++skipped;
      }
    }
  }
  return skipped;
}

template <class States, class Tail>
int64_t directions(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule) {
  auto* g = static_cast<float*>(t.g);
  int64_t skipped = 0;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * kBlock, n = t.n - at;
    const States states = States::at(t, b);
    if (n >= kBlock) {
      skipped += !direction_block(g + at, states, rule);
    } else {
      float part[kBlock] = {};
      copy(part, g + at, n);
      const Tail tail(states, n);
      if (direction_block(part, tail.states, rule))
        tail.finish(states, n);
      else
        ++skipped;
      copy(g + at, part, n);
    }
  }
  return skipped;
}

template <class States, class Tail, class Store>
int64_t any_gradient(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule,
                     Key key) {
  return t.g_dtype == Dtype::f32
             ? weights<Store, F32Gradient, States, Tail>(t, begin, end, rule, key)
             : weights<Store, Bf16Gradient, States, Tail>(t, begin, end, rule, key);
}

template <class States, class Tail>
int64_t any_store(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule, Key key) {
  if (t.target == AdamTarget::direction) return directions<States, Tail>(t, begin, end, rule);
  switch (t.weight_store) {
    case WeightStore::f32:
      return any_gradient<States, Tail, F32Store>(t, begin, end, rule, key);
    case WeightStore::bf16_nearest:
      return any_gradient<States, Tail, Bf16NearestStore>(t, begin, end, rule, key);
    case WeightStore::bf16_stochastic:
      return any_gradient<States, Tail, Bf16StochasticStore>(t, begin, end, rule, key);
  }
  return 0;
}

int64_t blocks(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule, Key key) {
  return t.m_codes != nullptr ? any_store<DynamicStates, DynamicTail>(t, begin, end, rule, key)
                              : any_store<F32States, F32Tail>(t, begin, end, rule, key);
}

}  // namespace

extern const AdamTable LT_CAT(adamw_, LT_ISA);
const AdamTable LT_CAT(adamw_, LT_ISA) = {blocks};

}  // namespace lowtide::optim
