// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <tuple>

#include "device.h"
#include "spsa/replay_cuda.h"
#include "spsa/schedules.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::mixed_run;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using ::lowtide::testing::sizes;
using random::Dist;

class ReplayCuda : public ::lowtide::testing::ScalarReference,
                   public ::testing::WithParamInterface<std::tuple<FloatType, Dist>> {};

TEST_P(ReplayCuda, SameBitsForEverySizeAndAlignment) {
  const auto [type, dist] = GetParam();
  const auto run = mixed_run();
  const Steps host = resolve(run.schedule());
  DeviceArray<Step> steps(host.steps);
  DeviceArray<Direction> directions(host.directions);
  const int64_t width = type == FloatType::f32 ? 2 : 1;  // in 16-bit words
  for (int64_t n : sizes({0, 1, 17, 129, 2047}, {4099})) {
    for (int64_t offset : {int64_t{0}, (int64_t{1} << 38) + 2000}) {
      std::vector<uint16_t> w(static_cast<size_t>(n * width));
      const auto x = noise(n, 3);
      for (int64_t i = 0; i < n; ++i) store_master(w.data(), type, i, x[static_cast<size_t>(i)]);
      DeviceArray<uint16_t> dw(w, static_cast<size_t>(width));
      ReplayTensor t;
      t.n = n, t.param = 4, t.offset = offset, t.type = type, t.scale = 0.7f;
      t.threshold = n % 2 == 0 ? INFINITY : 0.5f, t.floor = n == 17 ? -0.25f : -INFINITY;
      t.w = dw.data();
      ASSERT_EQ(cuda::replay({t}, steps.data(), static_cast<int64_t>(host.steps.size()),
                             directions.data(), dist, nullptr),
                0);
      t.w = w.data();
      replay({t}, run.schedule(), dist);
      EXPECT_TRUE(SameBits(dw.host(), w)) << "n " << n << " offset " << offset;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ReplayCuda,
    ::testing::Combine(::testing::Values(FloatType::f32, FloatType::bf16, FloatType::f16),
                       ::testing::Values(Dist::rademacher, Dist::gaussian, Dist::ih4, Dist::lut8)));

TEST_F(ReplayCuda, BadTensorsAreRefusedAndNothingIsWritten) {
  DeviceArray<float> w(std::vector<float>{1, 2});
  ReplayTensor good;
  good.n = 2, good.w = w.data(), good.threshold = INFINITY, good.floor = -INFINITY;
  ReplayTensor bad = good;
  bad.threshold = NAN;
  EXPECT_EQ(cuda::replay({good, bad}, nullptr, 1, nullptr, Dist::gaussian, nullptr),
            cudaErrorInvalidValue);
  EXPECT_TRUE(SameBits(w.host(), {1, 2}));
}

}  // namespace
}  // namespace lowtide::spsa
