// SPDX-License-Identifier: Apache-2.0
// Which operands share memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace lowtide {

// Whether two ranges of memory share no byte.
inline bool apart(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
  return x + static_cast<uintptr_t>(a_bytes) <= y || y + static_cast<uintptr_t>(b_bytes) <= x;
}

struct MemoryRange {
  const void* at;
  int64_t bytes;
  bool written;
};

// Whether every range that is written shares no byte with another of the list.
inline bool written_apart(std::vector<MemoryRange> ranges) {
  std::erase_if(ranges, [](const MemoryRange& r) { return r.bytes <= 0; });
  const auto start = [](const MemoryRange& r) { return reinterpret_cast<uintptr_t>(r.at); };
  std::sort(ranges.begin(), ranges.end(),
            [&](const MemoryRange& a, const MemoryRange& b) { return start(a) < start(b); });
  uintptr_t any = 0, written = 0;  // where the furthest of those before ends
  for (const MemoryRange& r : ranges) {
    if (start(r) < (r.written ? any : written)) return false;
    any = std::max(any, start(r) + static_cast<uintptr_t>(r.bytes));
    if (r.written) written = std::max(written, start(r) + static_cast<uintptr_t>(r.bytes));
  }
  return true;
}

}  // namespace lowtide
