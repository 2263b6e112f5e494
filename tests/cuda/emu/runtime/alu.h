// SPDX-License-Identifier: Apache-2.0
// Arithmetic, logic and comparison instructions, as the PTX ISA (9.7.1 to 9.7.6) defines them.
// Registers hold bits; the type is the instruction's. Single-precision NaN results are the
// canonical 0x7fffffff, as on NVIDIA hardware, so a kernel that lets a NaN reach its output does
// not compare equal to x86 by luck.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace lowtide::emu {

template <size_t bytes>
using UintOf = std::conditional_t<
    bytes == 1, uint8_t,
    std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>>;

// Register bits (or an integer literal) as a value of type T.
template <class T, class S>
constexpr T As(S bits) {
  if constexpr (std::same_as<T, bool>) {
    return static_cast<bool>(bits);
  } else {
    return std::bit_cast<T>(static_cast<UintOf<sizeof(T)>>(bits));
  }
}

// A value as register bits: signed values sign-extend into a wider register, all others
// zero-extend.
template <class R, class T>
constexpr R Reg(T v) {
  if constexpr (std::is_floating_point_v<T>) {
    return static_cast<R>(std::bit_cast<UintOf<sizeof(T)>>(v));
  } else {
    return static_cast<R>(v);
  }
}

template <class T>
constexpr T CanonicalNaN(T v) {
  if constexpr (std::same_as<T, float>) {
    return v != v ? std::bit_cast<float>(0x7fffffffu) : v;
  } else {
    return v;
  }
}

// ---- floating point: round to nearest even only
// -----------------------------------------------------------------
template <std::floating_point T>
T Add(T a, T b) {
  return CanonicalNaN(a + b);
}
template <std::floating_point T>
T Sub(T a, T b) {
  return CanonicalNaN(a - b);
}
template <std::floating_point T>
T Mul(T a, T b) {
  return CanonicalNaN(a * b);
}
template <std::floating_point T>
T Div(T a, T b) {
  return CanonicalNaN(a / b);
}
inline float Fma(float a, float b, float c) { return CanonicalNaN(__builtin_fmaf(a, b, c)); }
inline double Fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float Sqrt(float a) { return CanonicalNaN(__builtin_sqrtf(a)); }
inline double Sqrt(double a) { return __builtin_sqrt(a); }

// The number when one operand is NaN; -0 is below +0.
template <std::floating_point T>
T Min(T a, T b) {
  if (a != a) return CanonicalNaN(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <std::floating_point T>
T Max(T a, T b) {
  if (a != a) return CanonicalNaN(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <std::floating_point T>
T MinNaN(T a, T b) {
  return a != a || b != b ? CanonicalNaN(std::numeric_limits<T>::quiet_NaN()) : Min(a, b);
}
template <std::floating_point T>
T MaxNaN(T a, T b) {
  return a != a || b != b ? CanonicalNaN(std::numeric_limits<T>::quiet_NaN()) : Max(a, b);
}
template <std::floating_point T>
T Abs(T a) {
  return std::fabs(a);
}
template <std::floating_point T>
T Neg(T a) {
  return -a;
}
template <std::floating_point T>
T CopySign(T sign, T magnitude) {  // PTX operand order: the sign of the first on the second
  return std::copysign(magnitude, sign);
}

// ---- integers: wrap around; T is unsigned wherever the sign does not change the result
// --------------------------
template <std::unsigned_integral T>
T Add(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) + b);
}
template <std::unsigned_integral T>
T Sub(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) - b);
}
template <std::unsigned_integral T>
T MulLo(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * b);
}
template <std::integral T>
T MulHi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * b) >> (8 * sizeof(T)));
}
// mul.wide: the product of 16 (32) bit values in 32 (64) bits; cannot overflow.
template <std::integral T>
auto MulWide(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  using U = UintOf<2 * sizeof(T)>;
  return static_cast<U>(static_cast<uint64_t>(static_cast<Wide>(a) * static_cast<Wide>(b)));
}
template <std::integral T>
T Div(T a, T b, const Site& site) {
  if (b == 0) Fail("integer division by zero", &site);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(-static_cast<uint64_t>(a));
  }
  return static_cast<T>(a / b);
}
template <std::integral T>
T Rem(T a, T b, const Site& site) {
  if (b == 0) Fail("integer remainder by zero", &site);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}
