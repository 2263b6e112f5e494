// SPDX-License-Identifier: Apache-2.0
// Run-time choice of instruction set. One kernel source is compiled once per ISA into a table of
// function pointers; this is the only place that decides which table runs.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lowtide {

enum class Isa : int { scalar = 0, baseline = 1, avx2 = 2, avx512 = 3, neon = 4 };
inline constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);
// True if this build contains the ISA's kernels and this processor can run them.
bool isa_available(Isa isa);
std::vector<Isa> available_isas();
// The best available, unless the environment variable LOWTIDE_ISA or set_isa() chose another.
Isa active_isa();
// Throws lowtide::Error naming the available ones if `isa` cannot run here.
void set_isa(Isa isa);
Isa parse_isa(std::string_view name);

// Instances of T, one per ISA, nullptr where this build has none.
template <class T>
struct IsaTables {
  const T* table[kIsaCount];
  const T& get() const { return *table[static_cast<int>(active_isa())]; }
  const T& get(Isa isa) const { return *table[static_cast<int>(isa)]; }
};

}  // namespace lowtide

// Declares `extern const Table stem_scalar, ...` and the array that dispatches over them.
#if defined(__x86_64__)
#define LT_DECLARE_TABLES(Table, stem) \
  extern const Table stem##_scalar, stem##_baseline, stem##_avx2, stem##_avx512
#define LT_TABLES(Table, stem)                                                  \
  ::lowtide::IsaTables<Table> {                                                 \
    { &stem##_scalar, &stem##_baseline, &stem##_avx2, &stem##_avx512, nullptr } \
  }
#elif defined(__aarch64__)
#define LT_DECLARE_TABLES(Table, stem) extern const Table stem##_scalar, stem##_neon
#define LT_TABLES(Table, stem)                                  \
  ::lowtide::IsaTables<Table> {                                 \
    { &stem##_scalar, nullptr, nullptr, nullptr, &stem##_neon } \
  }
#else
#define LT_DECLARE_TABLES(Table, stem) extern const Table stem##_scalar
#define LT_TABLES(Table, stem)                             \
  ::lowtide::IsaTables<Table> {                            \
    { &stem##_scalar, nullptr, nullptr, nullptr, nullptr } \
  }
#endif
