// SPDX-License-Identifier: Apache-2.0
#include "curvature/ce_rows.h"

#include <cmath>
#include <limits>

#include "curvature/ce_rows_cuda.h"
#include "device.h"
#include "testing.h"

namespace lowtide::curvature {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

struct Pair {
  void (*host)(float*, const CeRows&);
  int (*device)(float*, const CeRows&, void*);
};
constexpr Pair kMatrices[] = {{ce_product, cuda::ce_product},
                              {ce_cumulant, cuda::ce_cumulant},
                              {ce_diagonal, cuda::ce_diagonal},
                              {ce_weighted, cuda::ce_weighted}};

class CeRowsCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(std::vector<float> z, int64_t rows, int64_t cols) {
    const auto u = noise(rows * cols, 2), q = noise(rows * cols, 3), r = noise(rows, 4);
    const CeRows a = {z.data(), r.data(), u.data(), q.data(), rows, cols};
    DeviceArray<float> dz(z), du(u), dq(q), dr(r);
    const CeRows da = {dz.data(), dr.data(), du.data(), dq.data(), rows, cols};
    const auto n = static_cast<size_t>(rows * cols);
    for (const Pair& p : kMatrices) {
      DeviceArray<float> y(n);
      ASSERT_EQ(p.device(y.data(), da, nullptr), 0);
      std::vector<float> want(n);
      p.host(want.data(), a);
      EXPECT_TRUE(SameBits(y.host(), want)) << rows << "x" << cols;
    }
    DeviceArray<float> trace(static_cast<size_t>(rows));
    ASSERT_EQ(cuda::ce_trace(trace.data(), da, nullptr), 0);
    std::vector<float> want(static_cast<size_t>(rows));
    ce_trace(want.data(), a);
    EXPECT_TRUE(SameBits(trace.host(), want)) << rows << "x" << cols;
    ASSERT_EQ(cuda::ce_product(du.data(), da, nullptr), 0);  // in place
    std::vector<float> product(n);
    ce_product(product.data(), a);
    EXPECT_TRUE(SameBits(du.host(), product)) << rows << "x" << cols;
  }

  static std::vector<float> Logits(int64_t n) {
    auto z = noise(n, 1);
    for (float& v : z) v *= 20;
    return z;
  }
};

TEST_F(CeRowsCuda, SameBitsForShortAndLongRows) {
  for (int64_t rows : sizes({0, 1, 3, 9}, {17}))
    for (int64_t cols : sizes({0, 1, 7, 31, 33, 1025}, {64, 2048, 2100}))
      Check(Logits(rows * cols), rows, cols);
  Check(Logits(9 * 1024 + 5), 1, 9 * 1024 + 5);
}

TEST_F(CeRowsCuda, SameBitsForMaskedClassesInfinitiesAndNan) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const int64_t cols = 40;
  auto z = Logits(5 * cols);
  for (int64_t j = 0; j < 35; ++j) z[static_cast<size_t>(j)] = -kInf;
  z[cols + 3] = kInf;
  z[2 * cols + 39] = std::nanf("");
  for (int64_t j = 0; j < cols; ++j) z[static_cast<size_t>(3 * cols + j)] = -kInf;
  Check(z, 5, cols);
}

TEST_F(CeRowsCuda, BadSizesAreRefused) {
  CeRows bad;
  bad.rows = -1;
  EXPECT_EQ(cuda::ce_product(nullptr, bad, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::curvature