template <std::integral T>
T Min(T a, T b) {
  return a < b ? a : b;
}
template <std::integral T>
T Max(T a, T b) {
  return a > b ? a : b;
}
template <std::signed_integral T>
T Abs(T a) {
  return a < 0 ? static_cast<T>(-static_cast<uint64_t>(a)) : a;
}
template <std::signed_integral T>
T Neg(T a) {
  return static_cast<T>(-static_cast<uint64_t>(a));
}
template <std::integral T>
UintOf<sizeof(T)> Sad(T a, T b, UintOf<sizeof(T)> c) {  // c + |a - b|
  const uint64_t d = a < b ? static_cast<uint64_t>(b) - static_cast<uint64_t>(a)
                           : static_cast<uint64_t>(a) - static_cast<uint64_t>(b);
  return static_cast<UintOf<sizeof(T)>>(c + d);
}
template <std::unsigned_integral T>
T Shl(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << by);
}
template <std::integral T>
T Shr(T a, uint32_t by) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  if (by >= kBits) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> by);
}
// shf: 32 of the 64 bits high:low.
inline uint32_t FunnelLeft(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << by) >> 32);
}
inline uint32_t FunnelRight(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> by);
}
inline uint32_t Lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t r = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return r;
}
inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t x = static_cast<uint32_t>(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) x = x & 128 ? 255 : 0;  // replicate the sign
    r |= x << (8 * i);
  }
  return r;
}
template <std::integral T>
T BitFieldExtract(T a, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  constexpr uint32_t kBits = 8 * sizeof(T);
  if (length == 0) return 0;
  // Bits above the value: its sign when signed. The field's own top bit is the sign of the result.
  const uint32_t top = std::min(position + length - 1, kBits - 1);
  const bool negative = std::is_signed_v<T> && (static_cast<uint64_t>(a) >> top & 1) != 0;
  uint64_t r = 0;
  for (uint32_t i = 0; i < kBits; ++i) {
    const bool bit = i < length && position + i < kBits
                         ? (static_cast<uint64_t>(a) >> (position + i) & 1) != 0
                         : negative;
    r |= static_cast<uint64_t>(bit) << i;
  }
  return static_cast<T>(r);
}
template <std::unsigned_integral T>
T BitFieldInsert(T a, T b, uint32_t position, uint32_t length) {  // a into b
  position &= 255;
  length &= 255;
  T r = b;
  for (uint32_t i = 0; i < length && position + i < 8 * sizeof(T); ++i) {
    const T bit = static_cast<T>(T{1} << (position + i));
    r = static_cast<T>((r & ~bit) | ((a >> i & 1) != 0 ? bit : 0));
  }
  return r;
}
template <std::unsigned_integral T>
T ReverseBits(T a) {
  T r = 0;
  for (uint32_t i = 0; i < 8 * sizeof(T); ++i) r = static_cast<T>(r << 1 | (a >> i & 1));
  return r;
}
template <std::integral T>
uint32_t FindTopBit(T a,
                    bool as_shift) {  // bfind: the most significant bit that differs from the sign
  uint64_t v =
      static_cast<uint64_t>(static_cast<UintOf<sizeof(T)>>(std::is_signed_v<T> && a < 0 ? ~a : a));
  if (v == 0) return 0xffffffffu;
  const uint32_t top = 63u - static_cast<uint32_t>(std::countl_zero(v));
  return as_shift ? 8 * sizeof(T) - 1 - top : top;
}
// dp4a: c plus the dot product of four bytes.
template <class A, class B>
uint32_t Dp4a(uint32_t a, uint32_t b, uint32_t c) {
  int64_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int64_t>(static_cast<A>(a >> (8 * i))) *
           static_cast<int64_t>(static_cast<B>(b >> (8 * i)));
  }
  return c + static_cast<uint32_t>(sum);
}

// ---- comparisons
// ---------------------------------------------------------------------------------------------
template <class T>
bool Unordered(T a, T b) {
  return a != a || b != b;
}

}  // namespace lowtide::emu
