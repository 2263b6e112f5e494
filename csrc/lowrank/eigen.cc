// SPDX-License-Identifier: Apache-2.0
// Householder tridiagonalisation, then implicit QL with Wilkinson's shift (Golub and Van Loan,
// "Matrix Computations", 4th ed., 8.3). Eigenvectors are kept as rows, so that reflectors and
// rotations are operations on contiguous rows; the rotations of many QL sweeps are applied
// together.
#include "lowrank/eigen.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "base/fpenv.h"
#include "base/parallel.h"
#include "lowrank/small_dense.h"

namespace lowtide::lowrank {
namespace {

using Vec = std::vector<double>;

Vec zeros(int64_t n) { return Vec(static_cast<size_t>(n)); }

// a = Q T Q'; T in d (diagonal) and e (e[i] couples i and i + 1); rows of qt are columns of Q.
void tridiagonalize(double* a, int64_t n, double* d, double* e, double* qt, const RowOps& ops) {
  Vec beta = zeros(n), p = zeros(n), u = zeros(n);
  for (int64_t k = 0; k + 2 < n; ++k) {
    const int64_t m = n - k - 1;
    double* v = a + k * n + k + 1;  // stays there for the accumulation of Q
    beta[static_cast<size_t>(k)] = reflector(v, m, e + k, ops);
    const double b = beta[static_cast<size_t>(k)];
    if (b == 0.0) continue;
    std::fill(p.begin(), p.begin() + m, 0.0);
    double* sub = a + (k + 1) * n + k + 1;
    for (int64_t j = 0; j < m; ++j) ops.axpy(p.data(), b * v[j], sub + j * n, m);
    ops.axpy(p.data(), -0.5 * b * ops.dot(p.data(), v, m), v, m);
    for (int64_t j = 0; j < m; ++j)
      ops.axpy2(sub + j * n, -v[j], p.data(), -p[static_cast<size_t>(j)], v, m);
  }
  if (n >= 2) e[n - 2] = a[(n - 2) * n + n - 1];
  for (int64_t i = 0; i < n; ++i) d[i] = a[i * n + i];

  Vec q = zeros(n * n);  // Q = H0 H1 ..., built from the last reflector on
  for (int64_t i = 0; i < n; ++i) q[static_cast<size_t>(i * n + i)] = 1.0;
  for (int64_t k = n - 3; k >= 0; --k) {
    const double b = beta[static_cast<size_t>(k)];
    if (b == 0.0) continue;
    const int64_t m = n - k - 1;
    const double* v = a + k * n + k + 1;
    double* sub = q.data() + (k + 1) * n + k + 1;
    std::fill(u.begin(), u.begin() + m, 0.0);
    for (int64_t j = 0; j < m; ++j) ops.axpy(u.data(), v[j], sub + j * n, m);
    for (int64_t j = 0; j < m; ++j) ops.axpy(sub + j * n, -b * v[j], u.data(), m);
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) qt[j * n + i] = q[static_cast<size_t>(i * n + j)];
}

// Rotations of QL sweeps, to be applied together: a block of columns of z stays in L1 meanwhile,
// and blocks are independent.
class Sweeps {
 public:
  Sweeps(double* z, int64_t n, const RowOps& ops) : z_(z), n_(n), ops_(ops) {}

  // c[i], s[i] for i in [first, last].
  void add(const double* c, const double* s, int64_t first, int64_t last) {
    if (last < first) return;
    sweeps_.push_back({first, last, c_.size()});
    c_.insert(c_.end(), c + first, c + last + 1);
    s_.insert(s_.end(), s + first, s + last + 1);
    if (c_.size() > kMost) apply();
  }

  void apply() {
    parallel_for((n_ + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * kColumns; k < std::min(n_, end * kColumns); k += kColumns)
        for (const Sweep& w : sweeps_)
          ops_.rotate(z_ + w.first * n_ + k, n_, std::min(kColumns, n_ - k), c_.data() + w.at,
                      s_.data() + w.at, 0, w.last - w.first);
    });
    sweeps_.clear();
    c_.clear();
    s_.clear();
  }

 private:
  static constexpr int64_t kColumns = 32;
  static constexpr size_t kMost = size_t{1} << 15;
  struct Sweep {
    int64_t first, last;
    size_t at;
  };
  double* z_;
  int64_t n_;
  const RowOps& ops_;
  std::vector<Sweep> sweeps_;
  Vec c_, s_;
};

// T = S diag(d) S'; z becomes S' z.
void implicit_ql(double* d, double* e, int64_t n, double* z, const RowOps& ops) {
  double size = 0.0;
  for (int64_t i = 0; i < n; ++i)
    size = std::max(size, std::fabs(d[i]) + (i + 1 < n ? std::fabs(e[i]) : 0.0));
  const double negligible = DBL_EPSILON * size;
  Vec cosines = zeros(n), sines = zeros(n);
  Sweeps sweeps(z, n, ops);
  for (int64_t l = 0; l < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      int64_t m = l;
      while (m + 1 < n && !(std::fabs(e[m]) <= negligible)) ++m;
      if (m == l) break;
      if (sweep == 60)
        throw Error(ErrorKind::runtime, "symmetric_eigen: no convergence (is the input finite?)");
      double g = (d[l + 1] - d[l]) / (2.0 * e[l]);
      g = d[m] - d[l] + e[l] / (g + std::copysign(std::sqrt(g * g + 1.0), g));
      double s = 1.0, c = 1.0, p = 0.0;
      int64_t i = m - 1;
      for (; i >= l; --i) {
        const double f = s * e[i], b = c * e[i];
        const double r = std::sqrt(f * f + g * g);
        e[i + 1] = r;
        if (r == 0.0) {  // the matrix splits here
          d[i + 1] -= p;
          e[m] = 0.0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        const double t = (d[i] - g) * s + 2.0 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        cosines[static_cast<size_t>(i)] = c;
        sines[static_cast<size_t>(i)] = s;
      }
      sweeps.add(cosines.data(), sines.data(), i + 1, m - 1);
      if (i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0.0;
    }
  }
  sweeps.apply();
}

}  // namespace

void symmetric_eigen(double* a, int64_t n, double* values, double* vectors) {
  if (n == 0) return;
  PinnedFpEnv pin;
  const RowOps& ops = row_ops();
  // Squares of entries must neither overflow nor vanish: work on a / 2^k with entries up to 1.
  double largest = 0.0;
  for (int64_t i = 0; i < n * n; ++i) largest = std::max(largest, std::fabs(a[i]));
  int exponent = 0;
  std::frexp(largest, &exponent);
  for (int64_t i = 0; i < n * n; ++i) a[i] = std::ldexp(a[i], -exponent);

  Vec d = zeros(n), e = zeros(n), z = zeros(n * n);
  tridiagonalize(a, n, d.data(), e.data(), z.data(), ops);
  implicit_ql(d.data(), e.data(), n, z.data(), ops);

  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return d[static_cast<size_t>(i)] > d[static_cast<size_t>(j)];
  });
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = order[static_cast<size_t>(i)];
    values[i] = std::ldexp(d[static_cast<size_t>(from)], exponent);
    std::copy_n(z.data() + from * n, n, vectors + i * n);
  }
}

}  // namespace lowtide::lowrank
