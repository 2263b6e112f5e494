// SPDX-License-Identifier: Apache-2.0
// The same bits as dct_ref.cc: a lane holds a line, rows are transposed tile by tile on the way in
// and out. Compiled once per ISA with LT_ISA naming the table.
#include "base/transpose_simd.h"
#include "lowrank/dct_scalar.h"
#include "lowrank/dct_table.h"

#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

namespace lowtide::lowrank {
namespace {

LT_SIMD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LT_SIMD vf32 load_some(const float* p, int64_t n) {
  if (n >= kLanes) return load<vf32>(p);
  vf32 v = {};
  if (n > 0) __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
}
LT_SIMD vf32 load_some(const uint16_t* p, int64_t n) {
  if (n >= kLanes) return bf16_to_float(load<vu16>(p));
  vu16 v = {};
  if (n > 0) __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return bf16_to_float(v);
}
LT_SIMD void store_some(float* p, vf32 v, int64_t n) {
  if (n >= kLanes)
    store(p, v);
  else if (n > 0)
    __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof *p);
}

// Lines [first, first + live), live <= kLanes, of a matrix with `values` each.
template <class T>
struct LineBlock {
  T* x;
  int64_t stride;  // of rows of the matrix
  int64_t live, values;
  bool along_rows;

  // f(c, vector of the lines' values c).
  template <class F>
  inline __attribute__((always_inline)) void load(const F& f) const {
    if (!along_rows) {
      for (int64_t c = 0; c < values; ++c) {
        prefetch(x + c * stride, 64);  // the next lines', which no hardware stream finds
        f(c, load_some(x + c * stride, live));
      }
      return;
    }
    for (int64_t c = 0; c < values; c += kLanes) {
      const int64_t here = least(kLanes, values - c);
      vf32 v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        v[i] = i < live ? load_some(x + i * stride + c, here) : vf32{};
      transpose(v);
      for (int64_t i = 0; i < here; ++i) f(c + i, v[i]);
    }
  }

