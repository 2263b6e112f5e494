// SPDX-License-Identifier: Apache-2.0
// The same bits as fwht_ref.cc: a row in L1 with its first stages inside of registers, or 16
// columns side by side; three stages a pass over the buffer. What limits it: rows, loads and stores
// of L1 (a third of log2(n) passes); columns, L2. Compiled once per ISA with LT_ISA naming the
// table.
#include "base/simd.h"
#include "lowrank/fwht_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::lowrank {
namespace {

LT_SIMD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LT_SIMD vf32 widen(const float* p) { return load<vf32>(p); }
LT_SIMD vf32 widen(const uint16_t* p) { return bf16_to_float(load<vu16>(p)); }
LT_SIMD float one(const float* p) { return *p; }
LT_SIMD float one(const uint16_t* p) { return bf16_to_float(*p); }

// One value of 16 columns, `live` of which are there, times `factor`.
template <class In>
LT_SIMD void take(const In* x, int64_t live, float factor, float* to) {
  if (live == kFwhtLanes)
    for (int w = 0; w < kFwhtLanes; w += kLanes) store(to + w, widen(x + w) * splat(factor));
  else
    for (int w = 0; w < kFwhtLanes; ++w) to[w] = w < live ? one(x + w) * factor : 0.0f;
}
LT_SIMD void give(const float* from, int64_t live, float factor, float* out) {
  if (live == kFwhtLanes)
    for (int w = 0; w < kFwhtLanes; w += kLanes)
      store(out + w, load<vf32>(from + w) * splat(factor));
  else
    for (int64_t w = 0; w < live; ++w) out[w] = from[w] * factor;
}

// 2^kStages values at x, x + stride ..: stages stride, 2 stride .. in registers. Both are whole
// vectors.
template <int kStages>
LT_SIMD void together(float* x, int64_t stride) {
  constexpr int kValues = 1 << kStages;
  vf32 v[kValues];
#pragma GCC unroll 8
  for (int i = 0; i < kValues; ++i) v[i] = load<vf32>(x + i * stride);
#pragma GCC unroll 3
  for (int d = 1; d < kValues; d *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < kValues; ++i)
      if ((i & d) == 0) fwht_butterfly(v[i], v[i + d]);
#pragma GCC unroll 8
  for (int i = 0; i < kValues; ++i) store(x + i * stride, v[i]);
}

template <int kStages>
LT_SIMD void pass(float* x, int64_t total, int64_t stride) {
  for (int64_t i = 0; i < total; i += stride << kStages)
    for (int64_t j = i; j < i + stride; j += kLanes) together<kStages>(x + j, stride);
}

// All stages from `stride`, a multiple of kLanes, up to total / 2.
LT_SIMD void long_stages(float* x, int64_t total, int64_t stride) {
  for (; 8 * stride <= total; stride *= 8) pass<3>(x, total, stride);
  if (4 * stride <= total)
    pass<2>(x, total, stride);
  else if (2 * stride <= total)
    pass<1>(x, total, stride);
}

// Lane i becomes x[i] + x[i ^ d], or x[i ^ d] - x[i] where i has bit d.
template <int d>
LT_SIMD vf32 within(vf32 x) {
  vi32 swapped;
  vu32 minus;
  for (int i = 0; i < kLanes; ++i) {
    swapped[i] = i ^ d;
    minus[i] = (i & d) != 0 ? 0x80000000u : 0u;
  }
  return __builtin_shuffle(x, swapped) + as_f(as_u(x) ^ minus);
}

// Stages 1, 2 .. kLanes / 2 of every vector.
LT_SIMD void short_stages(float* x, int64_t total) {
  for (int64_t i = 0; i < total; i += kLanes) {
    vf32 v = within<2>(within<1>(load<vf32>(x + i)));
    if constexpr (kLanes > 4) v = within<4>(v);
    if constexpr (kLanes > 8) v = within<8>(v);
    store(x + i, v);
  }
}

void row_span(float* x, int64_t h) {
  if (h >= kLanes) {
    short_stages(x, h);
    long_stages(x, h, kLanes);
    return;
  }
  for (int64_t stride = 1; stride < h; stride *= 2)
    for (int64_t i = 0; i < h; i += 2 * stride)
      for (int64_t j = i; j < i + stride; ++j) fwht_butterfly(x[j], x[j + stride]);
}

// kWidth values side by side for each of the line's: 1 (a row) or 16 (columns).
template <int kWidth>
LT_SIMD void span(const FwhtPlan& p, int s, float* line) {
  float* const x = line + kWidth * fwht_start(p, s);
  if constexpr (kWidth == 1)
    row_span(x, p.h);
  else
    long_stages(x, kWidth * p.h, kWidth);
}

template <int kWidth>
LT_SIMD void scale(const FwhtJob& job, int s, float* line) {
  const float* const factors = job.factors + s * job.plan.n;
  const int64_t n = job.plan.n;
  if constexpr (kWidth == 1) {
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes)
      store(line + c, load<vf32>(line + c) * load<vf32>(factors + c));
    for (; c < n; ++c) line[c] = line[c] * factors[c];
  } else {
    for (int64_t c = 0; c < n; ++c)
      for (int w = 0; w < kWidth; w += kLanes)
        store(line + kWidth * c + w, load<vf32>(line + kWidth * c + w) * splat(factors[c]));
  }
}

