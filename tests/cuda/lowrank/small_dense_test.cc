// SPDX-License-Identifier: Apache-2.0
#include "lowrank/small_dense.h"

#include "device.h"
#include "lowrank/small_dense_cuda.h"
#include "testing.h"

namespace lowtide::lowrank {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class GramCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(int64_t rows, int64_t depth, size_t skew) {
    const std::vector<float> y = noise(rows * depth, 3);
    DeviceArray<float> dy(y, skew);
    DeviceArray<double> g(static_cast<size_t>(rows * rows)),
        scratch(static_cast<size_t>(cuda::gram_scratch(rows, depth)));
    ASSERT_EQ(cuda::gram(g.data(), dy.data(), rows, depth, scratch.data(), nullptr), 0);
    std::vector<double> want(static_cast<size_t>(rows * rows));
    gram(want.data(), y.data(), rows, depth);
    EXPECT_TRUE(SameBits(g.host(), want)) << rows << "x" << depth << " skew " << skew;
  }
};

TEST_F(GramCuda, SameBitsForEverySizeAndAlignment) {
  for (int64_t rows : sizes({0, 1, 31, 33, 70}, {16, 64, 100}))
    for (int64_t depth : sizes({0, 1, 31, 33, 64, 515}, {256, 2050}))
      for (size_t skew : {0, 1}) Check(rows, depth, skew);
}

TEST_F(GramCuda, BadSizesAreRefused) {
  DeviceArray<double> g(1);
  EXPECT_EQ(cuda::gram(g.data(), nullptr, -1, 1, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::gram(g.data(), nullptr, 1, -1, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::lowrank