  // The lines' values c become f(c).
  template <class F>
  inline __attribute__((always_inline)) void save(const F& f) const {
    if (!along_rows) {
      for (int64_t c = 0; c < values; ++c) store_some(x + c * stride, f(c), live);
      return;
    }
    for (int64_t c = 0; c < values; c += kLanes) {
      const int64_t here = least(kLanes, values - c);
      vf32 v[kLanes] = {};
      for (int64_t i = 0; i < here; ++i) v[i] = f(c + i);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (i < live) store_some(x + i * stride + c, v[i], here);
    }
  }
};

template <class T>
LT_SIMD LineBlock<T> block_of(T* x, Lines lines, int64_t rows, int64_t cols, int64_t first,
                              int64_t values) {
  const bool along_rows = lines == Lines::rows;
  const int64_t stride = along_rows ? values : cols;
  return {x + (along_rows ? first * stride : first), stride,
          least(kLanes, (along_rows ? rows : cols) - first), values, along_rows};
}

// Inlined with a constant radix; any other goes through the general butterfly.
LT_SIMD void stage(int p, const vf32* __restrict x, vf32* __restrict y, int64_t groups,
                   int64_t stride, const float* __restrict twiddles) {
  for (int64_t j = 0; j < groups; ++j)
    for (int64_t q = 0; q < stride; ++q) dct_butterfly(p, x, y, groups, stride, j, q, twiddles);
}

struct Buffers {
  vf32 *x, *y;
};

inline Buffers buffers(const DctPlan& p, float* work) {
  auto* x = reinterpret_cast<vf32*>(work);
  return {x, x + dct_room(p)};
}

// The FFT of b.x; its result is in b.x afterwards, and b.y is free.
void transform(const DctJob& job, Buffers& b) {
  const float* twiddles = job.table;
  int64_t left = job.plan.m, stride = 1;
  for (int s = 0; s < job.plan.stages; ++s) {
    const int p = job.plan.radix[s];
    const int64_t groups = left / p;
    const auto run = [&](int radix) __attribute__((always_inline)) {
      stage(radix, b.x, b.y, groups, stride, twiddles);
    };
    switch (p) {
      case 8:
        run(8);
        break;
      case 4:
        run(4);
        break;
      case 2:
        run(2);
        break;
      case 3:
        run(3);
        break;
      case 5:
        run(5);
        break;
      default:
        run(p);
    }
    twiddles += dct_stage_floats(p, left);
    left = groups, stride *= p;
    b = {b.y, b.x};
  }
}

template <class In>
LT_SIMD const vf32* coefficients(const DctJob& job, int64_t first, float* work) {
  const DctPlan& p = job.plan;
  Buffers b = buffers(p, work);
  if (!dct_even(p))
    for (int64_t i = 0; i < 2 * p.m; ++i) b.x[i] = vf32{};
  const auto in = block_of(static_cast<const In*>(job.in.x), job.in.lines, job.in.rows, job.in.cols,
                           first, p.n);
  vf32* const to = b.x;
  in.load([&](int64_t c, vf32 v) { to[dct_slot(p, c)] = v; });
  transform(job, b);
  const int64_t pairs = dct_pairs(p);
  for (int64_t k = 0; k < pairs; ++k) dct_coefficients(p, job.table, b.x, b.y, k);
  return b.y;
}

template <class In>
void forward_from(const DctJob& job, int64_t begin, int64_t end, float* work) {
  const int64_t lines = dct_lines(job.in);
  const int64_t stop = least(lines, end * kDctLanes);
  for (int64_t first = begin * kDctLanes; first < stop; first += kLanes) {
    const vf32* s = coefficients<In>(job, first, work);
    const auto out = block_of(job.out, job.in.lines, job.in.rows, job.in.cols, first, job.count);
    if (job.index == nullptr)
      out.save([&](int64_t j) { return s[j]; });
    else
      out.save([&](int64_t j) { return s[job.index[j]]; });
  }
}

void forward_simd(const DctJob& job, int64_t begin, int64_t end, float* work) {
  if (job.in.type == quant::FloatType::f32)
    forward_from<float>(job, begin, end, work);
  else
    forward_from<uint16_t>(job, begin, end, work);
}

// The values of kLanes lines: in b.x, at dct_slot_back.
LT_SIMD Buffers points(const DctJob& job, int64_t first, float* work) {
  const DctPlan& p = job.plan;
  const DctMatrix& m = job.in;
  Buffers b = buffers(p, work);
  vf32* const s = b.x;
  if (job.count < p.n)
    for (int64_t k = 0; k < p.n; ++k) s[k] = vf32{};
  const auto low =
      block_of(static_cast<const float*>(m.x), m.lines, m.rows, m.cols, first, job.count);
  if (job.index == nullptr)
    low.load([&](int64_t j, vf32 v) { s[j] = v; });
  else
    low.load([&](int64_t j, vf32 v) { s[job.index[j]] = v; });
  for (int64_t k = 0; k < dct_pairs(p); ++k) dct_points(p, job.table, b.x, b.y, k);
  b = {b.y, b.x};
  transform(job, b);
  return b;
}

// Columns: kDctTogether lines are put together before any is written, so that a row of the matrix,
// pages away from the next one, is met once for four cache lines and not once for each.
void inverse_columns(const DctJob& job, int64_t begin, int64_t end, float* work) {
  const DctPlan& p = job.plan;
  const DctMatrix& m = job.in;
  float* const out = work + dct_work(p) - kDctTogether * p.n;
  const int64_t stop = least(dct_lines(m), end * kDctLanes);
  for (int64_t group = begin * kDctLanes; group < stop; group += kDctTogether) {
    const int64_t last = least(stop, group + kDctTogether);
    for (int64_t first = group; first < last; first += kLanes) {
      const vf32* const x = points(job, first, work).x;
      float* const to = out + (first - group);
      for (int64_t c = 0; c < p.n; ++c) store(to + c * kDctTogether, x[dct_slot_back(p, c)]);
    }
    for (int64_t c = 0; c < p.n; ++c)
      for (int64_t first = group; first < last; first += kLanes)
        store_some(job.out + c * m.cols + first, load<vf32>(out + c * kDctTogether + first - group),
                   last - first);
  }
}

void inverse_simd(const DctJob& job, int64_t begin, int64_t end, float* work) {
  const DctPlan& p = job.plan;
  const DctMatrix& m = job.in;
  if (m.lines == Lines::columns) return inverse_columns(job, begin, end, work);
  const int64_t stop = least(dct_lines(m), end * kDctLanes);
  for (int64_t first = begin * kDctLanes; first < stop; first += kLanes) {
    const vf32* const x = points(job, first, work).x;
    block_of(job.out, m.lines, m.rows, m.cols, first, p.n).save([&](int64_t c) {
      return x[dct_slot_back(p, c)];
    });
  }
}

template <class In, bool kSquare>
void power_from(const DctJob& job, int64_t block, float* work) {
  const int64_t n = job.plan.n;
  constexpr int kVecs = kDctLanes / kLanes;
  float* const sums = work + dct_work(job.plan) - kDctTogether * n;
  for (int64_t i = 0; i < kDctLanes * n; i += kLanes) store(sums + i, vf32{});
  const int64_t lines = dct_lines(job.in);
  const int64_t begin = block * kDctPowerLines, stop = least(lines, begin + kDctPowerLines);
  for (int64_t first = begin; first < stop; first += kLanes) {
    const vf32* s = coefficients<In>(job, first, work);
    float* const mine = sums + first % kDctLanes;
    for (int64_t k = 0; k < n; ++k) {
      float* const sum = mine + kVecs * kLanes * k;
      store(sum, load<vf32>(sum) + (kSquare ? s[k] * s[k] : abs_f(s[k])));
    }
  }
  for (int64_t k = 0; k < n; ++k) job.out[block * n + k] = dct_fold(sums + kDctLanes * k);
}

void power_simd(const DctJob& job, int64_t block, float* work) {
  const bool square = job.power == Power::square, f32 = job.in.type == quant::FloatType::f32;
  if (f32)
    square ? power_from<float, true>(job, block, work) : power_from<float, false>(job, block, work);
  else
    square ? power_from<uint16_t, true>(job, block, work)
           : power_from<uint16_t, false>(job, block, work);
}

}  // namespace

extern const DctTable LT_CAT(dct_, LT_ISA);
const DctTable LT_CAT(dct_, LT_ISA) = {forward_simd, inverse_simd, power_simd};

}  // namespace lowtide::lowrank
