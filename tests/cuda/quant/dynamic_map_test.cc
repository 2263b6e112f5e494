// SPDX-License-Identifier: Apache-2.0
#include "quant/dynamic_map.h"

#include <limits>

#include "device.h"
#include "quant/dynamic_map_cuda.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class DynamicMapCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(const std::vector<float>& x, size_t skew) {
    const int64_t n = static_cast<int64_t>(x.size());
    const size_t blocks = static_cast<size_t>(dynamic_blocks(n));
    for (bool is_signed : {true, false}) {
      DeviceArray<float> dx(x, skew), dy(x.size(), skew), absmax(blocks);
      DeviceArray<uint8_t> codes(x.size(), skew);
      DeviceArray<int64_t> bad(std::vector<int64_t>{-1});
      ASSERT_EQ(cuda::quantize_dynamic(codes.data(), absmax.data(), dx.data(), n, is_signed,
                                       bad.data(), nullptr),
                0);
      ASSERT_EQ(
          cuda::dequantize_dynamic(dy.data(), codes.data(), absmax.data(), n, is_signed, nullptr),
          0);
      std::vector<uint8_t> want(x.size());
      std::vector<float> want_absmax(blocks), y(x.size());
      EXPECT_EQ(bad.host()[0],
                quantize_dynamic(want.data(), want_absmax.data(), x.data(), n, is_signed));
      dequantize_dynamic(y.data(), want.data(), want_absmax.data(), n, is_signed);
      EXPECT_TRUE(SameBits(codes.host(), want))
          << "n " << n << " signed " << is_signed << " skew " << skew;
      EXPECT_TRUE(SameBits(absmax.host(), want_absmax)) << "n " << n << " signed " << is_signed;
      EXPECT_TRUE(SameBits(dy.host(), y))
          << "n " << n << " signed " << is_signed << " skew " << skew;
    }
  }
};

TEST_F(DynamicMapCuda, SameBitsForEverySizeAndAlignment) {
  for (int64_t n : sizes({0, 1, 3, 127, 129, 255, 256, 257, 1029}, {50003}))
    for (size_t skew : {0, 1, 2}) Check(noise(n, 3), skew);
}

// Every code decodes alike; values across all regions and around every boundary encode alike.
TEST_F(DynamicMapCuda, AllCodesAndBoundaries) {
  std::vector<float> x = {1.0f};
  for (int s = 0; s < 2; ++s)
    for (int r = 0; r < 8; ++r)
      for (int ulp = -2; ulp <= 2; ++ulp)
        x.push_back(bits_float(float_bits(kDynamic.boundary[s][r]) + static_cast<uint32_t>(ulp)));
  x.resize(256, -0.0f);
  for (int i = 0; i < 2048; ++i)
    x.push_back((i % 2 ? -1.0f : 1.0f) * static_cast<float>(i % 256 == 0 ? 2048 : i) * 0x1p-11f);
  Check(x, 0);
}

TEST_F(DynamicMapCuda, NonFiniteTinyAndHugeBlocks) {
  std::vector<float> x = noise(256 * 5, 4);
  x[7] = std::numeric_limits<float>::quiet_NaN(), x[8] = std::numeric_limits<float>::infinity();
  for (size_t i = 256; i < 512; ++i) x[i] = 0.0f;
  for (size_t i = 512; i < 768; ++i) x[i] *= 0x1p-128f;
  for (size_t i = 768; i < 1024; ++i) x[i] *= 0x1p127f;
  for (size_t i = 1024; i < 1280; ++i) x[i] = std::numeric_limits<float>::quiet_NaN();
  Check(x, 0);
}

}  // namespace
}  // namespace lowtide::quant
