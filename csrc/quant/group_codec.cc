// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, work cut by constants, the active ISA's table called.
#include "quant/group_codec.h"

#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "base/parallel.h"
#include "quant/group_codec_table.h"

namespace lowtide::quant {
namespace {

constexpr auto kTables = LT_TABLES(GroupCodecTable, group_codec);
constexpr int64_t kGrainElements = 16384;

int64_t grain_groups(const GroupShape& s) { return std::max<int64_t>(1, kGrainElements / s.group); }
int64_t groups(const GroupShape& s) { return s.rows * groups_per_row(s); }

}  // namespace

void check_shape(const GroupShape& s) {
  require(s.rows >= 0 && s.cols >= 0, "group codec: rows and cols must be >= 0");
  require(s.bits == 8 || s.bits == 4, "group codec: bits must be 8 or 4");
  require(s.group >= 32 && s.group % 32 == 0 && s.group <= (int64_t{1} << 30),
          "group codec: group must be a multiple of 32, at most 2**30");
}

int64_t quantize_groups(const void* x, FloatType type, const GroupMatrix& out,
                        const QuantizeOptions& options) {
  check_shape(out.shape);
  require(options.offset >= 0, "group codec: offset must be >= 0 (global index of element [0, 0])");
  require(options.range >= Range::tight && options.range <= Range::compat,
          "group codec: range must be tight, headroom or compat");
  require(options.range != Range::compat || out.zero != nullptr || groups(out.shape) == 0,
          "group codec: compat needs the asymmetric scheme");
  const random::Stream& s = options.stream;
  const QuantizeJob job = {x,
                           type,
                           out,
                           out.zero == nullptr ? Scheme::symmetric : Scheme::asymmetric,
                           options.rounding == Rounding::stochastic,
                           options.range,
                           static_cast<uint64_t>(options.offset),
                           random::derive_key(s.seed, s.step, s.slot),
                           s.param,
                           s.role,
                           options.bf16_scale};
  const auto& table = kTables.get();
  std::atomic<int64_t> bad{0};
  parallel_for(groups(out.shape), grain_groups(out.shape), [&](int64_t begin, int64_t end) {
    bad.fetch_add(table.quantize(job, begin, end), std::memory_order_relaxed);
  });
  return bad.load();
}

int64_t count_nonfinite(const void* x, FloatType type, int64_t n) {
  require(n >= 0, "group codec: the number of elements must be >= 0");
  const auto& table = kTables.get();
  std::atomic<int64_t> bad{0};
  parallel_for(n, 4 * kGrainElements, [&](int64_t begin, int64_t end) {
    bad.fetch_add(table.count_nonfinite(x, type, begin, end), std::memory_order_relaxed);
  });
  return bad.load();
}

void dequantize_groups(const ConstGroupMatrix& in, void* out, FloatType type) {
  check_shape(in.shape);
  const DequantizeJob job = {in, out, type};
  const auto& table = kTables.get();
  parallel_for(groups(in.shape), grain_groups(in.shape),
               [&](int64_t begin, int64_t end) { table.dequantize(job, begin, end); });
}

}  // namespace lowtide::quant
