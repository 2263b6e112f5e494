// SPDX-License-Identifier: Apache-2.0
#include "quant/group_codec.h"

#include <limits>

#include "device_groups.h"
#include "quant/group_codec_cuda.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::GroupsOnBoth;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Kind {
  int bits;
  Scheme scheme;
  Rounding rounding;
  Range range;
};
std::vector<Kind> kinds() {
  std::vector<Kind> out;
  for (int bits : {8, 4})
    for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric})
      for (Rounding rounding : {Rounding::nearest, Rounding::stochastic})
        for (Range range : {Range::tight, Range::headroom, Range::compat})
          if (range != Range::compat || scheme == Scheme::asymmetric)
            out.push_back({bits, scheme, rounding, range});
  return out;
}

class GroupCodecCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(const Kind& k, int64_t rows, int64_t cols, int64_t group, int64_t offset,
                    size_t skew, const std::vector<float>& x) {
    SCOPED_TRACE(::testing::Message()
                 << rows << "x" << cols << " group " << group << " bits " << k.bits
                 << " asymmetric " << (k.scheme == Scheme::asymmetric) << " stochastic "
                 << (k.rounding == Rounding::stochastic) << " range " << static_cast<int>(k.range)
                 << " offset " << offset << " skew " << skew);
    const GroupShape shape{rows, cols, group, k.bits};
    const QuantizeOptions options{k.rounding,
                                  k.range,
                                  {.seed = 9, .step = 2, .param = 4, .role = random::kRoleQuantSr},
                                  offset};
    std::vector<uint16_t> h;
    for (float v : x) h.push_back(float_to_bf16(v));
    DeviceArray<float> dx(x, skew);
    DeviceArray<uint16_t> dh(h, skew);
    DeviceArray<int64_t> bad(std::vector<int64_t>{-1});
    for (FloatType type : {FloatType::f32, FloatType::bf16}) {
      GroupsOnBoth q(shape, k.scheme, skew);
      const bool f32 = type == FloatType::f32;
      const void* device_x = f32 ? static_cast<const void*>(dx.data()) : dh.data();
      const void* host_x = f32 ? static_cast<const void*>(x.data()) : h.data();
      ASSERT_EQ(cuda::quantize_groups(device_x, type, q.device(), options, bad.data(), nullptr), 0);
      const int64_t want = quantize_groups(host_x, type, q.host(), options);
      EXPECT_EQ(bad.host()[0], want);
      q.Expect();
      ASSERT_EQ(cuda::count_nonfinite(device_x, type, rows * cols, bad.data(), nullptr), 0);
      EXPECT_EQ(bad.host()[0], want);

      const GroupMatrix d = q.device(), m = q.host();
      const ConstGroupMatrix din{d.codes, d.scale, d.zero, shape},
          min{m.codes, m.scale, m.zero, shape};
      DeviceArray<float> dy(x.size(), skew);
      DeviceArray<uint16_t> dz(x.size(), skew);
      ASSERT_EQ(cuda::dequantize_groups(din, dy.data(), FloatType::f32, nullptr), 0);
      ASSERT_EQ(cuda::dequantize_groups(din, dz.data(), FloatType::bf16, nullptr), 0);
      std::vector<float> y(x.size());
      std::vector<uint16_t> z(x.size());
      dequantize_groups(min, y.data(), FloatType::f32);
      dequantize_groups(min, z.data(), FloatType::bf16);
      EXPECT_TRUE(SameBits(dy.host(), y));
      EXPECT_TRUE(SameBits(dz.host(), z));
    }
  }
};

TEST_F(GroupCodecCuda, SameBitsForEveryKindAndWidth) {
  for (const Kind& k : kinds())
    for (int64_t cols :
         sizes({0, 1, 15, 17, 33, 257}, {3, 16, 31, 32, 47, 63, 65, 127, 129, 256, 320, 576}))
      for (size_t skew : {0, 1}) Check(k, 3, cols, 64, 0, skew, noise(3 * cols, 11));
}

TEST_F(GroupCodecCuda, GroupsOfEverySizeAndNoiseOfEveryAlignment) {
  for (int bits : {8, 4})
    for (int64_t group : {32, 96, 256, 512, 1024})
      for (int64_t offset : {int64_t{0}, int64_t{1}, int64_t{62}, (int64_t{1} << 40) + 112})
        Check({bits, Scheme::asymmetric, Rounding::stochastic, Range::tight}, 2, 1100, group,
              offset, 0, noise(2200, 3));
}

// Non-finite elements, ranges that over- and underflow, groups of zeros and of one sign.
TEST_F(GroupCodecCuda, ExtremeValues) {
  const int64_t cols = 32 * 10;
  std::vector<float> x = noise(cols, 5);
  x[3] = std::numeric_limits<float>::quiet_NaN(), x[40] = kInf, x[41] = -kInf;
  for (int i = 64; i < 96; ++i) x[static_cast<size_t>(i)] = 0.0f;
  for (int i = 96; i < 128; ++i) x[static_cast<size_t>(i)] *= 0x1p-120f;
  for (int i = 128; i < 160; ++i) x[static_cast<size_t>(i)] *= 0x1p127f * 1.99f;
  for (int i = 160; i < 192; ++i)
    x[static_cast<size_t>(i)] = abs_f(x[static_cast<size_t>(i)]) + 1.0f;
  for (int i = 192; i < 224; ++i)
    x[static_cast<size_t>(i)] = -abs_f(x[static_cast<size_t>(i)]) - 1.0f;
  for (int i = 224; i < 256; ++i) x[static_cast<size_t>(i)] = i % 2 ? -0.0f : 0.0f;
  for (const Kind& k : kinds()) Check(k, 1, cols, 32, 0, 0, x);
}

TEST_F(GroupCodecCuda, BadShapesAreRefused) {
  DeviceArray<uint8_t> b(64);
  DeviceArray<float> f(64);
  DeviceArray<int64_t> bad(1);
  auto run = [&](const GroupShape& s, const QuantizeOptions& o) {
    return cuda::quantize_groups(f.data(), FloatType::f32, {b.data(), f.data(), nullptr, s}, o,
                                 bad.data(), nullptr);
  };
  EXPECT_EQ(run({1, 32, 33, 8}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 5}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(run({-1, 32, 32, 8}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 8}, {.range = Range::compat}), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 8}, {.offset = -1}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::quant
