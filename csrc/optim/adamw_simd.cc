// SPDX-License-Identifier: Apache-2.0
// The same bits as adamw_ref.cc, kLanes elements at a time. Each block of 256 is read from memory
// once: the first pass leaves the new moments in L1 and their largest bits in registers, the second
// rounds them into the states and moves the weight.
//
// Limits: float32 states are bound by memory. 8-bit states move 57 % of the bytes but are bound by
// arithmetic on AVX-512: 72 instructions for 16 parameters (decode 19, encode 30, Adam 23 with the
// root and the quotient) on two 512-bit ports take 43 cycles, where memory would need 35.
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
constexpr uint32_t kInfinity = 0x7f800000u;

// The hardware prefetcher loses four interleaved streams at this rate: with lines asked for two
// blocks ahead a step over memory-sized tensors takes 0.85 instead of 1.14 ns a parameter (8-bit
// states), and 1.02 instead of 1.17 (float32).
constexpr int kAhead = 2 * kBlock;
constexpr int kRow = 16;

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

// The states of one block: pointers, how to read them and how to put them back. Rounding to codes
// takes kStep elements at a time.
constexpr int kStep = quant::kDynamicStep;

struct F32States {
  float *m, *v;

  inline __attribute__((always_inline)) void prefetch_row(int i) const {
    prefetch(m + i, kAhead * 4);
    prefetch(v + i, kAhead * 4);
  }
  static inline __attribute__((always_inline)) F32States at(const AdamTensor& t, int64_t block) {
    return {t.m + block * kBlock, t.v + block * kBlock};
  }
  struct Reader {
    const F32States& s;
    inline __attribute__((always_inline)) explicit Reader(const F32States& states) : s(states) {}
    inline __attribute__((always_inline)) vf32 m(int i) const { return load<vf32>(s.m + i); }
    inline __attribute__((always_inline)) vf32 v(int i) const { return load<vf32>(s.v + i); }
  };
  struct Writer {
    const F32States& s;
    inline __attribute__((always_inline)) Writer(const F32States& states, float, float)
        : s(states) {}
    inline __attribute__((always_inline)) void store_step(int at, const float* m,
                                                          const float* v) const {
#pragma GCC unroll 4
      for (int i = at; i < at + kStep; i += kLanes) {
        store(s.m + i, load<vf32>(m + i));
        store(s.v + i, load<vf32>(v + i));
      }
    }
  };
};

struct DynamicStates {
  uint8_t *m, *v;
  float *m_absmax, *v_absmax;

  inline __attribute__((always_inline)) void prefetch_row(int i) const {
    if (i % 64 == 0) {
      prefetch(m + i, kAhead);
      prefetch(v + i, kAhead);
    }
  }
  static inline __attribute__((always_inline)) DynamicStates at(const AdamTensor& t,
                                                                int64_t block) {
    return {t.m_codes + block * kBlock, t.v_codes + block * kBlock, t.m_absmax + block,
            t.v_absmax + block};
  }
  struct Reader {
    const DynamicStates& s;
    quant::DynamicDecoder<true> decode_m;
    quant::DynamicDecoder<false> decode_v;
    inline __attribute__((always_inline)) explicit Reader(const DynamicStates& states)
        : s(states), decode_m(*states.m_absmax), decode_v(*states.v_absmax) {}
    inline __attribute__((always_inline)) vf32 m(int i) const { return decode_m(s.m + i); }
    inline __attribute__((always_inline)) vf32 v(int i) const { return decode_v(s.v + i); }
  };
  struct Writer {
    const DynamicStates& s;
    float m_inverse, v_inverse;
    inline __attribute__((always_inline))
    Writer(const DynamicStates& states, float largest_m, float largest_v)
        : s(states) {
      *s.m_absmax = quant::dynamic_absmax(largest_m);
      *s.v_absmax = quant::dynamic_absmax(largest_v);
      m_inverse = quant::dynamic_inverse(*s.m_absmax);
      v_inverse = quant::dynamic_inverse(*s.v_absmax);
    }
    inline __attribute__((always_inline)) void store_step(int at, const float* m,
                                                          const float* v) const {
      quant::dynamic_encode_step<true>(
          s.m + at,
          m_inverse, [=](int i) __attribute__((always_inline)) { return load<vf32>(m + at + i); });
      quant::dynamic_encode_positive_step(
          s.v + at,
          v_inverse, [=](int i) __attribute__((always_inline)) { return load<vf32>(v + at + i); });
    }
  };
};

