// SPDX-License-Identifier: Apache-2.0
#include "quant/dynamic_map.h"

#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/dynamic_map_table.h"

namespace lowtide::quant {
namespace {

constexpr auto kTables = LT_TABLES(DynamicMapTable, dynamic_map);
constexpr int64_t kGrain = 64;  // blocks: 16384 elements

}  // namespace

int64_t quantize_dynamic(uint8_t* codes, float* absmax, const float* x, int64_t n, bool is_signed) {
  require(n >= 0, "quantize_dynamic: the number of elements must be >= 0");
  const auto& table = kTables.get();
  std::atomic<int64_t> nonfinite{0};
  parallel_for(dynamic_blocks(n), kGrain, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * kDynamicBlock;
    nonfinite.fetch_add(table.quantize(codes + at, absmax + begin, x + at,
                                       std::min(n, end * kDynamicBlock) - at, is_signed),
                        std::memory_order_relaxed);
  });
  return nonfinite.load();
}

void dequantize_dynamic(float* x, const uint8_t* codes, const float* absmax, int64_t n,
                        bool is_signed) {
  require(n >= 0, "dequantize_dynamic: the number of elements must be >= 0");
  const auto& table = kTables.get();
  parallel_for(dynamic_blocks(n), kGrain, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * kDynamicBlock;
    table.dequantize(x + at, codes + at, absmax + begin, std::min(n, end * kDynamicBlock) - at,
                     is_signed);
  });
}

}  // namespace lowtide::quant
