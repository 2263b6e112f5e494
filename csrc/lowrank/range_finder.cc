// SPDX-License-Identifier: Apache-2.0
#include "lowrank/range_finder.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "lowrank/eigen.h"
#include "lowrank/fold.h"
#include "lowrank/orthonormal.h"
#include "lowrank/procrustes.h"
#include "lowrank/rows.h"
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
// A previous basis that holds this share of the new gradient's energy needs one iteration: 0.995 of
// the best energy or more was seen after it, but 0.986 where it held 0.55.
constexpr double kFresh = 0.9;
// Weight of the previous basis against the folded matrix, relative to the mean energy of a bucket:
// directions that drown in the noise of folding stay. 0: gradients of consecutive batches end at
// 0.993 of the best energy or more, flat spectra (k^-0.5) at 0.987; 1/4: 0.991 and 0.994.
constexpr double kStay = 1.0 / 16;
// One that is nearer than this to the share of random rows (0; 1: all) is of no use.
constexpr double kLost = 0.15;
// An iteration that gained more energy than this calls for one more. Warm: gains of 1.05 led to
// 0.992 of the best energy, of 1.1 (spectra k^-0.5) to 0.985; second gains of 1.02 to 0.988. Cold,
// where the gain is that of half an iteration: 1.05 led to 0.991, 1.07 to 0.98.
constexpr double kSettledFirst = 1.05, kSettledLater = 1.01, kSettledCold = 1.045;
// Fewer buckets than this fold too coarsely, whatever the rank.
constexpr int64_t kLeastBuckets = 96;
// With a matrix folded so often an iteration on it is cheap.
constexpr int64_t kOften = 4;

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

// The matrix folded to `wanted` buckets or a few more (fold.h), or nothing where that would not
// halve it.
struct Folded {
  Floats data;
  Operand g;
  int64_t times;

