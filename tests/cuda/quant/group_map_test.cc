// SPDX-License-Identifier: Apache-2.0
#include "quant/group_map.h"

#include <limits>

#include "device_groups.h"
#include "quant/group_map_cuda.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::GroupsOnBoth;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

struct Kind {
  LevelMap map;
  Rounding rounding;
  bool bf16_scale;
};
std::vector<Kind> kinds() {
  std::vector<Kind> out;
  for (int map = 0; map < kLevelMaps; ++map)
    for (Rounding rounding : {Rounding::nearest, Rounding::stochastic})
      out.push_back({static_cast<LevelMap>(map), rounding, map % 2 == 1});
  return out;
}

class GroupMapCuda : public ::lowtide::testing::ScalarReference {
 protected:
  static void Check(const Kind& k, int64_t rows, int64_t cols, int64_t group, int64_t offset,
                    size_t skew, const std::vector<float>& x) {
    SCOPED_TRACE(::testing::Message()
                 << rows << "x" << cols << " group " << group << " map " << static_cast<int>(k.map)
                 << " stochastic " << (k.rounding == Rounding::stochastic) << " offset " << offset
                 << " skew " << skew);
    const GroupShape shape{rows, cols, group, map_bits(k.map)};
    const MapOptions options{k.rounding,
                             {.seed = 9, .step = 2, .param = 4, .role = random::kRoleQuantSr},
                             offset,
                             k.bf16_scale};
    DeviceArray<int64_t> bad(std::vector<int64_t>{-1});
    for (FloatType type : {FloatType::f32, FloatType::bf16, FloatType::f16}) {
      const bool f32 = type == FloatType::f32;
      std::vector<uint16_t> h;
      for (float v : x) h.push_back(type == FloatType::bf16 ? float_to_bf16(v) : float_to_half(v));
      DeviceArray<float> dx(x, skew);
      DeviceArray<uint16_t> dh(h, skew);
      GroupsOnBoth q(shape, Scheme::symmetric, skew);
      const void* device_x = f32 ? static_cast<const void*>(dx.data()) : dh.data();
      const void* host_x = f32 ? static_cast<const void*>(x.data()) : h.data();
      ASSERT_EQ(cuda::quantize_map(device_x, type, k.map, q.device(), options, bad.data(), nullptr),
                0);
      EXPECT_EQ(bad.host()[0], quantize_map(host_x, type, k.map, q.host(), options));
      q.Expect();

      const GroupMatrix d = q.device(), m = q.host();
      const ConstGroupMatrix din{d.codes, d.scale, nullptr, shape},
          min{m.codes, m.scale, nullptr, shape};
      if (f32) {
        DeviceArray<float> dy(x.size(), skew);
        ASSERT_EQ(cuda::dequantize_map(din, k.map, dy.data(), type, nullptr), 0);
        std::vector<float> y(x.size());
        dequantize_map(min, k.map, y.data(), type);
        EXPECT_TRUE(SameBits(dy.host(), y));
      } else {
        DeviceArray<uint16_t> dy(x.size(), skew);
        ASSERT_EQ(cuda::dequantize_map(din, k.map, dy.data(), type, nullptr), 0);
        std::vector<uint16_t> y(x.size());
        dequantize_map(min, k.map, y.data(), type);
        EXPECT_TRUE(SameBits(dy.host(), y));
      }
    }
  }
};

TEST_F(GroupMapCuda, SameBitsForEveryKindAndWidth) {
  for (const Kind& k : kinds())
    for (int64_t cols : sizes({0, 1, 17, 33, 257}, {3, 15, 16, 31, 32, 47, 63, 65, 127, 129, 576}))
      for (size_t skew : {0, 1}) Check(k, 3, cols, 64, 0, skew, noise(3 * cols, 11));
}

TEST_F(GroupMapCuda, GroupsOfEverySizeAndNoiseOfEveryAlignment) {
  for (int64_t group : {32, 96, 256, 1024})
    for (int64_t offset : {int64_t{1}, int64_t{62}, (int64_t{1} << 40) + 112})
      for (LevelMap map : {LevelMap::nf4, LevelMap::dynamic8})
        Check({map, Rounding::stochastic, true}, 2, 1100, group, offset, 0, noise(2200, 3));
}

TEST_F(GroupMapCuda, ExtremeValues) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> x = noise(192, 5);
  x[3] = std::numeric_limits<float>::quiet_NaN(), x[40] = inf, x[41] = -inf;
  for (size_t i = 64; i < 96; ++i) x[i] = i % 2 ? -0.0f : 0.0f;
  for (size_t i = 96; i < 128; ++i) x[i] *= 0x1p-130f;
  for (size_t i = 128; i < 160; ++i) x[i] *= 0x1p127f * 1.99f;
  for (size_t i = 160; i < 192; ++i) x[i] = -abs_f(x[i]);
  for (const Kind& k : kinds()) Check(k, 1, 192, 32, 0, 0, x);
}

// Every code of 8 bits decodes alike; values across all regions and around every boundary encode
// alike.
TEST_F(GroupMapCuda, AllBytesAndBoundaries) {
  std::vector<float> x = {1.0f};
  for (int s = 0; s < 2; ++s)
    for (int r = 0; r < 8; ++r)
      for (int ulp = -2; ulp <= 2; ++ulp)
        for (float v : {kDynamic.boundary[s][r], kDynamicLines.end[s][r]})
          if (v <= 1.0f) x.push_back(bits_float(float_bits(v) + static_cast<uint32_t>(ulp)));
  x.resize(256, -0.0f);
  for (int i = 0; i < 2048; ++i)
    x.push_back((i % 2 ? -1.0f : 1.0f) * static_cast<float>(i % 256 == 0 ? 2048 : i) * 0x1p-11f);
  for (LevelMap map : {LevelMap::dynamic8, LevelMap::dynamic8_unsigned})
    for (Rounding rounding : {Rounding::nearest, Rounding::stochastic})
      Check({map, rounding, false}, 1, static_cast<int64_t>(x.size()), 256, 0, 0, x);
}

TEST_F(GroupMapCuda, BadArgumentsAreRefused) {
  DeviceArray<uint8_t> b(64);
  DeviceArray<float> f(64);
  DeviceArray<int64_t> bad(1);
  auto run = [&](const GroupShape& s, LevelMap map, uint8_t* zero, int64_t offset) {
    return cuda::quantize_map(f.data(), FloatType::f32, map, {b.data(), f.data(), zero, s},
                              {.offset = offset}, bad.data(), nullptr);
  };
  const GroupShape good{1, 32, 32, 4};
  EXPECT_EQ(run(good, LevelMap::nf4, nullptr, 0), 0);
  EXPECT_EQ(run({1, 32, 33, 4}, LevelMap::nf4, nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(run({1, 32, 32, 8}, LevelMap::nf4, nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(run(good, LevelMap::dynamic8, nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(run(good, static_cast<LevelMap>(6), nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(run(good, LevelMap::nf4, b.data(), 0), cudaErrorInvalidValue);
  EXPECT_EQ(run(good, LevelMap::nf4, nullptr, -1), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::quant
