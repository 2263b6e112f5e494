// SPDX-License-Identifier: Apache-2.0
#include "device.h"
#include "spsa/low_rank_cuda.h"
#include "spsa/schedules.h"
#include "testing.h"

namespace lowtide::spsa {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::mixed_run;
using ::lowtide::testing::noise;
using ::lowtide::testing::SameBits;

class LowRankCuda : public ::lowtide::testing::ScalarReference,
                    public ::testing::WithParamInterface<FloatType> {};

TEST_P(LowRankCuda, SameBitsForEveryShape) {
  const FloatType type = GetParam();
  const auto run = mixed_run();
  const Steps host = resolve(run.schedule());
  DeviceArray<Step> steps(host.steps);
  DeviceArray<Direction> directions(host.directions);
  std::vector<int64_t> v_steps;
  for (int64_t s : run.dir_steps) v_steps.push_back(s / 4 * 4);
  const size_t words = type == FloatType::f32 ? 2 : 1;
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {1, 1}, {3, 33}, {9, 129}}) {
    const int64_t n = rows * cols;
    const LowRankMatrix m = {rows, cols, 5, 3, 4};
    std::vector<uint16_t> w(static_cast<size_t>(n) * words);
    const auto x = noise(n, 3);
    for (int64_t i = 0; i < n; ++i) store_master(w.data(), type, i, x[static_cast<size_t>(i)]);
    DeviceArray<uint16_t> dw(w), d_out(static_cast<size_t>(n));
    DeviceArray<float> scratch(
        static_cast<size_t>(cuda::low_rank_scratch(m, run.schedule().directions)));
    const LowRankPoint at = {77, 9, 8, 2};
    ASSERT_EQ(cuda::low_rank_perturb(d_out.data(), FloatType::bf16, dw.data(), type, 1e-2f, m, at,
                                     scratch.data(), nullptr),
              0);
    std::vector<uint16_t> out(static_cast<size_t>(n));
    low_rank_perturb(out.data(), FloatType::bf16, w.data(), type, 1e-2f, m, at);
    EXPECT_TRUE(SameBits(d_out.host(), out)) << rows << " x " << cols;
    ASSERT_EQ(cuda::low_rank_replay(dw.data(), type, 0.7f, m, run.schedule(), v_steps.data(),
                                    steps.data(), static_cast<int64_t>(host.steps.size()),
                                    directions.data(), scratch.data(), nullptr),
              0);
    low_rank_replay(w.data(), type, 0.7f, m, run.schedule(), v_steps.data());
    EXPECT_TRUE(SameBits(dw.host(), w)) << rows << " x " << cols;
  }
}

INSTANTIATE_TEST_SUITE_P(Type, LowRankCuda,
                         ::testing::Values(FloatType::f32, FloatType::bf16, FloatType::f16));

TEST_F(LowRankCuda, BadMatricesAreRefused) {
  const LowRankMatrix bad = {1, 1, 0, 9, 0};
  EXPECT_EQ(cuda::low_rank_perturb(nullptr, FloatType::f32, nullptr, FloatType::f32, 1, bad, {},
                                   nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::spsa
