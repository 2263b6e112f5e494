// SPDX-License-Identifier: Apache-2.0
#include "curvature/ce_rows.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/exp.h"
#include "testing.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;
using Function = void (*)(float*, const CeRows&);

constexpr Function kMatrices[] = {ce_product, ce_cumulant, ce_diagonal, ce_weighted};
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Data {
  std::vector<float> z, u, q, r;
  int64_t rows, cols;

  Data(int64_t n, int64_t c, float spread = 20)
      : z(noise(n * c, 1)),
        u(noise(n * c, 2)),
        q(noise(n * c, 3)),
        r(noise(n, 4)),
        rows(n),
        cols(c) {
    for (float& v : z) v *= spread;
    for (float& v : r) v = std::fabs(v);
  }
  CeRows view() const { return {z.data(), r.data(), u.data(), q.data(), rows, cols}; }
  std::vector<float> of(Function f) const {
    std::vector<float> y(z.size(), -7.0f);
    f(y.data(), view());
    return y;
  }
  std::vector<float> trace() const {
    std::vector<float> y(r.size(), -7.0f);
    ce_trace(y.data(), view());
    return y;
  }
  uint64_t digest_all() const {
    uint64_t h = digest(trace());
    for (Function f : kMatrices) h = 3 * h ^ digest(of(f));
    return h;
  }
};

TEST(Exp, IsWithinAnUlpAndALittle) {
  double worst = 0;
  for (int64_t i = 0; i < 4'000'000; ++i) {
    const float x = -87.0f * static_cast<float>(i) / 4e6f;
    const double want = std::exp(static_cast<double>(x));
    const float near = static_cast<float>(want);
    const double ulp = static_cast<double>(std::nextafter(near, kInf)) - near;
    worst = std::max(worst, std::fabs(exp_nonpositive(x) - want) / ulp);
  }
  EXPECT_LT(worst, 1.02);
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-87.5f), 0.0f);
  EXPECT_EQ(exp_nonpositive(-kInf), 0.0f);
  EXPECT_TRUE(std::isnan(exp_nonpositive(std::nanf(""))));
}

