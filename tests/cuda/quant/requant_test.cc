// SPDX-License-Identifier: Apache-2.0
#include "quant/requant.h"

#include <limits>

#include "device_groups.h"
#include "quant/requant_cuda.h"
#include "testing.h"

namespace lowtide::quant {
namespace {

using ::lowtide::testing::DeviceArray;
using ::lowtide::testing::GroupsOnBoth;
using ::lowtide::testing::noise;
using ::lowtide::testing::sizes;

class RequantCuda : public ::lowtide::testing::ScalarReference {
 protected:
  // Several steps, so that groups keep their scale in some and change it in others.
  static void Check(int bits, Scheme scheme, int64_t rows, int64_t cols, int64_t group,
                    int64_t offset, size_t skew, double alpha, double decay,
                    const std::vector<float>& delta) {
    SCOPED_TRACE(::testing::Message()
                 << rows << "x" << cols << " group " << group << " bits " << bits << " asymmetric "
                 << (scheme == Scheme::asymmetric) << " offset " << offset << " skew " << skew);
    GroupsOnBoth w({rows, cols, group, bits}, scheme, skew);
    DeviceArray<float> d(delta, skew);
    DeviceArray<int64_t> skipped(std::vector<int64_t>{-1});
    for (uint64_t step = 0; step < 3; ++step) {
      const RequantOptions options{
          alpha,
          decay,
          {.seed = 3, .step = step, .param = 8, .role = random::kRoleWeightSr},
          offset};
      ASSERT_EQ(cuda::requant_add_sr(w.device(), d.data(), options, skipped.data(), nullptr), 0);
      EXPECT_EQ(skipped.host()[0], requant_add_sr(w.host(), delta.data(), options));
      w.Expect();
    }
  }
};

TEST_F(RequantCuda, SameBitsForEveryKindAndWidth) {
  for (int bits : {8, 4})
    for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric})
      for (int64_t cols :
           sizes({0, 1, 15, 17, 33, 257}, {3, 16, 31, 32, 47, 63, 65, 129, 256, 320}))
        for (size_t skew : {0, 1})
          for (double alpha : {-0.001, 0.5})
            Check(bits, scheme, 3, cols, 64, 0, skew, alpha, 0.999, noise(3 * cols, 7));
}

TEST_F(RequantCuda, GroupsOfEverySizeAndNoiseOfEveryAlignment) {
  for (int bits : {8, 4})
    for (int64_t group : {32, 96, 256, 512, 1024})
      for (int64_t offset : {int64_t{0}, int64_t{1}, (int64_t{1} << 40) + 112})
        Check(bits, Scheme::asymmetric, 2, 1100, group, offset, 0, -0.01, 1.0, noise(2200, 3));
}

// Nothing moves without a step; groups that would not be finite are left alone and counted.
TEST_F(RequantCuda, ZeroStepsAndNonFiniteSteps) {
  std::vector<float> delta(256, 0.0f);
  for (int i = 96; i < 128; ++i) delta[static_cast<size_t>(i)] = 0.1f;
  delta[130] = std::numeric_limits<float>::quiet_NaN();
  delta[170] = std::numeric_limits<float>::infinity();
  delta[200] = 3e38f;
  for (int bits : {8, 4})
    for (Scheme scheme : {Scheme::symmetric, Scheme::asymmetric})
      for (double decay : {1.0, 0.9}) Check(bits, scheme, 1, 256, 32, 0, 0, 2.0, decay, delta);
}

TEST_F(RequantCuda, BadArgumentsAreRefused) {
  GroupsOnBoth w({1, 32, 32, 8}, Scheme::symmetric, 0);
  DeviceArray<float> d(std::vector<float>(32, 1.0f));
  DeviceArray<int64_t> skipped(1);
  auto run = [&](const RequantOptions& o) {
    return cuda::requant_add_sr(w.device(), d.data(), o, skipped.data(), nullptr);
  };
  EXPECT_EQ(run({.alpha = std::numeric_limits<double>::infinity()}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.decay = 1.5}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.decay = std::numeric_limits<double>::quiet_NaN()}), cudaErrorInvalidValue);
  EXPECT_EQ(run({.offset = -1}), cudaErrorInvalidValue);
  w.Expect();
}

}  // namespace
}  // namespace lowtide::quant
