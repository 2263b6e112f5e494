// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "device.h"
#include "spsa/replay_codes_cuda.h"
#include "spsa/schedules.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::mixed_run;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;
using random::Dist;

class ReplayCodesCuda : public ::lowtide::testing::ScalarReference,
                        public ::testing::WithParamInterface<std::tuple<int, bool, Dist>> {};

TEST_P(ReplayCodesCuda, SameBitsForEveryShape) {
  const auto [bits, asymmetric, dist] = GetParam();
  auto run = mixed_run();
  for (float& c : run.coeffs) c *= 10.0f;
  const Steps host = resolve(run.schedule());
  DeviceArray<Step> steps(host.steps);
  DeviceArray<Direction> directions(host.directions);
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 5}, {3, 1}, {2, 31}, {3, 100}}) {
    const quant::GroupShape shape{rows, cols, 32, bits};
    const int64_t groups = rows * quant::groups_per_row(shape);
    std::vector<uint8_t> codes, zero;
    for (float x : noise(rows * quant::row_bytes(shape), 8))
      codes.push_back(static_cast<uint8_t>(static_cast<int>(x * 127.0f) + 128));
    std::vector<float> scale;
    for (int64_t g = 0; g < groups; ++g) {
      scale.push_back(0.01f * static_cast<float>(g % 4));
      zero.push_back(static_cast<uint8_t>(g % 16));
    }
    DeviceArray<uint8_t> d_codes(codes), d_zero(zero);
    DeviceArray<float> d_scale(scale);
    CodesTensor t;
    t.param = 4, t.offset = (int64_t{1} << 38) + 77, t.scale = 0.7f;
    t.w = {d_codes.data(), d_scale.data(), asymmetric ? d_zero.data() : nullptr, shape};
    ASSERT_EQ(cuda::replay_codes({t}, steps.data(), static_cast<int64_t>(host.steps.size()),
                                 directions.data(), dist, nullptr),
              0);
    t.w = {codes.data(), scale.data(), asymmetric ? zero.data() : nullptr, shape};
    replay_codes({t}, run.schedule(), dist);
    EXPECT_TRUE(SameBits(d_codes.host(), codes)) << rows << " x " << cols;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReplayCodesCuda,
                         ::testing::Combine(::testing::Values(8, 4), ::testing::Bool(),
                                            ::testing::Values(Dist::rademacher, Dist::gaussian,
                                                              Dist::ih4, Dist::lut8)));

TEST_F(ReplayCodesCuda, BadTensorsAreRefused) {
  CodesTensor bad;
  bad.offset = -1;
  EXPECT_EQ(cuda::replay_codes({bad}, nullptr, 1, nullptr, Dist::gaussian, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::spsa
