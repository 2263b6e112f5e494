// SPDX-License-Identifier: Apache-2.0
// Which sanitizer the emulated kernels are built with, and the few runtime calls the machine makes
// to it.
//
// The machine itself is always compiled without -fsanitize, so that its own bookkeeping is never
// reported; LT_EMU_TSAN / LT_EMU_ASAN (set by the build, or by the compiler for instrumented files)
// say what the kernels use.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__) && !defined(LT_EMU_TSAN)
#define LT_EMU_TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(LT_EMU_ASAN)
#define LT_EMU_ASAN 1
#endif

#if defined(LT_EMU_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif
#if defined(LT_EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace lowtide::emu {

// Happens-before edges between CUDA threads, for the race detector.
inline void HappensBefore([[maybe_unused]] void* token) {
#if defined(LT_EMU_TSAN)
  __tsan_release(token);
#endif
}
inline void HappensAfter([[maybe_unused]] void* token) {
#if defined(LT_EMU_TSAN)
  __tsan_acquire(token);
#endif
}

// While one of these lives, writes (also those inside malloc, free and memset) belong to nobody.
class QuietWrites {
 public:
  QuietWrites() {
#if defined(LT_EMU_TSAN)
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~QuietWrites() {
#if defined(LT_EMU_TSAN)
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
  }
  QuietWrites(const QuietWrites&) = delete;
  QuietWrites& operator=(const QuietWrites&) = delete;
};

inline void ForbidMemory([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(LT_EMU_ASAN)
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void AllowMemory([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(LT_EMU_ASAN)
  __asan_unpoison_memory_region(p, bytes);
#endif
}

}  // namespace lowtide::emu
