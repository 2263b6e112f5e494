// SPDX-License-Identifier: Apache-2.0
#include "optim/channel_energy.h"

#include "device.h"
#include "optim/channel_energy_cuda.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class ChannelEnergyCuda : public ::lowtide::testing::ScalarReference {
 protected:
  template <class T>
  static void Check(const std::vector<T>& x, Dtype dtype, int64_t rows, int64_t cols, size_t skew) {
    DeviceArray<T> dx(x, skew);
    for (Channels channels : {Channels::rows, Channels::columns}) {
      const auto count = static_cast<size_t>(channels == Channels::rows ? rows : cols);
      DeviceArray<double> energy(count),
          scratch(static_cast<size_t>(cuda::channel_energy_scratch(rows, cols, channels)));
      ASSERT_EQ(cuda::channel_energy(energy.data(), {dx.data(), dtype, rows, cols}, channels,
                                     scratch.data(), nullptr),
                0);
      std::vector<double> want(count);
      channel_energy(want.data(), {x.data(), dtype, rows, cols}, channels);
      EXPECT_TRUE(SameBits(energy.host(), want)) << rows << "x" << cols << " skew " << skew;
    }
  }
};

TEST_F(ChannelEnergyCuda, SameBitsForEverySizeAndAlignment) {
  for (int64_t rows : sizes({0, 1, 5, 64, 67}, {130, 257}))
    for (int64_t cols : sizes({0, 1, 4, 31, 36, 129}, {260, 514}))
      for (size_t skew : {0, 1}) {
        const auto x = noise(rows * cols, 3);
        std::vector<uint16_t> h;
        for (float v : x) h.push_back(float_to_bf16(v));
        Check(x, Dtype::f32, rows, cols, skew);
        Check(h, Dtype::bf16, rows, cols, skew);
      }
}

TEST_F(ChannelEnergyCuda, OrderedSumsHaveTheSameBits) {
  for (int64_t n : sizes({0, 1, 31, 32, 33, 100}, {4099})) {
    std::vector<double> x;
    for (float v : noise(n, 5)) x.push_back(static_cast<double>(v) * 1e-3);
    DeviceArray<double> dx(x), sum(1);
    ASSERT_EQ(cuda::ordered_sum(sum.data(), dx.data(), n, nullptr), 0);
    EXPECT_TRUE(SameBits(sum.host(), {ordered_sum(x.data(), n)})) << n;
  }
}

TEST_F(ChannelEnergyCuda, BadSizesAreRefused) {
  DeviceArray<double> e(1);
  for (const EnergyMatrix& bad :
       {EnergyMatrix{nullptr, Dtype::f32, -1, 1}, EnergyMatrix{nullptr, Dtype::f32, 1, -1}})
    EXPECT_EQ(cuda::channel_energy(e.data(), bad, Channels::rows, nullptr, nullptr),
              cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::optim
