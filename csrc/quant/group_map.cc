// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "quant/group_map.h"

#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/group_map_table.h"

namespace lowtide::quant {
namespace {

constexpr auto kTables = LT_TABLES(GroupMapTable, group_map);
constexpr LevelTables kLevels = make_level_tables();
constexpr int64_t kGrainElements = 16384;

int64_t grain_groups(const GroupShape& s) { return std::max<int64_t>(1, kGrainElements / s.group); }
int64_t groups(const GroupShape& s) { return s.rows * groups_per_row(s); }

// The levels of a map that has a table.
const LevelTable* checked(const GroupShape& s, LevelMap map, const uint8_t* zero) {
  check_shape(s);
  require(is_level_map(map),
          "group map: map must be nf4, dynamic, dynamic_unsigned, linear_nozero, dynamic8 or "
          "dynamic8_unsigned");
  require(s.bits == map_bits(map), "group map: bits must be 8 for dynamic8 maps and 4 for others");
  require(zero == nullptr, "group map: there are no zero points");
  return map_bits(map) == 4 ? &kLevels.of[static_cast<int>(map)] : nullptr;
}

}  // namespace

int64_t quantize_map(const void* x, FloatType type, LevelMap map, const GroupMatrix& out,
                     const MapOptions& options) {
  const LevelTable* levels = checked(out.shape, map, out.zero);
  require(options.offset >= 0, "group map: offset must be >= 0 (global index of element [0, 0])");
  const random::Stream& s = options.stream;
  const QuantizeMapJob job = {x,
                              type,
                              map,
                              levels,
                              out,
                              options.rounding == Rounding::stochastic,
                              options.bf16_scale,
                              static_cast<uint64_t>(options.offset),
                              random::derive_key(s.seed, s.step, s.slot),
                              s.param,
                              s.role};
  const auto& table = kTables.get();
  std::atomic<int64_t> bad{0};
  parallel_for(groups(out.shape), grain_groups(out.shape), [&](int64_t begin, int64_t end) {
    bad.fetch_add(table.quantize(job, begin, end), std::memory_order_relaxed);
  });
  return bad.load();
}

void dequantize_map(const ConstGroupMatrix& in, LevelMap map, void* out, FloatType type) {
  const DequantizeMapJob job = {in, map, checked(in.shape, map, in.zero), out, type};
  const auto& table = kTables.get();
  parallel_for(groups(in.shape), grain_groups(in.shape),
               [&](int64_t begin, int64_t end) { table.dequantize(job, begin, end); });
}

}  // namespace lowtide::quant
