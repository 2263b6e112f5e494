// SPDX-License-Identifier: Apache-2.0
#include "optim/combine.h"

#include "device.h"
#include "optim/combine_cuda.h"
#include "testing.h"

namespace lowtide::optim {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;

class CombineCuda : public ::lowtide::testing::ScalarReference {
 protected:
  // `kind` walks through every combination of the switches.
  static void Check(int64_t rows, int64_t cols, int kind, size_t skew) {
    const int64_t n = rows * cols;
    const auto store = static_cast<WeightStore>(kind % 3);
    std::vector<uint16_t> p, g;
    auto add = [](std::vector<uint16_t>& to, float v, bool f32) {
      to.push_back(f32 ? static_cast<uint16_t>(float_bits(v)) : float_to_bf16(v));
      if (f32) to.push_back(static_cast<uint16_t>(float_bits(v) >> 16));
    };
    CombineMatrix host;
    host.rows = rows, host.cols = cols, host.param = 3, host.offset = (int64_t{1} << 36) + 768;
    host.weight_store = store;
    host.g_dtype = kind / 3 % 2 == 0 ? Dtype::f32 : Dtype::bf16;
    const bool p32 = store == WeightStore::f32, g32 = host.g_dtype == Dtype::f32;
    for (float v : noise(n, 1)) add(p, v, p32);
    for (float v : noise(n, 2)) add(g, v, g32);
    const auto k = noise(rows + cols + 1, 3), u = noise(n, 4);
    host.sign = kind / 6 % 2 == 1;
    host.along = static_cast<Along>(kind / 12 % 3);
    const int use = kind / 36 % 4;  // nothing, whole, chosen rows, chosen columns
    std::vector<int32_t> index;
    if (use >= 2)
      for (int64_t i = 1; i < (use == 2 ? rows : cols); i += 1 + i % 3)
        index.push_back(static_cast<int32_t>(i));
    host.chosen = use < 2 ? Along::all : use == 2 ? Along::rows : Along::columns;
    host.count = static_cast<int64_t>(index.size());

    DeviceArray<uint16_t> dp(p, p32 ? 2 * skew : skew), dg(g, g32 ? 2 * skew : skew);
    DeviceArray<float> dk(k), du(u, skew);
    DeviceArray<int32_t> dindex(index);
    CombineMatrix device = host;
    device.p = dp.data(), device.g = dg.data(), device.k = dk.data(), device.index = dindex.data();
    host.p = p.data(), host.g = g.data(), host.k = k.data(), host.index = index.data();
    if (use != 0) host.u = u.data(), device.u = du.data();
    const UpdateRule rule = make_update_rule(-0.037, 0.999, 0.99);
    ASSERT_EQ(cuda::combine(device, rule, 7, 3, nullptr), 0);
    combine(host, rule, 7, 3);
    EXPECT_TRUE(SameBits(dp.host(), p)) << rows << "x" << cols << " kind " << kind;
  }
};

TEST_F(CombineCuda, SameBitsForEveryKindAndShape) {
  for (int kind = 0; kind < 144; ++kind) {
    Check(7, 61, kind, static_cast<size_t>(kind % 3));
    if (kind % 11 == 0)
      for (int64_t rows : sizes({0, 1, 3}, {300}))
        for (int64_t cols : sizes({0, 1, 4, 257}, {64})) Check(rows, cols, kind, 0);
  }
}

TEST_F(CombineCuda, BadMatricesAreRefused) {
  CombineMatrix bad;
  const UpdateRule rule = make_update_rule(1, 1, 1);
  bad.rows = -1;
  EXPECT_EQ(cuda::combine(bad, rule, 0, 0, nullptr), cudaErrorInvalidValue);
  bad.rows = 1, bad.offset = 5;
  EXPECT_EQ(cuda::combine(bad, rule, 0, 0, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::optim
