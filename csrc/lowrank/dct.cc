// SPDX-License-Identifier: Apache-2.0
// The seam, and the table of constants: sines and cosines of rational angles, by exact reduction to
// an octant and series in double, so that a table has the same bits on every machine.
#include "lowrank/dct.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "lowrank/dct_table.h"
#include "lowrank/floats.h"

namespace lowtide::lowrank {
namespace {

constexpr auto kTables = LT_TABLES(DctTable, dct);
constexpr double kPi = 3.14159265358979323846;

struct Angle {
  double cos, sin;
};

// x in [0, pi / 4]; the next term is below 2^-55.
Angle series(double x) {
  const double y = x * x;
  double c = 0, s = 0;
  for (int k = 16; k >= 2; k -= 2) {
    c = (c + 1.0) * -y / (k * (k - 1));
    s = (s + 1.0) * -y / (k * (k + 1));
  }
  return {c + 1.0, (s + 1.0) * x};
}

// Of 2 pi num / den.
Angle angle(int64_t num, int64_t den) {
  num = num % den * 8;  // in units of 1 / (8 den) of a turn: octants are multiples of den
  const int64_t octant = num / den;
  const int64_t rest = octant % 2 == 0 ? num - octant * den : (octant + 1) * den - num;
  const Angle a = series(kPi / 4 * (static_cast<double>(rest) / static_cast<double>(den)));
  switch (octant) {
    case 0:
      return {a.cos, a.sin};
    case 1:
      return {a.sin, a.cos};
    case 2:
      return {-a.sin, a.cos};
    case 3:
      return {-a.cos, a.sin};
    case 4:
      return {-a.cos, -a.sin};
    case 5:
      return {-a.sin, -a.cos};
    case 6:
      return {a.sin, -a.cos};
    default:
      return {a.cos, -a.sin};
  }
}

float* put_angle(float* out, int64_t num, int64_t den, double scale = 1.0) {
  const Angle a = angle(num, den);
  out[0] = static_cast<float>(a.cos * scale);
  out[1] = static_cast<float>(a.sin * scale);
  return out + 2;
}

void check_length(int64_t n) {
  require(n >= 1 && n <= kDctMost, "dct: lines must have 1 to 1048576 values");
}

// Tables by length, never given back. Without a lock, which a fork could find taken: two threads
// that need the same new table both make it.
struct Kept {
  int64_t n;
  std::vector<float> table;
  const Kept* next;
};
std::atomic<const Kept*> kept{nullptr};

const float* table_of(int64_t n) {
  for (const Kept* k = kept.load(std::memory_order_acquire); k != nullptr; k = k->next)
    if (k->n == n) return k->table.data();
  auto made = std::make_unique<Kept>();
  made->n = n;
  made->table.resize(static_cast<size_t>(dct_table_size(n)));
  make_dct_table(made->table.data(), n);
  made->next = kept.load(std::memory_order_relaxed);
  while (!kept.compare_exchange_weak(made->next, made.get(), std::memory_order_release)) {
  }
  return made.release()->table.data();
}

DctJob make_job(const DctMatrix& x, const int32_t* index, int64_t count, float* out) {
  require(x.rows >= 0 && x.cols >= 0, "dct: sizes must be >= 0");
  require(x.type == quant::FloatType::f32 || x.type == quant::FloatType::bf16,
          "dct: x must be float32 or bfloat16");
  const int64_t n = dct_length(x);
  check_length(n);
  require(count >= 0 && (index != nullptr ? count <= n : count == n),
          "dct: count must be the number of coefficients");
  for (int64_t j = 0; index != nullptr && j < count; ++j)
    require(index[j] >= (j == 0 ? 0 : index[j - 1] + 1) && index[j] < n,
            "dct: index must ascend within [0, n)");
  return {dct_plan(n), table_of(n), x, index, count, Power::square, out};
}

// f(begin, end, work) over blocks of lines.
template <class F>
void for_blocks(const DctPlan& plan, int64_t blocks, int64_t lines_of_block, const F& f) {
  const int64_t grain = 1 + (int64_t{1} << 16) / (plan.n * lines_of_block);
  parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
    constexpr uintptr_t kLine = 64;
    Floats room(static_cast<size_t>(dct_work(plan)) + kLine / sizeof(float));
    const auto at = reinterpret_cast<uintptr_t>(room.data());
    f(begin, end, reinterpret_cast<float*>((at + kLine - 1) / kLine * kLine));
  });
}

int64_t blocks_of(int64_t lines, int64_t each) { return (lines + each - 1) / each; }

}  // namespace

int64_t dct_table_size(int64_t n) {
  check_length(n);
  return dct_plan(n).table;
}

void make_dct_table(float* table, int64_t n) {
  check_length(n);
  const DctPlan p = dct_plan(n);
  float* out = table;
  int64_t left = p.m;
  for (int s = 0; s < p.stages; ++s) {
    const int64_t radix = p.radix[s];
    for (int64_t j = 0; j < left / radix; ++j)
      for (int64_t u = 1; u < radix; ++u) out = put_angle(out, j * u, left);
    if (dct_has_roots(p.radix[s]))
      for (int64_t t = 0; t < radix; ++t) out = put_angle(out, t, radix);
    left /= radix;
  }
  if (dct_even(p))
    for (int64_t k = 0; k <= p.m / 2; ++k) out = put_angle(out, k, n);
  const double scale = 1.0 / std::sqrt(2.0 * static_cast<double>(n));
  const int64_t last = dct_even(p) ? p.m : p.m - 1;
  for (int64_t k = 0; k <= last; ++k) out = put_angle(out, k, 4 * n, scale);
  table[p.rotate] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
}

void dct_forward(float* out, const DctMatrix& x, const int32_t* index, int64_t count) {
  const DctJob job = make_job(x, index, count, out);
  const auto& kernel = kTables.get();
  for_blocks(
      job.plan, blocks_of(dct_lines(x), kDctLanes), kDctLanes,
      [&](int64_t begin, int64_t end, float* work) { kernel.forward(job, begin, end, work); });
}

void dct_inverse(float* out, int64_t rows, int64_t cols, Lines lines, const float* low,
                 const int32_t* index, int64_t count) {
  const DctMatrix x = {low, quant::FloatType::f32, rows, cols, lines};
  const DctJob job = make_job(x, index, count, out);
  const auto& kernel = kTables.get();
  for_blocks(
      job.plan, blocks_of(dct_lines(x), kDctLanes), kDctLanes,
      [&](int64_t begin, int64_t end, float* work) { kernel.inverse(job, begin, end, work); });
}

void dct_power(float* sums, const DctMatrix& x, Power power) {
  const int64_t n = dct_length(x);
  DctJob job = make_job(x, nullptr, n, nullptr);
  const int64_t blocks = blocks_of(dct_lines(x), kDctPowerLines);
  Floats part(static_cast<size_t>(blocks * n));
  job.out = part.data();
  job.power = power;
  const auto& kernel = kTables.get();
  for_blocks(job.plan, blocks, kDctPowerLines, [&](int64_t begin, int64_t end, float* work) {
    for (int64_t b = begin; b < end; ++b) kernel.power(job, b, work);
  });
  for (int64_t k = 0; k < n; ++k) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += part[static_cast<size_t>(b * n + k)];
    sums[k] = static_cast<float>(sum);
  }
}

}  // namespace lowtide::lowrank
