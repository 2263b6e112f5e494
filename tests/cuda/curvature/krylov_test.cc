// SPDX-License-Identifier: Apache-2.0
#include "curvature/krylov.h"

#include "curvature/krylov_bases.h"
#include "curvature/krylov_cuda.h"
#include "device.h"
#include "testing.h"

namespace lowtide::curvature {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class KrylovCuda : public ::lowtide::testing::ScalarReference {
 protected:
  template <class T>
  static void Check(const TestBasis& host, const std::vector<T>& numbers, size_t skew) {
    const DeviceArray<T> data(numbers, skew);
    const DeviceArray<float> scale(host.scale, skew);
    const Basis q{data.data(), host.type == BasisType::int8 ? scale.data() : nullptr, host.type,
                  host.rows, host.n};
    const auto start = noise(host.n, 4);
    const auto rows = static_cast<size_t>(host.rows);
    const DeviceArray<float> w(start, skew);
    const DeviceArray<double> c(rows),
        scratch(static_cast<size_t>(cuda::basis_dots_scratch(host.rows, host.n)));
    ASSERT_EQ(cuda::basis_dots(c.data(), q, w.data(), scratch.data(), nullptr), 0);
    ASSERT_EQ(cuda::basis_subtract(w.data(), q, c.data(), nullptr), 0);
    auto want_w = start;
    std::vector<double> want(rows);
    project(want.data(), host.view(), want_w.data(), 1e30);  // one subtraction
    EXPECT_TRUE(SameBits(c.host(), want)) << host.rows << " x " << host.n << " skew " << skew;
    EXPECT_TRUE(SameBits(w.host(), want_w)) << host.rows << " x " << host.n << " skew " << skew;
  }
};

TEST_F(KrylovCuda, SameBitsForEveryTypeSizeAndAlignment) {
  for (BasisType type : kBasisTypes)
    for (int64_t rows : sizes({0, 1, 3}, {9}))
      for (int64_t n : sizes({0, 1, 31, 33, 257, 1025}, {1024, 2049, 16385 + 1024}))
        for (size_t skew : {0, 1}) {
          const TestBasis q(type, rows, n, 5, 0.01f);
          if (type == BasisType::f32) Check(q, q.f32, skew);
          if (type == BasisType::bf16) Check(q, q.bf16, skew);
          if (type == BasisType::int8) Check(q, q.int8, skew);
        }
}

TEST_F(KrylovCuda, BadArgumentsAreRefused) {
  DeviceArray<double> c(1);
  DeviceArray<float> w(1);
  for (const Basis& bad : {Basis{nullptr, nullptr, BasisType::f32, -1, 1},
                           Basis{nullptr, nullptr, BasisType::int8, 1, 1}}) {
    EXPECT_EQ(cuda::basis_dots(c.data(), bad, w.data(), nullptr, nullptr), cudaErrorInvalidValue);
    EXPECT_EQ(cuda::basis_subtract(w.data(), bad, c.data(), nullptr), cudaErrorInvalidValue);
  }
}

}  // namespace
}  // namespace lowtide::curvature
