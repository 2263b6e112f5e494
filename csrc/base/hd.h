// SPDX-License-Identifier: Apache-2.0
// Scalar numeric primitives shared by the reference kernels and the CUDA kernels.
//
// Everything here is a pure function of its arguments' bits: IEEE single precision, round to
// nearest even, explicit fma only, no libm. LT_HD functions have internal linkage on the host,
// because an inline function emitted from an AVX-512 file could otherwise be picked by the linker
// for baseline code (see HACKING.md, "No weak symbols").
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#define LT_HD __host__ __device__ __forceinline__
#else
#define LT_HD static inline __attribute__((always_inline, unused))
#endif

namespace lowtide {

LT_HD uint32_t float_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

LT_HD float bits_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

LT_HD float fma_rn(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

LT_HD float sqrt_rn(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

LT_HD float div_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// Nearest int32, ties to even; |x| must be below 2^31 (clamp first: targets differ outside).
LT_HD int32_t to_int_rne(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(x);
#else
  return static_cast<int32_t>(__builtin_rintf(x));
#endif
}

LT_HD bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }
LT_HD float abs_f(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }

LT_HD float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN stays NaN (quiet, payload truncated).
LT_HD uint16_t float_to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// Stochastic rounding: r16 in [0, 65536). Unbiased in the magnitude of the 16 dropped bits.
LT_HD uint16_t float_to_bf16_sr(float x, uint32_t r16) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return float_to_bf16(x);
  return static_cast<uint16_t>((u + r16) >> 16);
}

// IEEE half precision. 2^112 moves the exponent's bias from 15 to 127 and normalises what was
// denormal; both ways are exact.
LT_HD float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t bits = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if ((h & 0x7c00u) == 0x7c00u) return bits_float(sign | bits | 0x7f800000u);
  return bits_float(sign | float_bits(bits_float(bits) * 0x1p112f));
}

// Round to nearest even, overflow to infinity; NaN stays NaN (quiet, payload truncated).
LT_HD uint16_t float_to_half(float x) {
  const uint32_t u = float_bits(x) & 0x7fffffffu;
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  uint32_t h;
  if (u > 0x7f800000u) {
    h = 0x7e00u | ((u >> 13) & 0x3ffu);
  } else if (u >= 0x477ff000u) {  // 65520 rounds up
    h = 0x7c00u;
  } else if (u < 0x38800000u) {  // adding 1/2 leaves the denormal's bits at the bottom, rounded
    h = float_bits(bits_float(u) + 0.5f) - 0x3f000000u;
  } else {
    h = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | h);
}

// Stochastic rounding: r16 in [0, 65536). A half keeps all but 13 bits, of which the upper 13 of
// r16 decide; below 2^-14, where it keeps fewer, the value on a grid of 2^-16 of its denormals'
// spacing.
LT_HD uint16_t float_to_half_sr(float x, uint32_t r16) {
  const uint32_t u = float_bits(x) & 0x7fffffffu;
  if (u >= 0x7f800000u) return float_to_half(x);
  uint32_t h;
  if (u < 0x38800000u)
    h = (static_cast<uint32_t>(to_int_rne(bits_float(u) * 0x1p40f)) + r16) >> 16;
  else
    h = (u - 0x38000000u + (r16 >> 3)) >> 13;
  h = h < 0x7c00u ? h : 0x7c00u;
  return static_cast<uint16_t>(((float_bits(x) >> 16) & 0x8000u) | h);
}

}  // namespace lowtide
