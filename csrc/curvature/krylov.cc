// SPDX-License-Identifier: Apache-2.0
// The seam: arguments checked once, columns cut into chunks of constant size, the active ISA's
// table called, sums of chunks joined by the fixed tree.
#include "curvature/krylov.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/fpenv.h"
#include "base/parallel.h"
#include "base/reduce.h"
#include "curvature/krylov_order.h"
#include "curvature/krylov_table.h"

namespace lowtide::curvature {
namespace {

constexpr auto kTables = LT_TABLES(KrylovTable, krylov);
constexpr int64_t kGrainElements = int64_t{1} << 17;  // enough to pay for waking a thread

void check(const Basis& q) {
  require(q.rows >= 0 && q.n >= 0, "krylov: the basis has a negative size");
  require(q.type == BasisType::f32 || q.type == BasisType::bf16 || q.type == BasisType::int8,
          "krylov: unknown type of the basis");
  require((q.type == BasisType::int8) == (q.scale != nullptr) || q.rows == 0 || q.n == 0,
          "krylov: an int8 basis has scales, others have none");
}

Basis one_row(const float* x, int64_t n) { return {x, nullptr, BasisType::f32, 1, n}; }

// out[i] = the tree over chunks of what work(begin, end, sums) adds to sums[i].
template <class F>
void sum_chunks(double* out, int64_t count, int64_t n, int64_t rows, const F& work) {
  const int64_t chunks = (n + kKrylovChunk - 1) / kKrylovChunk;
  std::vector<double> part(static_cast<size_t>(chunks * count), 0.0);
  const int64_t chunk_work = (rows + 1) * kKrylovChunk;
  parallel_for(chunks, std::max<int64_t>(1, kGrainElements / chunk_work),
               [&](int64_t begin, int64_t end) {
                 for (int64_t chunk = begin; chunk < end; ++chunk)
                   work(chunk * kKrylovChunk, std::min(n, (chunk + 1) * kKrylovChunk),
                        part.data() + chunk * count);
               });
  std::vector<double> column(static_cast<size_t>(chunks));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      column[static_cast<size_t>(chunk)] = part[static_cast<size_t>(chunk * count + i)];
    out[i] = tree_sum(column);
  }
}

void to_floats(std::vector<float>& out, const double* c) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = to_float_rn(c[i]);
}

}  // namespace

void basis_dots(double* c, const Basis& q, const float* w) {
  check(q);
  const auto& table = kTables.get();
  sum_chunks(c, q.rows, q.n, q.rows,
             [&](int64_t begin, int64_t end, double* sums) { table.dots(sums, q, w, begin, end); });
}

Projection project(double* c, const Basis& q, float* w, double again) {
  check(q);
  require(again >= 0, "krylov: again must not be negative");
  const auto& table = kTables.get();
  const Basis itself = one_row(w, q.n);
  const auto m = static_cast<size_t>(q.rows);
  std::vector<double> sums(m + 1);  // coefficients, then the square of the norm
  std::vector<float> rounded(m);
  Projection result;

  sum_chunks(sums.data(), q.rows + 1, q.n, q.rows, [&](int64_t begin, int64_t end, double* s) {
    table.dots(s, q, w, begin, end);
    table.dots(s + q.rows, itself, w, begin, end);
  });
  result.before = sums[m];
  std::copy(sums.begin(), sums.begin() + q.rows, c);
  to_floats(rounded, c);

  sum_chunks(sums.data(), q.rows + 1, q.n, 2 * q.rows, [&](int64_t begin, int64_t end, double* s) {
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      const int64_t last = std::min(end, tile + kKrylovTile);
      table.subtract(w, q, rounded.data(), tile, last);
      table.dots(s, q, w, tile, last);
      table.dots(s + q.rows, itself, w, tile, last);
    }
  });
  result.after = sums[m];
  result.passes = 1;
  for (size_t i = 0; i < m; ++i) result.left += sums[i] * sums[i];
  if (!(result.left > again * again * result.after)) return result;

  to_floats(rounded, sums.data());
  for (size_t i = 0; i < m; ++i) c[i] += sums[i];
  sum_chunks(&result.after, 1, q.n, q.rows, [&](int64_t begin, int64_t end, double* s) {
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      const int64_t last = std::min(end, tile + kKrylovTile);
      table.subtract(w, q, rounded.data(), tile, last);
      table.dots(s, itself, w, tile, last);
    }
  });
  result.passes = 2;
  return result;
}

LanczosStep lanczos_step(float* w, const float* q, const float* previous, double beta, int64_t n) {
  require(n >= 0, "lanczos_step: n must not be negative");
  const auto& table = kTables.get();
  const Basis now = one_row(q, n), before = one_row(previous, n), itself = one_row(w, n);
  const float b = to_float_rn(beta);
  LanczosStep result;
  sum_chunks(&result.alpha, 1, n, 2, [&](int64_t begin, int64_t end, double* s) {
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      const int64_t last = std::min(end, tile + kKrylovTile);
      if (previous != nullptr) table.subtract(w, before, &b, tile, last);
      table.dots(s, now, w, tile, last);
    }
  });
  const float a = to_float_rn(result.alpha);
  sum_chunks(&result.norm2, 1, n, 2, [&](int64_t begin, int64_t end, double* s) {
    for (int64_t tile = begin; tile < end; tile += kKrylovTile) {
      const int64_t last = std::min(end, tile + kKrylovTile);
      table.subtract(w, now, &a, tile, last);
      table.dots(s, itself, w, tile, last);
    }
  });
  return result;
}

}  // namespace lowtide::curvature
