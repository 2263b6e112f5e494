// SPDX-License-Identifier: Apache-2.0
#include "quant/gemv.h"

#include "device.h"
#include "packed.h"
#include "quant/gemv_cuda.h"
#include "quant/group_map.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::Packed;
using ::lowtide::testing::quantized;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class GemvCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(int bits, Scheme scheme, Coding coding, int64_t rows, int64_t cols,
                    int64_t group, size_t skew) {
    SCOPED_TRACE(::testing::Message()
                 << rows << "x" << cols << " group " << group << " bits " << bits << " nf4 "
                 << (coding == Coding::nf4) << " skew " << skew);
    const GroupShape s{rows, cols, group, bits};
    const auto w = noise(rows * cols, 3), x = noise(cols, 8);
    Packed p(s, scheme);
    if (coding == Coding::nf4)
      quantize_map(w.data(), FloatType::f32, LevelMap::nf4, p.out(), {});
    else
      p = quantized(w, s, scheme);
    std::vector<float> y(static_cast<size_t>(rows), -1.0f);
    DeviceArray<float> dy(y), dx(x), scale(p.scale);
    DeviceArray<uint8_t> codes(p.codes, skew), zero(p.zero);
    const bool asymmetric = scheme == Scheme::asymmetric;
    const ConstGroupMatrix m{codes.data(), scale.data(), asymmetric ? zero.data() : nullptr, s};
    ASSERT_EQ(cuda::gemv(dy.data(), m, coding, dx.data(), nullptr), 0);
    gemv(y.data(), p.in(), coding, x.data());
    EXPECT_TRUE(SameBits(dy.host(), y));
  }
};

TEST_F(GemvCuda, SameBitsForEveryKindAndWidth) {
  for (int64_t cols : sizes({1, 17, 64, 257}, {15, 16, 31, 32, 33, 63, 129, 256, 512, 545, 1100}))
    for (int64_t rows : {1, 3, 17})
      for (size_t skew : {0, 1}) {
        for (int bits : {8, 4})
          for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric})
            Check(bits, scheme, Coding::integer, rows, cols, 96, skew);
        Check(4, Scheme::symmetric, Coding::nf4, rows, cols, 32, skew);
      }
}

TEST_F(GemvCuda, BadArgumentsAreRefused) {
  DeviceArray<uint8_t> b(64);
  DeviceArray<float> f(64);
  auto run = [&](const GroupShape& s, const uint8_t* zero, Coding coding) {
    return cuda::gemv(f.data(), {b.data(), f.data(), zero, s}, coding, f.data(), nullptr);
  };
  EXPECT_EQ(run({0, 32, 32, 8}, nullptr, Coding::integer), 0);
  EXPECT_EQ(run({1, 32, 33, 8}, nullptr, Coding::integer), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 8}, nullptr, Coding::nf4), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 4}, b.data(), Coding::nf4), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::quant
