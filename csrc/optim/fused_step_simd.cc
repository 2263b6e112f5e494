// SPDX-License-Identifier: Apache-2.0
// The same bits as fused_step_ref.cc, kLanes elements at a time. Each block of 256 is read from
// memory once: the first pass (one for each rule, gradient type and store) leaves the new moments
// in L1, the second (one for each target and store) rounds them into the states and moves the
// weight. Passes are joined by pointers: 72 of them serve 112 combinations.
//
// Limits: float32 states are bound by memory (in cache by the divider: root and quotient take 20 of
// 20 cycles for 16 parameters). 8-bit Adam moves 57 % of the bytes but is bound by arithmetic on
// AVX-512: 63 instructions for 16 parameters (decode 15, encode 29, Adam 19) on two 512-bit ports
// take 33 cycles (0.61 ns a parameter in cache); memory would need 30. 4-bit Adam (42
// instructions, 0.46 ns) is bound by the divider and by memory alike.
#include "optim/fused_step_table.h"
#include "optim/rules_simd.h"
#include "optim/states_simd.h"
#include "optim/targets_simd.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::optim {
namespace {

using random::Key;

static_assert(kBlock == kWeightBlock);
constexpr uint32_t kInfinity = 0x7f800000u;

// The larger magnitude, x >= 0; of a number and a NaN the number.
LT_SIMD vf32 max_abs(vf32 x, vf32 y) {
#if defined(__AVX512F__)
  return (vf32)_mm512_range_ps((__m512)x, (__m512)y, 0b1011);
#else
  return max_f(x, abs_f(y));
#endif
}

// largest_lane of two vectors at once.
LT_SIMD void largest_lanes(vu32 x, vu32 y, uint32_t* x_max, uint32_t* y_max) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0x44);
  const __m512i high = _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0xee);
  vu32 both = (vu32)_mm512_max_epu32(low, high);
#pragma GCC unroll 3
  for (int d = 4; d > 0; d /= 2) both = max_u(both, __builtin_shuffle(both, iota() ^ d));
  *x_max = both[0], *y_max = both[8];
#else
  *x_max = largest_lane(x), *y_max = largest_lane(y);
#endif
}

// What the first pass over a block leaves behind. It already takes the square root and the second
// pass the quotient, so that the divider, which serves both, keeps up with each.
struct Moments {
  alignas(64) float m[kBlock], v[kBlock], w[kBlock], advanced[kBlock];
  float largest_m[2], largest_v[2], largest_w[2];  // of each part that shares an absmax
  bool sound;                                      // all elements are
};

template <class Rule, class Gradient, class States>
__attribute__((noinline)) void advance_block(const StepTensor& t, int64_t block,
                                             const StepRule& step_rule, Moments* out) {
  const StepRule rule = step_rule;  // a copy: what is stored through pointers cannot change it
  const States states(t, block);
  const auto* g = static_cast<const typename Gradient::Element*>(t.g) + block * kBlock;
  bool sound = true;
  for (int part = 0; part < kBlock / States::kPart; ++part) {
    const typename States::Reader old(states, part);
    vu32 top_m = {}, top_v = {}, top_w = {};
    for (int row = part * States::kPart; row < (part + 1) * States::kPart; row += kRow) {
      for (int line = row; line < row + kRow; line += 16) prefetch(g + line, kAhead * sizeof *g);
      vf32 m[kRowVectors], v[kRowVectors], w[kRowVectors];
      old.row(row, m, v, w);
#pragma GCC unroll 8
      for (int i = 0; i < kRowVectors; ++i) {
        const int at = row + i * kLanes;
        const vf32 advanced = Rule::advance(rule, Gradient::load(g + at), m[i], v[i], w[i]);
        // If the old m is finite, what makes m a NaN makes v one too: this maximum may pass over
        // it.
        top_m = Rule::kMoments > 1 && States::kCoded ? (vu32)max_abs((vf32)top_m, m[i])
                                                     : max_u(top_m, as_u(m[i]) & 0x7fffffffu);
        // The sign of a second moment counts as larger than infinity.
        top_v = max_u(top_v, Rule::kMoments > 1 ? as_u(v[i]) : as_u(advanced) & 0x7fffffffu);
        if (Rule::kMoments > 0) store(out->m + at, m[i]);
        if (Rule::kMoments > 1) store(out->v + at, v[i]);
        if (Rule::kMoments > 2) {
          top_w = max_u(top_w, as_u(w[i]) & 0x7fffffffu);
          store(out->w + at, w[i]);
        }
        store(out->advanced + at, advanced);
      }
    }
    uint32_t bits_m, bits_v;
    largest_lanes(top_m, top_v, &bits_m, &bits_v);
    out->largest_m[part] = bits_float(bits_m);
    out->largest_v[part] = bits_float(bits_v);
    if (Rule::kMoments > 2) out->largest_w[part] = bits_float(largest_lane(top_w));
    sound = sound && old.sound && bits_m < kInfinity && bits_v < kInfinity;
  }
  out->sound = sound;
}