template <class In>
void forward_row(const FwhtJob& job, int64_t l, float* line) {
  const int64_t n = job.plan.n;
  const In* const x = static_cast<const In*>(job.in.x) + l * n;
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store(line + c, widen(x + c) * load<vf32>(job.factors + c));
  for (; c < n; ++c) line[c] = one(x + c) * job.factors[c];
  span<1>(job.plan, 0, line);
  if (job.plan.spans > 1) {
    scale<1>(job, 1, line);
    span<1>(job.plan, 1, line);
  }
  float* const out = job.out + l * job.count;
  if (job.index == nullptr)
    for (int64_t j = 0; j < job.count; ++j) out[j] = line[j];
  else
    for (int64_t j = 0; j < job.count; ++j) out[j] = line[job.index[j]];
}

void inverse_row(const FwhtJob& job, int64_t l, float* line) {
  const int64_t n = job.plan.n;
  const float* const low = static_cast<const float*>(job.in.x) + l * job.count;
  if (job.count < n)
    for (int64_t c = 0; c < n; ++c) line[c] = 0.0f;
  if (job.index == nullptr)
    for (int64_t j = 0; j < job.count; ++j) line[j] = low[j];
  else
    for (int64_t j = 0; j < job.count; ++j) line[job.index[j]] = low[j];
  if (job.plan.spans > 1) {
    span<1>(job.plan, 1, line);
    scale<1>(job, 1, line);
  }
  span<1>(job.plan, 0, line);
  float* const out = job.out + l * n;
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    store(out + c, load<vf32>(line + c) * load<vf32>(job.factors + c));
  for (; c < n; ++c) out[c] = line[c] * job.factors[c];
}

// Columns first .. first + 15 of those that are there.
template <class In>
void forward_columns(const FwhtJob& job, int64_t first, float* line) {
  const int64_t n = job.plan.n, cols = job.in.cols, live = least(kFwhtLanes, cols - first);
  const In* const x = static_cast<const In*>(job.in.x) + first;
  for (int64_t c = 0; c < n; ++c) {
    prefetch(x + c * cols, 64);  // the next columns', which no hardware stream finds
    take(x + c * cols, live, job.factors[c], line + kFwhtLanes * c);
  }
  span<kFwhtLanes>(job.plan, 0, line);
  if (job.plan.spans > 1) {
    scale<kFwhtLanes>(job, 1, line);
    span<kFwhtLanes>(job.plan, 1, line);
  }
  for (int64_t j = 0; j < job.count; ++j)
    give(line + kFwhtLanes * (job.index != nullptr ? job.index[j] : j), live, 1.0f,
         job.out + j * cols + first);
}

void inverse_columns(const FwhtJob& job, int64_t first, float* line) {
  const int64_t n = job.plan.n, cols = job.in.cols, live = least(kFwhtLanes, cols - first);
  const float* const low = static_cast<const float*>(job.in.x) + first;
  if (job.count < n)
    for (int64_t c = 0; c < kFwhtLanes * n; c += kLanes) store(line + c, vf32{});
  for (int64_t j = 0; j < job.count; ++j)
    take(low + j * cols, live, 1.0f, line + kFwhtLanes * (job.index != nullptr ? job.index[j] : j));
  if (job.plan.spans > 1) {
    span<kFwhtLanes>(job.plan, 1, line);
    scale<kFwhtLanes>(job, 1, line);
  }
  span<kFwhtLanes>(job.plan, 0, line);
  for (int64_t c = 0; c < n; ++c)
    give(line + kFwhtLanes * c, live, job.factors[c], job.out + c * cols + first);
}

// Calls row(l) or columns(first) for the blocks [begin, end) of 16 lines.
template <class Row, class Columns>
LT_SIMD void for_lines(const FwhtJob& job, int64_t begin, int64_t end, const Row& row,
                       const Columns& columns) {
  const int64_t stop = least(fwht_lines(job.in), end * kFwhtLanes);
  if (job.in.lines == Lines::rows)
    for (int64_t l = begin * kFwhtLanes; l < stop; ++l) row(l);
  else
    for (int64_t l = begin * kFwhtLanes; l < stop; l += kFwhtLanes) columns(l);
}

void forward_simd(const FwhtJob& job, int64_t begin, int64_t end, float* work) {
  const bool f32 = job.in.type == quant::FloatType::f32;
  for_lines(
      job, begin, end,
      [&](int64_t l) {
        f32 ? forward_row<float>(job, l, work) : forward_row<uint16_t>(job, l, work);
      },
      [&](int64_t l) {
        f32 ? forward_columns<float>(job, l, work) : forward_columns<uint16_t>(job, l, work);
      });
}

void inverse_simd(const FwhtJob& job, int64_t begin, int64_t end, float* work) {
  for_lines(
      job, begin, end, [&](int64_t l) { inverse_row(job, l, work); },
      [&](int64_t l) { inverse_columns(job, l, work); });
}

}  // namespace

extern const FwhtTable LT_CAT(fwht_, LT_ISA);
const FwhtTable LT_CAT(fwht_, LT_ISA) = {forward_simd, inverse_simd};

}  // namespace lowtide::lowrank
