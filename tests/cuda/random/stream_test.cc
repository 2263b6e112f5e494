// SPDX-License-Identifier: Apache-2.0
#include "device.h"
#include "random/stream_cuda.h"

namespace lowtide::random {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

const Stream kStream{
    .seed = 0x0123456789abcdefull, .step = 5, .slot = 2, .param = 11, .role = kRoleU};
const std::vector<int64_t> kOffsets = {0, 1, 4, 2046, (int64_t{1} << 38) + 7};

class StreamCuda : public ::lowtide::testing::ScalarReference,
                   public ::testing::WithParamInterface<Dist> {};
class StreamCudaWords : public ::lowtide::testing::ScalarReference {};

std::vector<float> ramp(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>((i * 7919) % 2003 - 1001) * 0x1p-9f;
  return x;
}

TEST_F(StreamCudaWords, SameBits) {
  for (int64_t n : sizes({0, 1, 15, 17, 63, 64, 65, 1025}, {100003})) {
    for (int64_t offset : kOffsets) {
      DeviceArray<uint32_t> out(static_cast<size_t>(n));
      ASSERT_EQ(cuda::words(out.data(), n, offset, kStream, nullptr), 0);
      std::vector<uint32_t> want(static_cast<size_t>(n));
      words(want.data(), n, offset, kStream);
      EXPECT_TRUE(SameBits(out.host(), want)) << "n " << n << " offset " << offset;
    }
  }
  Stream rounding = kStream;  // another number of rounds
  rounding.role = kRoleWeightSr;
  DeviceArray<uint32_t> out(200);
  ASSERT_EQ(cuda::words(out.data(), 200, 5, rounding, nullptr), 0);
  std::vector<uint32_t> want(200);
  words(want.data(), 200, 5, rounding);
  EXPECT_TRUE(SameBits(out.host(), want));
}

TEST_P(StreamCuda, SampleAndAddSameBits) {
  for (int64_t n : sizes({0, 1, 3, 33, 63, 65, 2047, 2048, 2049, 4100}, {70001})) {
    for (int64_t offset : kOffsets) {
      for (size_t skew : {0, 1, 2}) {  // floats before the data: 16-byte aligned or not
        DeviceArray<float> out(static_cast<size_t>(n), skew), x(ramp(n), skew);
        ASSERT_EQ(cuda::sample(out.data(), n, offset, kStream, GetParam(), nullptr), 0);
        ASSERT_EQ(cuda::add_scaled(x.data(), 1e-3f, n, offset, kStream, GetParam(), nullptr), 0);
        std::vector<float> want(static_cast<size_t>(n)), want_x = ramp(n);
        sample(want.data(), n, offset, kStream, GetParam());
        add_scaled(want_x.data(), 1e-3f, n, offset, kStream, GetParam());
        EXPECT_TRUE(SameBits(out.host(), want))
            << "n " << n << " offset " << offset << " skew " << skew;
        EXPECT_TRUE(SameBits(x.host(), want_x))
            << "n " << n << " offset " << offset << " skew " << skew;
      }
    }
  }
}

TEST_P(StreamCuda, DotSameBits) {
  for (int64_t n : sizes({0, 1, 31, 63, 64, 65, 4095, 4096, 4097, 8200}, {70001})) {
    for (int64_t offset : kOffsets) {
      for (size_t skew : {0, 1}) {
        const std::vector<float> host = ramp(n);
        DeviceArray<float> x(host, skew);
        DeviceArray<double> out(1), scratch(static_cast<size_t>(cuda::dot_scratch(n)));
        ASSERT_EQ(cuda::dot(out.data(), x.data(), n, offset, kStream, GetParam(), scratch.data(),
                            nullptr),
                  0);
        const std::vector<double> want = {dot(host.data(), n, offset, kStream, GetParam())};
        EXPECT_TRUE(SameBits(out.host(), want))
            << "n " << n << " offset " << offset << " skew " << skew;
      }
    }
  }
}

// More than 1024 blocks of 4096: the joining tree takes two passes.
TEST_P(StreamCuda, DotAcrossManyBlocksSameBits) {
  for (int64_t n : sizes({}, {int64_t{1025} * 4096 + 5})) {
    const std::vector<float> host = ramp(n);
    DeviceArray<float> x(host);
    DeviceArray<double> out(1), scratch(static_cast<size_t>(cuda::dot_scratch(n)));
    ASSERT_EQ(cuda::dot(out.data(), x.data(), n, 3, kStream, GetParam(), scratch.data(), nullptr),
              0);
    EXPECT_TRUE(SameBits(out.host(), {dot(host.data(), n, 3, kStream, GetParam())}));
  }
}

TEST_P(StreamCuda, BadRangesAreRefusedAndNothingIsWritten) {
  DeviceArray<float> x(std::vector<float>{1, 2, 3});
  EXPECT_EQ(cuda::sample(x.data(), -1, 0, kStream, GetParam(), nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::add_scaled(x.data(), 1, 3, -1, kStream, GetParam(), nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::sample(x.data(), 0, 0, kStream, GetParam(), nullptr), 0);
  EXPECT_TRUE(SameBits(x.host(), {1, 2, 3}));
}

const char* const kNames[] = {"rademacher", "gaussian", "ih4", "lut8"};

INSTANTIATE_TEST_SUITE_P(Dist, StreamCuda,
                         ::testing::Values(Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8),
                         [](const auto& info) { return kNames[static_cast<int>(info.param)]; });

}  // namespace
}  // namespace lowtide::random
