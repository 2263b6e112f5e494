// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one block at a time, kept for ever as the oracle.
#include "optim/fused_step_table.h"
#include "quant/dynamic_map_scalar.h"
#include "quant/group_format.h"
#include "quant/map4_scalar.h"

namespace lowtide::optim {
namespace {

using namespace quant;

static_assert(kStepBlock == kDynamicBlock && kStepBlock % kMap4Block == 0);

// One moment of one tensor.
struct Moment {
  StateKind kind;
  bool is_signed;
  float* plain;
  uint8_t* codes;
  float* absmax;

  float load(int64_t i) const {
    if (kind == StateKind::f32) return plain[i];
    const float scale = absmax[i / state_block(kind)];
    if (kind == StateKind::dynamic8) return dynamic_decode(kDynamic, codes[i], is_signed, scale);
    return map4_decode(get_code(codes, i, 4), is_signed, scale);
  }

  // Elements [at, at + n), at most a state_block of them.
  void store(int64_t at, const float* x, int64_t n) const {
    if (kind == StateKind::f32) {
      for (int64_t i = 0; i < n; ++i) plain[at + i] = x[i];
      return;
    }
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i)
      if (abs_f(x[i]) > largest) largest = abs_f(x[i]);
    float& scale = absmax[at / state_block(kind)];
    if (kind == StateKind::dynamic8) {
      scale = dynamic_absmax(largest);
      const float inverse = dynamic_inverse(scale);
      for (int64_t i = 0; i < n; ++i)
        codes[at + i] = is_signed ? dynamic_encode(kDynamic, x[i], true, inverse)
                                  : dynamic_encode_positive(kDynamic, x[i], inverse);
      return;
    }
    scale = map4_absmax(largest);
    const float inverse = map4_inverse(scale, is_signed);
    // Low nibbles clear the high ones; what lies beyond the end is the code of zero.
    for (int64_t i = 0; i < n; ++i)
      if ((at + i) % 32 < 16) {
        put_code(codes, at + i, 4, map4_encode(x[i], is_signed, inverse));
        put_code(codes, at + i + 16, 4, map4_encode(0.0f, is_signed, inverse));
      }
    for (int64_t i = 0; i < n; ++i)
      if ((at + i) % 32 >= 16) put_code(codes, at + i, 4, map4_encode(x[i], is_signed, inverse));
  }
};

bool block_ref(const StepTensor& t, int64_t block, const StepRule& rule, random::Key key) {
  const int64_t at = block * kStepBlock;
  const int64_t n = t.n - at < kStepBlock ? t.n - at : kStepBlock;
  const int moments = moment_count(rule.kind);
  const Moment first_moment = {t.states, true, t.m, t.m_codes, t.m_absmax};
  const Moment second_moment = {t.states, false, t.v, t.v_codes, t.v_absmax};
  const Moment third_moment = {t.states, true, t.w, t.w_codes, t.w_absmax};
  float m[kStepBlock], v[kStepBlock], w[kStepBlock], advanced[kStepBlock];
  bool all_sound = true;
  for (int64_t i = 0; i < n; ++i) {
    const float g = t.g_dtype == Dtype::f32
                        ? static_cast<const float*>(t.g)[at + i]
                        : bf16_to_float(static_cast<const uint16_t*>(t.g)[at + i]);
    m[i] = moments > 0 ? first_moment.load(at + i) : 0.0f;
    v[i] = moments > 1 ? second_moment.load(at + i) : 0.0f;
    w[i] = moments > 2 ? third_moment.load(at + i) : 0.0f;
    advanced[i] = advance(rule, g, &m[i], &v[i], &w[i]);
    all_sound = all_sound && sound(rule, m[i], v[i], advanced[i]);
  }
  if (!all_sound) {
    if (t.target == StepTarget::direction)
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(t.g)[at + i] = 0.0f;
    return false;
  }
  const int64_t part = state_block(t.states);
  for (int64_t i = 0; i < n; i += part) {
    const int64_t count = n - i < part ? n - i : part;
    if (moments > 0) first_moment.store(at + i, m + i, count);
    if (moments > 1) second_moment.store(at + i, v + i, count);
    if (moments > 2) third_moment.store(at + i, w + i, count);
  }
  for (int64_t i = 0; i < n; ++i) {
    const float d = direction(rule, m[i], advanced[i]);
    if (t.target == StepTarget::direction) {
      static_cast<float*>(t.g)[at + i] = d;
    } else {
      const float p = load_weight(t.p, t.weight_store, at + i);
      store_weight(t.p, t.weight_store, at + i, moved_weight(rule, p, d), t.offset, key, t.param);
    }
  }
  return true;
}

int64_t blocks_ref(const StepTensor& t, int64_t begin, int64_t end, const StepRule& rule,
                   random::Key key) {
  int64_t skipped = 0;
  for (int64_t b = begin; b < end; ++b) skipped += block_ref(t, b, rule, key) ? 0 : 1;
  return skipped;
}

}  // namespace

const StepTable fused_step_scalar = {blocks_ref};

}  // namespace lowtide::optim