// False if the block was skipped.
template <class Target, class States, int moments>
__attribute__((noinline)) bool finish_block(const StepTensor& t, int64_t block,
                                            const StepRule& step_rule, Key key,
                                            const Moments& mom) {
  const StepRule rule = step_rule;
  auto* out = Target::data(t) + block * kBlock;
  if (!mom.sound) {
    Target::skip(out);
    return false;
  }
  const Target target(t.offset + block * kBlock, key, t.param);
  const States states(t, block);
  for (int part = 0; part < kBlock / States::kPart; ++part) {
    const typename States::Writer writer(states, part, mom.largest_m[part], mom.largest_v[part],
                                         moments > 2 ? mom.largest_w[part] : 0.0f);
    for (int at = part * States::kPart; at < (part + 1) * States::kPart; at += States::kStep) {
      // Quotients first: the divider works on them while codes are made.
#pragma GCC unroll 8
      for (int i = at; i < at + States::kStep; i += kLanes) {
        if (i % 16 == 0) prefetch(out + i, (kAhead + kBlock) * sizeof *out);
        vf32 direction = load<vf32>(mom.advanced + i);
        if (moments > 1) direction = load<vf32>(mom.m + i) / direction;
        target.put(out, i, direction, rule);
      }
      writer.step(at, mom.m, mom.v, mom.w);
    }
  }
  return true;
}

typedef void (*Advance)(const StepTensor&, int64_t, const StepRule&, Moments*);
typedef bool (*Finish)(const StepTensor&, int64_t, const StepRule&, Key, const Moments&);

template <class Rule, class Gradient>
constexpr Advance advance_for(StateKind states) {
  constexpr int n = Rule::kMoments;
  if constexpr (n == 0) return advance_block<Rule, Gradient, F32States<0>>;
  if constexpr (n > 0)
    return states == StateKind::f32        ? advance_block<Rule, Gradient, F32States<n>>
           : states == StateKind::dynamic8 ? advance_block<Rule, Gradient, Dynamic8States<n>>
                                           : advance_block<Rule, Gradient, Dynamic4States<n>>;
}

template <class Rule>
Advance advance_for(const StepTensor& t) {
  return t.g_dtype == Dtype::f32 ? advance_for<Rule, F32Gradient>(t.states)
                                 : advance_for<Rule, Bf16Gradient>(t.states);
}

Advance advance_for(const StepTensor& t, RuleKind kind) {
  switch (kind) {
    case RuleKind::adam:
      return advance_for<Adam>(t);
    case RuleKind::adabelief:
      return advance_for<AdaBelief>(t);
    case RuleKind::lion:
      return advance_for<Lion>(t);
    case RuleKind::sign:
      return advance_for<Sign>(t);
    case RuleKind::diffgrad:
      return advance_for<DiffGrad>(t);
    case RuleKind::sgd:
      break;
  }
  return advance_for<Sgd>(t);
}

template <class Target, int n>
Finish finish_for(StateKind states) {
  if constexpr (n == 0) return finish_block<Target, F32States<0>, 0>;
  if constexpr (n > 0)
    return states == StateKind::f32        ? finish_block<Target, F32States<n>, n>
           : states == StateKind::dynamic8 ? finish_block<Target, Dynamic8States<n>, n>
                                           : finish_block<Target, Dynamic4States<n>, n>;
}

template <int n>
Finish finish_for(const StepTensor& t) {
  if (t.target == StepTarget::direction) return finish_for<DirectionTarget, n>(t.states);
  switch (t.weight_store) {
    case WeightStore::f32:
      return finish_for<WeightTarget<F32Store>, n>(t.states);
    case WeightStore::bf16_nearest:
      return finish_for<WeightTarget<Bf16NearestStore>, n>(t.states);
    case WeightStore::bf16_stochastic:
      break;
  }
  return finish_for<WeightTarget<Bf16StochasticStore>, n>(t.states);
}

Finish finish_for(const StepTensor& t, RuleKind kind) {
  switch (moment_count(kind)) {
    case 0:
      return finish_for<0>(t);
    case 1:
      return finish_for<1>(t);
    case 2:
      return finish_for<2>(t);
  }
  return finish_for<3>(t);
}

// A short last block in padded copies: padding has zero gradient and zero states.
struct Tail {
  alignas(64) uint8_t p[4 * kBlock] = {}, g[4 * kBlock] = {}, m[4 * kBlock], v[4 * kBlock] = {};
  alignas(64) uint8_t w[4 * kBlock];
  float m_absmax[2] = {}, v_absmax[2] = {}, w_absmax[2] = {};
  StepTensor t;  // block 0 of it is the copy
  const StepTensor& from;
  int64_t block, n;