TEST(CeRows, SameBitsForEverySizeIsaAndThreadCount) {
  for (int64_t rows : {0, 1, 5, 33})
    for (int64_t cols : {0, 1, 2, 7, 10, 15, 16, 17, 31, 32, 33, 63, 100, 1023, 1024, 1025, 2100}) {
      const Data d(rows, cols);
      same_everywhere([&] { return d.digest_all(); });
    }
  const Data tall(3000, 10), wide(2, 50'257);
  // Of x86-64 and 64-bit Arm alike.
  EXPECT_EQ(same_everywhere([&] { return tall.digest_all() ^ wide.digest_all(); }),
            15163132485972664224ull);
}

// Against doubles. Float sums of 32 lanes and a tree, exponentials within 1.01 ulp: 64 eps of the
// largest magnitude there is, r max|u| max|q| p.
TEST(CeRows, AreTheHessianOfCrossEntropy) {
  for (int64_t cols : {2, 10, 1500, 5000}) {
    const Data d(4, cols, 4);
    const auto product = d.of(ce_product), cumulant = d.of(ce_cumulant), diag = d.of(ce_diagonal),
               weighted = d.of(ce_weighted), trace = d.trace();
    for (int64_t i = 0; i < d.rows; ++i) {
      const auto at = [&](int64_t j) { return static_cast<size_t>(i * cols + j); };
      double m = -1e30, s = 0, eu = 0, eq = 0, euq = 0, squares = 0;
      for (int64_t j = 0; j < cols; ++j) m = std::max(m, static_cast<double>(d.z[at(j)]));
      std::vector<double> p(static_cast<size_t>(cols));
      for (int64_t j = 0; j < cols; ++j)
        s += p[static_cast<size_t>(j)] = std::exp(static_cast<double>(d.z[at(j)]) - m);
      for (int64_t j = 0; j < cols; ++j) {
        double& pj = p[static_cast<size_t>(j)];
        pj /= s, eu += pj * d.u[at(j)], eq += pj * d.q[at(j)], squares += pj * pj;
      }
      for (int64_t j = 0; j < cols; ++j)
        euq += p[static_cast<size_t>(j)] * (d.u[at(j)] - eu) * (d.q[at(j)] - eq);
      const double r = d.r[static_cast<size_t>(i)], eps = 64 * 0x1p-24;
      EXPECT_NEAR(trace[static_cast<size_t>(i)], r * (1 - squares), r * eps);
      for (int64_t j = 0; j < cols; ++j) {
        const double pj = p[static_cast<size_t>(j)], bound = r * pj * eps * 4;
        EXPECT_NEAR(product[at(j)], r * pj * (d.u[at(j)] - eu), bound);
        EXPECT_NEAR(cumulant[at(j)], r * pj * ((d.u[at(j)] - eu) * (d.q[at(j)] - eq) - euq), bound);
        EXPECT_NEAR(diag[at(j)], r * pj * (1 - pj), bound);
        EXPECT_NEAR(weighted[at(j)], r * pj, bound);
      }
    }
  }
}

TEST(CeRows, MaskedClassesHaveNoPart) {
  for (int64_t cols : {40, 3000}) {  // in the latter, two whole blocks are masked
    Data d(1, cols), kept(1, 5);
    for (int64_t j = 0; j < cols - 5; ++j) d.z[static_cast<size_t>(j)] = -kInf;
    for (int64_t j = 0; j < 5; ++j) {
      const auto from = static_cast<size_t>(cols - 5 + j), to = static_cast<size_t>(j);
      kept.z[to] = d.z[from], kept.u[to] = d.u[from], kept.q[to] = d.q[from];
    }
    kept.r = d.r;
    for (Function f : kMatrices) {
      const auto y = d.of(f), want = kept.of(f);
      for (int64_t j = 0; j < cols - 5; ++j) ASSERT_EQ(y[static_cast<size_t>(j)], 0.0f);
      // Other lanes, so other orders of additions.
      for (size_t j = 0; j < 5; ++j)
        EXPECT_NEAR(y[static_cast<size_t>(cols) - 5 + j], want[j], 1e-5f);
    }
    same_everywhere([&] { return d.digest_all(); });
  }
}

TEST(CeRows, ARowWithoutASoftmaxIsNanAndTheOthersAreNot) {
  for (int64_t cols : {1, 40, 2000})
    for (float bad : {kInf, -kInf, std::nanf("")}) {
      Data d(3, cols);
      for (int64_t j = 0; j < (bad == -kInf ? cols : 1); ++j)
        d.z[static_cast<size_t>(2 * cols - 1 - j)] = bad;
      for (Function f : kMatrices) {
        const auto y = d.of(f);
        for (size_t i = 0; i < y.size(); ++i)
          ASSERT_EQ(std::isnan(y[i]), static_cast<int64_t>(i) / cols == 1) << cols << " " << bad;
      }
      const auto t = d.trace();
      EXPECT_TRUE(std::isnan(t[1]) && !std::isnan(t[0]) && !std::isnan(t[2]));
      same_everywhere([&] { return d.digest_all(); });
    }
}

TEST(CeRows, HugeLogitsAreOneHotAndOneClassIsFlat) {
  Data d(1, 4);
  d.z = {3e38f, -3e38f, 0.0f, 1e30f};
  for (Function f : {ce_product, ce_cumulant, ce_diagonal})
    for (float v : d.of(f)) EXPECT_EQ(v, 0.0f);
  EXPECT_EQ(d.of(ce_weighted)[0], d.r[0]);
  const Data one(3, 1);
  for (Function f : {ce_product, ce_cumulant, ce_diagonal})
    for (float v : one.of(f)) EXPECT_EQ(v, 0.0f);
}

TEST(CeRows, ResultsMayReplaceAnInput) {
  for (int64_t cols : {7, 1100}) {
    const Data d(3, cols);
    for (Function f : kMatrices) {
      const auto want = d.of(f);
      Data z = d, u = d, q = d;
      f(z.z.data(), z.view());
      f(u.u.data(), u.view());
      f(q.q.data(), q.view());
      EXPECT_EQ(digest(z.z), digest(want));
      EXPECT_EQ(digest(u.u), digest(want));
      EXPECT_EQ(digest(q.q), digest(want));
    }
  }
}

TEST(CeRows, NegativeSizesAreRefused) {
  CeRows bad;
  bad.rows = -1;
  EXPECT_THROW(ce_product(nullptr, bad), Error);
}

}  // namespace
}  // namespace lowtide::curvature
