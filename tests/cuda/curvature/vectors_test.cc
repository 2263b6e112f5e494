// SPDX-License-Identifier: Apache-2.0
#include "curvature/vectors.h"

#include "curvature/device_lists.h"
#include "curvature/vectors_cuda.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;

class VectorsCuda : public ScalarReference {};

TEST_F(VectorsCuda, DotsHaveTheSameBits) {
  for (uint64_t seed : {0, 1, 2}) {
    Lists xs(seed, true), ys(seed + 10, true);
    std::vector<DotPair> host, device;
    for (size_t t = 0; t < xs.size(); ++t) {
      Both &x = xs.all()[t], &y = ys.all()[t];
      host.push_back({x.host.data(), y.host.data(), x.dtype, y.dtype, x.n});
      device.push_back({x.device.data(), y.device.data(), x.dtype, y.dtype, x.n});
    }
    DeviceArray<double> out(xs.size()), scratch(static_cast<size_t>(cuda::dot_scratch(device)));
    ASSERT_EQ(cuda::dot(out.data(), device, scratch.data(), nullptr), 0);
    std::vector<double> want(xs.size());
    dot(want.data(), host);
    EXPECT_TRUE(SameBits(out.host(), want));
  }
}

TEST_F(VectorsCuda, AxpbyHasTheSameBits) {
  for (uint64_t seed : {0, 1, 2})
    for (float a : {0.7f, 0.0f}) {
      Lists xs(seed, true), ys(seed + 10, true);
      std::vector<AxpbyPair> host, device;
      for (size_t t = 0; t < xs.size(); ++t) {
        Both &x = xs.all()[t], &y = ys.all()[t];
        host.push_back({y.host.data(), x.host.data(), y.dtype, x.dtype, x.n});
        device.push_back({y.device.data(), x.device.data(), y.dtype, x.dtype, x.n});
      }
      ASSERT_EQ(cuda::axpby(device, a, -0.3f, nullptr), 0);
      axpby(host, a, -0.3f);
      ys.same("axpby");
    }
}

// The long one has more blocks than threads fold them.
TEST_F(VectorsCuda, FinishedDifferencesHaveTheSameBits) {
  for (int64_t n : sizes({0, 1, 31, 33, 4095, 4097, 20001}, {600 * 4096 + 5}))
    for (bool with_q : {false, true}) {
      auto plus = noise(n, 1);
      const auto minus = noise(n, 2), q = noise(n, 3);
      DeviceArray<float> dplus(plus), dminus(minus), dq(q);
      DeviceArray<double> out(2), scratch(static_cast<size_t>(cuda::fd_finish_scratch(n)));
      const float* const device_q = with_q ? dq.data() : nullptr;
      ASSERT_EQ(cuda::fd_finish(out.data(), {dplus.data(), dminus.data(), device_q, n, 12.5f},
                                scratch.data(), nullptr),
                0);
      std::vector<double> want(2);
      fd_finish(want.data(), {plus.data(), minus.data(), with_q ? q.data() : nullptr, n, 12.5f});
      EXPECT_TRUE(SameBits(dplus.host(), plus)) << n;
      EXPECT_TRUE(SameBits(out.host(), want)) << n;
    }
}

TEST_F(VectorsCuda, EmptyListsAreFineAndBadSizesRefused) {
  EXPECT_EQ(cuda::dot(nullptr, {}, nullptr, nullptr), 0);
  EXPECT_EQ(cuda::axpby({}, 1, 1, nullptr), 0);
  DotPair pair;
  pair.n = -1;
  EXPECT_EQ(cuda::dot(nullptr, {pair}, nullptr, nullptr), cudaErrorInvalidValue);
  AxpbyPair move;
  move.n = -1;
  EXPECT_EQ(cuda::axpby({move}, 1, 1, nullptr), cudaErrorInvalidValue);
  Difference d;
  d.n = -1;
  EXPECT_EQ(cuda::fd_finish(nullptr, d, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::curvature
