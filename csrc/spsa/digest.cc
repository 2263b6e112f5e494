// SPDX-License-Identifier: Apache-2.0
#include "spsa/digest.h"

#include <atomic>

#include "base/error.h"
#include "base/parallel.h"
#include "spsa/digest_table.h"

namespace lowtide::spsa {
namespace {

constexpr auto kTables = LT_TABLES(DigestTable, digest);

}  // namespace

uint64_t digest(const void* w, int width, int64_t n, int64_t offset) {
  require(n >= 0, "digest: the number of elements must be >= 0");
  require(offset >= 0, "digest: offset must be >= 0 (the global index of the first element)");
  require(width == 1 || width == 2 || width == 4, "digest: elements must have 1, 2 or 4 bytes");
  const auto& table = kTables.get();
  std::atomic<uint64_t> sum{0};
  parallel_for(n, 1 << 16, [&](int64_t begin, int64_t end) {
    sum.fetch_add(table.sum(static_cast<const uint8_t*>(w) + begin * width, width, end - begin,
                            static_cast<uint64_t>(offset + begin)),
                  std::memory_order_relaxed);
  });
  return sum.load();
}

}  // namespace lowtide::spsa
