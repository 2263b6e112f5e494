// SPDX-License-Identifier: Apache-2.0
// The scalar definition: one element at a time, obviously right, kept for ever as the oracle.
#include "quant/group_map_table.h"

namespace lowtide::quant {
namespace {

int code_of(const QuantizeMapJob& job, float y, int64_t element) {
  const bool eight = map_bits(job.map) == 8, is_signed = map_is_signed(job.map);
  if (!job.stochastic)
    return eight ? dynamic_nearest(kDynamic, y, is_signed) : map_nearest(*job.levels, y);
  const uint32_t r16 = random::sr16(job.offset + element, job.key, job.param, job.role);
  return eight ? dynamic_stochastic(kDynamicLines, y, is_signed, r16)
               : map_stochastic(*job.levels, y, r16);
}

int64_t quantize_ref(const QuantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.out.shape;
  int64_t bad = 0;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const int64_t first = at.row * s.cols + at.col;
    float largest = 0;
    for (int64_t i = 0; i < at.n; ++i) {
      const float raw = load_element(job.x, job.type, first + i);
      bad += !is_finite(raw);
      const float x = is_finite(raw) ? raw : 0.0f;
      const float size = map_is_signed(job.map) ? abs_f(x) : x;
      largest = largest < size ? size : largest;
    }
    const GroupParams p = map_params(largest, job.bf16_scale);
    job.out.scale[g] = p.scale;
    uint8_t* row = job.out.codes + at.row * row_bytes(s);
    for (int64_t i = 0; i < at.n; ++i) {
      const float raw = load_element(job.x, job.type, first + i);
      const float y = (is_finite(raw) ? raw : 0.0f) * p.inv;
      put_code(row, at.col + i, s.bits, code_of(job, y, first + i));
    }
  }
  return bad;
}

void dequantize_ref(const DequantizeMapJob& job, int64_t begin, int64_t end) {
  const GroupShape& s = job.in.shape;
  for (int64_t g = begin; g < end; ++g) {
    const GroupSpan at = group_span(s, g);
    const uint8_t* row = job.in.codes + at.row * row_bytes(s);
    const float scale = job.in.scale[g];
    for (int64_t i = 0; i < at.n; ++i) {
      const int code = get_code(row, at.col + i, s.bits);
      store_element(job.out, job.type, at.row * s.cols + at.col + i,
                    s.bits == 8 ? dynamic_decode(kDynamic, code, map_is_signed(job.map), scale)
                                : job.levels->level[code] * scale);
    }
  }
}

}  // namespace

const GroupMapTable group_map_scalar = {quantize_ref, dequantize_ref};

}  // namespace lowtide::quant
