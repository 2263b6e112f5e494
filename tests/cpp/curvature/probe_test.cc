// SPDX-License-Identifier: Apache-2.0
#include "curvature/probe.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "curvature/lists.h"
#include "random/stream.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;

const Probe kProbe{.seed = 0x0123456789abcdefull, .step = 5, .slot = 2};
uint32_t param_of(size_t t) { return static_cast<uint32_t>(3 * t + 1); }

std::vector<float> signs(int64_t n, size_t t) {
  std::vector<float> z(static_cast<size_t>(n));
  random::sample(
      z.data(), n, 0,
      {.seed = kProbe.seed, .step = kProbe.step, .slot = kProbe.slot, .param = param_of(t)},
      random::Dist::rademacher);
  return z;
}

template <class Tensor>
std::vector<Tensor> tensors(std::vector<Buffer>& list) {
  std::vector<Tensor> out;
  for (size_t t = 0; t < list.size(); ++t)
    out.push_back({list[t].data(), list[t].dtype, list[t].size(), param_of(t)});
  return out;
}

std::vector<SignedPair> pairs(std::vector<std::vector<float>>& accs, std::vector<Buffer>& xs) {
  std::vector<SignedPair> out;
  for (size_t t = 0; t < xs.size(); ++t)
    out.push_back({accs[t].data(), xs[t].data(), xs[t].dtype, xs[t].size(), param_of(t)});
  return out;
}

std::vector<std::vector<float>> accumulators() {
  std::vector<std::vector<float>> accs;
  for (int64_t n : kAwkward) accs.push_back(noise(n, 77 + accs.size()));
  return accs;
}

TEST(Probe, SameBitsForEveryIsaAndThreadCount) {
  for (size_t which : {0u, 1u, 2u})
    same_everywhere([&] {
      auto xs = buffers(1, which);
      std::vector<double> dots(xs.size());
      sign_dot(dots.data(), tensors<SignedInput>(xs), kProbe);
      uint64_t h = digest(dots);
      sign_axpy(tensors<SignedTarget>(xs), 1e-3f, kProbe);
      h ^= 3 * bits(xs);
      for (float a : {0.0f, 1.0f, 0.9f})
        for (bool squared : {false, true}) {
          auto accs = accumulators();
          sign_fma(pairs(accs, xs), {a, 0.1f, squared}, kProbe);
          for (const auto& acc : accs) h = h * 31 + digest(acc);
        }
      sign_fill(tensors<SignedTarget>(xs), 0.5f, kProbe);
      return h * 31 + bits(xs);
    });
}

TEST(Probe, TheSignsAreThoseOfTheStream) {
  for (size_t which : {0u, 1u, 2u}) {
    auto xs = buffers(1, which);
    sign_fill(tensors<SignedTarget>(xs), 1.0f, kProbe);
    for (size_t t = 0; t < xs.size(); ++t) {
      const auto z = signs(xs[t].size(), t);
      for (int64_t i = 0; i < xs[t].size(); ++i) ASSERT_EQ(xs[t].read(i), z[i]) << t << ", " << i;
    }
  }
}

TEST(Probe, EachResultIsItsDefinition) {
  for (size_t which : {0u, 1u, 2u}) {
    auto xs = buffers(1, which);
    const auto old = xs;
    auto accs = accumulators(), squares = accs;
    const auto before = accs;
    std::vector<double> dots(xs.size());
    sign_dot(dots.data(), tensors<SignedInput>(xs), kProbe);
    sign_fma(pairs(accs, xs), {0.9f, 0.1f, false}, kProbe);
    sign_fma(pairs(squares, xs), {0.9f, 0.1f, true}, kProbe);
    sign_axpy(tensors<SignedTarget>(xs), 0.25f, kProbe);
    for (size_t t = 0; t < xs.size(); ++t) {
      const auto z = signs(xs[t].size(), t);
      long double want = 0, size = 0;
      for (int64_t i = 0; i < xs[t].size(); ++i) {
        const float x = old[t].read(i), acc = before[t][i];
        EXPECT_EQ(xs[t].read(i), old[t].rounded(x + 0.25f * z[i]));
        EXPECT_EQ(accs[t][i], 0.9f * acc + 0.1f * (z[i] * x));
        EXPECT_EQ(squares[t][i], 0.9f * acc + 0.1f * (x * x));
        want += static_cast<long double>(x) * z[i], size += std::fabs(x);
      }
      // 128 additions in each of 32 sums, the two trees: each rounds once in double.
      EXPECT_NEAR(dots[t], static_cast<double>(want), static_cast<double>(size) * 150 * 0x1p-53);
    }
  }
}

