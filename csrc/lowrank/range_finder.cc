// SPDX-License-Identifier: Apache-2.0
#include "lowrank/range_finder.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "lowrank/eigen.h"
#include "lowrank/orthonormal.h"
#include "lowrank/small_dense.h"
#include "quant/matmul.h"
#include "random/stream.h"

namespace lowtide::lowrank {
namespace {

using quant::dense;
using quant::matmul;
using quant::Operand;

// Products below this are scaled up, lest squares of the gradient vanish.
constexpr float kTiny = 0x1p-100f;
// Weight of the previous basis in a warm step, relative to the largest row: directions that the new
// gradient lacks stay where they were instead of becoming noise.
constexpr double kKeep = 1e-6;
// A subspace that overlaps less than this with the previous one gets a second iteration: after one,
// gradients of consecutive batches (overlap 0.5) were seen at 0.985 of the best energy, after two
// at 0.996. Slow drifts (0.9) are at 0.999 after one.
constexpr double kMoved = 0.75;

enum class Range { good, zero_or_tiny, not_finite };

Range range_of(const Floats& y) {
  const int32_t most = largest_bits(y.data(), static_cast<int64_t>(y.size()));
  if (most >= kInfinityBits) return Range::not_finite;
  return bits_float(static_cast<uint32_t>(most)) < kTiny ? Range::zero_or_tiny : Range::good;
}

// X = G (right) or G' (left) is e x d, times `scale`, a power of two.
struct Matrix {
  const Operand& g;
  bool left;
  float scale = 1;

  int64_t d() const { return left ? g.rows : g.cols; }
  int64_t e() const { return left ? g.cols : g.rows; }

  // y X for y: rows x e, or y X' for y: rows x d.
  Floats times(const Floats& y, int64_t rows, bool transposed) const {
    Floats scaled;
    if (scale != 1) {
      scaled = y;
      for (float& v : scaled) v *= scale;
    }
    const int64_t inner = transposed ? d() : e(), cols = transposed ? e() : d();
    Floats out(static_cast<size_t>(rows * cols));
    matmul(out.data(), dense(scale == 1 ? y.data() : scaled.data(), rows, inner), false, g,
           transposed != left);
    return out;
  }
};

// Good enough to multiply with again: conditioned, not orthonormal to the last bit.
void condition(Floats& y, int64_t rows, int64_t cols) {
  scale_rows(y, rows, cols);
  if (!cholesky_pass(y, rows, cols)) orthonormalize_householder(y.data(), rows, cols);
}

// The `keep` leading left singular vectors of z, as rows; singular values squared in `values`.
std::vector<double> leading(const Floats& z, int64_t rows, int64_t cols,
                            std::vector<double>& values) {
  std::vector<double> g(static_cast<size_t>(rows * rows)), vectors(g.size());
  values.resize(static_cast<size_t>(rows));
  gram(g.data(), z.data(), rows, cols);
  symmetric_eigen(g.data(), rows, values.data(), vectors.data());
  return vectors;
}

// False if a product left the range of float: try again with a scaled matrix.
bool cold(Floats& q, const Matrix& x, int64_t r, const RangeFinder& how,
          const random::Stream& stream) {
  const int64_t l = std::min(r + how.oversample, std::min(x.d(), x.e()));
  Floats sketch(static_cast<size_t>(l * x.e()));
  random::sample(sketch.data(), l * x.e(), 0, stream, random::Dist::gaussian);
  Floats y = x.times(sketch, l, false);
  if (range_of(y) != Range::good) return false;
  std::vector<double> values;
  if (how.power_iters == 0) {
    orthonormalize(y, l, x.d());
    const Floats z = x.times(y, l, true);
    if (range_of(z) != Range::good) return false;
    multiply_small(q, leading(z, l, x.e(), values).data(), r, l, y.data(), x.d());
    return true;
  }
  for (int64_t i = 0; i < how.power_iters; ++i) {
    condition(y, l, x.d());
    Floats z = x.times(y, l, true);
    if (range_of(z) != Range::good) return false;
    condition(z, l, x.e());
    y = x.times(z, l, false);
    if (range_of(y) != Range::good) return false;
  }
  // z has orthonormal rows: the right singular vectors of y = z X are those of X. Rotating and
  // dividing by the singular values is the first pass of a Cholesky-QR.
  std::vector<double> rotation = leading(y, l, x.d(), values);
  const bool full = values[static_cast<size_t>(r - 1)] > 1e-11 * values[0];
  if (full)
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < l; ++j)
        rotation[static_cast<size_t>(i * l + j)] /= std::sqrt(values[static_cast<size_t>(i)]);
  multiply_small(q, rotation.data(), r, l, y.data(), x.d());
  if (!full || !cholesky_pass(q, r, x.d())) orthonormalize(q, r, x.d());
  return true;
}

// w (r x r, singular values below sqrt 3) becomes its orthogonal polar factor by Newton-Schulz:
// singular values grow by 1.5 a step, then converge quadratically. False if some stay near zero.
bool polar(Floats& w, int64_t r) {
  double square = 0;
  for (float v : w) square += static_cast<double>(v) * v;
  // An orthonormal pair of bases cannot give more than r; beyond that scale into the safe region.
  const float shrink =
      square > 1.5 * static_cast<double>(r) ? static_cast<float>(1.0 / std::sqrt(square)) : 1.0f;
  for (float& v : w) v *= shrink;
  Floats p(w.size()), pw(w.size());
  for (int step = 0; step < 60; ++step) {
    matmul(p.data(), dense(w.data(), r, r), false, dense(w.data(), r, r), true);
    float off = 0;
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < r; ++j)
        off = std::max(off, std::fabs(p[static_cast<size_t>(i * r + j)] - (i == j ? 1.0f : 0.0f)));
    if (!(off < 1e3f)) return false;
    matmul(pw.data(), dense(p.data(), r, r), false, dense(w.data(), r, r), false);
    for (size_t i = 0; i < w.size(); ++i) w[i] = 1.5f * w[i] - 0.5f * pw[i];
    if (off < 3e-4f) return true;
  }
  return false;
}