  Folded(const Matrix& x, int64_t wanted, const random::Stream& stream)
      : times(x.e() / std::max(wanted, kLeastBuckets)) {
    if (times < 2) return;
    const int64_t buckets = (x.e() + times - 1) / times;
    data = fold(x.g, x.left, buckets, x.scale, stream);
    g = x.left ? dense(data.data(), x.d(), buckets) : dense(data.data(), buckets, x.d());
  }
  explicit operator bool() const { return !data.empty(); }
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

// l rows that span roughly the leading right singular subspace of x: a Gaussian sketch of the
// folded matrix and, if that is cheap, one iteration on it. Empty if x cannot be folded.
Floats sketch(const Matrix& x, int64_t l, const random::Stream& stream) {
  // An iteration makes up for coarse folding.
  const bool iterate = x.e() >= kOften * std::max(3 * l / 2, kLeastBuckets);
  const Folded folded(x, iterate ? 3 * l / 2 : 2 * l, stream);
  if (!folded) return {};
  const Matrix small{folded.g, x.left};
  Floats start(static_cast<size_t>(l * small.e()));
  random::sample(start.data(), l * small.e(), 0, stream, random::Dist::gaussian);
  Floats y = small.times(start, l, false);
  if (range_of(y) != Range::good) return {};
  if (!iterate) return y;
  Floats z = small.times(y, l, true);
  if (range_of(z) != Range::good) return {};
  condition(z, l, small.e());
  return small.times(z, l, false);
}

// False if a product left the range of float: try again with a scaled matrix.
bool cold(Floats& q, const Matrix& x, int64_t r, const RangeFinder& how,
          const random::Stream& stream) {
  const int64_t l = std::min(r + how.oversample, std::min(x.d(), x.e()));
  Floats y;
  if (how.power_iters > 0) y = sketch(x, l, stream);
  if (y.empty()) {
    Floats start(static_cast<size_t>(l * x.e()));
    random::sample(start.data(), l * x.e(), 0, stream, random::Dist::gaussian);
    y = x.times(start, l, false);
  }
  if (range_of(y) != Range::good) return false;
  std::vector<double> values;
  if (how.power_iters == 0) {
    orthonormalize(y, l, x.d());
    const Floats z = x.times(y, l, true);
    if (range_of(z) != Range::good) return false;
    multiply_small(q, leading(z, l, x.e(), values).data(), r, l, y.data(), x.d());
    return true;
  }
  double gain = 1;
  for (int64_t i = 0; i < how.power_iters || (i == how.power_iters && gain > kSettledCold); ++i) {
    condition(y, l, x.d());
    Floats z = x.times(y, l, true);
    if (range_of(z) != Range::good) return false;
    const double before = square_sum(z);
    condition(z, l, x.e());
    y = x.times(z, l, false);
    if (range_of(y) != Range::good) return false;
    gain = square_sum(y) / before;
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
  if (!full || !(polish(q, r, x.d()) || (cholesky_pass(q, r, x.d()) && polish(q, r, x.d()))))
    orthonormalize(q, r, x.d());
  return true;
}

double largest_row(const Floats& y, int64_t rows, int64_t cols) {
  double most = 0;
  for (int64_t i = 0; i < rows; ++i) most = std::max(most, square_sum(y.data() + i * cols, cols));
  return std::sqrt(most);
}

// Rows times the power of two that brings the largest element to [1/2, 1); returns it.
float scale_all(Floats& z) {
  int exponent = 0;
  std::frexp(
      bits_float(static_cast<uint32_t>(largest_bits(z.data(), static_cast<int64_t>(z.size())))),
      &exponent);
  const float unit = std::ldexp(1.0f, std::clamp(-exponent, -100, 100));
  for (float& v : z) v *= unit;
  return unit;
}

// 64 rows of x or a 64th of them, in four places.
struct Sample {
  std::vector<Operand> parts;
  const Matrix& x;
  double energy = 0;

  explicit Sample(const Matrix& matrix) : x(matrix) {
    const bool f32 = x.g.store == quant::Store::f32;
    if (!f32 && x.g.store != quant::Store::bf16) return;  // codes cannot be cut anywhere
    const int64_t n =
        std::max<int64_t>((x.e() + 255) / 256, std::min<int64_t>(16, (x.e() + 3) / 4));
    Floats buffer;
    for (int64_t b = 0; b < 4; ++b) {
      const int64_t first = x.e() * b / 4, rows = std::min(n, x.e() * (b + 1) / 4 - first);
      Operand g = x.g;
      const int64_t at = x.left ? first : first * g.stride;
      g.data = static_cast<const char*>(g.data) + at * (f32 ? 4 : 2);
      (x.left ? g.cols : g.rows) = rows;
      parts.push_back(g);
      for (int64_t i = 0; i < g.rows; ++i) energy += square_sum(row_of(g, i, buffer), g.cols);
    }
    energy *= static_cast<double>(x.scale) * x.scale;
  }

  // The share of its energy that (nearly) orthonormal rows hold; 1/2 if unknown.
  double share(const Floats& rows, int64_t r) const {
    double held = 0;
    for (const Operand& g : parts)
      held += square_sum(Matrix{g, x.left, x.scale}.times(rows, r, true));
    return energy > 0 ? held / energy : 0.5;
  }
};

// One iteration from prev on the folded matrix, which costs a fraction of one on the whole: the new
// basis is near enough then for one on the whole to do. False if x cannot be folded.
bool approach(Floats& start, const Matrix& x, int64_t r, const random::Stream& stream) {
  const Folded folded(x, 2 * r, stream);
  if (!folded) return false;
  const Matrix small{folded.g, x.left};
  Floats z = small.times(start, r, true);
  if (range_of(z) != Range::good) return false;
  const float unit = scale_all(z);
  Floats q = small.times(z, r, false);
  const double stay = kStay * square_sum(folded.data) / static_cast<double>(small.e()) * unit;
  if (range_of(q) != Range::good || !(stay < 0x1p100)) return false;
  const auto weight = static_cast<float>(stay);
  for (size_t i = 0; i < q.size(); ++i) q[i] += weight * start[i];
  condition(q, r, x.d());
  start.swap(q);
  return true;
}

bool cold_then_align(Floats& q, const Matrix& x, int64_t r, const RangeFinder& how,
                     const float* prev, const random::Stream& stream) {
  if (!cold(q, x, r, how, stream)) return false;
  align(q, r, x.d(), prev);
  return true;
}

bool warm(Floats& q, const Matrix& x, int64_t r, const RangeFinder& how, const float* prev,
          const random::Stream& stream) {
  Floats start(prev, prev + r * x.d());
  const Sample sample(x);
  double share = sample.share(start, r);
  const double chance = static_cast<double>(r) / static_cast<double>(x.d());
  if (share < chance + kLost * (1 - chance)) return cold_then_align(q, x, r, how, prev, stream);
  const bool fresh = share >= kFresh;
  if (!fresh && approach(start, x, r, stream)) share = sample.share(start, r);
  for (int round = 1;; ++round) {
    Floats z = x.times(start, r, true);
    if (range_of(z) != Range::good) return false;
    scale_all(z);  // as one, so that (G'G + keep) start is what it was
    q = x.times(z, r, false);
    if (range_of(q) != Range::good) return false;
    const float keep = static_cast<float>(kKeep * largest_row(q, r, x.d()));
    for (size_t i = 0; i < q.size(); ++i) q[i] += keep * start[i];
    condition(q, r, x.d());
    if (fresh || round == 3) break;
    const double before = share;
    share = sample.share(q, r);
    if (share <= (round == 1 ? kSettledFirst : kSettledLater) * before) break;
    start.swap(q);
  }
  align(q, r, x.d(), prev);
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
  if (!with_scale(g, side, [&](const Matrix& x) { return warm(basis, x, r, how, prev, stream); }) &&
      // Zero, or orthogonal to the previous basis.
      !with_scale(g, side, [&](const Matrix& x) {
        return cold_then_align(basis, x, r, how, prev, stream);
      })) {
    basis.assign(prev, prev + r * d);
    condition(basis, r, d);
    align(basis, r, d, prev);
  }
  std::copy(basis.begin(), basis.end(), q);
}

}  // namespace lowtide::lowrank