// More than one piece of work, and an independent sum in the same order.
TEST(Probe, TheOrderOfTheSumIsTheOneInTheHeader) {
  const int64_t n = 5 * 4096 + 37;
  const auto x = noise(n, 3);
  const auto z = signs(n, 0);
  std::vector<double> part;
  for (int64_t at = 0; at < n; at += 4096) {
    double sums[32] = {};
    for (int64_t i = at; i < std::min(n, at + 4096); ++i)
      sums[i % 32] += static_cast<double>(x[i] * z[i]);
    for (int w = 16; w > 0; w /= 2)
      for (int i = 0; i < w; ++i) sums[i] += sums[i + w];
    part.push_back(sums[0]);
  }
  const double want = (((part[0] + part[1]) + (part[2] + part[3])) + (part[4] + part[5]));
  double got = 0;
  sign_dot(&got, {{x.data(), Dtype::f32, n, param_of(0)}}, kProbe);
  EXPECT_EQ(got, want);
}

TEST(Probe, ATensorAloneEqualsTheTensorInAList) {
  auto xs = buffers(5, 1);
  const auto list = tensors<SignedInput>(xs);
  std::vector<double> dots(xs.size());
  sign_dot(dots.data(), list, kProbe);
  for (size_t t = 0; t < list.size(); ++t) {
    double one = 0;
    sign_dot(&one, {list[t]}, kProbe);
    EXPECT_EQ(one, dots[t]);
  }
  sign_dot(nullptr, {}, kProbe);
}

TEST(Probe, WithAZeroFactorTheAccumulatorIsNotRead) {
  auto x = noise(100, 1);
  std::vector<float> acc(100, std::numeric_limits<float>::quiet_NaN());
  sign_fma({{acc.data(), x.data(), Dtype::f32, 100, 0}}, {0, 2, false}, kProbe);
  for (float v : acc) EXPECT_TRUE(std::isfinite(v));
}

TEST(Probe, TheAccumulatorMayBeTheInput) {
  auto x = noise(1000, 1);
  auto want = noise(1000, 9);
  sign_fma({{want.data(), x.data(), Dtype::f32, 1000, 4}}, {0, 1, false}, kProbe);
  sign_fma({{x.data(), x.data(), Dtype::f32, 1000, 4}}, {0, 1, false}, kProbe);
  EXPECT_EQ(x, want);
}

TEST(Probe, ImpossibleArgumentsAreRefused) {
  std::vector<float> x(100, 1.0f);
  const auto before = x;
  EXPECT_THROW(sign_axpy({{x.data(), Dtype::f32, -1, 0}}, 1, kProbe), Error);
  EXPECT_THROW(sign_fma({{x.data() + 1, x.data(), Dtype::f32, 50, 0}}, {}, kProbe), Error);
  EXPECT_THROW(sign_fma({{x.data(), x.data(), Dtype::bf16, 50, 0}}, {}, kProbe), Error);
  EXPECT_THROW(sign_axpy({{&x[0], Dtype::f32, 9, 0}, {&x[8], Dtype::f32, 9, 1}}, 1, kProbe), Error);
  EXPECT_THROW(sign_fill({{&x[0], Dtype::f32, 1, 0}, {&x[0], Dtype::f32, 1, 1}}, 1, kProbe), Error);
  std::vector<float> y(100);
  EXPECT_THROW(
      sign_fma({{&y[0], &x[0], Dtype::f32, 9, 0}, {&x[8], &y[9], Dtype::f32, 9, 1}}, {}, kProbe),
      Error);
  EXPECT_EQ(x, before);
  // Empty tensors lie nowhere, and one input may serve two accumulators.
  sign_fill({{&x[3], Dtype::f32, 0, 0}, {&x[0], Dtype::f32, 9, 1}}, 1, kProbe);
  sign_fma({{&y[0], &x[0], Dtype::f32, 9, 0}, {&y[9], &x[0], Dtype::f32, 9, 1}}, {}, kProbe);
}

}  // namespace
}  // namespace lowtide::curvature