// What the first pass over a block leaves behind. It already takes the square root and the second
// pass the quotient, so that the divider, which serves both, keeps up with each.
struct Moments {
  alignas(64) float m[kBlock], v[kBlock], scale[kBlock];
  float largest_m, largest_v;
  bool sound;  // adam_sound for all

  // `out` is what the second pass will need too.
  template <class Gradient, class Element, class States>
  inline __attribute__((always_inline)) void compute(const typename Gradient::Element* g,
                                                     const Element* out, const States& states,
                                                     const AdamRule& rule) {
    const typename States::Reader old(states);
    vu32 top_m = {}, top_v = {};
    for (int row = 0; row < kBlock; row += kRow) {
      prefetch(g + row, kAhead * sizeof *g);
      prefetch(out + row, kAhead * sizeof *out);
      states.prefetch_row(row);
#pragma GCC unroll 4
      for (int i = row; i < row + kRow; i += kLanes) {
        const vf32 grad = Gradient::load(g, i);
        const vf32 new_m = rule.beta1 * old.m(i) + rule.one_minus_beta1 * grad;
        const vf32 new_v = rule.beta2 * old.v(i) + rule.one_minus_beta2 * grad * grad;
        top_m = max_u(top_m, as_u(new_m) & 0x7fffffffu);
        top_v = max_u(top_v, as_u(new_v));  // a sign counts as larger than infinity
        store(m + i, new_m);
        store(v + i, new_v);
        store(scale + i, sqrt_rn(new_v) * rule.s + rule.eps);
      }
    }
    const uint32_t bits_m = largest_lane(top_m), bits_v = largest_lane(top_v);
    largest_m = bits_float(bits_m);
    largest_v = bits_float(bits_v);
    sound = bits_m < kInfinity && bits_v < kInfinity;
  }

  inline __attribute__((always_inline)) vf32 direction(int i, const AdamRule& rule) const {
    return rule.a * load<vf32>(m + i) / load<vf32>(scale + i);
  }
};

// Where a direction goes: into the weight ...
template <class Store>
struct WeightTarget {
  typedef typename Store::Element Element;

  static inline Element* data(const AdamTensor& t) { return static_cast<Element*>(t.p); }
  inline __attribute__((always_inline)) WeightTarget(int64_t first, Key key, uint32_t param)
      : store(first, key, param) {}
  inline __attribute__((always_inline)) void put(Element* p, int i, vf32 direction,
                                                 const AdamRule& rule) const {
    vf32 weight = Store::load(p, i) * rule.decay_before - direction;
    if (rule.decay_after != 1.0f) weight = weight * rule.decay_after;
    store.store(p, i, weight);
  }
  static inline void skip(Element*) {}

  Store store;
};

// ... or over the gradient.
struct DirectionTarget {
  typedef float Element;

  static inline float* data(const AdamTensor& t) { return static_cast<float*>(t.g); }
  inline __attribute__((always_inline)) DirectionTarget(int64_t, Key, uint32_t) {}
  inline __attribute__((always_inline)) void put(float* r, int i, vf32 direction,
                                                 const AdamRule&) const {
    lowtide::store(r + i, direction);
  }
  static inline void skip(float* r) {
    for (int i = 0; i < kBlock; i += kLanes) lowtide::store(r + i, vf32{});
  }
};

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

