// SPDX-License-Identifier: Apache-2.0
#include "curvature/probe.h"

#include "curvature/device_lists.h"
#include "curvature/probe_cuda.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;

const Probe kProbe{0x0123456789abcdefull, 5, 2};

class ProbeCuda : public ScalarReference {};

template <class Tensor, class Of>
std::vector<Tensor> tensors(Lists& lists, const Of& of) {
  std::vector<Tensor> out;
  for (Both& b : lists.all())
    out.push_back({of(b), b.dtype, b.n, static_cast<uint32_t>(3 * out.size() + 1)});
  return out;
}
void* on_host(Both& b) { return b.host.data(); }
void* on_device(Both& b) { return b.device.data(); }

TEST_F(ProbeCuda, DotsHaveTheSameBits) {
  for (uint64_t seed : {0, 1, 2}) {
    Lists xs(seed, true);
    const auto list = tensors<SignedInput>(xs, on_device);
    DeviceArray<double> out(xs.size()), scratch(static_cast<size_t>(cuda::sign_dot_scratch(list)));
    ASSERT_EQ(cuda::sign_dot(out.data(), list, kProbe, scratch.data(), nullptr), 0);
    std::vector<double> want(xs.size());
    sign_dot(want.data(), tensors<SignedInput>(xs, on_host), kProbe);
    EXPECT_TRUE(SameBits(out.host(), want));
  }
}

TEST_F(ProbeCuda, MovesHaveTheSameBits) {
  for (uint64_t seed : {0, 1, 2}) {
    Lists xs(seed, true);
    ASSERT_EQ(cuda::sign_axpy(tensors<SignedTarget>(xs, on_device), 0.3f, kProbe, nullptr), 0);
    sign_axpy(tensors<SignedTarget>(xs, on_host), 0.3f, kProbe);
    xs.same("sign_axpy");
    ASSERT_EQ(cuda::sign_fill(tensors<SignedTarget>(xs, on_device), 0.3f, kProbe, nullptr), 0);
    sign_fill(tensors<SignedTarget>(xs, on_host), 0.3f, kProbe);
    xs.same("sign_fill");
  }
}

TEST_F(ProbeCuda, JoinedPairsHaveTheSameBits) {
  for (uint64_t seed : {0, 1, 2})
    for (const Join& join : {Join{0.9f, 0.1f, false}, Join{0.0f, 0.1f, false},
                             Join{0.9f, 0.1f, true}, Join{1.0f, 1.0f, true}}) {
      Lists xs(seed, true), accs(seed + 10, false);
      std::vector<SignedPair> host, device;
      for (size_t t = 0; t < xs.size(); ++t) {
        Both &x = xs.all()[t], &acc = accs.all()[t];
        const auto param = static_cast<uint32_t>(t + 5);
        host.push_back(
            {reinterpret_cast<float*>(acc.host.data()), x.host.data(), x.dtype, x.n, param});
        device.push_back(
            {reinterpret_cast<float*>(acc.device.data()), x.device.data(), x.dtype, x.n, param});
      }
      ASSERT_EQ(cuda::sign_fma(device, join, kProbe, nullptr), 0);
      sign_fma(host, join, kProbe);
      accs.same(join.squared ? "squares" : "sign_fma");
    }
}

TEST_F(ProbeCuda, EmptyListsAreFineAndBadSizesRefused) {
  EXPECT_EQ(cuda::sign_dot(nullptr, {}, kProbe, nullptr, nullptr), 0);
  EXPECT_EQ(cuda::sign_axpy({}, 1, kProbe, nullptr), 0);
  EXPECT_EQ(cuda::sign_fma({}, {}, kProbe, nullptr), 0);
  EXPECT_EQ(cuda::sign_dot(nullptr, {{nullptr, Dtype::f32, -1, 0}}, kProbe, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::sign_fill({{nullptr, Dtype::f32, -1, 0}}, 1, kProbe, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::sign_fma({{nullptr, nullptr, Dtype::f32, -1, 0}}, {}, kProbe, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lowtide::curvature
