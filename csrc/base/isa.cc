// SPDX-License-Identifier: Apache-2.0
#include "base/isa.h"

#include <atomic>
#include <cstdlib>

#include "base/error.h"

namespace lowtide {
namespace {

constexpr const char* kNames[kIsaCount] = {"scalar", "baseline", "avx2", "avx512", "neon"};

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether the wide registers are saved.
  switch (isa) {
    case Isa::scalar:
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
    default:
      return false;
  }
#elif defined(__aarch64__)
  return isa == Isa::scalar || isa == Isa::neon;
#else
  return isa == Isa::scalar;
#endif
}

Isa best() {
  for (Isa isa : {Isa::neon, Isa::avx512, Isa::avx2, Isa::baseline})
    if (cpu_has(isa)) return isa;
  return Isa::scalar;
}

// -1 until first use, so that importing the library runs nothing.
std::atomic<int> g_active{-1};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }
bool isa_available(Isa isa) { return cpu_has(isa); }

std::vector<Isa> available_isas() {
  std::vector<Isa> out;
  for (int i = 0; i < kIsaCount; ++i)
    if (cpu_has(static_cast<Isa>(i))) out.push_back(static_cast<Isa>(i));
  return out;
}

Isa parse_isa(std::string_view name) {
  for (int i = 0; i < kIsaCount; ++i)
    if (name == kNames[i]) return static_cast<Isa>(i);
  throw Error(ErrorKind::value, "unknown ISA '" + std::string(name) +
                                    "'; use one of scalar, baseline, avx2, avx512, neon");
}

void set_isa(Isa isa) {
  if (!cpu_has(isa)) {
    std::string msg = std::string("ISA '") + isa_name(isa) + "' cannot run here; available:";
    for (Isa i : available_isas()) msg += std::string(" ") + isa_name(i);
    throw Error(ErrorKind::value, msg);
  }
  g_active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

Isa active_isa() {
  const int now = g_active.load(std::memory_order_relaxed);
  if (now >= 0) return static_cast<Isa>(now);
  const char* env = std::getenv("LOWTIDE_ISA");
  if (env != nullptr && *env != '\0') {
    set_isa(parse_isa(env));
  } else {
    int expected = -1;
    g_active.compare_exchange_strong(expected, static_cast<int>(best()));
  }
  return static_cast<Isa>(g_active.load(std::memory_order_relaxed));
}

}  // namespace lowtide