  Tail(const StepTensor& tensor, int64_t b) : t(tensor), from(tensor), block(b) {
    n = from.n - block * kBlock;
    t.n = kBlock;
    t.offset += block * kBlock;
    const bool four = t.states == StateKind::dynamic4;
    const uint8_t zero = t.states == StateKind::f32 ? 0 : four ? 0x77 : quant::kDynamicZeroSigned;
    for (int i = 0; i < 4 * kBlock; ++i) m[i] = w[i] = zero;
    t.p = p, t.g = g;
    t.m = reinterpret_cast<float*>(m), t.m_codes = m;
    t.v = reinterpret_cast<float*>(v), t.v_codes = v;
    t.w = reinterpret_cast<float*>(w), t.w_codes = w;
    t.m_absmax = m_absmax, t.v_absmax = v_absmax, t.w_absmax = w_absmax;
    move<true>(true);
    if (!four || n % 32 == 0) return;
    // High nibbles beyond the end count for nothing, whatever they hold.
    const int64_t r = n % 32, end = n / 32 * 16 + (r < 16 ? r : 16);
    for (int64_t i = end - (r < 16 ? r : 32 - r); i < end; ++i) {
      m[i] = static_cast<uint8_t>((m[i] & 15) | 0x70), v[i] &= 15;
      w[i] = static_cast<uint8_t>((w[i] & 15) | 0x70);
    }
  }
  void finish(bool done) { move<false>(done); }

 private:
  template <bool in>
  static void copy(void* part, void* whole, int64_t at, int64_t bytes) {
    if (whole == nullptr) return;
    void* there = static_cast<uint8_t*>(whole) + at;
    if (in)
      __builtin_memcpy(part, there, static_cast<size_t>(bytes));
    else
      __builtin_memcpy(there, part, static_cast<size_t>(bytes));
  }
  template <bool in>
  void move(bool states) {
    const int64_t at = block * kBlock;
    const int64_t p_size = t.weight_store == WeightStore::f32 ? 4 : 2;
    const int64_t g_size = t.g_dtype == Dtype::f32 ? 4 : 2;
    if (states) copy<in>(p, from.p, at * p_size, n * p_size);
    if (in || t.target == StepTarget::direction) copy<in>(g, from.g, at * g_size, n * g_size);
    if (!states) return;
    if (t.states == StateKind::f32) {
      copy<in>(m, from.m, at * 4, n * 4), copy<in>(v, from.v, at * 4, n * 4);
      copy<in>(w, from.w, at * 4, n * 4);
      return;
    }
    const bool four = t.states == StateKind::dynamic4;
    const int64_t tail = n % 32, bytes = four ? n / 32 * 16 + (tail < 16 ? tail : 16) : n;
    const int64_t part = four ? 128 : 256, parts = (n + part - 1) / part;
    copy<in>(m, from.m_codes, four ? at / 2 : at, bytes);
    copy<in>(v, from.v_codes, four ? at / 2 : at, bytes);
    copy<in>(w, from.w_codes, four ? at / 2 : at, bytes);
    copy<in>(m_absmax, from.m_absmax, at / part * 4, parts * 4);
    copy<in>(v_absmax, from.v_absmax, at / part * 4, parts * 4);
    copy<in>(w_absmax, from.w_absmax, at / part * 4, parts * 4);
  }
};

// The first pass of a block runs before the second of the one before it, so that nothing waits for
// the largest moments.
int64_t blocks(const StepTensor& t, int64_t begin, int64_t end, const StepRule& rule, Key key) {
  const Advance advance = advance_for(t, rule.kind);
  const Finish finish = finish_for(t, rule.kind);
  const int64_t whole = t.n / kBlock < end ? t.n / kBlock : end;
  int64_t skipped = 0;
  Moments mom[2];
  for (int64_t b = begin; b <= whole; ++b) {
    if (b < whole) advance(t, b, rule, &mom[b & 1]);
    if (b > begin) skipped += !finish(t, b - 1, rule, key, mom[(b - 1) & 1]);
  }
  if (whole < end) {
    Tail tail(t, whole);
    advance(tail.t, 0, rule, &mom[0]);
    const bool done = finish(tail.t, 0, rule, key, mom[0]);
    skipped += !done;
    tail.finish(done);
  }
  return skipped;
}

}  // namespace

extern const StepTable LT_CAT(fused_step_, LT_ISA);
const StepTable LT_CAT(fused_step_, LT_ISA) = {blocks};

}  // namespace lowtide::optim
