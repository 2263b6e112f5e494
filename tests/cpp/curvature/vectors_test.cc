// SPDX-License-Identifier: Apache-2.0
#include "curvature/vectors.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "curvature/lists.h"

namespace lowtide::curvature {
namespace {

using namespace ::lowtide::testing;

std::vector<DotPair> dots_of(std::vector<Buffer>& xs, std::vector<Buffer>& ys) {
  std::vector<DotPair> out;
  for (size_t t = 0; t < xs.size(); ++t)
    out.push_back({xs[t].data(), ys[t].data(), xs[t].dtype, ys[t].dtype, xs[t].size()});
  return out;
}

std::vector<AxpbyPair> axpbys_of(std::vector<Buffer>& ys, std::vector<Buffer>& xs) {
  std::vector<AxpbyPair> out;
  for (size_t t = 0; t < xs.size(); ++t)
    out.push_back({ys[t].data(), xs[t].data(), ys[t].dtype, xs[t].dtype, xs[t].size()});
  return out;
}

// Every pair of types meets in one of the nine.
TEST(Vectors, SameBitsForEveryIsaAndThreadCount) {
  for (size_t k = 0; k < 9; ++k)
    same_everywhere([&] {
      auto xs = buffers(1, k % 3), ys = buffers(50, k / 3);
      std::vector<double> sums(xs.size());
      dot(sums.data(), dots_of(xs, ys));
      uint64_t h = digest(sums);
      for (float a : {0.0f, 0.7f}) {
        axpby(axpbys_of(ys, xs), a, -0.3f);
        h = h * 31 + bits(ys);
      }
      for (int64_t n : kAwkward) {
        auto plus = noise(n, 3);
        const auto minus = noise(n, 4), q = noise(n, 5);
        double out[2];
        fd_finish(out, {plus.data(), minus.data(), n % 2 == 0 ? q.data() : nullptr, n, 12.5f});
        h = digest(out, sizeof out, digest(plus) + h * 31);
      }
      return h;
    });
}

TEST(Vectors, EachResultIsItsDefinition) {
  for (size_t k = 0; k < 9; ++k) {
    auto xs = buffers(1, k % 3), ys = buffers(50, k / 3);
    const auto old = ys;
    std::vector<double> sums(xs.size());
    dot(sums.data(), dots_of(xs, ys));
    axpby(axpbys_of(ys, xs), 0.7f, -0.3f);
    for (size_t t = 0; t < xs.size(); ++t) {
      long double want = 0, size = 0;
      for (int64_t i = 0; i < xs[t].size(); ++i) {
        const float x = xs[t].read(i), y = old[t].read(i);
        EXPECT_EQ(ys[t].read(i), ys[t].rounded(0.7f * y + -0.3f * x));
        want += static_cast<long double>(x) * y, size += std::fabs(static_cast<long double>(x) * y);
      }
      // 128 additions in each of 32 sums, the two trees: each rounds once in double.
      EXPECT_NEAR(sums[t], static_cast<double>(want), static_cast<double>(size) * 150 * 0x1p-53);
    }
  }
}

TEST(Vectors, ADifferenceIsFinishedAsTheHeaderSays) {
  const int64_t n = 20001;
  auto plus = noise(n, 3);
  const auto old = plus, minus = noise(n, 4), q = noise(n, 5);
  double out[2];
  fd_finish(out, {plus.data(), minus.data(), q.data(), n, 12.5f});
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(plus[i], (old[i] - minus[i]) * 12.5f);
  double want = 0;  // the sums are those of dot
  dot(&want, {{plus.data(), plus.data(), Dtype::f32, Dtype::f32, n}});
  EXPECT_EQ(out[0], want);
  dot(&want, {{plus.data(), q.data(), Dtype::f32, Dtype::f32, n}});
  EXPECT_EQ(out[1], want);
  plus = old;
  fd_finish(out, {plus.data(), minus.data(), nullptr, n, 12.5f});
  EXPECT_EQ(out[1], 0.0);
}

// 1e30² is beyond float32; small products beside a large one are not lost before 2^-53.
TEST(Vectors, ProductsAreExactInDouble) {
  const std::vector<float> x = {1e30f, 1.0f + 0x1p-23f, 0x1p-140f}, y = {1e30f, 1.0f + 0x1p-23f, 2};
  double got = 0;
  dot(&got, {{x.data(), y.data(), Dtype::f32, Dtype::f32, 1}});
  EXPECT_EQ(got, static_cast<double>(1e30f) * static_cast<double>(1e30f));
  dot(&got, {{x.data() + 1, y.data() + 1, Dtype::f32, Dtype::f32, 1}});
  EXPECT_EQ(got, 1.0 + 0x1p-22 + 0x1p-46);
  dot(&got, {{x.data() + 2, y.data() + 2, Dtype::f32, Dtype::f32, 1}});
  EXPECT_EQ(got, 0x1p-139);
}

TEST(Vectors, WithAZeroFactorTheTargetIsNotRead) {
  const auto x = noise(100, 1);
  std::vector<float> y(100, std::numeric_limits<float>::quiet_NaN());
  axpby({{y.data(), x.data(), Dtype::f32, Dtype::f32, 100}}, 0, 1);
  EXPECT_EQ(y, x);
}

TEST(Vectors, ImpossibleArgumentsAreRefused) {
  std::vector<float> x(100, 1.0f);
  const auto before = x;
  double out[2];
  EXPECT_THROW(dot(out, {{x.data(), x.data(), Dtype::f32, Dtype::f32, -1}}), Error);
  EXPECT_THROW(axpby({{x.data() + 1, x.data(), Dtype::f32, Dtype::f32, 50}}, 1, 1), Error);
  EXPECT_THROW(fd_finish(out, {x.data(), x.data() + 49, nullptr, 50, 1}), Error);
  EXPECT_THROW(fd_finish(out, {x.data(), x.data() + 50, x.data(), 50, 1}), Error);
  EXPECT_EQ(x, before);
}

}  // namespace
}  // namespace lowtide::curvature