// One kind of tensor: where directions go, the gradient's type, the states.
template <class Target, class Gradient, class States, class Tail>
struct Kernel {
  typedef typename Target::Element Element;
  typedef typename Gradient::Element Grad;

  const AdamTensor t;  // copies: what is stored through pointers cannot change them
  const AdamRule rule;
  const Key key;

  // The second pass over block b: rounds the moments into the states and puts the direction.
  inline __attribute__((always_inline)) bool finish(int64_t b, const Moments& mom, Element* out,
                                                    const States& states) const {
    if (!mom.sound) {
      Target::skip(out);
      return false;
    }
    const Target target(t.offset + b * kBlock, key, t.param);
    const typename States::Writer writer(states, mom.largest_m, mom.largest_v);
    for (int at = 0; at < kBlock; at += kStep) {
      writer.store_step(at, mom.m, mom.v);
#pragma GCC unroll 4
      for (int i = at; i < at + kStep; i += kLanes)
        target.put(out, i, mom.direction(i, rule), rule);
    }
    return true;
  }

  bool finish_tail(int64_t b, int64_t n, Element* out, const Grad* g) const {
    Element part_out[kBlock] = {};
    Grad part_g[kBlock] = {};
    copy(part_out, out, n), copy(part_g, g, n);
    const States states = States::at(t, b);
    const Tail tail(states, n);
    Moments mom;
    mom.template compute<Gradient>(part_g, part_out, tail.states, rule);
    const bool done = finish(b, mom, part_out, tail.states);
    copy(out, part_out, n);
    if (done) tail.finish(states, n);
    return done;
  }

  // The first pass of a block runs before the second of the one before it, so that nothing waits
  // for the largest moments.
  int64_t run(int64_t begin, int64_t end) const {
    Element* out = Target::data(t);
    const auto* g = static_cast<const Grad*>(t.g);
    const int64_t whole = t.n / kBlock < end ? t.n / kBlock : end;
    int64_t skipped = 0;
    Moments mom[2];
    for (int64_t b = begin; b <= whole; ++b) {
      if (b < whole)
        mom[b & 1].template compute<Gradient>(g + b * kBlock, out + b * kBlock, States::at(t, b),
                                              rule);
      if (b > begin)
        skipped += !finish(b - 1, mom[(b - 1) & 1], out + (b - 1) * kBlock, States::at(t, b - 1));
    }
    if (whole < end)
      skipped +=
          !finish_tail(whole, t.n - whole * kBlock, out + whole * kBlock, g + whole * kBlock);
    return skipped;
  }
};

template <class Target, class Gradient>
int64_t any_states(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule, Key key) {
  if (t.m_codes != nullptr)
    return Kernel<Target, Gradient, DynamicStates, DynamicTail>{t, rule, key}.run(begin, end);
  return Kernel<Target, Gradient, F32States, F32Tail>{t, rule, key}.run(begin, end);
}

template <class Store>
int64_t any_gradient(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule,
                     Key key) {
  return t.g_dtype == Dtype::f32
             ? any_states<WeightTarget<Store>, F32Gradient>(t, begin, end, rule, key)
             : any_states<WeightTarget<Store>, Bf16Gradient>(t, begin, end, rule, key);
}

int64_t blocks(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule, Key key) {
  if (t.target == AdamTarget::direction)
    return any_states<DirectionTarget, F32Gradient>(t, begin, end, rule, key);
  switch (t.weight_store) {
    case WeightStore::f32:
      return any_gradient<F32Store>(t, begin, end, rule, key);
    case WeightStore::bf16_nearest:
      return any_gradient<Bf16NearestStore>(t, begin, end, rule, key);
    case WeightStore::bf16_stochastic:
      return any_gradient<Bf16StochasticStore>(t, begin, end, rule, key);
  }
  return 0;
}

}  // namespace

extern const AdamTable LT_CAT(adamw_, LT_ISA);
const AdamTable LT_CAT(adamw_, LT_ISA) = {blocks};

}  // namespace lowtide::optim