// A basis y of the new subspace on its way to the orthonormal one closest to prev.
struct Turn {
  Floats fix;  // r x r: fix y has orthonormal rows
  Floats w;    // r x r: prev (fix y)', the cosines between the two bases
};

// Conditions y and compares it with prev. Returns the mean squared cosine of the angles between the
// two subspaces: 1 if nothing moved.
double compare(Floats& y, int64_t r, int64_t d, const float* prev, Turn& turn) {
  condition(y, r, d);
  std::vector<double> g(static_cast<size_t>(r * r)), inverse(g.size());
  gram(g.data(), y.data(), r, d);
  if (!cholesky_inverse(g.data(), r, inverse.data())) {
    orthonormalize_householder(y.data(), r, d);
    std::fill(inverse.begin(), inverse.end(), 0.0);
    for (int64_t i = 0; i < r; ++i) inverse[static_cast<size_t>(i * r + i)] = 1.0;
  }
  Floats t(g.size());
  turn.fix.resize(g.size());
  turn.w.resize(g.size());
  for (size_t i = 0; i < g.size(); ++i) turn.fix[i] = static_cast<float>(inverse[i]);
  matmul(t.data(), dense(prev, r, d), false, dense(y.data(), r, d), true);
  matmul(turn.w.data(), dense(t.data(), r, r), false, dense(turn.fix.data(), r, r), true);
  double square = 0;
  for (float v : turn.w) square += static_cast<double>(v) * v;
  return square / static_cast<double>(r);
}

// Orthogonal Procrustes: y = polar(w) fix y. Without a polar factor (a direction of prev that is
// orthogonal to all of the new ones) the rows stay orthonormal and unaligned.
void align(Floats& y, int64_t r, int64_t d, Turn& turn) {
  Floats q(y.size()), t(turn.w.size());
  const bool aligned = polar(turn.w, r);
  if (aligned)
    matmul(t.data(), dense(turn.w.data(), r, r), false, dense(turn.fix.data(), r, r), false);
  matmul(q.data(), dense((aligned ? t : turn.fix).data(), r, r), false, dense(y.data(), r, d),
         false);
  y.swap(q);
}

void align(Floats& y, int64_t r, int64_t d, const float* prev) {
  Turn turn;
  compare(y, r, d, prev, turn);
  align(y, r, d, turn);
}

double largest_row(const Floats& y, int64_t rows, int64_t cols) {
  double most = 0;
  for (int64_t i = 0; i < rows; ++i) {
    double lane[8] = {};
    const float* row = y.data() + i * cols;
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8)
      for (int j = 0; j < 8; ++j) lane[j] += static_cast<double>(row[k + j]) * row[k + j];
    for (int j = 0; k + j < cols; ++j) lane[j] += static_cast<double>(row[k + j]) * row[k + j];
    most = std::max(most, ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
                              ((lane[4] + lane[5]) + (lane[6] + lane[7])));
  }
  return std::sqrt(most);
}

