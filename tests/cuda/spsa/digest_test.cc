// SPDX-License-Identifier: Apache-2.0
#include "device.h"
#include "spsa/digest_cuda.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class DigestCuda : public ::lowtide::testing::ScalarReference,
                   public ::testing::WithParamInterface<int> {};

TEST_P(DigestCuda, SameSumForEverySizeAndAlignment) {
  const int width = GetParam();
  for (int64_t n : sizes({0, 1, 3, 15, 16, 17, 255, 1027}, {70001})) {
    for (size_t skew : {0, 1, 5}) {
      std::vector<uint8_t> x(static_cast<size_t>(n * width));
      const auto values = noise(n, 7);
      std::memcpy(x.data(), values.data(), x.size());
      DeviceArray<uint8_t> w(x, skew * static_cast<size_t>(width));
      DeviceArray<uint64_t> out(1);
      const int64_t offset = (int64_t{1} << 36) + 5;
      ASSERT_EQ(cuda::digest(out.data(), w.data(), width, n, offset, nullptr), 0);
      EXPECT_TRUE(SameBits(out.host(), {digest(x.data(), width, n, offset)}))
          << "n " << n << " skew " << skew;
    }
  }
}

TEST_P(DigestCuda, BadRangesAreRefused) {
  DeviceArray<uint64_t> out(std::vector<uint64_t>{5});
  EXPECT_EQ(cuda::digest(out.data(), nullptr, GetParam(), -1, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::digest(out.data(), nullptr, 3, 1, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_TRUE(SameBits(out.host(), {uint64_t{5}}));
}

INSTANTIATE_TEST_SUITE_P(Width, DigestCuda, ::testing::Values(1, 2, 4));

}  // namespace
}  // namespace lowtide::spsa
