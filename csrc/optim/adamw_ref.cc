// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one block at a time, kept for ever as the oracle.
#include "optim/adamw_table.h"
#include "quant/dynamic_map_scalar.h"

namespace lowtide::optim {
namespace {

using namespace quant;

static_assert(kAdamBlock == kDynamicBlock);

bool block_ref(const AdamTensor& t, int64_t block, const AdamRule& rule, random::Key key) {
  const int64_t at = block * kAdamBlock;
  const int64_t n = t.n - at < kAdamBlock ? t.n - at : kAdamBlock;
  const bool low_bit = t.m_codes != nullptr;
  float m[kAdamBlock], v[kAdamBlock];
  float largest_m = 0.0f, largest_v = 0.0f;
  bool sound = true;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t e = at + i;
    const float g = t.g_dtype == Dtype::f32 ? static_cast<const float*>(t.g)[e]
                                            : bf16_to_float(static_cast<const uint16_t*>(t.g)[e]);
    m[i] = low_bit ? dynamic_decode(kDynamic, t.m_codes[e], true, t.m_absmax[block]) : t.m[e];
    v[i] = low_bit ? dynamic_decode(kDynamic, t.v_codes[e], false, t.v_absmax[block]) : t.v[e];
    adam_moments(rule, g, &m[i], &v[i]);
    sound = sound && adam_sound(m[i], v[i]);
    if (abs_f(m[i]) > largest_m) largest_m = abs_f(m[i]);
    if (abs_f(v[i]) > largest_v) largest_v = abs_f(v[i]);
  }
  if (!sound) {
    if (t.target == AdamTarget::direction)
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(t.g)[at + i] = 0.0f;
    return false;
  }
  if (low_bit) {
    t.m_absmax[block] = dynamic_absmax(largest_m);
    t.v_absmax[block] = dynamic_absmax(largest_v);
    const float inverse_m = dynamic_inverse(t.m_absmax[block]);
    const float inverse_v = dynamic_inverse(t.v_absmax[block]);
    for (int64_t i = 0; i < n; ++i) {
      t.m_codes[at + i] = dynamic_encode(kDynamic, m[i], true, inverse_m);
      t.v_codes[at + i] = dynamic_encode_positive(kDynamic, v[i], inverse_v);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) t.m[at + i] = m[i], t.v[at + i] = v[i];
  }
  for (int64_t i = 0; i < n; ++i) {
    const float direction = adam_direction(rule, m[i], v[i]);
    if (t.target == AdamTarget::direction) {
      static_cast<float*>(t.g)[at + i] = direction;
    } else {
      const float p = load_weight(t.p, t.weight_store, at + i);
      store_weight(t.p, t.weight_store, at + i, adam_weight(rule, p, direction), t.offset, key,
                   t.param);
    }
  }
  return true;
}

int64_t blocks_ref(const AdamTensor& t, int64_t begin, int64_t end, const AdamRule& rule,
                   random::Key key) {
  int64_t skipped = 0;
  for (int64_t b = begin; b < end; ++b) skipped += block_ref(t, b, rule, key) ? 0 : 1;
  return skipped;
}

}  // namespace

const AdamTable adamw_scalar = {blocks_ref};

}  // namespace lowtide::optim