bool warm(Floats& q, const Matrix& x, int64_t r, const float* prev) {
  Floats start(prev, prev + r * x.d());
  Turn turn;
  for (int round = 0;; ++round) {
    Floats z = x.times(start, r, true);
    if (range_of(z) != Range::good) return false;
    // One power of two for all rows keeps (G'G + keep) prev what it is.
    int exponent = 0;
    std::frexp(
        bits_float(static_cast<uint32_t>(largest_bits(z.data(), static_cast<int64_t>(z.size())))),
        &exponent);
    const float unit = std::ldexp(1.0f, std::clamp(-exponent, -100, 100));
    for (float& v : z) v *= unit;
    q = x.times(z, r, false);
    if (range_of(q) != Range::good) return false;
    const float keep = static_cast<float>(kKeep * largest_row(q, r, x.d()));
    for (size_t i = 0; i < q.size(); ++i) q[i] += keep * start[i];
    if (compare(q, r, x.d(), prev, turn) >= kMoved || round == 1) break;
    start = q;
  }
  align(q, r, x.d(), turn);
  return true;
}

float largest_element(const Operand& g) {
  float most = 0;
  for (int64_t i = 0; i < g.rows; ++i)
    for (int64_t j = 0; j < g.cols; ++j) {
      const float v = quant::operand_at(g, i, j);
      if (!is_finite(v))
        throw Error(ErrorKind::value, "the gradient is not finite: element [" + std::to_string(i) +
                                          ", " + std::to_string(j) +
                                          "] is inf or NaN; skip this step or lower the learning "
                                          "rate");
      most = std::max(most, std::fabs(v));
    }
  return most;
}

void check(const Operand& g, const RangeFinder& how) {
  if (how.rank < 1)
    throw Error(ErrorKind::value, "rank must be >= 1, got " + std::to_string(how.rank));
  if (how.oversample < 0 || how.power_iters < 0)
    throw Error(ErrorKind::value, "oversample and power_iters must be >= 0");
  require(g.rows >= 0 && g.cols >= 0, "the gradient has a negative size");
}

// Runs attempt(matrix), again with the matrix brought to order 1 if it left the range of float.
// False if the matrix is zero.
template <class F>
bool with_scale(const Operand& g, Side side, const F& attempt) {
  Matrix x{g, side == Side::left};
  if (attempt(x)) return true;
  const float most = largest_element(g);
  if (most == 0) return false;
  int exponent = 0;
  std::frexp(most, &exponent);
  x.scale = std::ldexp(1.0f, std::clamp(-exponent, -100, 100));
  return attempt(x);
}

}  // namespace

int64_t basis_rows(const Operand& g, int64_t rank) {
  return std::min(rank, std::min(g.rows, g.cols));
}

void find_range(float* q, const Operand& g, Side side, const RangeFinder& how,
                const random::Stream& stream) {
  check(g, how);
  PinnedFpEnv pin;
  const int64_t r = basis_rows(g, how.rank), d = basis_cols(g, side);
  if (r == 0) return;
  Floats basis;
  if (!with_scale(g, side, [&](const Matrix& x) { return cold(basis, x, r, how, stream); })) {
    basis.resize(static_cast<size_t>(r * d));
    random::sample(basis.data(), r * d, 0, stream, random::Dist::gaussian);
    orthonormalize(basis, r, d);
  }
  std::copy(basis.begin(), basis.end(), q);
}

void track_range(float* q, const Operand& g, Side side, const RangeFinder& how, const float* prev,
                 const random::Stream& stream) {
  check(g, how);
  PinnedFpEnv pin;
  const int64_t r = basis_rows(g, how.rank), d = basis_cols(g, side);
  if (r == 0) return;
  require(largest_bits(prev, r * d) < kInfinityBits,
          "the previous basis is not finite; start again without it");
  Floats basis;
  const auto cold_then_align = [&](const Matrix& x) {
    if (!cold(basis, x, r, how, stream)) return false;
    align(basis, r, d, prev);
    return true;
  };
  if (!with_scale(g, side, [&](const Matrix& x) { return warm(basis, x, r, prev); }) &&
      // Zero, or orthogonal to the previous basis.
      !with_scale(g, side, cold_then_align)) {
    basis.assign(prev, prev + r * d);
    align(basis, r, d, prev);
  }
  std::copy(basis.begin(), basis.end(), q);
}

}  // namespace lowtide::lowrank
