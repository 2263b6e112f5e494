// SPDX-License-Identifier: Apache-2.0
// cvt: conversions between integer and floating types (PTX ISA 9.7.9.21), and 16-bit floats done in
// integers.
#pragma once

#include "alu.h"

namespace lowtide::emu {

enum class Round { kNearest, kZero, kDown, kUp };

template <std::floating_point T>
T RoundToIntegral(T v, Round mode) {
  switch (mode) {
    case Round::kNearest:
      return CanonicalNaN(std::nearbyint(v));
    case Round::kZero:
      return CanonicalNaN(std::trunc(v));
    case Round::kDown:
      return CanonicalNaN(std::floor(v));
    default:
      return CanonicalNaN(std::ceil(v));
  }
}

// Out of range saturates. NaN gives 0, or only the top bit set where the source is f64 or the
// result has 64 bits.
template <std::integral I, std::floating_point T>
I ToInteger(T v, Round mode) {
  using Limits = std::numeric_limits<I>;
  if (v != v) {
    constexpr bool kTopBit = sizeof(T) == 8 || sizeof(I) == 8;
    return kTopBit ? static_cast<I>(UintOf<sizeof(I)>{1} << (8 * sizeof(I) - 1)) : I{0};
  }
  const double r = static_cast<double>(RoundToIntegral(v, mode));
  // max() of a 64-bit type is not a double; as one it rounds up to the first value out of range.
  if (r >= static_cast<double>(Limits::max())) return Limits::max();
  if (r <= static_cast<double>(Limits::min())) return Limits::min();
  return static_cast<I>(r);
}

template <std::integral D, std::integral S>
D Saturate(S v) {
  const __int128 wide = v;
  if (wide > std::numeric_limits<D>::max()) return std::numeric_limits<D>::max();
  if (wide < std::numeric_limits<D>::min()) return std::numeric_limits<D>::min();
  return static_cast<D>(v);
}

inline float Saturate01(float v) {
  return v != v ? 0.0f : v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v + 0.0f;
}

inline float FromBF16(uint16_t h) { return As<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t ToBF16(float f) {
  const uint32_t u = As<uint32_t>(Reg<uint32_t>(f));
  if (f != f) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline float FromF16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return As<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return As<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact
  return As<float>(sign | Reg<uint32_t>(magnitude));
}

inline uint16_t ToF16(float f) {
  const uint32_t u = Reg<uint32_t>(f);
  const uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (f != f) return 0x7fff;
  if (magnitude >= 0x477ff000u)
    return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 2^16 or above
  if (magnitude < 0x38800000u) {
    // Subnormal half: one addition aligns and rounds (ties to even) at 2^-24.
    const float aligned = As<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (Reg<uint32_t>(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

inline uint32_t PackBF16(float high, float low) {
  return static_cast<uint32_t>(ToBF16(high)) << 16 | ToBF16(low);
}
inline uint32_t PackF16(float high, float low) {
  return static_cast<uint32_t>(ToF16(high)) << 16 | ToF16(low);
}

}  // namespace lowtide::emu
