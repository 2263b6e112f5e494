// SPDX-License-Identifier: Apache-2.0
// The same bits as dynamic_map_ref.cc, kLanes elements at a time. A block (1 KiB) is read from
// memory once: its largest magnitude is taken first, the codes follow from L1.
#include "quant/dynamic_map_simd.h"

#include "quant/dynamic_map_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::quant {
namespace {

// Non-finite lanes become zero.
LT_SIMD vf32 finite_or_zero(vf32 x, vi32& nonfinite) {
  const vi32 bad = as_i(as_u(x) & 0x7fffffffu) >= 0x7f800000;
  nonfinite -= bad;
  return as_f(as_u(x) & (vu32)~bad);
}

template <bool is_signed>
LT_SIMD float encode_block(uint8_t* codes, const float* x, vi32& nonfinite) {
  vu32 top = {};
  for (int i = 0; i < kDynamicBlock; i += kLanes)
    top = max_u(top, as_u(finite_or_zero(load<vf32>(x + i), nonfinite)) & 0x7fffffffu);
  const float absmax = dynamic_absmax(bits_float(largest_lane(top)));
  const float inverse = dynamic_inverse(absmax);
  vi32 again = {};
  for (int i = 0; i < kDynamicBlock; i += kDynamicStep)
    dynamic_encode_step<is_signed>(
        codes + i, inverse, [&](int j) __attribute__((always_inline)) {
          return finite_or_zero(load<vf32>(x + i + j), again);
        });
  return absmax;
}

template <bool is_signed>
int64_t quantize(uint8_t* codes, float* absmax, const float* x, int64_t n) {
  int64_t count = 0;
  for (int64_t at = 0; at < n; at += kDynamicBlock) {
    vi32 nonfinite = {};
    if (n - at >= kDynamicBlock) {
      *absmax++ = encode_block<is_signed>(codes + at, x + at, nonfinite);
    } else {
      float part[kDynamicBlock] = {};
      uint8_t out[kDynamicBlock];
      __builtin_memcpy(part, x + at, static_cast<size_t>(n - at) * 4);
      *absmax++ = encode_block<is_signed>(out, part, nonfinite);
      __builtin_memcpy(codes + at, out, static_cast<size_t>(n - at));
    }
    for (int i = 0; i < kLanes; ++i) count += nonfinite[i];
  }
  return count;
}

template <bool is_signed>
void dequantize(float* x, const uint8_t* codes, const float* absmax, int64_t n) {
  for (int64_t at = 0; at < n; at += kDynamicBlock, ++absmax) {
    const int64_t len = n - at < kDynamicBlock ? n - at : kDynamicBlock;
    const DynamicDecoder<is_signed> decode(*absmax);
    int64_t i = at;
    for (; i + kLanes <= at + len; i += kLanes) store(x + i, decode(codes + i));
    for (; i < at + len; ++i) x[i] = dynamic_decode(kDynamic, codes[i], is_signed, *absmax);
  }
}

int64_t quantize_any(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed) {
  return is_signed ? quantize<true>(codes, absmax, x, n) : quantize<false>(codes, absmax, x, n);
}

void dequantize_any(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                    bool is_signed) {
  if (is_signed)
    dequantize<true>(x, codes, absmax, n);
  else
    dequantize<false>(x, codes, absmax, n);
}

}  // namespace

extern const DynamicMapTable LT_CAT(dynamic_map_, LT_ISA);
const DynamicMapTable LT_CAT(dynamic_map_, LT_ISA) = {quantize_any, dequantize_any};

}  // namespace lowtide::quant
