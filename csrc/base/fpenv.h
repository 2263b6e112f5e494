// SPDX-License-Identifier: Apache-2.0
// Hosts flip the floating-point control word (torch.set_flush_denormal, -ffast-math start-up code
// in any loaded library). Results must not depend on it, so each range of work runs under this
// guard.
#pragma once
#include <stdint.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lowtide {

class PinnedFpEnv {
 public:
#if defined(__x86_64__)
  PinnedFpEnv() : saved_(_mm_getcsr()) {
    if (saved_ != kDefault) _mm_setcsr(kDefault);
  }
  ~PinnedFpEnv() {
    if (saved_ != kDefault) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kDefault = 0x1f80;  // nearest even, no FTZ, no DAZ, all masked
  unsigned saved_;
#elif defined(__aarch64__)
  PinnedFpEnv() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ != 0) asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~PinnedFpEnv() {
    if (saved_ != 0) asm volatile("msr fpcr, %0" ::"r"(saved_));
  }

 private:
  uint64_t saved_;
#else
  PinnedFpEnv() {}
#endif
  PinnedFpEnv(const PinnedFpEnv&) = delete;
  PinnedFpEnv& operator=(const PinnedFpEnv&) = delete;
};

// A scalar argument in single precision, also where the host flushes: a tiny scale is not zero. The
// volatile accesses keep the conversion between the writes of the control word.
inline float to_float_rn(double x) {
  volatile double in = x;
  PinnedFpEnv pin;
  volatile float out = static_cast<float>(in);
  return out;
}

}  // namespace lowtide
